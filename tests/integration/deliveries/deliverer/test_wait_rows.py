"""Deliveries that wait in rows: which of them are read, by their time or by their endpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from deliveries.deliverer import wait_rows
from deliveries.deliverer.wait_rows import PROBES_NEAR, DeliveryInRow, WaitRow, WaitRows, find_due, find_wanted
from devstack import sql
from projections.session import Session
from runtime.settings import Settings
from tests.conftest import Database

HOUR = timedelta(hours=1)
NOW = datetime.now(UTC)


@pytest.fixture
def session(local: Settings, database: Database) -> Iterator[Session]:
    """A deliverer's session."""
    made = Session(local.database_address("deliverer"))
    yield made
    made.close()


def endpoint(number: int) -> bytes:
    """Return an endpoint's id."""
    return bytes([number]) * 16


def waits(name: str, endpoint_number: int, due_at: datetime | None, *, in_topic: bool = False) -> WaitRow:
    """Return the row of a delivery, whose record is its name."""
    return WaitRow(
        delivery_id=name.encode().ljust(16), endpoint_id=endpoint(endpoint_number), hop=1, due_at=due_at,
        record=None if in_topic else name.encode(), entity_id=None, source_partition=0, source_offset=0, source_rank=0,
    )  # fmt: skip


def due_rows(*names: str) -> list[DeliveryInRow]:
    """Return what is found of deliveries that `waits` made."""
    return [DeliveryInRow(name.encode().ljust(16), name.encode()) for name in names]


def store(session: Session, *rows: WaitRow, partition: int = 0) -> None:
    """Store rows."""
    session.script(*wait_rows.wait_statements(partition, rows, ()))


@pytest.fixture
def stored(session: Session) -> Session:
    """Rows of four endpoints: those of the third are in a retry topic, or behind another one."""
    store(
        session,
        *(waits(f"1 due {hours}", 1, NOW - hours * HOUR) for hours in (1, 3, 2)),
        waits("1 later", 1, NOW + 2 * HOUR),
        waits("2 later", 2, NOW + HOUR),
        waits("3 in a topic", 3, NOW - HOUR, in_topic=True),
        waits("3 behind", 3, None),
        waits("4 due", 4, NOW - 4 * HOUR),
    )
    store(session, waits("elsewhere", 1, NOW - 5 * HOUR), partition=1)
    return session


def test_an_endpoint_is_probed_with_what_was_not_attempted_before(session: Session) -> None:
    """However long others are due, that were refused; where there is no such one, with any that is due."""
    for number in (1, 2, 3):
        times = [NOW - HOUR - timedelta(seconds=each) for each in range(2 * PROBES_NEAR + 9)]
        refused = [waits(f"{number} refused {each}", number, due_at) for each, due_at in enumerate(times)]
        store(session, *(msgspec.structs.replace(each, hop=2) for each in refused))
    store(session, waits("1 new", 1, NOW - HOUR / 2), waits("2 later", 2, NOW + HOUR), waits("4 old", 4, NOW - HOUR))
    probed = {endpoint(number): 1 for number in (1, 2, 3, 4)}
    found = find_wanted(session, 0, [], probed, probed.keys())
    assert sorted(row.record[:9] for row in found.due) == [b"1 new", b"2 refused", b"3 refused", b"4 old"]
    assert set(found.with_more) == probed.keys()
    taken = [row.delivery_id for row in due_rows("1 new")]
    found = find_wanted(session, 0, taken, {**probed, endpoint(3): 2}, {endpoint(1)})
    assert sorted(row.record[:9] for row in found.due) == [b"1 refused", b"2 refused", *[b"3 refused"] * 2, b"4 old"]


def test_rows_of_probed_endpoints_that_are_not_due_say_when_they_are(stored: Session) -> None:
    """One that is due comes before a new one that is not; those of other partitions, and in topics, do not count."""
    store(stored, msgspec.structs.replace(waits("1 due 3", 1, NOW - 3 * HOUR), hop=9))
    probed = {endpoint(number): 1 for number in (1, 2, 3)}
    found = find_wanted(stored, 0, [row.delivery_id for row in due_rows("1 due 1", "1 due 2")], probed, probed.keys())
    assert found == WaitRows(due_rows("1 due 3"), NOW + HOUR, [endpoint(1)], {endpoint(3)})


def test_rows_of_wanted_endpoints_are_read_the_longest_due_first(stored: Session) -> None:
    """Of each as many as it may have; those that are not due say when they are, and those under way are left out."""
    wanted = {endpoint(number): 8 for number in (1, 2, 3)}
    found = find_wanted(stored, 0, [], wanted)
    assert found == WaitRows(due_rows("1 due 3", "1 due 2", "1 due 1"), NOW + HOUR, [], {endpoint(3)})
    assert find_wanted(stored, 0, [], {endpoint(1): 4}).next_due_at == NOW + 2 * HOUR
    assert find_wanted(stored, 0, [], {endpoint(1): 2}) == WaitRows(
        due_rows("1 due 3", "1 due 2"), None, [endpoint(1)], set()
    )
    taken = [b"1 due 3".ljust(16)]
    assert find_wanted(stored, 0, taken, {endpoint(1): 1, endpoint(4): 1}) == WaitRows(
        due_rows("4 due", "1 due 2"), None, [endpoint(4), endpoint(1)], set()
    )
    assert find_wanted(stored, 0, [], {endpoint(2): 1}) == WaitRows([], NOW + HOUR, [], set()), "it is not due"


def test_rows_that_are_due_are_read_but_for_endpoints_that_are_set_aside(stored: Session) -> None:
    """Neither what is due of these nor what is not yet."""
    assert find_due(stored, 0, [], [], 8) == WaitRows(due_rows("4 due", "1 due 3", "1 due 2", "1 due 1"), NOW + HOUR)
    assert find_due(stored, 0, [], [endpoint(1)], 8) == WaitRows(due_rows("4 due"), NOW + HOUR)
    assert find_due(stored, 0, [b"4 due".ljust(16)], [endpoint(1), endpoint(2)], 8) == WaitRows([], None)


def test_one_row_of_thousands_is_found_by_its_index(session: Session, database: Database) -> None:
    """Endpoints that hung for a day have as many due, some longer than those of the one that is tried."""
    for number in (1, 2):
        store(session, *(waits(f"{number}:{at}", number, NOW - number * (1 + at) * HOUR) for at in range(3_000)))
    sql.execute(database.superuser_url, ["ANALYZE delivery_waits"])
    assert find_wanted(session, 0, [], {endpoint(1): 1}).due == due_rows("1:2999")
    query = wait_rows._WANTED.format(
        partition=0, ids="'{}'::uuid[]", endpoints=wait_rows._array([endpoint(1)]), rows_max="'{1}'::integer[]"
    )
    plan = "\n".join(line for (line,) in session.query(f"EXPLAIN (ANALYZE) {query}"))
    scan = next(line for line in plan.splitlines() if "delivery_waits_endpoint" in line)
    assert re.search(r"actual .*rows=1(\.0+)? loops=1\b", scan), plan
