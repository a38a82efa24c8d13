"""File systems of a few megabytes, on which what a role makes in a database lies, so that they can be full."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from devstack import sql
from tests.conftest import Database


@contextmanager
def small_disk(database: Database, role: str, size_bytes: int, before_unmount: Sequence[str]) -> Iterator[Path]:
    """Yield the folder of a file system that has whatever the role makes from now on.

    The statements drop all of it at the end. Skips the test where nothing can be mounted.
    """
    name, superuser = f"small_{secrets.token_hex(4)}", database.superuser_url
    sql.execute(
        superuser,
        [
            "SET allow_in_place_tablespaces = true",
            f"CREATE TABLESPACE {name} LOCATION ''",
            f"GRANT CREATE ON TABLESPACE {name} TO PUBLIC",
            f"ALTER ROLE {role} IN DATABASE {database.name} SET default_tablespace = {name}",
        ],
    )
    oid = sql.value(superuser, f"SELECT oid FROM pg_tablespace WHERE spcname = '{name}'")
    place = Path(sql.value(superuser, "SHOW data_directory")) / "pg_tblspc" / str(oid)
    folders = list(place.iterdir()) if place.is_dir() else []
    owner = folders[0].stat() if folders else None
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", *map(str, folders[:1])]
    mounted = owner is not None and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        if not mounted or owner is None:
            pytest.skip("mounting a small file system needs root, and a server on this machine")
        folder = folders[0]
        shutil.chown(folder, owner.st_uid, owner.st_gid)
        folder.chmod(owner.st_mode & 0o777)
        yield folder
    finally:
        sql.execute(superuser, [*before_unmount, "CHECKPOINT"])
        if mounted:
            # Lazily: a session may still hold a file of a table that is gone.
            subprocess.run(["umount", "--lazy", folders[0]], check=True)
        sql.execute(superuser, [f"DROP TABLESPACE {name}"])
