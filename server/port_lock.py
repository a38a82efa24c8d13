"""The lock of a shared port: a file in a folder that only this user can write to.

The kernel lets every process of a user share a port of SO_REUSEPORT, and no process of another user. So the lock has to
keep out another deployment of the same user, and nobody else must be able to hold it. It ends with the process that
holds it, however that ends; its file stays, empty.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PRIVATE_FOLDER: Final = 0o700
PRIVATE_FILE: Final = 0o600
OTHERS_MAY_WRITE: Final = 0o022
RUNTIME_FOLDERS: Final = Path("/run/user")
NETWORK_NAMESPACE: Final = Path("/proc/self/ns/net")


class PortTaken(Exception):
    """Another deployment of this user has the port, or no folder for its lock can be used."""


@contextlib.contextmanager
def hold_port_lock(host: str, port: int) -> Iterator[None]:
    """Hold the lock of a port while the block lasts. Raises PortTaken."""
    descriptor = _open(lock_folder(), f"{host}-{port}{_network()}.lock")
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PortTaken("Another plant ingress with several processes has it.") from error
        yield
    finally:
        os.close(descriptor)


def lock_folder() -> Path:
    """Return the first folder that only this user can write to; made where it is missing. Raises PortTaken.

    All deployments of a user find the same one: nothing that a deployment can set decides, unless the first two can't
    be used.
    """
    user = os.geteuid()
    with contextlib.suppress(KeyError):
        home = Path(pwd.getpwuid(user).pw_dir)
        for above in ((RUNTIME_FOLDERS / str(user),), (home, home / ".cache")):
            if all(map(_is_private, above)) and _make_private(above[-1] / "plant"):
                return above[-1] / "plant"
    folder = Path(tempfile.gettempdir()) / f"plant-ingress-{user}"
    if not _make_private(folder):
        raise PortTaken(f"Its lock can't be kept: {folder} is not a folder that only this user can write to.")
    return folder


def _make_private(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.mkdir(mode=PRIVATE_FOLDER)
    return _is_private(folder) and os.access(folder, os.W_OK | os.X_OK)


def _is_private(folder: Path) -> bool:
    """Return whether a path is a folder of this user, no link, and nobody else may write to it."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & OTHERS_MAY_WRITE


def _open(folder: Path, name: str) -> int:
    try:
        return os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, PRIVATE_FILE)
    except OSError as error:
        raise PortTaken(f"Its lock can't be kept: {folder / name}: {error.strerror}.") from error


def _network() -> str:
    """Return the network namespace, where the system has them: a port of another one is another port."""
    try:
        return f"-{NETWORK_NAMESPACE.stat().st_ino}"
    except OSError:
        return ""
