"""The budget of large heads: who holds, who makes room, and what is left when all have gone."""

from __future__ import annotations

import doctest

from server import heads
from server.heads import LargeHeads


class Holder:
    def __init__(self, awaits_peer: bool = True) -> None:
        self.awaits_peer = awaits_peer


def test_the_oldest_that_waits_for_its_peer_makes_room() -> None:
    """Neither one whose request is whole or signed, nor the newest, while another can go."""
    held = LargeHeads(bytes_max=100)
    signed, old, newest = Holder(awaits_peer=False), Holder(), Holder()
    assert [held.hold(signed, 40), held.hold(old, 40), held.hold(newest, 40)] == [None, None, old]
    held.release(old)
    assert held.hold(newest, 40) is None
    assert held.hold(newest, 61) is newest


def test_a_holder_is_counted_once_and_released_whole() -> None:
    """What it holds grows and shrinks; nothing is left of it, however often it is released."""
    held, holder = LargeHeads(bytes_max=100), Holder()
    for size_bytes in (10, 90, 20):
        assert held.hold(holder, size_bytes) is None
        assert held.size_bytes == size_bytes
    held.release(holder)
    held.release(holder)
    assert held.size_bytes == 0


def test_examples() -> None:
    """Those in the docstrings."""
    assert doctest.testmod(heads).failed == 0
