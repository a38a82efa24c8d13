"""The producers' rates: token buckets with a burst and with debt."""

from __future__ import annotations

import doctest

import pytest

from ingress import rates
from ingress.rates import Rates


def accepted_at(limiter: Rates, now_seconds: float, rate: float = 10, burst: int = 5, producer: str = "p") -> int:
    """How many single events a producer may send at a moment."""
    count = 0
    while count < 10_000 and limiter.wait_seconds(producer, rate, burst, now_seconds) == 0:
        limiter.consume(producer, 1)
        count += 1
    return count


def test_a_producer_sends_its_burst_and_then_its_rate() -> None:
    """First the burst, then ten a second."""
    limiter = Rates()
    assert [accepted_at(limiter, at) for at in (0.0, 0.0, 0.1, 0.35, 0.45)] == [5, 0, 1, 2, 1]


@pytest.mark.parametrize("idle_seconds", [1, 60, 1e9])
def test_an_idle_producer_saves_no_more_than_its_burst(idle_seconds: float) -> None:
    """However long it sent nothing."""
    limiter = Rates()
    assert accepted_at(limiter, 0.0) == 5
    assert accepted_at(limiter, idle_seconds) == 5


def test_a_large_batch_is_paid_for_afterwards() -> None:
    """The wait is as long as the debt lasts at the producer's rate, and grows no longer by waiting."""
    limiter = Rates()
    assert limiter.wait_seconds("p", 10, 5, 0.0) == 0
    limiter.consume("p", 105)
    assert limiter.wait_seconds("p", 10, 5, 0.0) == pytest.approx(10.1)
    assert limiter.wait_seconds("p", 10, 5, 10.0) == pytest.approx(0.1)
    assert accepted_at(limiter, 10.2) == 1


def test_producers_have_buckets_of_their_own() -> None:
    """One in debt keeps no other from sending."""
    limiter = Rates()
    assert (accepted_at(limiter, 0.0, producer="p"), accepted_at(limiter, 0.0, producer="q")) == (5, 5)


def test_buckets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With too many producers all buckets begin again, full."""
    monkeypatch.setattr(rates, "BUCKETS_MAX", 2)
    limiter = Rates()
    assert [accepted_at(limiter, 0.0, producer=name) for name in ("a", "b", "a")] == [5, 5, 0]
    assert [accepted_at(limiter, 0.0, producer=name) for name in ("c", "a")] == [5, 5]


def test_the_docstrings_are_right() -> None:
    """The examples in the module hold."""
    assert doctest.testmod(rates).failed == 0
    assert doctest.testmod(rates).attempted > 3
