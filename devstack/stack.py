"""The local stack of one folder: Kafka and Postgres, started together, found again, ended together.

An ephemeral one, whose data goes when the block ends::

    with Stack(Path("/tmp/x")) as stack:
        stack.environ["PLANT_KAFKA_BOOTSTRAP_SERVERS"]
"""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec

from devstack import kafka, postgres, processes, sql
from devstack.errors import StartFailed, tail
from devstack.kafka import DEFAULT_COUNT, Broker, BrokerCount, Ports
from devstack.postgres import ROLES, SUPERUSER, Postgres
from devstack.postgres_binaries import DEFAULT_MAJOR, PostgresMajor, public_data_folder
from devstack.processes import ProcessRecord
from devstack.progress import Progress, Silent
from devstack.state import ENVIRON_FILE, LOCK_FILE, STACK_FILE, BrokerState, StackState, StateFolder, password, url_name

ROLES_SQL = Path(__file__).parent.parent / "database" / "roles.sql"
UNRESPONSIVE_TIMEOUT_SECONDS = 60.0
"""How long a process that is there may go without an answer before `up` replaces it."""

Prepare = Callable[[Mapping[str, str]], None]
"""Called with the stack's addresses once its services answer: migrations and topics."""


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One service as it is now. `unresponsive`: the process is there but does not answer."""

    name: str
    state: Literal["running", "stopped", "unresponsive"]
    version: str
    address: str
    pid: int | None
    uptime_seconds: float | None
    log: str


class Stack:
    """The stack of one folder. A file lock keeps two processes from starting or stopping it at the same time."""

    def __init__(
        self,
        home: Path,
        *,
        postgres_major: PostgresMajor | None = None,
        brokers: BrokerCount | None = None,
        progress: Progress | None = None,
    ) -> None:
        """`postgres_major` and `brokers` as the home was made with, unless they are given."""
        self.home = home.expanduser().resolve()
        self.progress = progress or Silent()
        made = postgres.made_majors(self.home)
        self._folder = StateFolder(self.home)
        self._postgres = Postgres(self.home, postgres_major or (made[0] if made else DEFAULT_MAJOR))
        self._fresh = StackState(kafka_version=Broker.version, postgres_version=self._postgres.version)
        self.broker_count = brokers or kafka.made_count(self.home) or DEFAULT_COUNT
        self._brokers = [Broker(self.home, number, self.broker_count) for number in range(1, self.broker_count + 1)]

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
        kafka.refuse_other_count(self.home, self.broker_count)
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
        """End every service and name the ones that ran. Data is kept, unless it is to be deleted."""
        if not self.home.exists():
            return []
        with self._folder.locked():
            state = self.state
            records = {broker.name: state.broker(broker.number).process for broker in self._brokers}
            records["postgres"] = state.postgres
            ran = [name for name, record in records.items() if processes.is_running(record)]
            self._end([broker.process for broker in state.brokers], state.postgres)
            if ran:
                self._note(_without_processes)
            if delete_data:
                self._delete_data()
        return ran

    def status(self) -> list[ServiceStatus]:
        """Return every service as it is now; one that runs must also answer."""
        state, url = self.state, self.environ.get(url_name(SUPERUSER), "")
        with ThreadPoolExecutor(len(self._brokers) + 1) as pool:
            answers = [pool.submit(_answers, state.broker(broker.number)) for broker in self._brokers]
            postgres_answers = processes.is_running(state.postgres) and sql.server_answers(url)
        brokers = [
            _status(broker.name, recorded.process, answer.result(), state.kafka_version, recorded.port, broker.log)
            for broker, answer in zip(self._brokers, answers, strict=True)
            for recorded in [state.broker(broker.number)]
        ]
        own = self._postgres
        return [
            *brokers,
            _status("postgres", state.postgres, postgres_answers, state.postgres_version, state.postgres_port, own.log),
        ]

    def kill_broker(self, number: int) -> None:
        """End one broker with SIGKILL. Brokers are counted from 1."""
        processes.kill(self.state.broker(number).process)

    def start_broker(self, number: int) -> None:
        """Start one broker again, at the same address. Of three, a majority must run for one to answer."""
        with self._folder.locked():
            self._choose_ports()
            self._start_broker(self._brokers[number - 1])

    def pause_broker(self, number: int) -> None:
        """Freeze one broker with SIGSTOP; returns when every thread of it has stopped."""
        processes.freeze(self.state.broker(number).process)

    def continue_broker(self, number: int) -> None:
        """Let a frozen broker go on."""
        processes.send(self.state.broker(number).process, signal.SIGCONT)

    def kill_kafka(self) -> None:
        """End every broker with SIGKILL."""
        for broker in self.state.brokers:
            processes.send(broker.process, signal.SIGKILL)
        for broker in self.state.brokers:
            processes.kill(broker.process)

    def start_kafka(self) -> None:
        """Start the brokers again, at the same addresses."""
        with self._folder.locked():
            self._choose_ports()
            self._start_brokers()

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
            starts = [pool.submit(self._start_brokers), pool.submit(self._start_postgres)]
        for start in starts:
            start.result()
        environ, port = self.environ, self.state.postgres_port
        assert port is not None
        passwords = {role: password(environ, role) for role in ROLES}
        postgres.prepare_cluster(port, password(environ, SUPERUSER), passwords, ROLES_SQL)

    def _choose_ports(self) -> None:
        """Keep the ports of what runs; for the rest, last time's while they are free."""
        state = self.state
        recorded = [state.broker(broker.number) for broker in self._brokers]
        taken: set[int] = set()
        for broker in recorded:
            if processes.is_running(broker.process):
                taken |= {port for port in (broker.port, broker.controller_port) if port}
        if processes.is_running(state.postgres) and state.postgres_port:
            taken.add(state.postgres_port)
        brokers = tuple(
            broker
            if processes.is_running(broker.process)
            else msgspec.structs.replace(
                broker, port=_choose(broker.port, taken), controller_port=_choose(broker.controller_port, taken)
            )
            for broker in recorded
        )
        kept = processes.is_running(state.postgres) and state.postgres_port
        postgres_port = kept or _choose(state.postgres_port, taken)
        self._note(lambda last: msgspec.structs.replace(last, brokers=brokers, postgres_port=postgres_port))
        secrets_lost = not self.environ and not processes.is_running(state.postgres)
        environ = self._folder.write_environ([broker.port or 0 for broker in brokers], postgres_port)
        if secrets_lost and self._postgres.has_data:
            self._postgres.reset_superuser(password(environ, SUPERUSER))

    def _start_brokers(self) -> None:
        """Start all brokers at once, since one of three waits for another; then all must know all."""
        first, *others = self._brokers
        if others:  # What one has made, the others copy.
            first.format(self._cluster_id, self._all_ports(), self.progress)
        with ThreadPoolExecutor(len(self._brokers)) as pool:
            starts = [pool.submit(self._start_broker, broker) for broker in self._brokers]
        for start in starts:
            start.result()
        for broker in self._brokers:
            recorded = self.state.broker(broker.number)
            assert recorded.process is not None
            complete = partial(kafka.broker_answers, recorded.port or 0, brokers=len(self._brokers))
            if not processes.wait_ready(complete, recorded.process, timeout_seconds=kafka.BROKER_START_TIMEOUT_SECONDS):
                raise StartFailed(
                    "The Kafka brokers did not find each other.",
                    why=f"{broker.name} does not see all {len(self._brokers)}; see {broker.log}",
                    next_step=tail(broker.log),
                )

    def _start_broker(self, broker: Broker) -> None:
        state, number = self.state, broker.number
        all_ports = self._all_ports()
        port = all_ports[number - 1].port
        if self._answers_or_ends(state.broker(number).process, lambda: kafka.broker_answers(port)):
            return
        self.progress.say(f"Starting {broker.name.capitalize()} {broker.version} on 127.0.0.1:{port}")

        def note(record: ProcessRecord) -> None:
            self._note(lambda last: last.with_broker(number, process=record))

        broker.start(self._cluster_id, all_ports, self.progress, note)

    def _all_ports(self) -> list[Ports]:
        return [Ports(broker.port or 0, broker.controller_port or 0) for broker in self.state.brokers]

    @cached_property
    def _cluster_id(self) -> str:
        return kafka.cluster_id(self._brokers)

    def _start_postgres(self) -> None:
        state, environ = self.state, self.environ
        if self._answers_or_ends(state.postgres, lambda: sql.server_answers(environ[url_name(SUPERUSER)])):
            return
        assert state.postgres_port is not None
        self.progress.say(f"Starting Postgres {self._postgres.version} on 127.0.0.1:{state.postgres_port}")
        secret = password(environ, SUPERUSER)

        def note(record: ProcessRecord) -> None:
            self._note(lambda last: msgspec.structs.replace(last, postgres=record))

        self._postgres.start(state.postgres_port, secret, note)

    def _answers_or_ends(self, record: ProcessRecord | None, ready: Callable[[], bool]) -> bool:
        """Return whether the recorded process answers; end it if it does not."""
        if record is None or not processes.is_running(record):
            return False
        if processes.wait_ready(ready, record, timeout_seconds=UNRESPONSIVE_TIMEOUT_SECONDS):
            return True
        processes.kill(record)
        return False

    def _note(self, edit: Callable[[StackState], StackState]) -> StackState:
        versions = {"kafka_version": Broker.version, "postgres_version": self._postgres.version}
        return self._folder.change(self._fresh, lambda last: edit(msgspec.structs.replace(last, **versions)))

    def _end_started_since(self, before: StackState) -> None:
        after, kept = self.state, {broker.process for broker in before.brokers}
        self._end(
            [broker.process for broker in after.brokers if broker.process not in kept],
            None if after.postgres == before.postgres else after.postgres,
        )

    def _end(self, brokers: Sequence[ProcessRecord | None], postgres_record: ProcessRecord | None) -> None:
        with ThreadPoolExecutor(len(brokers) + 1) as pool:
            ends = [pool.submit(self._brokers[0].stop, record) for record in brokers]
            ends.append(pool.submit(self._postgres.stop, postgres_record))
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


def _choose(wanted: int | None, taken: set[int]) -> int:
    port = processes.choose_port(wanted, taken)
    taken.add(port)
    return port


def _without_processes(state: StackState) -> StackState:
    brokers = tuple(msgspec.structs.replace(broker, process=None) for broker in state.brokers)
    return msgspec.structs.replace(state, brokers=brokers, postgres=None)


def _answers(broker: BrokerState) -> bool:
    return processes.is_running(broker.process) and kafka.broker_answers(broker.port or 0)


def _status(
    name: str, record: ProcessRecord | None, answers: bool, version: str, port: int | None, log: Path
) -> ServiceStatus:
    running = record if record is not None and processes.is_running(record) else None
    return ServiceStatus(
        name=name,
        state="stopped" if running is None else "running" if answers else "unresponsive",
        version=version,
        address=f"127.0.0.1:{port}" if port else "",
        pid=running.pid if running else None,
        uptime_seconds=running.uptime_seconds if running else None,
        log=str(log),
    )
