"""The local stack of one folder: Kafka and Postgres, started together, found again, ended together.

An ephemeral one, whose data goes when the block ends::

    with Stack(Path("/tmp/x")) as stack:
        stack.environ["PLANT_KAFKA_BOOTSTRAP_SERVERS"]
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec

from devstack import kafka, postgres, processes, sql
from devstack.kafka import Kafka
from devstack.postgres import ROLES, SUPERUSER, Postgres
from devstack.postgres_binaries import DEFAULT_MAJOR, PostgresMajor, public_data_folder
from devstack.processes import ProcessRecord
from devstack.progress import Progress, Silent
from devstack.state import ENVIRON_FILE, LOCK_FILE, STACK_FILE, StackState, StateFolder, password, url_name

ROLES_SQL = Path(__file__).parent.parent / "database" / "roles.sql"
SILENCE_PATIENCE_SECONDS = 15.0
"""How long a process that is there may stay silent before `up` replaces it."""

Prepare = Callable[[Mapping[str, str]], None]
"""Called with the stack's addresses once its services answer: migrations and topics."""


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One service as it is now. `silent`: the process is there but does not answer."""

    name: str
    state: Literal["running", "stopped", "silent"]
    version: str
    address: str
    pid: int | None
    uptime_seconds: float | None
    log: str


class Stack:
    """The stack of one folder. A file lock keeps two processes from starting or stopping it at the same time."""

    def __init__(
        self, home: Path, *, postgres_major: PostgresMajor | None = None, progress: Progress | None = None
    ) -> None:
        self.home = home.expanduser().resolve()
        self.progress = progress or Silent()
        made = postgres.made_majors(self.home)
        self._folder = StateFolder(self.home)
        self._kafka = Kafka(self.home)
        self._postgres = Postgres(self.home, postgres_major or (made[0] if made else DEFAULT_MAJOR))
        self._fresh = StackState(kafka_version=self._kafka.version, postgres_version=self._postgres.version)

    @property
    def state(self) -> StackState:
        """Pids, ports and versions as last written down."""
        return self._folder.read(self._fresh)

    @property
    def environ(self) -> dict[str, str]:
        """Addresses and secrets (`PLANT_…`); empty before the first start."""
        return self._folder.environ()

    def up(self, prepare: Prepare | None = None) -> list[ServiceStatus]:
        """Start what does not run, wait until it answers, run `prepare`. On failure, end what this call started."""
        postgres.refuse_other_version(self.home, self._postgres.major)
        with self._folder.locked():
            before = self.state
            try:
                self._start_missing()
                if prepare is not None:
                    prepare(self.environ)
            except BaseException:
                self._end_started_since(before)
                raise
        return self.status()

    def down(self, *, delete_data: bool = False) -> list[str]:
        """End both services and name the ones that ran. Data is kept, unless it is to be deleted."""
        if not self.home.exists():
            return []
        with self._folder.locked():
            state = self.state
            ran = [name for name in ("kafka", "postgres") if processes.is_running(getattr(state, name))]
            self._end(state.kafka, state.postgres)
            if ran:
                self._note(kafka=None, postgres=None)
            if delete_data:
                self._delete_data()
        return ran

    def status(self) -> list[ServiceStatus]:
        """Both services as they are now; one that runs must also answer."""
        state, url = self.state, self.environ.get(url_name(SUPERUSER), "")
        kafka_answers = processes.is_running(state.kafka) and kafka.answers(state.kafka_port or 0)
        postgres_answers = processes.is_running(state.postgres) and sql.answers(url)
        return [
            _status("kafka", state.kafka, kafka_answers, state.kafka_version, state.kafka_port, self._kafka.log),
            _status(
                "postgres", state.postgres, postgres_answers, state.postgres_version, state.postgres_port,
                self._postgres.log,
            ),
        ]  # fmt: skip

    def kill_kafka(self) -> None:
        """End the broker with SIGKILL."""
        processes.kill(self.state.kafka)

    def start_kafka(self) -> None:
        """Start the broker again, at the same address."""
        with self._folder.locked():
            self._choose_ports()
            self._start_kafka()

    def kill_postgres(self) -> None:
        """End the server with SIGKILL; its backends notice and end too."""
        processes.kill(self.state.postgres)

    def start_postgres(self) -> None:
        """Start the server again, at the same address."""
        with self._folder.locked():
            self._choose_ports()
            self._start_postgres()

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down(delete_data=True)

    def _start_missing(self) -> None:
        self._choose_ports()
        with ThreadPoolExecutor(2) as pool:
            starts = [pool.submit(self._start_kafka), pool.submit(self._start_postgres)]
        for start in starts:
            start.result()
        environ, port = self.environ, self.state.postgres_port
        assert port is not None
        passwords = {role: password(environ, role) for role in ROLES}
        postgres.prepare(port, password(environ, SUPERUSER), passwords, ROLES_SQL)

    def _choose_ports(self) -> None:
        """Keep the ports of what runs; for the rest, last time's while they are free."""
        state = self.state
        kept: dict[str, int | None] = {}
        if processes.is_running(state.kafka):
            kept |= {"kafka_port": state.kafka_port, "controller_port": state.controller_port}
        if processes.is_running(state.postgres):
            kept |= {"postgres_port": state.postgres_port}
        for name in ("kafka_port", "controller_port", "postgres_port"):
            if name not in kept:
                kept[name] = processes.choose_port(getattr(state, name), {port for port in kept.values() if port})
        state = self._note(**kept)
        secrets_lost = not self.environ and not processes.is_running(state.postgres)
        environ = self._folder.write_environ(state.kafka_port or 0, state.postgres_port or 0)
        if secrets_lost and self._postgres.has_data:
            self._postgres.reset_superuser(password(environ, SUPERUSER))

    def _start_kafka(self) -> None:
        state = self.state
        port, controller_port = state.kafka_port, state.controller_port
        assert port is not None
        assert controller_port is not None
        if self._found(state.kafka, lambda: kafka.answers(port)):
            return
        self.progress.say(f"Starting Kafka {self._kafka.version} on 127.0.0.1:{port}")
        self._kafka.start(port, controller_port, self.progress, lambda record: self._note(kafka=record))

    def _start_postgres(self) -> None:
        state, environ = self.state, self.environ
        if self._found(state.postgres, lambda: sql.answers(environ[url_name(SUPERUSER)])):
            return
        assert state.postgres_port is not None
        self.progress.say(f"Starting Postgres {self._postgres.version} on 127.0.0.1:{state.postgres_port}")
        secret = password(environ, SUPERUSER)
        self._postgres.start(state.postgres_port, secret, lambda record: self._note(postgres=record))

    def _found(self, record: ProcessRecord | None, ready: Callable[[], bool]) -> bool:
        """Whether the recorded process serves; one that stays silent is ended."""
        if record is None or not processes.is_running(record):
            return False
        if processes.wait_ready(ready, record, patience_seconds=SILENCE_PATIENCE_SECONDS):
            return True
        processes.kill(record)
        return False

    def _note(self, **changes: object) -> StackState:
        versions = {"kafka_version": self._kafka.version, "postgres_version": self._postgres.version}
        return self._folder.change(self._fresh, **versions, **changes)

    def _end_started_since(self, before: StackState) -> None:
        after = self.state
        self._end(
            None if after.kafka == before.kafka else after.kafka,
            None if after.postgres == before.postgres else after.postgres,
        )

    def _end(self, kafka_record: ProcessRecord | None, postgres_record: ProcessRecord | None) -> None:
        with ThreadPoolExecutor(2) as pool:
            ends = [pool.submit(self._kafka.stop, kafka_record), pool.submit(self._postgres.stop, postgres_record)]
        for end in ends:
            end.result()

    def _delete_data(self) -> None:
        for folder in ("kafka", "postgres", "logs"):
            shutil.rmtree(self.home / folder, ignore_errors=True)
        shutil.rmtree(public_data_folder(self.home), ignore_errors=True)
        for file in (ENVIRON_FILE, STACK_FILE, LOCK_FILE):
            (self.home / file).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # Something else is in there: it stays.
            self.home.rmdir()


def _status(
    name: str, record: ProcessRecord | None, answers: bool, version: str, port: int | None, log: Path
) -> ServiceStatus:
    running = record if record is not None and processes.is_running(record) else None
    return ServiceStatus(
        name=name,
        state="stopped" if running is None else "running" if answers else "silent",
        version=version,
        address=f"127.0.0.1:{port}" if port else "",
        pid=running.pid if running else None,
        uptime_seconds=running.uptime_seconds if running else None,
        log=str(log),
    )
