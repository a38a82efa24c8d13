"""How workers of pytest-xdist share the compiling of tests."""

from __future__ import annotations

from tests.support.parallel import rotated


def test_each_worker_begins_with_a_share_of_its_own() -> None:
    """All go through all of them."""
    assert ["".join(rotated("abcdef", number, 3)) for number in range(3)] == ["abcdef", "cdefab", "efabcd"]
    assert ["".join(rotated("ab", number, 4)) for number in range(4)] == ["ab", "ab", "ba", "ba"]
    assert rotated([], 1, 2) == []
