"""A streaming standby of a local Postgres, for reads that may go to a replica."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from devstack import postgres, processes
from devstack.postgres_binaries import DEFAULT_MAJOR, bin_folder, ensure_system_user, system_user
from devstack.processes import ProcessRecord
from devstack.stack import Stack


class Standby:
    """A copy of a primary that follows it."""

    def __init__(self, primary: Stack) -> None:
        self._superuser = urlsplit(primary.environ["PLANT_DATABASE_SUPERUSER_URL"])
        self._server = postgres.Postgres(primary.home.with_name(f"{primary.home.name}-standby"), DEFAULT_MAJOR)
        self._record: ProcessRecord | None = None
        self.port = processes.choose_port(None, {self._superuser.port or 0})

    def copy(self) -> None:
        """Fill the data folder from the primary, and tell the server there to follow it."""
        user = ensure_system_user()
        self._server.data.mkdir(parents=True)
        self._server.data.chmod(0o700)
        if user is not None:
            shutil.chown(self._server.data, user, user)
        source, data = f"--dbname={self._superuser.geturl()}", f"--pgdata={self._server.data}"
        subprocess.run(
            [bin_folder(DEFAULT_MAJOR) / "pg_basebackup", source, data, "--write-recovery-conf", "--checkpoint=fast"],
            check=True,
            cwd="/",
            env={**os.environ, "LC_ALL": "C"},
            user=system_user(),
        )
        # Queries are short, and one that a replayed vacuum cancels would tell nothing about Plant.
        with (self._server.data / "postgresql.auto.conf").open("a") as settings:
            settings.write("max_standby_archive_delay = -1\nmax_standby_streaming_delay = -1\n")

    def start(self) -> None:
        """Returns once it answers queries."""
        self._server.start(self.port, str(self._superuser.password), self._note)

    def kill(self) -> None:
        """End it with SIGKILL."""
        processes.kill(self._record)

    def address(self, primary_url: str) -> str:
        """Return the address of the same database and role here."""
        url = urlsplit(primary_url)
        return url._replace(netloc=f"{url.username}:{url.password}@127.0.0.1:{self.port}").geturl()

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self._server.data, ignore_errors=True)
        shutil.rmtree(self._server.home, ignore_errors=True)

    def _note(self, record: ProcessRecord) -> None:
        self._record = record


@contextmanager
def standby(primary: Stack) -> Iterator[Standby]:
    """Yield a running standby of `primary`; it is gone after the block."""
    made = Standby(primary)
    try:
        made.copy()
        made.start()
        yield made
    finally:
        made.remove()
