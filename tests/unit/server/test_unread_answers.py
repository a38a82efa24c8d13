"""The budget of answers that peers do not read: who makes room, and what is left when all have gone."""

from __future__ import annotations

from server.unread_answers import UnreadAnswers


def test_the_address_that_holds_most_makes_room() -> None:
    """By its oldest connection, as often as is needed; what has gone counts no more."""
    held = UnreadAnswers[str](bytes_max=100)
    assert [held.hold("a1", "a", 30), held.hold("b1", "b", 25), held.hold("a2", "a", 40)] == [[], [], []]
    assert held.hold("b2", "b", 20) == ["a1"]
    assert held.size_bytes == 85
    assert held.hold("c1", "c", 60) == ["c1"]
    assert held.hold("c1", "c", 45) == ["b1", "c1"]
    assert held.size_bytes == 60


def test_a_holder_is_counted_once_and_released_whole() -> None:
    """What waits for it grows and shrinks; nothing is left of it, however often it is released."""
    held = UnreadAnswers[str](bytes_max=100)
    for size_bytes in (10, 90, 20):
        assert held.hold("a1", "a", size_bytes) == []
        assert held.size_bytes == size_bytes
    held.release("a1")
    held.release("a1")
    assert held.size_bytes == 0
