"""A batch of applied, poison, parked and control records whose worker is killed at each of its statements."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest

from database.errors import DatabaseUnreachable
from projections import engine
from projections.engine import PartitionProjector
from projections.install import install
from projections.read_model import READ_MODELS
from projections.session import Session
from schemas.events import AgentAvailable, AgentOnboarded, AgentRated, Event, SkillRegistered
from schemas.polars_import import polars as pl
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS, Record, batch_of
from tests.support.model_tables import ENTITY_TABLES, entity_rows
from tests.support.poison_records import key_of, over_a_limit, redrive, skip, unreadable

pytestmark = pytest.mark.usefixtures("inline_records_max")

FIRST, SECOND, THIRD = (UUID(int=number) for number in (1, 2, 3))
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
EMPTIED = ("event_stream", "audit_log", "partition_owners", "checkpoints", "model_checkpoints", *ENTITY_TABLES)
LOG = """
SELECT "offset", disposition::text AS d, control_offset, event_id::text AS e, entity_id::text AS n, hash, reason
FROM log_records ORDER BY "offset"
"""


def named(number: int, agent_id: UUID) -> AgentOnboarded:
    ids = {"event_id": UUID(int=1000 + number), "agent_id": agent_id, "occurred_at": NOON}
    return AgentOnboarded(**ids, name=f"name {number}", skill_ids=(UUID(int=9),))


def available(number: int, agent_id: UUID) -> AgentAvailable:
    ids = {"event_id": UUID(int=2000 + number), "agent_id": agent_id, "occurred_at": NOON}
    return AgentAvailable(**ids, available=number % 2 == 0)


def rated(number: int, agent_id: UUID) -> AgentRated:
    ids = {"event_id": UUID(int=3000 + number), "agent_id": agent_id, "occurred_at": NOON}
    return AgentRated(**ids, rater_id=UUID(int=8), rating=number)


def registered(skill_id: UUID) -> SkillRegistered:
    ids = {"event_id": UUID(int=7), "skill_id": skill_id, "occurred_at": NOON}
    return SkillRegistered(**ids, name="Soldering", description="With solder.", category="technical")


BEFORE: list[Event | Record] = [
    named(1, FIRST), unreadable(FIRST), available(1, FIRST),
    over_a_limit(named(2, SECOND), name="x" * 300), rated(3, SECOND), rated(4, SECOND),
]  # fmt: skip
KILLED: list[Event | Record] = [
    named(3, THIRD), unreadable(THIRD), rated(5, THIRD), msgspec.structs.replace(named(1, FIRST), name="forged"),
    redrive(key_of(FIRST), 1, named(4, FIRST)), skip(key_of(SECOND), 3), available(2, SECOND), named(1, FIRST),
    registered(UUID(int=9)),
    redrive(key_of(THIRD), 7, rated(2, THIRD)), unreadable(FIRST), available(3, FIRST),
]  # fmt: skip
AFTER: list[Event | Record] = [redrive(key_of(FIRST), 16, rated(1, FIRST)), skip(key_of(THIRD), 7), named(5, FIRST)]
DISPOSITIONS = {"applied": 5, "repeat": 1, "poison": 5, "parked": 5, "control": 5}


class Killer:
    """Ends a projector's connection before its statement of a number, and after the last; counts what has run."""

    def __init__(self) -> None:
        self.victim: Session | None = None
        self.at = -1
        self.count = 0
        self.has_killed = False

    def step(self, session: Session) -> None:
        """Raise where the worker is killed now, or has been."""
        if session is self.victim:
            self.has_killed = self.has_killed or self.count == self.at
            if self.has_killed:
                raise DatabaseUnreachable(why="killed")
            self.count += 1


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch) -> Killer:
    """Sends each statement by itself, also those that go together else, so that there is a moment between them."""
    made = Killer()
    script = Session.script

    def each_by_itself(session: Session, *statements: str) -> None:
        waiting, session._waiting = session._waiting, []
        for statement in (*waiting, *statements):
            made.step(session)
            script(session, statement)
        if "COMMIT" in statements:
            made.step(session)

    # A slow machine would look for other builds behind the commit, with a statement that is none of the batch's.
    monkeypatch.setattr(engine, "LOOK_EVERY_SECONDS", 3_600.0)
    monkeypatch.setattr(Session, "script", each_by_itself)
    for name in ("execute", "_fetch", "copy"):
        monkeypatch.setattr(Session, name, stepping(made, getattr(Session, name)))
    return made


def stepping(killer: Killer, method: Any) -> Any:
    def stepped(session: Session, *arguments: Any, **options: Any) -> Any:
        session.run_waiting()
        killer.step(session)
        return method(session, *arguments, **options)

    return stepped


@pytest.fixture
def tables(database: Database, superuser: Session) -> list[str]:
    """Every table of the read models; the registry fills those of the entities too."""
    install(database.owner_url)
    superuser.script("SET session_replication_role = replica", "SET timezone = 'UTC'")
    superuser.script("UPDATE read_model_builds SET paused = false")
    return [f"{model.schema}.{table}" for model in READ_MODELS for table in model.tables]


def project(database: Database, *batches: Sequence[Event | Record], killer: Killer | None = None, at: int = -1) -> None:
    """Have a new owner project batches, each what is new of records from the first offset on.

    With a killer its worker is killed at a statement of the last batch.
    """
    projector = PartitionProjector(database.writer_url, TOPIC, 0, READ_MODELS)
    try:
        acquired = projector.acquire(WATERMARKS)
        start = acquired.log_end.next_offset
        for records in batches:
            if killer is not None and records is batches[-1]:
                killer.victim, killer.at, killer.count, killer.has_killed = projector._session, at, 0, False
            start = projector.project(batch_of(records[start:], token=acquired.token, start=start))
    finally:
        if killer is not None:
            killer.victim = None
        projector.close()


def found(superuser: Session, tables: Sequence[str]) -> tuple[pl.DataFrame, dict[str, list[Any]]]:
    """The log with its hashes, the rows of all tables, and the entities with the number of their versions."""
    rows = {table: superuser.query(f"SELECT to_json(t)::text AS row FROM {table} AS t ORDER BY 1") for table in tables}
    made = {table: [row for (row,) in found] for table, found in rows.items()}
    return superuser.frame(LOG), {**made, "entities": entity_rows(superuser)}


def test_a_batch_with_poison_and_control_records_can_be_killed_at_each_statement(
    database: Database, superuser: Session, tables: list[str], killer: Killer
) -> None:
    """Before each one and after the last: the next owner goes on, and log and tables are those of a run that nobody
    disturbed; up to the commit nothing of the batch is there.
    """
    whole = [*BEFORE, *KILLED, *AFTER]
    project(database, BEFORE, [*BEFORE, *KILLED], whole)
    log, rows = found(superuser, tables)
    assert dict(log["d"].value_counts().iter_rows()) == DISPOSITIONS
    assert {entity["versions"] for entity in rows["entities"]} > {1}, "the registry follows, and folds again and again"
    at, was_killed = 0, True
    committed: list[bool] = []
    while was_killed:
        superuser.script(*(f"DELETE FROM {table}" for table in (*EMPTIED, *tables)))
        try:
            project(database, BEFORE, [*BEFORE, *KILLED], killer=killer, at=at)
        except DatabaseUnreachable:
            logged = len(superuser.frame(LOG))
            assert logged in (len(BEFORE), len(BEFORE) + len(KILLED))
            committed.append(logged > len(BEFORE))
        else:
            was_killed = False
        project(database, whole)
        again, rows_again = found(superuser, tables)
        assert again.equals(log), at
        assert rows_again == rows, at
        at += 1
    assert committed == [False] * (len(committed) - 1) + [True], "the last one was the answer to the commit"
    assert len(committed) > 10
    print(f"killed at {len(committed)} statements")
