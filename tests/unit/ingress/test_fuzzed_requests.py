"""Broken requests are read or refused, and nothing else. `make bench` runs a million of them."""

from __future__ import annotations

import pytest

from tests.support import fuzzing
from tests.support.fuzzing import fuzz


def test_broken_requests_are_refused_with_problems() -> None:
    """Twenty-two thousand: many are read, many refused for each reason, none raises anything else."""
    found = fuzz(22_000, seed=7)
    assert sum(found.values()) == 22_000
    assert {"read", "400", "401", "415", "422"} <= found.keys()
    assert min(found[outcome] for outcome in ("read", "400", "401", "422")) > 500


def test_the_fuzzer_finds_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is no problem ends the run, and names the request."""

    def faulty(body: bytes, *_: object) -> object:
        return {}[body]

    monkeypatch.setattr(fuzzing, "read_webhook", faulty)
    with pytest.raises(AssertionError, match=r"request \d+ of seed 7: KeyError"):
        fuzz(1_000, seed=7)
