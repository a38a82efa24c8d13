"""What fault tests take for lost and for repeated, by requests, records and owners that are made up."""

from __future__ import annotations

from collections.abc import Sequence

from tests.support.faults.attempts_in_flight import AttemptRecord, AttemptsInFlight, Harm, Ownership
from tests.support.faults.subscribers import ReceivedRequest

FIRST, SECOND = Ownership(0, 1, 10, 0.0), Ownership(0, 2, 20, 100.0)


def judged(came: Sequence[float], *records: tuple[int, int, float, float]) -> AttemptsInFlight:
    """Judge requests of a delivery by when they came, and records: attempt, token, when it began, when it was there."""
    requests = [ReceivedRequest(each, "/good", "d", True) for each in came]
    made = [AttemptRecord("d", attempt, 0, token, began, appended) for attempt, token, began, appended in records]
    return AttemptsInFlight(requests, made, [FIRST, SECOND])


def counts(evidence: AttemptsInFlight) -> tuple[int, int, int]:
    """Return how many were lost, repeated, and made again though they were recorded."""
    return evidence.lost.total(), evidence.repeated.total(), len(evidence.recorded_twice)


def test_an_attempt_without_a_record_may_be_made_again() -> None:
    """It was in flight as its owner ended, which the next owner's request repeats."""
    evidence = judged([90.0, 110.0], (1, 2, 109.9, 111.0))
    assert counts(evidence) == (1, 1, 0)
    assert evidence.lost == evidence.repeated == {SECOND: 1}
    assert [evidence.in_flight_at(time) for time in (89.0, 99.0, 100.0, 110.5, 111.0)] == [0, 1, 0, 1, 0]


def test_a_record_that_comes_too_late_counts_as_none() -> None:
    """The next owner had read the topic before it was there; one that it could read hinders it."""
    assert counts(judged([90.0, 110.0], (1, 1, 89.9, 100.5), (1, 2, 109.9, 111.0))) == (1, 1, 0)
    assert counts(judged([90.0, 110.0], (1, 1, 89.9, 99.0), (1, 2, 109.9, 111.0))) == (0, 1, 1)


def test_a_retry_repeats_nothing() -> None:
    """Attempts have numbers; a request without a record is of the attempt that is recorded next."""
    assert counts(judged([80.0, 90.0], (1, 1, 79.9, 81.0), (2, 1, 89.9, 91.0))) == (0, 0, 0)
    assert counts(judged([80.0, 90.0, 110.0], (1, 1, 79.9, 81.0), (2, 2, 109.9, 111.0))) == (1, 1, 0)


def test_what_a_former_owner_sends_is_lost_too() -> None:
    """One that was frozen goes on before it knows that it is succeeded, whether it publishes a record or not."""
    assert counts(judged([110.0, 120.0], (1, 2, 109.9, 111.0))) == (1, 1, 0)
    assert counts(judged([110.0, 120.0], (1, 2, 109.9, 111.0), (1, 1, 119.9, 121.0))) == (1, 1, 0)


def test_one_owner_makes_no_attempt_twice() -> None:
    """Nothing excuses that, nor a record that is missing while its owner goes on."""
    assert counts(judged([80.0, 90.0], (1, 1, 79.9, 81.0), (1, 1, 89.9, 91.0))) == (0, 1, 1)
    assert counts(judged([80.0, 90.0], (1, 1, 79.9, 81.0))) == (0, 1, 1)


def test_an_owner_that_ended_counts_with_the_harm_to_its_process() -> None:
    """Others count with the last harm that could end one."""
    evidence = judged([90.0, 110.0], (1, 2, 109.9, 111.0))
    postgres, dispatcher = Harm("postgres", 96.0), Harm("dispatcher", 98.0, ends_owners=False)
    assert evidence.by_harm(evidence.lost, [Harm("deliverer", 95.0, pid=10), postgres]) == [0, 1, 0]
    assert evidence.by_harm(evidence.lost, [Harm("frozen", 90.0, 10, away_until=95.0), postgres]) == [0, 0, 1]
    assert evidence.by_harm(evidence.lost, [postgres, dispatcher, Harm("kafka", 101.0)]) == [0, 1, 0, 0]
    assert evidence.by_harm(evidence.lost, []) == [1]
