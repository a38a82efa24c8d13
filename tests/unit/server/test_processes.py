"""Several processes under one parent, of a program that is not ingress: started in turn, replaced, and ended."""

from __future__ import annotations

import doctest
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from server import processes
from server.errors import ProcessEnded
from server.processes import ProcessStart, run_several

SERVES = """
import os, pathlib, signal, sys, time
started = pathlib.Path(sys.argv[1]) / f"{sys.argv[3]}.{os.getpid()}"
def end(*_):
    started.with_suffix(started.suffix + ".ended").touch()
    sys.exit()
signal.signal(signal.SIGTERM, end)
started.touch()
pathlib.Path(sys.argv[2]).touch()
os.read(int(sys.argv[4]), 1)
"""
DEADLINE_SECONDS = 120


def command(folder: Path, program: str = SERVES) -> processes.Command:
    def make(start: ProcessStart) -> tuple[list[str], Mapping[str, str]]:
        arguments = [str(folder), str(start.ready_file), str(start.number), str(start.pipe)]
        return [sys.executable, "-c", program, *arguments], {}

    return make


def started(folder: Path, number: int) -> list[int]:
    """Pids of the processes that had this number."""
    return [int(path.suffix[1:]) for path in folder.glob(f"{number}.*") if path.suffix != ".ended"]


def in_background(work: Callable[[], None]) -> None:
    """Do it while the parent's loop turns, then end the parent as an operator does."""

    def run() -> None:
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=run, daemon=True).start()


def wait_for(condition: Callable[[], object]) -> None:
    event = threading.Event()
    for _ in range(DEADLINE_SECONDS * 20):
        if condition():
            return
        event.wait(0.05)
    raise AssertionError("too late")


def test_a_dead_process_is_replaced_and_all_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one runs on; at SIGTERM each of those that run gets one too, and is waited for."""
    monkeypatch.setattr(processes, "RESTART_DELAY_SECONDS", 0.0)

    def kill_one() -> None:
        os.kill(started(tmp_path, 0)[0], signal.SIGKILL)
        wait_for(lambda: len(started(tmp_path, 0)) == 2)

    run_several(2, command(tmp_path), lambda _: in_background(kill_one))
    assert (len(started(tmp_path, 0)), len(started(tmp_path, 1))) == (2, 1)
    assert len(list(tmp_path.glob("*.ended"))) == 2


def test_one_that_ends_at_its_start_ends_the_others(tmp_path: Path) -> None:
    """The error names its exit code; the next one is not started."""
    with pytest.raises(ProcessEnded) as raised:
        run_several(2, command(tmp_path, "raise SystemExit(7)"), lambda _: None)
    assert "exit code 7" in raised.value.why
    assert started(tmp_path, 1) == []


LATE = SERVES.replace(
    "pathlib.Path(sys.argv[2]).touch()",
    "go = pathlib.Path(sys.argv[1]) / 'go'\nwhile not go.exists(): time.sleep(0.01)\npathlib.Path(sys.argv[2]).touch()",
)
"""A program that is ready once somebody lets it: as ingress is once Kafka answers."""


def test_readiness_is_announced_when_all_are_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the time to wait for the first one is over, as without Kafka; then as soon as the last one is."""
    monkeypatch.setattr(processes, "START_TIMEOUT_SECONDS", 0.0)
    announced: list[bool] = []

    def allow() -> None:
        wait_for(lambda: started(tmp_path, 0) and started(tmp_path, 1))
        (tmp_path / "go").touch()
        wait_for(lambda: announced)

    in_background(allow)
    run_several(2, command(tmp_path, LATE), lambda _: announced.append((tmp_path / "go").exists()))
    assert announced == [True]


def test_one_that_always_dies_is_started_ever_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each delay is asked for with one death more, and the others are watched meanwhile."""
    monkeypatch.setattr(processes, "restart_delay_seconds", lambda deaths: asked.append(deaths) or 0.0)
    asked: list[int] = []
    dies = SERVES.replace("os.read(", "if sys.argv[3] == '1': sys.exit(3)\nos.read(")

    def kill_the_other() -> None:
        wait_for(lambda: len(started(tmp_path, 1)) >= 4)
        os.kill(started(tmp_path, 0)[0], signal.SIGKILL)
        wait_for(lambda: len(started(tmp_path, 0)) == 2)

    run_several(2, command(tmp_path, dies), lambda _: in_background(kill_the_other))
    assert asked[:3] == [1, 2, 3]
    assert asked.count(1) == 2


def test_a_process_that_ran_for_long_starts_again_at_once(tmp_path: Path) -> None:
    """The count of deaths begins again after a minute."""
    parent = processes.Processes(1, command(tmp_path), tmp_path)
    parent._started_at_seconds[0] = 1_000.0
    before = processes.Restart(5, 990.0)
    assert parent._next_restart(0, before, 1_000.0 + processes.STEADY_SECONDS).deaths == 1
    assert parent._next_restart(0, before, 1_001.0) == processes.Restart(6, 1_001.0 + 32.0)


def test_the_docstrings_are_right() -> None:
    """The example in the module holds."""
    assert doctest.testmod(processes).failed == 0
