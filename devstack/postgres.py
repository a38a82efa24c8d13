"""A real Postgres with pgvector, on a loopback port, with passwords."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devstack import processes, sql
from devstack.errors import OtherVersion, StartFailed, tail
from devstack.postgres_binaries import (
    MAJORS,
    PostgresMajor,
    bin_folder,
    data_folder,
    ensure_system_user,
)
from devstack.processes import Note, ProcessRecord

SERVER_START_TIMEOUT_SECONDS = 180.0
SERVER_STOP_TIMEOUT_SECONDS = 30.0
ORPHAN_TIMEOUT_SECONDS = 3.0
SUPERUSER = "postgres"
DATABASE = "plant"
SCHEMA_GRANT = "GRANT CREATE, USAGE ON SCHEMA public TO plant_owner"
ROLES = (
    "plant_owner", "plant_writer", "plant_ingress", "plant_operator", "plant_api", "plant_auditor", "plant_embedder",
    "plant_deliverer", "plant_endpoints",
)  # fmt: skip

SERVER_SETTINGS = """\
# Written by `plant up` at every start; edits are lost. Put your own in postgresql.conf, after the include.
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
port = {port}
max_connections = 200
# A query of the whole log locks each range and its indexes (docs/runbooks/the-log.md).
max_locks_per_transaction = 256
password_encryption = 'scram-sha-256'

# Nothing that was committed is ever lost.
fsync = on
synchronous_commit = on
full_page_writes = on

# A laptop with bursts of writes.
shared_buffers = '512MB'
max_wal_size = '8GB'
wal_compression = off
checkpoint_timeout = '15min'

log_line_prefix = '%m [%p] %q%u@%d '
timezone = 'UTC'
log_timezone = 'UTC'
"""


class Postgres:
    """A server whose log is under `home`, and its data too, unless the system user can't reach that."""

    name = "postgres"

    def __init__(self, home: Path, major: PostgresMajor) -> None:
        self.home = home
        self.major = major
        self.data = data_folder(home, major)
        self.log = home / "logs" / "postgres.log"

    @property
    def version(self) -> str:
        return str(self.major)

    @property
    def has_data(self) -> bool:
        return (self.data / "PG_VERSION").exists()

    def start(self, port: int, superuser_password: str, note: Note) -> None:
        """Start the server and wait until it answers a query. Raises StartFailed, leaving nothing running.

        `note` is called with the process before the wait, so that it is known even if we are killed meanwhile.
        """
        refuse_other_version(self.home, self.major)
        user = ensure_system_user()
        programs = bin_folder(self.major)
        if not self.has_data:
            self._initialise(programs, user, superuser_password)
        # Backends that outlive a killed server hold its shared memory, and a new one would not start.
        processes.clear(self.data, "postgres", timeout_seconds=ORPHAN_TIMEOUT_SECONDS)
        self._write_settings(port, user)
        argv: list[str | Path] = [programs / "postgres", "-D", self.data]
        record = processes.spawn(argv, log=self.log, cwd=self.data, user=user, environ=_environ())
        note(record)
        url = address(SUPERUSER, superuser_password, port, "postgres")
        if not processes.wait_ready(
            lambda: sql.server_answers(url), record, timeout_seconds=SERVER_START_TIMEOUT_SECONDS
        ):
            ended = not processes.is_running(record)
            processes.kill(record)
            why = "The server ended" if ended else f"It did not answer within {SERVER_START_TIMEOUT_SECONDS:.0f} s"
            raise StartFailed("Postgres did not start.", why=f"{why}; see {self.log}", next_step=tail(self.log))

    def stop(self, record: ProcessRecord | None) -> None:
        """Shut down fast: end sessions, write a checkpoint. After the deadline, kill the server."""
        processes.send(record, signal.SIGINT)
        if not processes.wait_gone(record, timeout_seconds=SERVER_STOP_TIMEOUT_SECONDS):
            processes.kill(record)

    def reset_superuser(self, password: str) -> None:
        """Set a stopped server's superuser password in single-user mode, for when the address file was lost."""
        user = ensure_system_user()
        done = subprocess.run(
            [bin_folder(self.major) / "postgres", "--single", "-D", self.data, "postgres"],
            input=f"ALTER ROLE {SUPERUSER} PASSWORD {sql.literal(password)};\n".encode(),
            capture_output=True,
            check=False,
            cwd=self.data,
            env=_environ(),
            user=user,
        )
        if done.returncode != 0:
            raise StartFailed(
                "The superuser's password could not be set.",
                why=done.stderr.decode(errors="replace").strip().splitlines()[-1],
                next_step=f"tail -50 {self.log}",
            )

    def _initialise(self, programs: Path, user: str | None, superuser_password: str) -> None:
        processes.make_private(self.log.parent)
        self.data.mkdir(parents=True, exist_ok=True)
        self.data.parent.chmod(0o755)
        self.data.chmod(0o700)
        _give(self.data, user)
        locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if self.major >= 17 else []
        with tempfile.NamedTemporaryFile() as secret, processes.open_process_log(self.log) as output:
            secret.write(superuser_password.encode())
            secret.flush()
            _give(Path(secret.name), user)
            flags = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--data-checksums", *locale]
            done = subprocess.run(
                [programs / "initdb", "-D", self.data, "-U", SUPERUSER, f"--pwfile={secret.name}", *flags],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
                cwd="/",
                env=_environ(),
                user=user,
                umask=processes.PRIVATE_UMASK,
            )
        if done.returncode != 0:
            raise StartFailed(
                "Postgres's data folder could not be made.",
                why=f"initdb failed; see {self.log}",
                next_step=tail(self.log),
            )
        with (self.data / "postgresql.conf").open("a", encoding="utf-8") as configuration:
            configuration.write("\ninclude 'plant.conf'\n")

    def _write_settings(self, port: int, user: str | None) -> None:
        settings = self.data / "plant.conf"
        settings.write_text(SERVER_SETTINGS.format(port=port), encoding="utf-8")
        _give(settings, user)


def made_majors(home: Path) -> list[PostgresMajor]:
    """Return the versions of Postgres that have data in this home."""
    return [major for major in MAJORS if (data_folder(home, major) / "PG_VERSION").exists()]


def refuse_other_version(home: Path, major: int) -> None:
    for other in made_majors(home):
        if other != major:
            raise OtherVersion(
                f"This stack's data was made by Postgres {other}, not {major}.",
                why=f"{data_folder(home, other)} can only be read by the version that made it.",
                next_step=f"plant up --postgres {other}    (another stack: PLANT_HOME=… plant up --postgres {major})",
            )


def prepare_cluster(port: int, superuser_password: str, passwords: Mapping[str, str], roles_sql: Path) -> None:
    """Make roles, passwords, the database `plant` and its vector extension. Safe to run again."""
    make_roles(address(SUPERUSER, superuser_password, port, "postgres"), passwords, roles_sql)
    create_database(address(SUPERUSER, superuser_password, port, "postgres"), DATABASE)
    sql.execute(
        address(SUPERUSER, superuser_password, port, DATABASE),
        ["CREATE EXTENSION IF NOT EXISTS vector", SCHEMA_GRANT],
    )


def make_roles(superuser_url: str, passwords: Mapping[str, str], roles_sql: Path) -> None:
    """Make Plant's roles and set their passwords. Safe to run again."""
    statements = [roles_sql.read_text(encoding="utf-8")]
    statements += [f"ALTER ROLE {role} PASSWORD {sql.literal(passwords[role])}" for role in ROLES]
    sql.execute(superuser_url, statements)


def create_database(superuser_url: str, name: str, *, template: str | None = None) -> None:
    """Make a database owned by plant_owner that only the four roles may enter; leave one that exists alone."""
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", name):
        raise ValueError(f"not a plain database name: {name!r}")

    async def work(connection: Any) -> None:
        if await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name) is None:
            copied = f" TEMPLATE {template}" if template else ""
            await connection.execute(f"CREATE DATABASE {name} OWNER plant_owner{copied}")
        await connection.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")
        await connection.execute(f"GRANT CONNECT, TEMPORARY ON DATABASE {name} TO {', '.join(ROLES)}")

    sql.run_on(superuser_url, work)


def drop_database(superuser_url: str, name: str) -> None:
    """End every session of a database and remove it."""
    sql.execute(superuser_url, [f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"])


def address(role: str, password: str, port: int, database: str = DATABASE) -> str:
    return f"postgresql://{role}:{password}@127.0.0.1:{port}/{database}"


def _give(path: Path, user: str | None) -> None:
    if user is not None:
        import shutil

        shutil.chown(path, user, user)


def _environ() -> dict[str, str]:
    """Return the environment without PG* and locale settings, which would change the server's behaviour."""
    return {**processes.environ_without("PG", "LC_", "LANG"), "LC_ALL": "C"}
