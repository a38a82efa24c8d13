"""Ranges of the log after a fault: a lost tail, an id that is there twice, slow disks, many ranges without a filter."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest

from database.errors import DatabaseUnreachable
from devstack import sql
from projections import log_ranges, repeats
from projections.engine import PartitionProjector
from projections.errors import RepeatApplied
from projections.id_budget import IdBudget
from projections.known_ids import FILTER_BYTES, OPEN_IDS_BYTES
from projections.prepared import PreparedBatch
from projections.read_model import READ_MODELS
from projections.session import DataRefused, RangeRefused, Session, WorkerOutdated
from schemas.events import Event
from schemas.polars_import import polars as pl
from streams.errors import LogRefused
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS, batch_of
from tests.support.load import some_events
from tests.support.log_tables import set_range_offsets
from tests.support.projectors import MakeProjector

RANGE = 64
RANGES = "SELECT first_offset, closed_at IS NOT NULL AS closed FROM log_ranges ORDER BY first_offset"
DISPOSITIONS = 'SELECT disposition::text AS name FROM log_records WHERE partition = 0 ORDER BY "offset"'
PUT_BEHIND = """
INSERT INTO log_records ("offset", created_at, partition, topic, event_id, entity_id, event_type, hash, value, headers)
SELECT 100, created_at, partition, topic, event_id, entity_id, event_type, hash, value, headers
FROM log_records WHERE "offset" = 3
"""

PUT_ANOTHER = "SELECT 100, created_at, partition, topic, '{}'"


@pytest.fixture(autouse=True)
def small_ranges(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A range has 64 offsets, and is read in parts of 16."""
    monkeypatch.setattr(log_ranges, "LOADED_OFFSETS", RANGE // 4)
    set_range_offsets(database.superuser_url, RANGE)


def project(projector: PartitionProjector, events: Sequence[Event], *, start: int = 0, fetched_from: int = -1) -> None:
    """Acquire the partition and project events as one batch."""
    token = projector.acquire(WATERMARKS).token
    batch = batch_of(events, token=token, start=start)
    if fetched_from >= 0:
        object.__setattr__(batch, "fetched_from", fetched_from)
    projector.project(batch)


def finish(projector: PartitionProjector) -> None:
    """Let the projector read and close what is left, as in a pause."""
    for _ in range(100):
        projector.idle()


def dispositions(superuser: Session) -> list[str]:
    return [row[0] for row in superuser.query(DISPOSITIONS)]


def test_records_that_come_before_an_empty_range_are_logged(
    make_projector: MakeProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker ended when it had made a range behind a gap; Kafka has lost that tail, and goes on before the range."""
    events = some_events(200)
    projector = make_projector(0)
    project(projector, events[:50])
    end_behind_a_gap(projector, monkeypatch, 50, 70)
    assert superuser.query(RANGES) == [(0, False), (64, False)]

    for each in (projector, make_projector(0)):
        each.acquire(WATERMARKS)
    project(projector, events[50:60], start=50)
    successor = make_projector(0)
    project(successor, [*events[:10], *events[60:150]], start=60)
    finish(successor)
    assert dispositions(superuser) == ["applied"] * 60 + ["repeat"] * 10 + ["applied"] * 90
    assert superuser.query(RANGES) == [(0, True), (64, True), (128, False)]


def end_behind_a_gap(projector: PartitionProjector, monkeypatch: pytest.MonkeyPatch, end: int, start: int) -> None:
    """Let the worker end once it has made the range of a record behind a gap, before it writes to it."""

    def ended(projector: PartitionProjector, prepared: PreparedBatch) -> Any:
        raise DatabaseUnreachable(why="the worker ended")

    with monkeypatch.context() as patch:
        patch.setattr(PartitionProjector, "_write", ended)
        with pytest.raises(DatabaseUnreachable):
            project(projector, some_events(3, seed=9), start=start, fetched_from=end)


def test_a_gap_over_two_ends_of_ranges_whose_tail_is_lost(
    make_projector: MakeProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It happens twice; then the log comes to a shorter gap, and goes on through what was left: all of it is closed."""
    events = some_events(300)
    project(make_projector(0), events[:40])
    for start in (140, 200):
        end_behind_a_gap(make_projector(0), monkeypatch, 40, start)
    assert [first for first, _ in superuser.query(RANGES)] == [0, 128, 192]
    projector = make_projector(0)
    project(projector, events[40:100], start=40)
    token = projector.acquire(WATERMARKS).token
    batch = batch_of([*events[:5], *events[100:240]], token=token, start=210)
    object.__setattr__(batch, "fetched_from", 100)
    projector.project(batch)
    finish(projector)
    assert superuser.query(RANGES) == [*((first, True) for first in range(0, 320, 64)), (320, False)]
    assert dispositions(superuser) == ["applied"] * 100 + ["repeat"] * 5 + ["applied"] * 140


def test_too_many_empty_ranges_are_named_and_an_operator_makes_one_more(
    make_projector: MakeProjector, superuser: Session, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the runbook says; the log then goes on behind the gap, and repeats are found on both sides of it."""
    events = some_events(200)
    project(make_projector(0), events[:40])
    for start in (140, 200, 260, 330):
        end_behind_a_gap(make_projector(0), monkeypatch, 40, start)
    with pytest.raises(RangeRefused, match=f"{TOPIC}/0 from 384 on .* 4 empty ones") as error:
        project(make_projector(0), events[40:60], start=390, fetched_from=40)
    assert error.value.next_step == "see docs/runbooks/the-log.md"
    sql.execute(database.owner_url, [f"SELECT add_log_range('{TOPIC}', 0, 384)"])
    projector = make_projector(0)
    project(projector, [*events[30:150]], start=390, fetched_from=40)
    finish(projector)
    project(projector, events[:40], start=510)
    finish(projector)
    assert dispositions(superuser) == ["applied"] * 40 + ["repeat"] * 10 + ["applied"] * 110 + ["repeat"] * 40
    assert [closed for _, closed in superuser.query(RANGES)] == [True] * 7 + [False]


def test_a_worker_adds_no_row_to_a_range_that_it_has_closed(
    projector: PartitionProjector, superuser: Session, database: Database
) -> None:
    """An event put there would be unknown to every later range's closing, and applied again when it comes."""
    events = some_events(200)
    project(projector, events[:30])
    project(projector, events[30:140], start=31, fetched_from=30)
    finish(projector)
    assert superuser.query(RANGES) == [(0, True), (64, True), (128, False)]
    append = PUT_BEHIND.replace("SELECT 100", "SELECT {}").replace("INTO log_records", "INTO {}")
    for first_offset, offset in ((0, 30), (64, 100)):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            sql.execute(database.writer_url, [append.format(f'log."{TOPIC}/0/{first_offset}"', offset)])
    project(projector, [*events[:5], *events[140:]], start=141)
    assert dispositions(superuser) == ["applied"] * 140 + ["repeat"] * 5 + ["applied"] * 60


def test_a_partition_whose_range_holds_a_repeat_projects_nothing_more(
    projector: PartitionProjector, superuser: Session
) -> None:
    """Acquiring it again asks that range first; once the row is gone it is closed, and the partition goes on."""
    events = some_events(200)
    project(projector, events[:80])
    superuser.script(PUT_BEHIND)
    with pytest.raises(RepeatApplied, match="from offset 64 on"):
        project(projector, events[80:110], start=101, fetched_from=80)
    logged = len(dispositions(superuser))
    for _ in range(2):
        with pytest.raises(RepeatApplied, match="from offset 64 on"):
            project(projector, events[107:120], start=128)
    assert (len(dispositions(superuser)), superuser.query(RANGES)[1]) == (logged, (64, False))

    superuser.script("SET session_replication_role = replica", 'DELETE FROM log_records WHERE "offset" = 100')
    project(projector, events[107:120], start=128)
    assert superuser.query(RANGES)[1] == (64, True)
    assert dispositions(superuser) == ["applied"] * 120


def test_look_ups_without_filters_are_cut_into_statements(
    database: Database, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids times ranges may be very many: no statement has more than its bound, and every repeat is found."""
    monkeypatch.setattr(repeats, "LOOKED_UP_MAX", 40)
    asked: list[int] = []
    frame = Session.frame

    def counted(session: Session, sql: str, parameters: Sequence[Any] = ()) -> pl.DataFrame:
        asked.append(sum(len(ids.split(",")) for ids in re.findall(r"'{([0-9a-f,]+)}'::uuid", sql)))
        return frame(session, sql, parameters)

    monkeypatch.setattr(Session, "frame", counted)
    projector = PartitionProjector(database.writer_url, TOPIC, 0, READ_MODELS, IdBudget(0))
    try:
        events = some_events(300)
        project(projector, events)
        finish(projector)
        project(projector, events, start=300)
        finish(projector)
    finally:
        projector.forget()
    assert dispositions(superuser) == ["applied"] * 300 + ["repeat"] * 300
    assert 0 < max(asked) <= 40
    assert all(closed for _, closed in superuser.query(RANGES)[:-1])


def test_making_an_index_may_take_longer_than_other_statements(
    projector: PartitionProjector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other partitions make theirs at the same time; the statements after it are bounded as before."""
    timeouts: list[tuple[bool, str]] = []
    query = Session.query

    def noted(session: Session, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        if "log_range(" in sql:
            ((timeout,),) = query(session, "SELECT current_setting('statement_timeout') AS timeout")
            timeouts.append(("index_log_range" in sql, timeout))
        return query(session, sql, parameters)

    monkeypatch.setattr(Session, "query", noted)
    project(projector, some_events(150))
    assert sorted(set(timeouts)) == [(False, "1min"), (True, "10min")]


def test_ranges_that_are_larger_than_known_ids_can_be_are_refused(
    projector: PartitionProjector, database: Database
) -> None:
    """An offset would reach into the hash next to it, and repeats would be missed: a later Plant's database."""
    set_range_offsets(database.superuser_url, 1 << 21)
    with pytest.raises(WorkerOutdated, match="2097152 offsets"):
        projector.acquire(WATERMARKS)


def test_a_batch_may_end_with_the_first_record_of_a_range(projector: PartitionProjector, superuser: Session) -> None:
    """It is cut before that record, as everywhere."""
    project(projector, some_events(RANGE + 1))
    assert dispositions(superuser) == ["applied"] * (RANGE + 1)
    assert [first for first, _ in superuser.query(RANGES)] == [0, RANGE]


def test_a_filter_that_is_read_in_part_is_read_on(make_projector: MakeProjector, superuser: Session) -> None:
    """An owner that acquires its partition again meanwhile does not take it for whole."""
    events = some_events(130)
    project(make_projector(0), events)
    successor = make_projector(0)
    successor.acquire(WATERMARKS)
    successor.idle()
    assert [each.loaded_until for each in successor._ranges._earlier] == [0, RANGE + RANGE // 4]
    project(successor, events, start=130)
    assert dispositions(superuser) == ["applied"] * 130 + ["repeat"] * 130


def test_what_is_known_follows_a_log_that_has_gone_back(database: Database, superuser: Session) -> None:
    """As after a standby took over that lacks the end: ids beyond it are not known, nor are ranges that are gone."""
    budget = IdBudget()
    projector = PartitionProjector(database.writer_url, TOPIC, 0, READ_MODELS, budget)
    try:
        project(projector, some_events(150))
        projector._ranges.open(superuser, 140, threading.Event())
        assert projector._ranges._open is not None
        assert (projector._ranges._open.next_offset, len(projector._ranges._open)) == (140, 12)
        assert budget.reserved_bytes == 2 * FILTER_BYTES + OPEN_IDS_BYTES
        set_range_offsets(database.superuser_url, RANGE)
        projector._ranges.open(superuser, 0, threading.Event())
        assert budget.reserved_bytes == 0
    finally:
        projector.forget()


@pytest.mark.parametrize(("first_offset", "projected", "put_at"), [(0, 30, 30), (64, 80, 100)])
def test_an_id_that_was_put_into_a_full_range_is_known_once_it_is_closed(
    projector: PartitionProjector, superuser: Session, first_offset: int, projected: int, put_at: int
) -> None:
    """Its filter is that of the owner, who has not seen the row; closing reads the ids that the log holds.

    So it does in the first range, which has no earlier one to be compared with.
    """
    events = some_events(150)
    project(projector, events[:projected])
    own, other = "SELECT 100, created_at, partition, topic, event_id", PUT_ANOTHER.format(events[140].event_id)
    superuser.script(PUT_BEHIND.replace(own, other.replace("100", str(put_at))))
    project(projector, events[projected:120], start=put_at + 1, fetched_from=projected)
    finish(projector)
    assert (first_offset, True) in superuser.query(RANGES)
    project(projector, [events[140]], start=put_at + 1 + 120 - projected)
    assert dispositions(superuser)[-1] != "applied"


def test_ranges_are_taken_in_the_order_of_their_offsets(
    make_projector: MakeProjector, superuser: Session, database: Database
) -> None:
    """Whatever the order of the rows that list them."""
    project(make_projector(0), some_events(150))
    superuser.script(
        "CREATE TEMPORARY TABLE gone AS SELECT * FROM log_ranges WHERE first_offset = 64",
        "DELETE FROM log_ranges WHERE first_offset = 64",
        "INSERT INTO log_ranges SELECT * FROM gone",
        *(
            f"ALTER ROLE plant_writer IN DATABASE {database.name} SET {name} = off"
            for name in ("enable_indexscan", "enable_bitmapscan")
        ),
    )
    successor = make_projector(0)
    successor.acquire(WATERMARKS)
    assert successor._ranges.table == f"{TOPIC}/0/128"
    assert [each.first_offset for each in successor._ranges._earlier] == [0, 64]


def test_another_refusal_of_an_index_is_no_repeat(
    projector: PartitionProjector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told as the server tells it."""
    query = Session.query

    def refuse(session: Session, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        if "index_log_range" in sql:
            raise DataRefused("22000", "something else", ["another_index"])
        return query(session, sql, parameters)

    monkeypatch.setattr(Session, "query", refuse)
    with pytest.raises(LogRefused, match="something else"):
        project(projector, some_events(70))
