"""A log of many ranges: records where they belong, repeats found wherever the first is, closing that can be killed."""

from __future__ import annotations

import contextlib
import random
import re
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest

from database.errors import DatabaseUnreachable
from projections import log_ranges
from projections.engine import PartitionProjector
from projections.errors import RepeatApplied
from projections.id_budget import IdBudget
from projections.known_ids import FILTER_BYTES, OPEN_IDS_BYTES
from projections.log_ranges import LogRange, LogRanges
from projections.read_model import READ_MODELS
from projections.repeats import ID_REUSED
from projections.session import Session, sql_literal
from schemas import codec
from schemas.events import AgentAvailable, AgentOnboarded, Event
from schemas.polars_import import polars as pl
from streams.errors import OwnershipLost
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS, Record, batch_of
from tests.support.load import some_events
from tests.support.log_tables import set_range_offsets
from tests.support.long_form import sized
from tests.support.poison_records import key_of, redrive, unreadable
from tests.support.projectors import AGENT_ROWS, MakeProjector

RANGE = 64
KILL_STEP = sized(24, 1)
RANGES = "SELECT first_offset, closed_at IS NOT NULL AS closed FROM log_ranges ORDER BY first_offset"
DISPOSITIONS = 'SELECT disposition::text AS name FROM log_records WHERE partition = 0 ORDER BY "offset"'
CHAIN = "SELECT encode(hash, 'hex') AS hash FROM log_records WHERE partition = 0 ORDER BY \"offset\""
PUT_BEHIND = """
INSERT INTO log_records ("offset", created_at, partition, topic, event_id, entity_id, event_type, hash, value, headers)
SELECT {offset}, created_at, partition, topic, event_id, entity_id, event_type, hash, value, headers
FROM log_records WHERE "offset" = {first}
"""


@pytest.fixture(autouse=True)
def small_ranges(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A range has 64 offsets, and is read, and summarized, in parts of 16."""
    monkeypatch.setattr(log_ranges, "LOADED_OFFSETS", RANGE // 4)
    monkeypatch.setattr(log_ranges, "SUMMARIZED_OFFSETS", RANGE // 4)
    set_range_offsets(database.superuser_url, RANGE)


def project(projector: PartitionProjector, events: Sequence[Event | Record], *, start: int = 0, size: int = 50) -> None:
    """Acquire the partition and project events in batches."""
    token = projector.acquire(WATERMARKS).token
    for first in range(0, len(events), size):
        projector.project(batch_of(events[first : first + size], token=token, start=start + first))


def dispositions(superuser: Session) -> list[str]:
    return [row[0] for row in superuser.query(DISPOSITIONS)]


def finish(projector: PartitionProjector, pauses: int = 200) -> None:
    """Let the projector read and close what is left, as in so many pauses."""
    for _ in range(pauses):
        projector.idle()


def test_records_lie_in_their_ranges(projector: PartitionProjector, superuser: Session) -> None:
    """Batches are cut where a range ends; every full range is closed and has an index, the last one has none."""
    project(projector, some_events(300))
    finish(projector)
    assert superuser.query(RANGES) == [(0, True), (64, True), (128, True), (192, True), (256, False)]
    for first in range(0, 300, RANGE):
        ((least, most, count),) = superuser.query(
            f'SELECT min("offset") AS least, max("offset") AS most, count(*) AS n FROM log."{TOPIC}/0/{first}"'
        )
        assert (least, most, count) == (first, min(first + RANGE, 300) - 1, min(RANGE, 300 - first))
    ((indexes,),) = superuser.query("SELECT count(*) AS n FROM pg_class WHERE relname ~ '^event_ids_'")
    assert indexes == 4
    assert dispositions(superuser) == ["applied"] * 300


def test_look_ups_pass_over_the_open_range(
    projector: PartitionProjector, superuser: Session, database: Database
) -> None:
    """The worker keeps the index of blocks up to date: nothing is left but the last 32 pages, not full yet."""
    set_range_offsets(database.superuser_url, 1 << 20)
    project(projector, some_events(2000), size=500)
    left = f"SELECT brin_summarize_new_values('log.\"id_blocks_' || md5('{TOPIC}/0/0') || '\"') AS n"
    assert superuser.query(left) == [(1,)]


def test_ranges_change_nothing_but_where_records_lie(
    make_projector: MakeProjector, superuser: Session, database: Database
) -> None:
    """Chain and read model are those of a log in one range."""
    project(make_projector(0), some_events(200), size=200)
    cut, agents = superuser.query(CHAIN), superuser.query(AGENT_ROWS)
    project(make_projector(1), [], size=1)
    assert len(cut) == 200
    set_range_offsets(database.superuser_url, 1 << 20)
    superuser.script("SET session_replication_role = replica", "TRUNCATE checkpoints, agents_v1.agents")
    project(make_projector(0), some_events(200), size=200)
    assert superuser.query(CHAIN) == cut
    assert superuser.query(AGENT_ROWS) == agents


@pytest.mark.parametrize("size", [1, 7, 64, 500])
def test_a_whole_file_again_is_all_repeats(projector: PartitionProjector, superuser: Session, size: int) -> None:
    """Whatever range the first occurrence is in, and however the batches are cut."""
    events = some_events(200)
    project(projector, events)
    project(projector, events, start=200, size=size)
    assert dispositions(superuser) == ["applied"] * 200 + ["repeat"] * 200


def test_a_new_owner_finds_repeats_from_its_first_batch_on(make_projector: MakeProjector, superuser: Session) -> None:
    """Before its filters are read it asks every index; while they are read, and afterwards, it finds the same."""
    events = some_events(260)
    project(make_projector(0), events)
    successor = make_projector(0)
    project(successor, events[:130], start=260, size=13)
    assert {each.is_filtered for each in successor._ranges._earlier} == {False, True}
    finish(successor)
    assert all(each.is_filtered and each.closed for each in successor._ranges._earlier)
    project(successor, [*events[130:], *some_events(20, seed=2)], start=390)
    assert dispositions(superuser) == ["applied"] * 260 + ["repeat"] * 260 + ["applied"] * 20


def test_without_room_for_filters_the_indexes_are_asked(database: Database, superuser: Session) -> None:
    """A worker with a small budget is slow, and exact."""
    budget = IdBudget(FILTER_BYTES)
    projector = PartitionProjector(database.writer_url, TOPIC, 0, READ_MODELS, budget)
    try:
        events = some_events(200)
        project(projector, events)
        finish(projector)
        assert [each.filter for each in projector._ranges._earlier] == [None] * 3
        project(projector, [*events, *some_events(9, seed=2)], start=200)
        assert dispositions(superuser) == ["applied"] * 200 + ["repeat"] * 200 + ["applied"] * 9
        finish(projector)
        assert all(closed for _, closed in superuser.query(RANGES)[:-1])
    finally:
        projector.forget()
    assert budget.reserved_bytes == 0


def test_known_ids_are_counted_and_given_back(database: Database) -> None:
    """Open ranges, filters, and both again after the partition has moved away and back."""
    budget = IdBudget()
    projector = PartitionProjector(database.writer_url, TOPIC, 0, READ_MODELS, budget)
    try:
        project(projector, some_events(200))
        reserved = budget.reserved_bytes
        assert reserved == 3 * FILTER_BYTES + OPEN_IDS_BYTES
        projector.close()
        assert budget.reserved_bytes == reserved
        projector.forget()
        assert budget.reserved_bytes == 0
        projector.acquire(WATERMARKS)
        finish(projector)
        assert budget.reserved_bytes == reserved
    finally:
        projector.forget()


def test_filters_go_where_open_ranges_need_their_room(
    make_projector: MakeProjector, superuser: Session, database: Database
) -> None:
    """Partitions that a worker acquires when its budget is full: together they stay within it, and find repeats."""
    budget = IdBudget(2 * OPEN_IDS_BYTES + FILTER_BYTES)
    url, events = database.writer_url, some_events(200)
    projectors = [PartitionProjector(url, TOPIC, number, READ_MODELS, budget) for number in range(2)]
    try:
        project(projectors[0], events)
        finish(projectors[0])
        assert budget.reserved_bytes == OPEN_IDS_BYTES + 3 * FILTER_BYTES <= budget.total_bytes
        token = projectors[1].acquire(WATERMARKS).token
        batch = batch_of(some_events(10, seed=3), token=token)
        object.__setattr__(batch, "partition", 1)
        projectors[1].project(batch)
        assert budget.is_exceeded
        finish(projectors[0])
        assert budget.reserved_bytes == 2 * OPEN_IDS_BYTES + FILTER_BYTES == budget.total_bytes
        assert [each.first_offset for each in projectors[0]._ranges._earlier if each.filter is not None] == [128]
        project(projectors[0], events, start=200)
        assert dispositions(superuser) == ["applied"] * 200 + ["repeat"] * 200
    finally:
        for projector in projectors:
            projector.forget()
    assert budget.reserved_bytes == 0


def test_an_id_used_for_another_event_is_poison_across_ranges(
    projector: PartitionProjector, superuser: Session
) -> None:
    """The first event is compared with, wherever it lies."""
    events = some_events(150)
    others = [type(event)(**{**_fields(event), "occurred_at": events[-1].occurred_at}) for event in events[:3]]
    project(projector, events)
    project(projector, [*others, events[0], events[140]], start=150)
    assert dispositions(superuser)[150:] == ["poison"] * 3 + ["repeat"] * 2
    assert superuser.query("SELECT DISTINCT reason FROM log_records WHERE reason IS NOT NULL") == [(ID_REUSED,)]


def _fields(event: Event) -> dict[str, Any]:
    return {name: getattr(event, name) for name in event.__struct_fields__}


def test_what_another_owner_wrote_meanwhile_is_known(make_projector: MakeProjector, superuser: Session) -> None:
    """An owner that gets its partition back knows the other one's ids, in ranges that it has never seen too."""
    first, second = make_projector(0), make_projector(0)
    events = some_events(400)
    project(first, events[:100])
    project(second, events[100:300], start=100)
    finish(second)
    project(first, [*events[90:310]], start=300)
    project(second, events, start=520)
    expected = ["applied"] * 300 + ["repeat"] * 210 + ["applied"] * 10 + ["repeat"] * 310 + ["applied"] * 90
    assert dispositions(superuser) == expected


def test_what_was_committed_without_an_answer_is_known(
    projector: PartitionProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner has not noted its ids; it reads them when it acquires the partition again."""
    events = some_events(90)
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of(events[:30], token=token))
    script = Session.script

    def lose_the_answer(session: Session, *statements: str) -> None:
        script(session, *statements)
        if "COMMIT" in statements:
            raise DatabaseUnreachable(why="the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(Session, "script", lose_the_answer)
        with pytest.raises(DatabaseUnreachable):
            projector.project(batch_of(events[30:60], token=token, start=30))
    project(projector, events, start=60)
    assert dispositions(superuser) == ["applied"] * 60 + ["repeat"] * 60 + ["applied"] * 30


def test_a_range_that_is_closed_can_be_killed_at_each_statement(
    make_projector: MakeProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after each one: the next owner goes on, and nothing is lost, applied twice or left open."""
    events = some_events(140)
    killed = statement = 0
    query = Session.query
    calls = iter(())

    def counted(session: Session, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        if "log_range" not in sql or session is superuser:
            return query(session, sql, parameters)
        if next(calls, None) == "before":
            raise DatabaseUnreachable(why="killed")
        rows = query(session, sql, parameters)
        if next(calls, None) == "after":
            raise DatabaseUnreachable(why="killed")
        return rows

    monkeypatch.setattr(Session, "query", counted)
    while statement == killed:
        for when in ("before", "after"):
            superuser.script("SET session_replication_role = replica")
            superuser.script(f'DROP TABLE IF EXISTS log."{TOPIC}/0"')
            superuser.script("TRUNCATE log_ranges, checkpoints, agents_v1.agents")
            steps: list[str | None] = [None] * (2 * statement + (when == "after"))
            calls = iter([*steps, when])
            try:
                project(make_projector(0), events)
            except DatabaseUnreachable:
                killed = statement + 1
            calls = iter(())
            done = dispositions(superuser)
            successor = make_projector(0)
            project(successor, [*events[len(done) :], *events], start=len(done))
            finish(successor)
            assert dispositions(superuser) == ["applied"] * 140 + ["repeat"] * 140
            closed = [closed for _, closed in superuser.query(RANGES)]
            assert closed == [True] * 4 + [False]
        statement += 1
    assert killed >= 7


class Kills:
    """Counts the moments before and after each statement of a worker, and ends it at the one with a number."""

    def __init__(self) -> None:
        self.at = self.count = 0
        self.is_counting = False

    def pass_by(self, session: Session) -> None:
        self.count += self.is_counting
        if self.is_counting and self.count == self.at:
            self.is_counting = False
            session.close()
            raise DatabaseUnreachable(why="killed")


def test_a_worker_can_be_killed_at_any_statement_while_ranges_are_closed(
    make_projector: MakeProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the statement is about, rows, checkpoints and settings too: the next owner makes the same log of it.

    One moment in some dozen, from one of the first on, which chance chooses, and each in the long form.
    """
    kills = Kills()

    def counting(method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(session: Session, *arguments: Any) -> Any:
            if session is superuser:
                return method(session, *arguments)
            kills.pass_by(session)
            result = method(session, *arguments)
            kills.pass_by(session)
            return result

        return counted

    for name in ("script", "_fetch", "execute"):
        monkeypatch.setattr(Session, name, counting(getattr(Session, name)))
    events = some_events(140)

    def killed_log(at: int) -> list[tuple[Any, ...]]:
        superuser.script("SET session_replication_role = replica", f'DROP TABLE IF EXISTS log."{TOPIC}/0"')
        superuser.script("TRUNCATE log_ranges, checkpoints, agents_v1.agents")
        projector, kills.at, kills.count, kills.is_counting = make_projector(0), at, 0, True
        with contextlib.suppress(DatabaseUnreachable):
            project(projector, events)
            finish(projector, 20)
        kills.is_counting = False
        done = len(dispositions(superuser))
        successor = make_projector(0)
        project(successor, [*events[done:], *events], start=done)
        finish(successor)
        assert dispositions(superuser) == ["applied"] * 140 + ["repeat"] * 140
        assert [closed for _, closed in superuser.query(RANGES)] == [True] * 4 + [False]
        return superuser.query(CHAIN)

    whole = killed_log(0)
    moments = kills.count
    assert moments > 80
    for at in range(random.randint(1, KILL_STEP), moments + 1, KILL_STEP):
        assert killed_log(at) == whole


@pytest.mark.parametrize("first", [100, 3], ids=["its own range", "another range"])
def test_an_event_that_was_put_in_behind_the_owners_back_is_found(
    projector: PartitionProjector, superuser: Session, first: int
) -> None:
    """When its range is closed: its unique index refuses it, or an earlier range has its id."""
    events = some_events(200)
    project(projector, events[:110])
    superuser.script(PUT_BEHIND.format(offset=120, first=first))
    project(projector, [*events[110:120]], start=110)
    with pytest.raises(RepeatApplied, match="from offset 64 on"):
        project_from(projector, events[120:], 121)
    assert superuser.query(RANGES)[1] == (64, False)
    with pytest.raises(RepeatApplied, match="from offset 64 on"):
        project_from(projector, events[130:], 128)
    assert superuser.query(RANGES)[1] == (64, False)


def project_from(projector: PartitionProjector, events: Sequence[Event], start: int) -> None:
    """Project a batch behind a gap of one offset."""
    token = projector.acquire(WATERMARKS).token
    batch = batch_of(events, token=token, start=start)
    object.__setattr__(batch, "fetched_from", start - 1)
    projector.project(batch)
    finish(projector)


def test_reading_ids_ends_when_the_partition_is_given_up(
    make_projector: MakeProjector, superuser: Session, database: Database
) -> None:
    """Between two parts, and with the error that a lost ownership has."""
    project(make_projector(0), some_events(60))
    ranges, interrupted = LogRanges(TOPIC, 0, IdBudget()), threading.Event()
    interrupted.set()
    with pytest.raises(OwnershipLost):
        ranges.open(superuser, 60, interrupted)


def test_a_close_that_the_database_has_lost_is_done_again(projector: PartitionProjector, superuser: Session) -> None:
    """As after a standby took over: the owner of before has closed it, and the database that it meets has not."""
    project(projector, some_events(200))
    finish(projector)
    ((index,),) = superuser.query(
        "SELECT c.relname FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid"
        f" WHERE i.indrelid = 'log.\"{TOPIC}/0/64\"'::regclass AND c.relname ~ '^event_ids_'"
    )
    for lost in ("closed_at = NULL", "closed_at = closed_at"):
        superuser.script(f'DROP INDEX log."{index}"', f"UPDATE log_ranges SET {lost} WHERE first_offset = 64")
        projector.acquire(WATERMARKS)
        finish(projector)
        assert superuser.query(RANGES)[:3] == [(0, True), (64, True), (128, True)]
        assert superuser.query(f"SELECT to_regclass('log.\"{index}\"') IS NOT NULL AS there") == [(True,)]


def test_an_event_is_found_by_its_id_without_reading_the_open_range(
    projector: PartitionProjector, superuser: Session, database: Database
) -> None:
    """As records come, an index of blocks is kept up, which passes over nearly all of them."""
    set_range_offsets(database.superuser_url, 1 << 20)
    project(projector, some_events(6_000), size=2_000)
    finish(projector)
    superuser.script(f'ANALYZE log."{TOPIC}/0/0"', "SET enable_seqscan = off")
    query = """
        SELECT "offset" FROM event_stream WHERE disposition IN ('applied', 'parked')
        AND event_id = (SELECT event_id FROM log_records WHERE "offset" = 5000)
    """
    assert superuser.query(query) == [(5000,)]
    plan = explained(superuser, query)
    assert "id_blocks_" in plan
    removed = re.search(r"Rows Removed by Index Recheck: (\d+)", plan)
    assert removed is not None
    assert int(removed[1]) < 2_000


@pytest.mark.parametrize("filters", [0, 40])
def test_an_event_is_found_by_its_id_among_partitions_that_are_written(
    make_projector: MakeProjector, superuser: Session, database: Database, monkeypatch: pytest.MonkeyPatch, filters: int
) -> None:
    """Of each partition some 1,600 records are read at most, also while its owner has filters to read yet.

    With 48 partitions that is what one event by its id costs; pauses of the owners are not needed for it.
    """
    monkeypatch.setattr(log_ranges, "SUMMARIZED_OFFSETS", 1 << 10)
    set_range_offsets(database.superuser_url, 1 << 20)
    for partition in range(3):
        projector = make_projector(partition)
        token = projector.acquire(WATERMARKS).token
        events = some_events(5_000, seed=partition)
        projector._ranges._earlier = [LogRange(n, n, "none", closed=True) for n in range(-filters, 0)]
        monkeypatch.setattr(LogRanges, "_in_earlier", lambda *_: iter(()))
        monkeypatch.setattr(LogRanges, "_read_ids", lambda *_: pl.DataFrame({"event_id": []}, {"event_id": pl.Binary}))
        for first in range(0, len(events), 500):
            batch = batch_of(events[first : first + 500], token=token, start=first)
            object.__setattr__(batch, "partition", partition)
            projector.project(batch)
    superuser.script("SET enable_seqscan = off")
    query = "SELECT \"offset\" FROM event_stream WHERE disposition IN ('applied', 'parked') AND event_id = "
    assert superuser.query(f"{query}'{events[3_000].event_id}'") == [(3_000,)]
    plan = explained(superuser, f"{query}'{events[3_000].event_id}'")
    assert plan.count("id_blocks_") == 3
    read = [int(rows) for rows in re.findall(r"Rows Removed by Index Recheck: (\d+)", plan)]
    assert sum(read) < 3 * 2_200


def explained(superuser: Session, query: str) -> str:
    """Run a query, and return its plan with what it read."""
    superuser.script(
        "CREATE OR REPLACE FUNCTION plan(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$ BEGIN RETURN QUERY "
        "EXECUTE 'EXPLAIN (ANALYZE, TIMING off) ' || query; END $$"
    )
    return "\n".join(row[0] for row in superuser.query(f"SELECT plan({sql_literal(query)}) AS line"))


AGENT = UUID(int=5)
KEY = key_of(AGENT)


def named(number: int) -> AgentOnboarded:
    return AgentOnboarded(
        event_id=UUID(int=1000 + number), agent_id=AGENT, occurred_at=datetime(2026, 1, 1, tzinfo=UTC),
        name=f"name {number}", skill_ids=(),
    )  # fmt: skip


def test_an_id_that_a_control_record_brought_in_is_known_in_closed_ranges(
    make_projector: MakeProjector, superuser: Session
) -> None:
    """Its repeats are repeats, whether its owner knows it, a filter or an index; another event of that id is poison."""
    misplaced = (key_of(UUID(int=6)), codec.encode(named(1)))
    records: list[Event | Record] = [unreadable(AGENT), named(2), misplaced, redrive(KEY, 0, named(3))]
    other = msgspec.structs.replace(named(3), name="other")
    project(make_projector(0), [*records, *some_events(200), named(3), other])
    successor = make_projector(0)
    project(successor, [named(3), other], start=206)
    finish(successor)
    project(successor, [named(3), other], start=208)
    expected = ["poison", "parked", "poison", "control", *["applied"] * 200, *["repeat", "poison"] * 3]
    assert dispositions(superuser) == expected
    assert all(closed for _, closed in superuser.query(RANGES)[:-1])
    plan = superuser.query(
        f"SELECT pg_get_indexdef(i.indexrelid) AS d FROM pg_index AS i JOIN pg_class AS c"
        f" ON c.oid = i.indexrelid WHERE c.relname = 'event_ids_' || md5('{TOPIC}/0/0')"
    )
    assert "control" in plan[0][0]


def test_a_range_that_was_closed_before_keeps_its_index(make_projector: MakeProjector, superuser: Session) -> None:
    """It holds no id that a control record has brought in, and is asked as before."""
    events = some_events(200)
    project(make_projector(0), events)
    name = f"event_ids_' || md5('{TOPIC}/0/0')"
    ((index,),) = superuser.query(f"SELECT ('{name})::text AS n")
    superuser.script(
        f'DROP INDEX log."{index}"',
        f"CREATE UNIQUE INDEX \"{index}\" ON log.\"{TOPIC}/0/0\" (event_id) WHERE disposition IN ('applied', 'parked')",
    )
    successor = make_projector(0)
    token = successor.acquire(WATERMARKS).token
    assert [each.is_narrow for each in successor._ranges._earlier] == [True, False, False]
    successor.project(batch_of(events[:100], token=token, start=200))
    assert dispositions(superuser) == ["applied"] * 200 + ["repeat"] * 100


def test_events_are_released_from_several_ranges(make_projector: MakeProjector, superuser: Session) -> None:
    """Poison and parked events lie in closed ranges, and the control record in another."""
    waiting = [
        AgentAvailable(event_id=UUID(int=2000 + number), agent_id=AGENT, occurred_at=datetime(2026, 1, 1, tzinfo=UTC),
                       available=number % 2 == 0)
        for number in range(5)
    ]  # fmt: skip
    records: list[Event | Record] = [unreadable(AGENT)]
    for number, event in enumerate(waiting):
        records += [*some_events(50, seed=number + 10), event]
    project(make_projector(0), records)
    project(make_projector(0), [redrive(KEY, 0, named(1))], start=len(records))
    rows = superuser.query(
        "SELECT name, available, availability_offset FROM agents_v1.agents WHERE agent_id = $1::uuid", (str(AGENT),)
    )
    assert rows == [("name 1", True, len(records) - 1)]
