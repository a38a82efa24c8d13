"""Processes and ports of the local stack."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack import kafka, postgres, processes
from devstack.processes import PORTS, ProcessRecord, choose_port
from tests.support.waiting import DEADLINE_SECONDS


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[ProcessRecord]:
    """A process that waits for a signal."""
    code = "import signal; print('up', flush=True); signal.pause()"
    record = processes.spawn([sys.executable, "-c", code], log=tmp_path / "logs" / "sleeper.log", cwd=tmp_path)
    yield record
    processes.kill(record)


def listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


def test_servers_get_no_setting_of_plant_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Postgres may run as another user, who can read its environment: no password and no master key is there."""
    monkeypatch.setenv("PLANT_MASTER_KEY", "secret")
    monkeypatch.setenv("PGPASSWORD", "secret")

    for made in (kafka._environ(), postgres._environ()):
        assert [name for name in made if name.startswith("PLANT_")] == []
        assert made["PATH"] == os.environ["PATH"]
    assert "PGPASSWORD" not in postgres._environ()


def test_process_is_known_by_pid_and_start_time(sleeper: ProcessRecord) -> None:
    """The same pid with another start time is another process."""
    recycled = ProcessRecord(sleeper.pid, sleeper.started_at - 60)

    assert processes.is_running(sleeper)
    assert not processes.is_running(recycled)
    processes.send(recycled, signal.SIGKILL)
    assert processes.is_running(sleeper)


def test_killed_process_is_gone(sleeper: ProcessRecord) -> None:
    """After `kill` the process does not run, and killing it again is harmless."""
    processes.kill(sleeper)

    assert not processes.is_running(sleeper)
    processes.kill(sleeper)
    processes.kill(None)


def test_process_has_a_session_of_its_own(sleeper: ProcessRecord) -> None:
    """Ctrl-C in the terminal that started it does not reach it."""
    assert os.getsid(sleeper.pid) == sleeper.pid != os.getsid(0)


def test_output_goes_to_the_log(sleeper: ProcessRecord, tmp_path: Path) -> None:
    """What the process prints is in its log."""
    log = tmp_path / "logs" / "sleeper.log"

    assert processes.wait_ready(lambda: log.read_text() == "up\n", sleeper, timeout_seconds=DEADLINE_SECONDS)


def test_leftovers_are_found_by_their_folder(sleeper: ProcessRecord, tmp_path: Path) -> None:
    """A process is found by the folder it works in, and only there."""
    name = processes.psutil.Process(sleeper.pid).name()

    assert processes.working_in(tmp_path / "logs", name) == []
    processes.clear(tmp_path, name, timeout_seconds=0)
    assert not processes.is_running(sleeper)


def test_wanted_port_is_kept_while_it_is_free() -> None:
    """The last port is taken again, unless it is reserved."""
    port = choose_port(None, set())

    assert choose_port(port, set()) == port
    assert choose_port(port, {port}) != port
    assert port in PORTS


def test_wanted_port_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that becomes free a moment later is still taken."""
    port = choose_port(None, set())
    listener = listen(port)
    timer = threading.Timer(0.3, listener.close)
    timer.start()

    assert choose_port(port, set()) == port
    timer.join()


def test_port_in_use_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that someone else keeps is replaced by another."""
    monkeypatch.setattr(processes, "PORT_TIMEOUT_SECONDS", 0.1)
    port = choose_port(None, set())
    with listen(port):
        assert choose_port(port, set()) != port
