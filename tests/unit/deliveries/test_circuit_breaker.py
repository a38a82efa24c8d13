"""The circuit breaker of an endpoint: when it opens, for how long, and how it closes again."""

from __future__ import annotations

import doctest
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deliveries import circuit_breaker
from deliveries.circuit_breaker import (
    OPENINGS_MAX,
    Admitted,
    AttemptEnd,
    BreakerPolicy,
    CircuitBreaker,
    NotAdmitted,
    Permit,
    admit,
    breaker_state,
    record_end,
)

POLICY = BreakerPolicy(
    bucket_seconds=1.0, buckets=10, attempts_min=4, open_seconds=5.0, open_max_seconds=40.0, probes_max=2
)


def ended(ends: list[AttemptEnd], now_seconds: float = 0.0, breaker: CircuitBreaker | None = None) -> CircuitBreaker:
    """A breaker after ordinary attempts that ended at a time."""
    after = breaker or CircuitBreaker()
    for end in ends:
        after = record_end(after, POLICY, "ordinary", end, now_seconds)
    return after


def test_five_failures_open_it_as_it_is_set() -> None:
    """However they come: an endpoint that fails is left alone soon."""
    breaker = CircuitBreaker()
    states = []
    for number in range(5):
        breaker = record_end(breaker, BreakerPolicy(), "ordinary", "failure", float(number))
        states.append(breaker.state)
    assert states == ["closed"] * 4 + ["open"]


def probed(breaker: CircuitBreaker, end: AttemptEnd) -> CircuitBreaker:
    """A breaker after one probe, as soon as it lets one pass."""
    half_open, admission = admit(breaker, POLICY, breaker.open_until_seconds)
    assert admission == Admitted("probe")
    return record_end(half_open, POLICY, "probe", end, breaker.open_until_seconds)


@pytest.mark.parametrize(
    ("ends", "state"),
    [
        (["failure"] * 3, "closed"),
        (["failure"] * 4, "open"),
        (["success", "success", "failure", "failure"], "open"),
        (["success", "success", "success", "failure"], "closed"),
        (["failure", "failure", "failure", "success"], "closed"),
        (["failure", "failure", "failure", "abandoned"], "closed"),
    ],
)
def test_a_share_of_failures_opens_it(ends: list[AttemptEnd], state: str) -> None:
    """It opens with a failure, once enough attempts have ended and half of them failed; abandoned ones do not count."""
    assert ended(ends).state == state


def test_the_window_slides() -> None:
    """What ended longer ago than the window counts no more."""
    before = ended(["failure"] * 3, 0.5)
    assert ended(["failure"], 9.9, before).state == "open"
    assert ended(["failure"], 10.1, before).state == "closed"


def test_an_open_breaker_lets_nothing_pass() -> None:
    """While it is open every attempt waits for the rest of the time, and what ends then changes nothing."""
    opened = ended(["failure"] * 4)
    assert admit(opened, POLICY, 2.0) == (opened, NotAdmitted(3.0))
    assert ended(["success", "failure"], 2.0, opened) == opened
    assert [breaker_state(opened, now) for now in (4.9, 5.0)] == ["open", "half_open"]


def test_a_half_open_breaker_lets_probes_pass() -> None:
    """After its time as many probes pass as are allowed; one that was abandoned makes room for another."""
    breaker = ended(["failure"] * 4)
    permits = []
    for _ in range(3):
        breaker, admission = admit(breaker, POLICY, 5.0)
        permits.append(admission)
    assert permits == [Admitted("probe"), Admitted("probe"), NotAdmitted(5.0)]
    breaker = record_end(breaker, POLICY, "probe", "abandoned", 6.0)
    assert breaker.state == "half_open"
    assert admit(breaker, POLICY, 6.0)[1] == Admitted("probe")


def test_an_ordinary_attempt_does_not_decide_for_a_probe() -> None:
    """Attempts that began before it opened neither close nor open it while it is half-open."""
    half_open, _ = admit(ended(["failure"] * 4), POLICY, 5.0)
    assert ended(["success", "failure"], 6.0, half_open) == half_open


def test_a_success_closes_it() -> None:
    """One probe that succeeds closes it, with an empty window and the shortest time again."""
    failed_twice = probed(ended(["failure"] * 4), "failure")
    closed = probed(failed_twice, "success")
    assert closed == CircuitBreaker()
    again = ended(["failure"] * 4, 100.0, closed)
    assert again.open_until_seconds == 105.0


def test_slow_probes_count_until_they_end() -> None:
    """A probe that is still under way from an earlier half-open time takes the room of one in the next."""
    slow, _ = admit(ended(["failure"] * 4), POLICY, 5.0)
    ends: tuple[AttemptEnd, ...] = ("success", "failure")
    for end in ends:
        both, _ = admit(slow, POLICY, 5.0)
        other_ended = record_end(both, POLICY, "probe", end, 6.0)
        opened = ended(["failure"] * 4, 7.0, other_ended)
        assert opened.state == "open"
        half_open, _ = admit(opened, POLICY, 100.0)
        assert admit(half_open, POLICY, 100.0)[1] == NotAdmitted(5.0)


def test_the_open_time_doubles_up_to_a_bound() -> None:
    """Each probe that fails opens it for twice as long, and never for longer than the bound."""
    breaker = ended(["failure"] * 4)
    times = []
    for _ in range(OPENINGS_MAX + 2):
        before = breaker.open_until_seconds
        breaker = probed(breaker, "failure")
        times.append(breaker.open_until_seconds - before)
    assert times[:4] == [10.0, 20.0, 40.0, 40.0]
    assert set(times[4:]) == {40.0}
    assert breaker.openings == OPENINGS_MAX


steps = st.lists(
    st.tuples(st.sampled_from(["begin", *get_args(AttemptEnd)]), st.floats(0, 20), st.integers(0, 99)), max_size=80
)


@given(steps, st.integers(1, 3))
def test_any_course_keeps_the_bounds(course: list[tuple[Any, float, int]], probes_max: int) -> None:
    """However attempts begin and end, probes under way stay within their bound, and so does all that is counted."""
    policy = BreakerPolicy(bucket_seconds=1.0, buckets=5, attempts_min=2, open_seconds=2.0, probes_max=probes_max)
    breaker, now_seconds = CircuitBreaker(), 0.0
    under_way: list[Permit] = []
    for step, passed_seconds, choice in course:
        now_seconds += passed_seconds
        if step == "begin":
            breaker, admission = admit(breaker, policy, now_seconds)
            if isinstance(admission, Admitted):
                under_way.append(admission.permit)
                assert (admission.permit == "ordinary") == (breaker.state == "closed")
            else:
                assert admission.wait_seconds > 0
        elif under_way:
            permit = under_way.pop(choice % len(under_way))
            was_half_open = breaker.state == "half_open"
            breaker = record_end(breaker, policy, permit, step, now_seconds)
            if was_half_open and permit == "probe" and step == "success":
                assert breaker.state == "closed"
                assert breaker.openings == 0
        assert breaker.probes == under_way.count("probe")
        assert breaker.probes <= probes_max
        assert len(breaker.window) <= policy.buckets
        assert sum(bucket.attempts for bucket in breaker.window) <= len(course)
        assert all(0 <= bucket.failures <= bucket.attempts for bucket in breaker.window)
        assert breaker.openings <= OPENINGS_MAX
        assert breaker.open_until_seconds <= now_seconds + policy.open_max_seconds


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_a_clock_that_goes_back_breaks_nothing(first_seconds: float, second_seconds: float) -> None:
    """Times in any order are counted, in one bucket or two."""
    breaker = ended(["success"], second_seconds, ended(["failure"], first_seconds))
    assert breaker.state == "closed"
    assert [bucket.number for bucket in breaker.window] == sorted({bucket.number for bucket in breaker.window})


def test_examples() -> None:
    """The examples in the docstrings hold."""
    assert doctest.testmod(circuit_breaker).failed == 0
