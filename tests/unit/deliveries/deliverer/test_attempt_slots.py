"""Slots of attempts: bounded, given by turns, and not kept by those that hang."""

from __future__ import annotations

from deliveries.deliverer.attempt_slots import SLOW_SECONDS, SWEEP_MAX_SECONDS, AttemptSlots
from tests.support.partition_parts import sweep_until


def test_slots_are_bounded_and_given_by_turns() -> None:
    """Who finds none gets the next one that is given back, in the order of asking."""
    slots, turns = AttemptSlots(2, 100), list[str]()
    first, _ = slots.take(0.0, lambda: None), slots.take(0.0, lambda: None)
    assert not slots.has_room

    def turn(name: str) -> None:
        turns.append(name)
        slots.take(0.0, lambda: None)

    slots.await_turn(lambda: turn("a"))
    slots.await_turn(lambda: turn("b"))
    slots.give_back(first)
    assert turns == ["a"]
    assert slots.under_way == 2


def test_a_turn_that_takes_nothing_is_passed_on() -> None:
    """An endpoint that has nothing to send any more keeps nobody waiting."""
    slots, turns = AttemptSlots(1, 100), list[str]()
    slot = slots.take(0.0, lambda: None)
    slots.await_turn(lambda: turns.append("nothing"))
    slots.await_turn(lambda: turns.append("next"))
    slots.give_back(slot)
    assert turns == ["nothing", "next"]


def test_a_slow_attempt_frees_its_slot_and_keeps_its_connection() -> None:
    """Others begin in its slot, as long as there are connections; it is counted until it ends."""
    slots, slow, turns = AttemptSlots(1, 2), list[int](), list[int]()
    slot = slots.take(0.0, lambda: slow.append(1))
    slots.await_turn(lambda: turns.append(1))
    sweep_until(slots, SLOW_SECONDS / 2)
    assert (slow, turns, slots.slow) == ([], [], 0)
    sweep_until(slots, SLOW_SECONDS, SLOW_SECONDS / 2)
    assert (slow, turns, slots.slow, slots.has_room) == ([1], [1], 1, True)
    assert slots.crowded
    second = slots.take(SLOW_SECONDS, lambda: None)
    assert not slots.has_room
    slots.give_back(slot)
    assert (slots.under_way, slots.slow, slots.crowded) == (1, 0, False)
    slots.give_back(second)
    slots.give_back(second)
    sweep_until(slots, 10 * SLOW_SECONDS, SLOW_SECONDS)
    assert (slots.under_way, slots.slow) == (0, 0)


def test_time_without_turns_makes_no_attempt_slow() -> None:
    """A process that was stopped for a minute finds none slow; what hangs is found after that."""
    slots, slow = AttemptSlots(4, 100), list[int]()
    slots.sweep(5.0)
    slots.take(5.0, lambda: slow.append(1))
    slots.sweep(65.0)
    slots.take(65.0, lambda: slow.append(2))
    slots.sweep(65.75)
    sweep_until(slots, 66.125, 65.75)
    assert slow == []
    sweep_until(slots, 66.25, 66.125)
    assert slow == [1], f"{SWEEP_MAX_SECONDS} s of the minute count, and as much of the gap after it"
    sweep_until(slots, 66.5, 66.25)
    assert slow == [1, 2]
