"""A range of the log that is vacuumed, or read under an old snapshot, while its partition goes on.

A vacuum against wraparound, and one that an operator starts, keep their lock until they are done, whoever waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import structlog

from database import migrate
from devstack import sql
from projections import log_ranges
from projections.engine import PartitionProjector
from projections.errors import RepeatApplied
from projections.id_budget import IdBudget
from projections.read_model import READ_MODELS
from projections.session import Session, TableLocked
from schemas.events import Event
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS, batch_of
from tests.support.load import some_events
from tests.support.log_tables import set_range_offsets
from tests.support.projectors import MakeProjector
from tests.support.waiting import wait_until

RANGE = 64
CLOSED = "SELECT closed_at IS NOT NULL AS closed FROM log_ranges ORDER BY first_offset"
DISPOSITIONS = 'SELECT disposition::text AS name FROM log_records WHERE partition = 0 ORDER BY "offset"'
PATIENT = "SET idle_in_transaction_session_timeout = 0"
PUT_BEHIND = """
INSERT INTO log_records ("offset", created_at, partition, topic, event_id, entity_id, event_type, hash, value, headers)
SELECT 62, created_at, partition, topic, event_id, entity_id, event_type, hash, value, headers
FROM log_records WHERE "offset" = 3
"""


@pytest.fixture(autouse=True)
def small_ranges(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A range has 64 offsets, and its lock is waited for briefly, and asked for again soon."""
    monkeypatch.setattr(log_ranges, "LOADED_OFFSETS", RANGE // 4)
    monkeypatch.setattr(log_ranges, "LOCK_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(log_ranges, "AGAIN_SECONDS", 0.5)
    set_range_offsets(database.superuser_url, RANGE)


def project(projector: PartitionProjector, events: Sequence[Event], *, start: int = 0, gap: int = 0) -> None:
    """Acquire the partition and project events as one batch, behind a gap of so many offsets."""
    token = projector.acquire(WATERMARKS).token
    batch = batch_of(events, token=token, start=start)
    object.__setattr__(batch, "fetched_from", start - gap)
    projector.project(batch)


def finish(projector: PartitionProjector) -> None:
    """Let the projector do what it can, as in a pause."""
    for _ in range(100):
        projector.idle()


def close_all(projector: PartitionProjector, superuser: Session) -> None:
    """Let the projector close every range but the last, which may be locked for a moment yet."""

    def all_closed() -> bool:
        projector.idle()
        return all(closed(superuser)[:-1])

    wait_until(all_closed, "every full range is closed")


def closed(superuser: Session) -> list[bool]:
    return [row[0] for row in superuser.query(CLOSED)]


def dispositions(superuser: Session) -> list[str]:
    return [row[0] for row in superuser.query(DISPOSITIONS)]


@contextmanager
def vacuuming(database: Database, first_offset: int) -> Iterator[None]:
    """Hold the lock of a vacuum on a range's table until the block ends, and run one then.

    A vacuum that is held by a page does not do: it passes where some snapshot leaves it nothing to freeze.
    """
    table, holder = f'log."{TOPIC}/0/{first_offset}"', Session(database.superuser_url)
    try:
        holder.script(PATIENT, "BEGIN", f"LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE")
        yield
    finally:
        holder.close()
    sql.execute(database.superuser_url, [f"VACUUM (FREEZE) {table}"])


def test_records_are_appended_to_a_range_that_is_frozen(
    projector: PartitionProjector, superuser: Session, database: Database
) -> None:
    """The open one: neither records nor the look at its blocks wait, and repeats are found."""
    events = some_events(60)
    project(projector, events[:30])
    with vacuuming(database, 0):
        project(projector, events[20:50], start=30)
        finish(projector)
        assert dispositions(superuser) == ["applied"] * 30 + ["repeat"] * 10 + ["applied"] * 20


def test_a_full_range_that_is_frozen_gets_its_index_later(
    projector: PartitionProjector, superuser: Session, database: Database
) -> None:
    """The partition goes on over two ends of ranges, its repeats are found, and all are closed once it is done."""
    events = some_events(300)
    project(projector, events[:60])
    with vacuuming(database, 0), structlog.testing.capture_logs() as lines:
        project(projector, events[60:200], start=60)
        project(projector, [*events[:90], *events[200:210]], start=200)
        finish(projector)
        assert closed(superuser) == [False, False, False, False, False]
        assert dispositions(superuser) == ["applied"] * 200 + ["repeat"] * 90 + ["applied"] * 10
    assert {line["first_offset"] for line in lines if line["event"] == "log_range.locked"} == {0}
    close_all(projector, superuser)
    assert closed(superuser) == [True, True, True, True, False]
    project(projector, events, start=300)
    assert dispositions(superuser)[300:] == ["repeat"] * 210 + ["applied"] * 90


def test_the_log_goes_on_over_the_end_of_a_range_while_it_is_analysed(
    projector: PartitionProjector, superuser: Session, database: Database
) -> None:
    """The next range is there by then. One that can't be made is asked for again, and the range at hand is filled."""
    events = some_events(300)
    project(projector, events[:50])
    analyst = Session(database.superuser_url)
    try:
        with structlog.testing.capture_logs() as lines:
            analyst.script(PATIENT, "BEGIN", "ANALYZE log_records")
            project(projector, [*events[:20], *events[50:100]], start=50)
            project(projector, events[100:108], start=120)
            finish(projector)
            assert closed(superuser) == [False, False]
            assert dispositions(superuser) == ["applied"] * 50 + ["repeat"] * 20 + ["applied"] * 58
        assert {line["first_offset"] for line in lines if line["event"] == "log_range.not_made"} == {128}
    finally:
        analyst.close()
    made = "the first range is closed, and the one behind the second is made"
    wait_until(lambda: projector.idle() or closed(superuser) == [True, False, False], made)
    project(projector, [*events[100:110], *events[110:140]], start=128)
    assert dispositions(superuser)[128:] == ["repeat"] * 8 + ["applied"] * 32


def test_the_lock_is_not_asked_for_with_each_batch(
    projector: PartitionProjector, superuser: Session, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for it takes the partition's time."""
    monkeypatch.setattr(log_ranges, "AGAIN_SECONDS", 3_600.0)
    project(projector, some_events(60))
    with vacuuming(database, 0), structlog.testing.capture_logs() as lines:
        token = projector.acquire(WATERMARKS).token
        for start in range(60, 100, 10):
            projector.project(batch_of(some_events(10, seed=start), token=token, start=start))
        finish(projector)
    assert [line["event"] for line in lines if line["event"] == "log_range.locked"] == ["log_range.locked"]
    assert closed(superuser) == [False, False]


def test_the_timeouts_of_other_statements_are_as_before(
    projector: PartitionProjector, superuser: Session, database: Database
) -> None:
    """Whether the range got its index or not."""
    names = ("statement_timeout", "lock_timeout")
    project(projector, some_events(60))
    assert projector._session is not None
    with vacuuming(database, 0):
        project(projector, some_events(10, seed=2), start=60)
        assert [projector._session.query(f"SHOW {name}")[0][0] for name in names] == ["1min", "20s"]
    close_all(projector, superuser)
    assert [projector._session.query(f"SHOW {name}")[0][0] for name in names] == ["1min", "20s"]


def test_without_its_filter_a_range_that_is_frozen_is_waited_for(
    make_projector: MakeProjector, superuser: Session, database: Database
) -> None:
    """Each look-up would read it: a worker without room for filters, and a new owner, wait until it has its index."""
    events = some_events(150)
    small = PartitionProjector(database.writer_url, TOPIC, 0, READ_MODELS, IdBudget(0))
    try:
        project(small, events[:60])
        with vacuuming(database, 0):
            for projector in (small, make_projector(0)):
                with pytest.raises(TableLocked):
                    project(projector, events[60:100], start=60)
                assert len(dispositions(superuser)) in (60, 64)
        done = len(dispositions(superuser))
        project(small, [*events[done:], *events], start=done)
        close_all(small, superuser)
    finally:
        small.forget()
    assert dispositions(superuser) == ["applied"] * 150 + ["repeat"] * 150
    assert closed(superuser) == [True] * 4 + [False]


def test_an_id_that_is_there_twice_is_found_when_the_range_gets_its_index(
    projector: PartitionProjector, superuser: Session, database: Database
) -> None:
    """Later, but before the range counts as closed."""
    events = some_events(150)
    project(projector, events[:60])
    superuser.script(PUT_BEHIND)
    with vacuuming(database, 0):
        project(projector, events[60:100], start=63, gap=3)
    with pytest.raises(RepeatApplied, match="from offset 0 on"):
        close_all(projector, superuser)
    assert closed(superuser)[0] is False


def test_a_reader_with_an_old_snapshot_sees_one_log(
    projector: PartitionProjector, superuser: Session, database: Database
) -> None:
    """Ranges are made and closed, and later migrations run, while it reads; the worker goes on, before and after."""
    read = [
        "SELECT count(*) AS n, sum(hashtextextended(e::text, 0)) AS h FROM event_stream AS e",
        "SELECT count(*) AS n, sum(hashtextextended(a::text, 0)) AS h FROM audit_log AS a",
        "SELECT count(*) AS n, count(closed_at) AS c FROM log_ranges",
    ]
    events = some_events(400)
    project(projector, events[:100])
    finish(projector)
    reader = Session(database.auditor_url)
    try:
        reader.script(PATIENT, "BEGIN ISOLATION LEVEL REPEATABLE READ")
        seen = [reader.query(query) for query in read]
        project(projector, events[100:230], start=100)
        finish(projector)
        assert [reader.query(query) for query in read] == seen
        projector.close()
        migrate.downgrade(database.owner_url, "020")
        migrate.upgrade(database.owner_url)
        assert [reader.query(query) for query in read] == seen
        project(projector, [*events[:10], *events[230:]], start=230)
        finish(projector)
        assert [reader.query(query) for query in read] == seen
        reader.script("COMMIT")
        assert [reader.query(query)[0][0] for query in read] == [410, 410, 7]
    finally:
        reader.close()
    assert dispositions(superuser) == ["applied"] * 230 + ["repeat"] * 10 + ["applied"] * 170
    assert closed(superuser) == [True] * 6 + [False]
