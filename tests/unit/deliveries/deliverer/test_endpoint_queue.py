"""An endpoint's share: one attempt at first, more with each success, and none while it hangs or asked for time."""

from __future__ import annotations

import pytest

from deliveries.circuit_breaker import BreakerPolicy
from deliveries.deliverer.endpoint_queue import Blocked, DeliveryQueue, EndpointQueue, Waiting
from tests.support.made_deliveries import made_delivery

POLICY = BreakerPolicy(attempts_min=4)


def admitted(queue: EndpointQueue, now: float = 0.0, rate: int | None = None, crowded: bool = False) -> int:
    """Return how many attempts are admitted at once."""
    count = 0
    while queue.admit(now, rate, crowded) == "ordinary":
        count += 1
    return count


def test_an_endpoint_begins_with_one_attempt_and_gets_more_as_it_answers() -> None:
    """Each success adds one, up to the bound; a failure takes half."""
    queue = EndpointQueue(POLICY, 4, 8)
    for share in (1, 2, 3, 4, 4):
        assert admitted(queue) == share - queue.in_flight or queue.in_flight == share
        while queue.in_flight:
            queue.end("ordinary", "abandoned", 0.0)
        queue.in_flight += 1
        queue.end("ordinary", "success", 0.0)
    assert admitted(queue) == 4
    queue.end("ordinary", "failure", 0.0)
    while queue.in_flight:
        queue.end("ordinary", "abandoned", 0.0)
    assert admitted(queue) == 2


def test_nothing_new_begins_while_an_attempt_is_slow() -> None:
    """An endpoint that hangs holds what it has, and no more."""
    queue = EndpointQueue(POLICY, 4, 8)
    assert admitted(queue) == 1
    queue.note_slow()
    queue.in_flight -= 1
    assert queue.admit(0.0, None, False) == Waiting()


def test_what_it_asked_for_is_kept_to() -> None:
    """After a Retry-After there is no attempt until its time is over."""
    queue = EndpointQueue(POLICY, 4, 8)
    assert admitted(queue) == 1
    queue.end("ordinary", "failure", 10.0, throttled_seconds=30.0)
    assert queue.admit(20.0, None, False) == Blocked(20.0)
    assert queue.blocked_seconds(39.0) == 1.0
    assert queue.admit(40.0, None, False) == "ordinary"


def test_a_shorter_time_takes_nothing_from_a_longer_one() -> None:
    """An attempt that was under way may ask for less than one before it; so may a rest that is shorter."""
    queue = EndpointQueue(POLICY, 4, 8)
    queue.end("ordinary", "success", 0.0)
    queue.in_flight = 0
    assert admitted(queue) == 2
    queue.end("ordinary", "failure", 10.0, throttled_seconds=30.0)
    queue.end("ordinary", "failure", 11.0, throttled_seconds=5.0)
    assert queue.blocked_seconds(20.0) == 20.0
    queue.rest(30.0)
    assert queue.is_busy(39.0)
    assert not queue.is_busy(40.0)
    queue.rest(50.0)
    queue.rest(45.0)
    assert queue.is_busy(49.0)
    assert not queue.is_busy(50.0)


def test_an_open_breaker_blocks_and_lets_one_probe_pass() -> None:
    """While the probe is under way the others wait for its end."""
    queue = EndpointQueue(POLICY, 4, 8)
    for _ in range(4):
        assert queue.admit(0.0, None, False) == "ordinary"
        queue.end("ordinary", "failure", 0.0)
    assert queue.admit(1.0, None, False) == Blocked(4.0)
    assert queue.admit(5.0, None, False) == "probe"
    assert queue.admit(5.0, None, False) == Waiting()
    queue.end("probe", "success", 5.0)
    assert queue.admit(5.0, None, False) == "ordinary"


def test_a_rate_is_kept_to() -> None:
    """The next attempt waits for its time, however many could be under way."""
    queue = EndpointQueue(POLICY, 4, 8)
    assert queue.admit(0.0, 2, False) == "ordinary"
    queue.end("ordinary", "success", 0.0)
    assert queue.admit(0.1, 2, False) == Waiting(0.4)
    assert queue.admit(0.5, 2, False) == "ordinary"


@pytest.mark.parametrize(("rate", "share", "rows"), [(None, 500, 250), (200, 500, 250), (2, 8, 4), (0.01, 1, 1)])
def test_a_rate_bounds_what_waits_in_memory(rate: float | None, share: int, rows: int) -> None:
    """As many deliveries as go in four seconds; half of them are read from Postgres at a time, one at least."""
    queue = EndpointQueue(POLICY, 4, 500)
    queue.admit(0.0, rate, False)
    assert {queue.share(500, by_pace) for by_pace in (True, False)} == {share}
    assert queue.rows_max == rows
    for _ in range(rows - 1):
        queue.due.append(made_delivery(1))
    assert not queue.is_busy(0.0)
    queue.due.append(made_delivery(1))
    assert queue.is_busy(0.0)


@pytest.mark.parametrize(
    ("took_seconds", "share", "rows"), [(0.0, 500, 250), (0.24, 500, 250), (0.5, 32, 16), (100, 1, 1)]
)
def test_a_pace_bounds_what_is_read_and_where_room_is_short_what_waits(
    took_seconds: float, share: int, rows: int
) -> None:
    """As many deliveries as an endpoint takes in four seconds with four at a time; where there is room it has all."""
    queue = EndpointQueue(POLICY, 4, 500)
    for _ in range(50):
        queue.admit(0.0, None, False)
        queue.end("ordinary", "success", 0.0, took_seconds=took_seconds)
    assert (queue.share(500, by_pace=True), queue.share(500, by_pace=False), queue.rows_max) == (share, 500, rows)


def test_a_pace_is_that_of_the_last_attempts() -> None:
    """An endpoint that has become fast gets its share back within some attempts."""
    queue = EndpointQueue(POLICY, 4, 500)
    shares = []
    for took_seconds in (1.0, 1.0, 0.0, 0.0):
        queue.admit(0.0, None, False)
        queue.end("ordinary", "success", 0.0, took_seconds=took_seconds)
        shares.append(queue.share(500, by_pace=True))
    assert shares == [500, 44, 55, 500]


def test_where_slow_endpoints_have_the_connections_only_those_that_answer_get_more() -> None:
    """One that never answered waits."""
    queue = EndpointQueue(POLICY, 4, 8)
    assert queue.admit(0.0, None, True) == Waiting()
    assert queue.admit(0.0, None, False) == "ordinary"
    queue.end("ordinary", "success", 0.0)
    assert queue.admit(0.0, None, True) == "ordinary"


def test_live_deliveries_go_before_others() -> None:
    """Whatever a redrive or a backfill has queued; within each kind the first goes first, and the last is put off."""
    due = DeliveryQueue()
    for offset, stream in enumerate(["redrive", "backfill", "live", "redrive", "endpoints"]):
        due.append(made_delivery(offset=offset, stream=stream))
    assert len(due) == 5
    assert due.pop().source_offset == 3
    assert [due.popleft().source_offset for _ in range(4)] == [2, 4, 0, 1]
    assert not due
    with pytest.raises(IndexError):
        due.popleft()


def failed(queue: EndpointQueue, now: float, *, slow: bool = False) -> EndpointQueue:
    """Have an attempt fail."""
    permit = queue.admit(now, None, False)
    assert not isinstance(permit, Blocked | Waiting)
    if slow:
        queue.note_slow()
    queue.end(permit, "failure", now, slow=slow)
    return queue


@pytest.mark.parametrize("hung", [True, False])
def test_an_endpoint_that_hung_or_failed_has_one_delivery_in_memory(hung: bool) -> None:
    """Nothing more of it is read from Postgres until that one has told whether it is well again."""
    queue = EndpointQueue(POLICY, 4, 8)
    for _ in range(1 if hung else 4):
        failed(queue, 0.0, slow=hung)
    assert (queue.slow, queue.is_suspect, queue.rows_max) == (0, True, 1)
    assert not queue.is_busy(5.0), "nothing of it is in memory"
    queue.due.append(made_delivery())
    assert queue.is_busy(5.0)
    queue.due.popleft()
    permit = queue.admit(5.0, None, False)
    assert permit == ("ordinary" if hung else "probe")
    assert queue.is_busy(5.0)
    queue.end(permit, "abandoned", 5.0)
    assert not queue.is_busy(5.0)
    assert queue.rows_max == 1, "what was given up tells nothing"
    permit = queue.admit(5.0, None, False)
    assert not isinstance(permit, Blocked | Waiting)
    queue.end(permit, "success", 5.0)
    assert (queue.is_suspect, queue.rows_max) == (False, 4)


def test_an_endpoint_that_fails_now_and_then_has_half_of_its_share() -> None:
    """What waits of it is read as that of any other, until there is too much of it."""
    queue = failed(EndpointQueue(POLICY, 4, 4), 0.0)
    assert (queue.is_suspect, queue.rows_max) == (False, 2)
    for count in range(1, 3):
        queue.due.append(made_delivery())
        assert queue.is_busy(0.0) == (count == 2)


def test_an_endpoint_that_is_slow_is_busy() -> None:
    """And no more once that attempt has ended well."""
    queue = EndpointQueue(POLICY, 4, 8)
    assert queue.admit(0.0, None, False) == "ordinary"
    queue.note_slow()
    assert queue.is_busy(0.0)
    queue.end("ordinary", "success", 2.0, slow=True)
    assert (queue.slow, queue.is_suspect, queue.is_busy(2.0)) == (0, False, False)


def test_a_breaker_that_is_open_leaves_rows_in_postgres() -> None:
    """Until its time is over, which is longer each time."""
    queue = EndpointQueue(POLICY, 4, 8)
    for _ in range(4):
        failed(queue, 0.0)
    assert (queue.is_busy(4.9), queue.is_busy(5.0)) == (True, False)
    failed(queue, 5.0)
    assert (queue.is_busy(14.9), queue.is_busy(15.0)) == (True, False)


def test_an_attempt_from_before_the_breaker_opened_says_nothing_of_a_suspect() -> None:
    """The breaker's probe does."""
    queue = EndpointQueue(POLICY, 4, 8)
    for _ in range(4):
        failed(queue, 0.0)
    assert queue.admit(5.0, None, False) == "probe"
    queue.in_flight += 1
    queue.end("ordinary", "success", 5.0)
    assert queue.is_suspect
    queue.end("probe", "success", 5.0)
    assert not queue.is_suspect
