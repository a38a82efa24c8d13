"""From where on an endpoint is live, and what is read again for it."""

from __future__ import annotations

import doctest
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deliveries.dispatch import endpoint_backfills
from deliveries.dispatch.endpoint_backfills import Backfill, EndpointBackfills, Resume, new_backfill, resumed_backfill
from deliveries.endpoints import EndpointId
from deliveries.event_filters import parse_event_types
from deliveries.matching import Subscription

offsets = st.integers(0, 40)


def subscription(number: int, *starts: int) -> Subscription:
    types = parse_event_types(["genesis.*"])
    return Subscription(endpoint_id=EndpointId(UUID(int=number)), event_types=types, start_offsets=starts)


def test_documented_examples_hold() -> None:
    """The module's examples do what they say."""
    assert doctest.testmod(endpoint_backfills).failed == 0


@given(offsets, offsets, offsets)
def test_each_offset_from_the_start_on_comes_once(start: int, dispatched_until: int, offset: int) -> None:
    """Live or read again, and nothing before the start; live only where nobody has dispatched before."""
    row = new_backfill(start, dispatched_until)
    live = offset >= row.until_offset
    read_again = row.next_offset <= offset < row.until_offset
    assert live + read_again == (offset >= start)
    assert not live or offset >= dispatched_until
    assert row.is_done == (start >= dispatched_until)


def test_an_endpoint_without_a_row_gets_nothing() -> None:
    """Until the row is stored, whatever its start."""
    rows = EndpointBackfills(1, {})
    heard = rows.heard_of({each.endpoint_id: each for each in (subscription(2, 0, 9), subscription(1, 0, 3))}, 5)
    assert heard is not None
    assert list(heard.rows.values()) == [Backfill(3, 5), Backfill(9, 9)]
    first, second = heard.rows
    assert not rows.is_live(first, 100)

    rows.note_heard(heard)

    assert [rows.is_live(first, offset) for offset in (3, 4, 5)] == [False, False, True]
    assert [rows.is_live(second, offset) for offset in (8, 9)] == [False, True]
    assert rows.unfinished() == {first: Backfill(3, 5)}
    assert rows.heard_of({first: subscription(1), second: subscription(2)}, 50) is None


@pytest.mark.parametrize(("next_offset", "left"), [(4, {Backfill(4, 5)}), (5, set())])
def test_a_backfill_ends_where_live_events_begin(next_offset: int, left: set[Backfill]) -> None:
    """Its row stays, so it is not begun again."""
    endpoint_id = EndpointId(UUID(int=1))
    rows = EndpointBackfills(0, {endpoint_id: Backfill(3, 5)})
    assert rows.note_advanced(endpoint_id, next_offset) == (not left)
    assert set(rows.unfinished().values()) == left
    assert rows.heard_of({endpoint_id: subscription(1)}, 50) is None
    assert rows.is_live(endpoint_id, 5)


def test_a_partition_that_an_endpoint_names_no_start_of_begins_at_its_beginning() -> None:
    """The topic had fewer partitions when the endpoint was added."""
    heard = EndpointBackfills(3, {}).heard_of({EndpointId(UUID(int=1)): subscription(1, 7)}, 5)
    assert heard is not None
    assert list(heard.rows.values()) == [Backfill(0, 5)]
    assert "'{00000000-0000-0000-0000-000000000001}'::uuid[], '{0}'::bigint[], '{5}'::bigint[]" in heard.statement


@given(offsets, offsets, offsets, offsets, offsets)
def test_a_resume_is_a_start(done: int, left: int, resumed_at: int, dispatched_until: int, offset: int) -> None:
    """Each offset from it on comes once, live only where nobody has dispatched before; what was owed stays owed."""
    before = Backfill(done, done + left, 1)
    row = resumed_backfill(before, Resume(2, (resumed_at,)), 0, dispatched_until)
    live = offset >= row.until_offset
    read_again = row.next_offset <= offset < row.until_offset
    assert row.resumes == 2
    assert not live or offset >= max(dispatched_until, before.until_offset)
    assert live + read_again == (offset >= (resumed_at if before.is_done else done))


def test_a_resume_is_heard_of_once() -> None:
    """And one that an endpoint had before it was heard of itself, never."""
    first, second = (EndpointId(UUID(int=number)) for number in (1, 2))
    rows = EndpointBackfills(0, {first: Backfill(9, 9)})
    subscriptions = {first: subscription(1, 0), second: subscription(2, 3)}
    resumed = {first: Resume(1, (12,)), second: Resume(4, (12,))}
    heard = rows.heard_of(subscriptions, 20, resumed)
    assert heard is not None
    assert heard.rows == {first: Backfill(12, 20, 1), second: Backfill(3, 20, 4)}
    rows.note_heard(heard)
    assert not rows.is_live(first, 19)
    assert rows.is_live(first, 20)
    assert rows.heard_of(subscriptions, 30, resumed) is None
    assert rows.note_advanced(first, 20)
    again = rows.heard_of(subscriptions, 30, resumed | {first: Resume(2, (40,))})
    assert again is not None
    assert again.rows == {first: Backfill(40, 40, 2)}
    rows.note_heard(again)
    assert list(rows.unfinished()) == [second]


def test_live_events_are_put_off_where_something_is_owed() -> None:
    """Of the endpoints that are asked for, to an offset, and never back."""
    first, second, third = (EndpointId(UUID(int=number)) for number in (1, 2, 3))
    rows = EndpointBackfills(0, {first: Backfill(3, 5), second: Backfill(5, 5), third: Backfill(3, 5)})
    put_off = rows.put_off([first, second], 8)
    assert put_off is not None
    assert put_off.rows == {first: Backfill(3, 8)}
    rows.note_heard(put_off)
    assert [rows.is_live(each, 6) for each in (first, second, third)] == [False, True, True]
    assert rows.put_off([first, second], 8) is None
    assert not rows.note_advanced(first, 5)
    assert rows.note_advanced(first, 8)
