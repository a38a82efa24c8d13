"""Faults of every kind in a seeded order, and what has to hold at any moment while they come and once they are mended.

At any moment: each partition's log is what the oracle says of its first records, as many as its checkpoint counts, and
each read model's tables are the oracle's fold of the events that its own checkpoints cover.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol

from database.errors import DatabaseUnreachable
from projections.parking_log import ParkingLog
from projections.read_model import READ_MODELS
from projections.session import Session, StatementEnded
from tests.support.faults.evidence import assert_chains_whole
from tests.support.faults.published_streams import PublishedStreams
from tests.support.faults.scene import Process, Scene
from tests.support.made_models import REGISTRY
from tests.support.model_tables import entity_rows, log_rows, model_tables
from tests.support.read_model_folds import FOLDS, entities
from tests.support.waiting import wait_until

RECORDS: Final = (1, 2, 5, 20, 60, 250)
PAUSE_SECONDS_MAX: Final = 0.4
"""After a fault comes a pause of up to this long, so that the next one meets any state of the work."""
LOCK_TIMEOUT: Final = "SET lock_timeout = '2s'"

REFUSED: Final = {
    "activity": ("activity", "event_type <> 'genesis.agent.rated'"),
    "agents": ("agents", "status IS DISTINCT FROM 'on leave'"),
    "marketplace": ("marketplace_catalogue", "NOT retired"),
    "ratings": ("ratings", "rated_3 = 0"),
    "registry": ("registry_clashes", "events < 2"),
    "skills": ("skill_validations", "score < 50"),
}
"""For each read model a table of its, and the rows that a constraint lets pass."""

FAILS_NOW_AND_THEN: Final = """
CREATE OR REPLACE FUNCTION public.fail_now_and_then() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF random() < 0.2 THEN RAISE EXCEPTION 'now and then' USING ERRCODE = '{}'; END IF;
    RETURN NULL;
END $$
"""
PASSING_ERRORS: Final = ("40001", "53100", "55P03", "57014")
"""Serialization failure, disk full, lock not available, query canceled: the database's trouble, and no refusal."""

_STATES: Final = """
SELECT projection, partition, next_offset, stop_reason FROM projection_checkpoints WHERE topic = $1
"""
_LOGGED: Final = """
SELECT coalesce(sum(next_offset), 0)::bigint AS logged FROM checkpoints WHERE consumer = 'projector' AND topic = $1
"""
_BACKENDS: Final = """
FROM pg_stat_activity WHERE datname = current_database() AND usename = 'plant_writer'
"""


class Server(Protocol):
    """A Postgres of one's own."""

    def kill_postgres(self) -> None: ...

    def start_postgres(self) -> None: ...


class Broken(NamedTuple):
    """What was done to a read model's table, and how it is taken back."""

    model: str
    mend: Sequence[str]


class MixedFaults:
    """A topic that is published to, and two or three workers, to which everything happens."""

    def __init__(
        self, scene: Scene, streams: PublishedStreams, seed: int, *, workers_max: int, server: Server | None = None
    ) -> None:
        """No more than `workers_max` workers are started until all is mended: starting one is what costs most.

        Without a `server` of the test's own, Postgres is not killed: its sessions end.
        """
        self._workers_max = workers_max
        self._scene = scene
        self._streams = streams
        self._chance = random.Random(seed)
        self._server = server
        self._frozen: list[Process] = []
        self._broken: list[Broken] = []
        self._running: list[Process] = []
        self.done: list[str] = []
        """What has been done so far."""

    def run(self, steps: int) -> None:
        """Start workers, and do as many things to them; the registry is on, as the other read models are."""
        self._execute(f"UPDATE read_model_builds SET paused = false WHERE projection = '{REGISTRY.name}'")
        self._running = [self._scene.worker(), self._scene.worker()]
        wait_until(lambda: all(map(_has_joined, self._running)), "both workers have joined")
        for _ in range(steps):
            logged = self._logged()
            for _ in range(self._chance.randint(1, 3)):
                self._streams.publish(self._chance.choice(list(self._streams.ends)), self._chance.choice(RECORDS))
            self._step()
            threading.Event().wait(self._chance.uniform(0, PAUSE_SECONDS_MAX))
            if self._chance.random() < 0.5:
                wait_until(partial(self._has_grown, logged), "the log grows")
                self.check()

    def settle(self) -> None:
        """Mend everything, start two workers anew, and wait until nothing lags."""
        for process in self._frozen:
            process.thaw()
        while self._broken:
            self._mend(self._broken.pop())
        self._execute("UPDATE read_model_builds SET paused = false")
        for process in self._running:
            _stop(process)
        self._running, self._frozen = [self._scene.worker(), self._scene.worker()], []
        self.wait_until_caught_up()

    def wait_until_caught_up(self) -> None:
        """Wait until the log and every read model are at the end of each partition, and none is stopped."""
        wanted = {
            (name, partition, end, None)
            for name in ("log", *FOLDS)
            for partition, end in self._streams.ends.items()
            if end
        }

        def states() -> set[tuple[object, ...]]:
            return set(self._scene.query(_STATES, (self._scene.topic,)))

        wait_until(lambda: wanted <= states(), lambda: f"all has caught up; not yet: {wanted - states()}, {states()}")

    def check(self, *, whole: bool = False) -> None:
        """Compare the log and all read models with the oracle, as of one moment; with `whole`, up to the topic's end.

        With it go the queues of parked entities, and the chains.
        """
        self._note("check")
        session = Session(self._scene.environ["PLANT_DATABASE_SUPERUSER_URL"])
        try:
            session.script("SET timezone = 'UTC'", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            offsets: dict[str, dict[int, int]] = {}
            for name, partition, next_offset, _ in session.query(_STATES, (self._scene.topic,)):
                offsets.setdefault(name, {})[partition] = next_offset
            self._check_log(session, offsets.get("log", {}))
            for model in READ_MODELS:
                expected = FOLDS[model.name](self._streams.applied(offsets.get(model.name, {})))
                assert model_tables(session, model) == expected, f"{model.name} at {offsets.get(model.name)}"
            folded = offsets.get(REGISTRY.name, {})
            assert entity_rows(session) == entities(self._streams.applied(folded)), f"the entities at {folded}"
            if whole:
                logged = {number: offset for number, offset in offsets["log"].items() if offset}
                ends = {number: end for number, end in self._streams.ends.items() if end}
                assert logged == ends, f"the log is at {logged}, the topic at {ends}"
                self._check_queues(session)
        finally:
            session.close()
        if whole:
            assert_chains_whole(self._scene, sum(self._streams.ends.values()))

    def _check_log(self, session: Session, ends: dict[int, int]) -> None:
        for number, stream in enumerate(self._streams.streams):
            logged = log_rows(session, self._scene.topic, number)
            assert logged == stream.rows[: ends.get(number, 0)], f"the log of partition {number}"

    def _check_queues(self, session: Session) -> None:
        for number, stream in enumerate(self._streams.streams):
            parked = ParkingLog(self._scene.topic, number).load(session, len(stream.rows))
            queues = {key: [(each.offset, each.event_id) for each in queue] for key, queue in parked.queues.items()}
            assert queues == {
                key: [(offset, event_id and event_id.bytes) for offset, event_id in queue]
                for key, queue in stream.queues.items()
            }, f"the queues of partition {number}"

    def _logged(self) -> int:
        """Return how many records the log has."""
        ((logged,),) = self._scene.query(_LOGGED, (self._scene.topic,))
        return int(str(logged))

    def _has_grown(self, logged: int) -> bool:
        return self._logged() > logged

    def _step(self) -> None:
        """Do one of the things that can be done now."""
        awake = self._awake()
        more = len(self._scene.processes) < self._workers_max
        weights = {
            self._kill: 3 if awake and more else 0,
            self._freeze: 2 if len(awake) > 1 else 0,
            self._thaw: 4 if self._frozen else 0,
            self._join: 2 if len(self._running) < 3 and more else 0,
            self._leave: 2 if len(awake) > 2 else 0,
            self._end_sessions: 3,
            self._cancel_statements: 2,
            self._restart_postgres: 2 if self._server is not None else 0,
            self._refuse_rows: 3,
            self._revoke: 1,
            self._fail_now_and_then: 2,
            self._mend_one: 4 if self._broken else 0,
            self._pause: 2,
            self._resume: 2,
        }
        (action,) = self._chance.choices(list(weights), list(weights.values()))
        self._note(action.__name__)
        action()

    def _awake(self) -> list[Process]:
        """Return the workers that have joined the group and are not frozen."""
        return [each for each in self._running if each not in self._frozen and _has_joined(each)]

    def _note(self, what: str) -> None:
        self.done.append(what.strip("_"))

    def _kill(self) -> None:
        process = self._chance.choice(self._awake())
        process.kill()
        self._running.remove(process)
        self._running.append(self._scene.worker())

    def _freeze(self) -> None:
        process = self._chance.choice(self._awake())
        process.freeze()
        self._frozen.append(process)

    def _thaw(self) -> None:
        self._frozen.pop(0).thaw()

    def _join(self) -> None:
        self._running.append(self._scene.worker())

    def _leave(self) -> None:
        process = self._awake()[0]
        _stop(process)
        self._running.remove(process)

    def _end_sessions(self) -> None:
        self._scene.query(f"SELECT pg_terminate_backend(pid) {_BACKENDS} AND random() < 0.7")

    def _cancel_statements(self) -> None:
        self._scene.query(f"SELECT pg_cancel_backend(pid) {_BACKENDS}")

    def _restart_postgres(self) -> None:
        assert self._server is not None
        self._server.kill_postgres()
        self._server.start_postgres()

    def _refuse_rows(self) -> None:
        name, table, condition = self._unbroken()
        if name is not None:
            statement = f"ALTER TABLE {table} ADD CONSTRAINT refused CHECK ({condition}) NOT VALID"
            self._break(Broken(name, [f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS refused"]), statement)

    def _revoke(self) -> None:
        name, table, _ = self._unbroken()
        if name is not None:
            grant = f"GRANT INSERT ON {table} TO plant_writer"
            self._break(Broken(name, [grant]), f"REVOKE INSERT ON {table} FROM plant_writer")

    def _fail_now_and_then(self) -> None:
        name, table, _ = self._unbroken()
        if name is not None:
            trigger = (
                f"CREATE TRIGGER now_and_then BEFORE INSERT ON {table}"
                " FOR EACH STATEMENT EXECUTE FUNCTION public.fail_now_and_then()"
            )
            self._break(
                Broken(name, [f"DROP TRIGGER IF EXISTS now_and_then ON {table}"]),
                FAILS_NOW_AND_THEN.format(self._chance.choice(PASSING_ERRORS)),
                trigger,
            )

    def _unbroken(self) -> tuple[str, str, str] | tuple[None, str, str]:
        """Return a read model of which nothing is broken, its table and the condition of rows that pass."""
        broken = {each.model for each in self._broken}
        names = [name for name in sorted(REFUSED) if name not in broken]
        if not names:
            return None, "", ""
        name = self._chance.choice(names)
        table, condition = REFUSED[name]
        (schema,) = (model.schema for model in READ_MODELS if model.name == name)
        return name, f"{schema}.{table}", condition

    def _break(self, broken: Broken, *statements: str) -> None:
        """Do something to a table, unless a worker that is frozen holds it: then nothing is done."""
        self._broken.append(broken)
        with contextlib.suppress(DatabaseUnreachable, StatementEnded):
            self._execute(LOCK_TIMEOUT, *statements)

    def _mend_one(self) -> None:
        broken = self._broken.pop(self._chance.randrange(len(self._broken)))
        try:
            self._mend(broken, LOCK_TIMEOUT)
        except (DatabaseUnreachable, StatementEnded):
            self._broken.append(broken)

    def _mend(self, broken: Broken, *before: str) -> None:
        self._execute(*before, *broken.mend)

    def _pause(self) -> None:
        self._set_paused(True)

    def _resume(self) -> None:
        self._set_paused(False)

    def _set_paused(self, paused: bool) -> None:
        name = self._chance.choice(sorted(FOLDS))
        self._execute(f"UPDATE read_model_builds SET paused = {paused} WHERE projection = '{name}'")

    def _execute(self, *statements: str) -> None:
        with self._superuser() as session:
            for statement in statements:
                session.script(statement)

    @contextlib.contextmanager
    def _superuser(self) -> Iterator[Session]:
        session = Session(self._scene.environ["PLANT_DATABASE_SUPERUSER_URL"])
        try:
            yield session
        finally:
            session.close()


def _has_joined(process: Process) -> bool:
    return bool(process.logged("partitions.assigned"))


def _stop(process: Process) -> None:
    """End a worker in an orderly way. One that has only just been started does not know yet how to."""
    joined = _has_joined(process)
    assert process.stop() == 0 or not joined, process.log.read_text()
