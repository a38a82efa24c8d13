"""Days of deliveries: their tables are made ahead, hold what belongs there, and go when they are old, and no sooner."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg
import pytest

from deliveries.state import retention
from deliveries.state.recorder import AttemptRecorder
from deliveries.state.retention import AGAIN_SECONDS, EVERY_SECONDS, DeliveryRetention
from devstack import sql
from projections.session import Session
from schemas.delivery_records import ATTEMPTS_TOPIC, DeliveryAttempted
from streams.errors import OwnershipLost
from tests.conftest import Database
from tests.support.made_attempts import WATERMARKS, attempt_batch, attempted

KEEP_DAYS: Final = 30
TABLE_OF: Final = "SELECT tableoid::regclass::text FROM {} WHERE {} = '{}'"


def today() -> datetime:
    """Return the day of the test: it may be another one than that in which the tests were collected."""
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def old() -> datetime:
    """Return a day that is not kept any more."""
    return today() - timedelta(days=KEEP_DAYS + 5)


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    made = Session(database.deliverer_url)
    yield made
    made.close()


def record(database: Database, *records: DeliveryAttempted) -> None:
    """Record attempts, without looking after the days."""
    recorder = AttemptRecorder(database.deliverer_url, ATTEMPTS_TOPIC, 1, DeliveryRetention(KEEP_DAYS))
    acquired = recorder.acquire(WATERMARKS)
    recorder.project(attempt_batch(records, token=acquired.token, start=acquired.log_end.next_offset, partition=1))
    recorder.close()


def made(number: int, occurred_at: datetime, attempted_at: datetime | None = None) -> DeliveryAttempted:
    return attempted(number, occurred_at=occurred_at, attempted_at=attempted_at or datetime.now(UTC))


def tables_of(database: Database, delivery_id: UUID) -> tuple[str, str]:
    """Return the tables that a delivery and its attempt are in."""
    deliveries = sql.value(database.superuser_url, TABLE_OF.format("webhook_deliveries", "id", delivery_id))
    attempts = sql.value(database.superuser_url, TABLE_OF.format("webhook_attempts", "delivery_id", delivery_id))
    return deliveries, attempts


def make_day(database: Database, day: datetime) -> None:
    """Make the tables of a day, as they were made when it was near."""
    for table in ("webhook_deliveries", "webhook_attempts"):
        bounds = f"FROM ('{day.isoformat()}') TO ('{(day + timedelta(days=1)).isoformat()}')"
        sql.execute(database.owner_url, [f"CREATE TABLE {table}_{day:%Y%m%d} PARTITION OF {table} FOR VALUES {bounds}"])


def run(session: Session, keep_days: int = KEEP_DAYS) -> None:
    DeliveryRetention(keep_days).run_due(session, threading.Event())


def test_a_delivery_is_in_the_table_of_its_events_day(database: Database, session: Session) -> None:
    """Yesterday's, today's and those of three days ahead have one; what is older or further ahead has another."""
    run(session)
    times = {1: today(), 2: today() - timedelta(microseconds=1), 3: today() + timedelta(days=4, microseconds=-1)}
    others = {4: today() + timedelta(days=4), 5: today() - timedelta(days=900), 6: datetime(9999, 12, 31, tzinfo=UTC)}
    record(database, *(made(number, at) for number, at in (times | others).items()))
    for number, at in times.items():
        day = f"{at:%Y%m%d}"
        assert tables_of(database, made(number, at).delivery_id) == (
            f"webhook_deliveries_{day}",
            f"webhook_attempts_{day}",
        )
    for number, at in others.items():
        assert tables_of(database, made(number, at).delivery_id) == (
            "webhook_deliveries_other",
            "webhook_attempts_other",
        )


def test_what_came_before_its_days_table_is_moved_there(database: Database, session: Session) -> None:
    """An event of the future waits among the others; an operator finds it in either place."""
    early = made(1, today() + timedelta(days=1, hours=3))
    record(database, early, made(2, today() - timedelta(days=9)))
    run(session)
    assert tables_of(database, early.delivery_id)[0] == f"webhook_deliveries_{early.occurred_at:%Y%m%d}"
    assert tables_of(database, made(2, today()).delivery_id)[0] == "webhook_deliveries_other"
    record(database, made(1, early.occurred_at))  # its next attempt
    assert sql.value(database.operator_url, "SELECT count(*) FROM webhook_deliveries") == 2
    assert sql.value(database.operator_url, "SELECT count(*) FROM webhook_attempts") == 3


def test_days_are_made_once(session: Session) -> None:
    """Several deliverers may ask: the second makes nothing."""
    assert session.query("SELECT add_delivery_days(3) AS made") == [(5,)]
    assert session.query("SELECT add_delivery_days(3) AS made") == [(0,)]
    assert session.query("SELECT add_delivery_days(4) AS made") == [(1,)]


def test_an_old_day_is_dropped(database: Database, session: Session) -> None:
    """With both of its tables; what is younger stays, and a delivery whose state has just changed does."""
    kept_day = today() - timedelta(days=KEEP_DAYS - 1)
    for day in (old(), old() + timedelta(days=1), kept_day):
        make_day(database, day)
    gone, redriven = made(1, old(), old()), made(2, old(), old())
    record(database, gone, redriven, made(3, kept_day, kept_day), made(2, old()))
    run(session)
    assert sql.value(database.superuser_url, f"SELECT to_regclass('webhook_attempts_{old():%Y%m%d}')") is None
    assert sql.value(database.superuser_url, f"SELECT to_regclass('webhook_deliveries_{kept_day:%Y%m%d}')") is not None
    ids = {row["id"] for row in fetch(database, "SELECT id::text AS id FROM webhook_deliveries")}
    assert ids == {str(each.delivery_id) for each in (redriven, made(3, kept_day))}
    assert tables_of(database, redriven.delivery_id) == ("webhook_deliveries_other", "webhook_attempts_other")
    assert sql.value(database.operator_url, "SELECT count(*) FROM webhook_attempts") == 3


def test_others_are_deleted_when_their_state_is_old(database: Database, session: Session) -> None:
    """A backfill's deliveries stay as long as any others, however old their events are."""
    run(session)
    record(database, made(1, old()), made(2, old(), today() - timedelta(days=KEEP_DAYS + 1)))
    run(session)
    ids = [row["id"] for row in fetch(database, "SELECT id::text AS id FROM webhook_deliveries")]
    assert ids == [str(made(1, old()).delivery_id)]
    assert sql.value(database.operator_url, "SELECT count(*) FROM webhook_attempts") == 1


def test_others_are_deleted_to_the_last(database: Database, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many they are: some at a time, so that no statement takes long, and all of them."""
    monkeypatch.setattr(retention, "DELETED_ROWS", 2)
    run(session)
    before = today() - timedelta(days=KEEP_DAYS + 1)
    record(database, *(made(number, old(), before) for number in range(1, 6)), made(6, old()))
    run(session)
    assert sql.value(database.operator_url, "SELECT count(*) FROM webhook_deliveries") == 1


@pytest.mark.parametrize(
    "call",
    ["drop_delivery_day(6)", "drop_delivery_day(NULL)", "drop_delivery_day(-1)", "delete_other_deliveries(0, 10)",
     "add_delivery_days(15)", "add_delivery_days(-1)"],
)  # fmt: skip
def test_a_deliverer_can_not_drop_what_is_young(database: Database, call: str) -> None:
    """Whoever takes over a deliverer can hide no attempt of the last week, nor fill the catalog with tables."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        sql.value(database.deliverer_url, f"SELECT {call}")


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM webhook_attempts", "DELETE FROM webhook_deliveries", "UPDATE webhook_attempts SET answer = ''",
     "TRUNCATE webhook_attempts", "DROP TABLE webhook_attempts_other", "SELECT FROM webhook_deliveries_other"],
)  # fmt: skip
def test_a_deliverer_changes_no_attempt(database: Database, statement: str) -> None:
    """It may add attempts and change deliveries, by the tables that hold all days."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        sql.execute(database.deliverer_url, [statement])


def test_a_reader_only_puts_it_off(database: Database, session: Session) -> None:
    """A table that is locked is not waited for long, and the recorder goes on."""
    clock = [1000.0]
    retention = DeliveryRetention(KEEP_DAYS, lambda: clock[0])
    reader = Session(database.operator_url)
    try:
        reader.begin()
        reader.query("SELECT count(*) AS rows FROM webhook_attempts")
        retention.run_due(session, threading.Event())
        assert session.query("SELECT 1 AS one") == [(1,)]
        clock[0] += AGAIN_SECONDS - 1
        retention.run_due(session, threading.Event())  # not yet
    finally:
        reader.close()
    assert sql.value(database.superuser_url, f"SELECT to_regclass('webhook_attempts_{today():%Y%m%d}')") is None
    clock[0] += 1
    retention.run_due(session, threading.Event())
    assert sql.value(database.superuser_url, f"SELECT to_regclass('webhook_attempts_{today():%Y%m%d}')") is not None


def test_it_ends_between_two_days_when_the_partition_is_given_up(database: Database, session: Session) -> None:
    """Each day is a transaction of its own; the next owner goes on."""
    for day in (old(), old() + timedelta(days=1)):
        make_day(database, day)
    interrupted = threading.Event()
    interrupted.set()
    with pytest.raises(OwnershipLost):
        DeliveryRetention(KEEP_DAYS).run_due(session, interrupted)
    left = "SELECT count(*) FROM pg_class WHERE relname ~ '^webhook_attempts_[0-9]{8}$' AND relname < '{}'"
    assert (
        sql.value(database.superuser_url, left.replace("{}", f"webhook_attempts_{today() - timedelta(2):%Y%m%d}")) == 1
    )


def test_the_owner_of_one_partition_looks_after_the_days(database: Database) -> None:
    """At once, and from then on every hour; the owners of others leave it to that one."""
    clock = [1000.0]
    made = f"SELECT to_regclass('webhook_deliveries_{today():%Y%m%d}')"
    for partition, makes in ((1, False), (0, True)):
        recorder = AttemptRecorder(
            database.deliverer_url, ATTEMPTS_TOPIC, partition, DeliveryRetention(KEEP_DAYS, lambda: clock[0])
        )
        recorder.acquire(WATERMARKS)
        assert (sql.value(database.superuser_url, made) is not None) == makes
        recorder.idle()
        recorder.close()
    make_day(database, old())
    recorder.acquire(WATERMARKS)
    dropped = f"SELECT to_regclass('webhook_deliveries_{old():%Y%m%d}') IS NULL"
    assert sql.value(database.superuser_url, dropped) is False
    clock[0] += EVERY_SECONDS
    recorder.idle()
    recorder.close()
    assert sql.value(database.superuser_url, dropped) is True


def fetch(database: Database, query: str) -> list[Any]:
    return list(sql.run_on(database.operator_url, lambda connection: connection.fetch(query)))
