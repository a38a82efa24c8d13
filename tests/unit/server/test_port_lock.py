"""The lock of a shared port: where it is kept, and who can't take it away."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from server import port_lock
from server.port_lock import PortTaken, hold_port_lock, lock_folder


@pytest.fixture
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a folder for temporary files of this test alone; the home is in `home`."""
    (tmp_path / "home" / ".cache").mkdir(parents=True)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(port_lock, "RUNTIME_FOLDERS", tmp_path / "run")
    monkeypatch.setattr(pwd, "getpwuid", lambda _: SimpleNamespace(pw_dir=str(tmp_path / "home")))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    return tmp_path


def refused(port: int) -> bool:
    try:
        with hold_port_lock("127.0.0.1", port):
            return False
    except PortTaken:
        return True


def test_one_deployment_holds_a_port(own_places: Path) -> None:
    """Another port, or another address, has another lock; it is free when the first has ended."""
    with hold_port_lock("127.0.0.1", 1):
        assert (refused(1), refused(2)) == (True, False)
        with hold_port_lock("0.0.0.0", 1):
            pass
    assert not refused(1)


def test_a_killed_process_leaves_no_lock(own_places: Path) -> None:
    """The kernel ends it with the process; the file that stays holds nobody off."""
    file = lock_folder() / f"127.0.0.1-1{port_lock._network()}.lock"
    program = "import fcntl,os,sys\nfcntl.flock(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)\n"
    held = subprocess.Popen(
        [sys.executable, "-c", f"{program}print(flush=True)\ninput()", str(file)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert held.stdout is not None
    held.stdout.readline()
    assert refused(1)
    held.kill()
    held.communicate()
    assert file.exists()
    assert not refused(1)


def test_a_folder_that_others_can_write_to_is_not_used(own_places: Path) -> None:
    """The next one is taken; where even the last one is another's, or a link, the error names it."""
    runtime, home, temporary = (own_places / name for name in ("run", "home", "temporary"))
    (runtime / str(os.geteuid())).mkdir(parents=True)
    assert lock_folder() == runtime / str(os.geteuid()) / "plant"
    (runtime / str(os.geteuid())).chmod(0o777)
    assert lock_folder() == home / ".cache" / "plant"
    home.chmod(0o777)
    last = lock_folder()
    assert (last.parent, last.stat().st_mode & 0o777) == (temporary, 0o700)
    last.chmod(0o722)
    with pytest.raises(PortTaken, match="only this user"):
        lock_folder()
    last.rmdir()
    last.symlink_to(home)
    with pytest.raises(PortTaken, match="only this user"):
        lock_folder()


def test_a_home_that_is_not_there_is_no_error(own_places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has none."""

    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert lock_folder().parent == own_places / "temporary"
    assert not refused(1)
