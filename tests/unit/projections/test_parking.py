"""Queues of parked entities: what waits, in what order it is released, and that a change can be taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from projections.parking import ControlEffect, ParkedEntities, WaitingRecord

KEY = b"an entity"
FIRST, SECOND, THIRD = (bytes([number]) * 16 for number in range(1, 4))


def redriven(offset: int, poison_offset: int, event_id: bytes = FIRST, *, is_new: bool = True) -> ControlEffect:
    return ControlEffect(offset, KEY, poison_offset, True, event_id, is_new)


def skipped(offset: int, poison_offset: int, key: bytes | None = KEY, *, has_parked: bool = True) -> ControlEffect:
    return ControlEffect(offset, key, poison_offset, has_parked)


def released(parked: ParkedEntities, effect: ControlEffect) -> list[tuple[int, bytes | None]]:
    return [(event.offset, event.event_id) for event in parked.obey(effect)]


def with_queue(*records: int | tuple[int, bytes]) -> ParkedEntities:
    """Return a queue of poison records, and of events with their ids."""
    parked = ParkedEntities()
    for record in records:
        if isinstance(record, int):
            parked.park(KEY, record)
        else:
            assert parked.add(KEY, WaitingRecord(*record))
    parked.commit()
    return parked


def test_nothing_waits_for_an_entity_that_is_not_parked() -> None:
    """An event takes effect at once, and a control record of its key finds nothing."""
    parked = ParkedEntities()
    assert not parked
    assert not parked.add(KEY, WaitingRecord(1, FIRST))
    assert released(parked, skipped(2, 1)) == released(parked, redriven(3, 1)) == []
    assert (parked.queues, len(parked), parked.waits(KEY, 1), parked.waits(None, 1)) == ({}, 0, False, False)


def test_a_skip_releases_what_waits_behind_the_poison_record() -> None:
    """In the order of offsets, up to the next poison record, and the queue goes with its last record."""
    parked = with_queue(1, (2, FIRST), (3, SECOND), 4, (5, THIRD))
    assert (list(parked.keys), parked.waits(KEY, 1), parked.waits(KEY, 2), parked.waits(KEY, 4)) == (
        [KEY], True, False, True
    )  # fmt: skip
    assert released(parked, skipped(6, 1)) == [(2, FIRST), (3, SECOND)]
    assert released(parked, skipped(7, 1)) == []
    assert released(parked, skipped(8, 4)) == [(5, THIRD)]
    assert not parked.keys


def test_a_redriven_event_takes_the_poison_records_place() -> None:
    """It comes first, with its control record as the one that has its bytes."""
    parked = with_queue(1, (2, SECOND))
    assert parked.obey(redriven(6, 1)) == [WaitingRecord(1, FIRST, 6), WaitingRecord(2, SECOND)]
    assert not parked.keys


def test_a_later_poison_record_can_be_redriven_first() -> None:
    """Its event waits at its own place."""
    parked = with_queue(1, (2, FIRST), 3, (4, SECOND), 5)
    assert released(parked, redriven(6, 3, THIRD)) == []
    assert released(parked, skipped(7, 5)) == []
    assert released(parked, skipped(8, 1)) == [(2, FIRST), (3, THIRD), (4, SECOND)]
    assert not parked.keys


def test_an_event_that_was_sent_again_meanwhile_takes_effect_once() -> None:
    """At the earlier of both places, and not where the log has it already."""
    parked = with_queue(1, (2, SECOND), (3, FIRST))
    assert released(parked, redriven(6, 1, is_new=False)) == [(1, FIRST), (2, SECOND)]
    parked = with_queue(1, (2, FIRST), 3, (4, SECOND))
    assert released(parked, redriven(6, 3, is_new=False)) == []
    assert released(parked, skipped(7, 1)) == [(2, FIRST), (4, SECOND)]
    parked = with_queue(1, (2, SECOND))
    assert released(parked, redriven(6, 1, is_new=False)) == [(2, SECOND)]


def test_a_poison_record_that_parked_nothing_waits_only_behind_others() -> None:
    """Its event is like a new one at the control record's offset; without a key there is nothing to do."""
    parked = with_queue(4)
    effect = ControlEffect(6, KEY, 2, False, FIRST, True)
    assert released(parked, effect) == []
    assert released(parked, effect._replace(offset=7, event_id=SECOND, is_new=False)) == []
    assert released(parked, effect._replace(offset=8, key=b"other", event_id=THIRD)) == [(8, THIRD)]
    assert released(parked, skipped(9, 2, None, has_parked=False)) == []
    assert parked.obey(skipped(10, 4)) == [WaitingRecord(6, FIRST, 6)]


def test_what_is_taken_back_leaves_no_id_behind() -> None:
    """A redriven event that waits, and is tried again, is there again."""
    parked = with_queue(1, 2)
    for _ in range(2):
        parked.rollback()
        assert released(parked, redriven(6, 2)) == []
    parked.commit()
    assert released(parked, skipped(7, 1)) == [(2, FIRST)]


class Entry(NamedTuple):
    """A record of the oracle's list: poison until something is decided of it."""

    offset: int
    event_id: bytes | None


class Oracle:
    """The same by going through the whole history again: each key's records, what became of them, and what is out."""

    def __init__(self) -> None:
        self.entries: dict[bytes, list[Entry]] = {}
        self.out: set[tuple[bytes, int]] = set()

    def waiting(self) -> dict[bytes, list[Entry]]:
        queues = {}
        for key, entries in self.entries.items():
            first = next((index for index, entry in enumerate(entries) if entry.event_id is None), len(entries))
            if entries[first:]:
                queues[key] = entries[first:]
        return queues

    def newly_out(self) -> list[int]:
        found = []
        for key, entries in self.entries.items():
            for entry in entries:
                if entry.event_id is None:
                    break
                if (key, entry.offset) not in self.out:
                    found.append(entry.offset)
                    self.out.add((key, entry.offset))
        return found

    def drop(self, key: bytes, offset: int) -> None:
        self.entries[key] = [entry for entry in self.entries[key] if entry.offset != offset]


steps = st.lists(
    st.tuples(st.sampled_from(["poison", "event", "skip", "redrive", "add"]), st.integers(0, 1), st.integers(0, 30),
              st.booleans()),
    max_size=60,
)  # fmt: skip


@given(steps, st.lists(st.integers(0, 60), max_size=5))
def test_queues_do_what_going_through_the_history_again_gives(
    history: Sequence[tuple[str, int, int, bool]], cuts: Sequence[int]
) -> None:
    """For any order of poison, events, skips and redrives; what was not committed leaves no trace."""
    parked, oracle, known = ParkedEntities(), Oracle(), set[bytes]()
    for offset, (kind, entity, chosen, again) in enumerate(history):
        key = b"%d" % entity
        waiting = oracle.waiting().get(key, [])
        before = parked.queues
        for _ in range(2 if offset in cuts else 1):  # a transaction that is rolled back, and tried again
            parked.rollback()
            assert parked.queues == before
            found = play(parked, kind, key, offset, waiting, chosen, known if again else set())
        parked.commit()
        assert found == expect(oracle, kind, key, offset, waiting, chosen, known if again else set(), known)
        assert parked.records == sum(map(len, parked.queues.values()))
        assert {key: [(r.offset, r.event_id) for r in queue] for key, queue in parked.queues.items()} == {
            key: [(e.offset, e.event_id) for e in queue] for key, queue in oracle.waiting().items()
        }


def event_id_of(key: bytes, offset: int, chosen: int, known: set[bytes]) -> bytes:
    """The id that a redrive brings: a new one, or one of the same key that is known."""
    own = sorted(each for each in known if each.startswith(key))
    return own[chosen % len(own)] if own else b"%s/%d" % (key, offset)


def poison_of(waiting: Sequence[Entry], chosen: int) -> int | None:
    poison = [entry.offset for entry in waiting if entry.event_id is None]
    return poison[chosen % len(poison)] if poison else None


def play(
    parked: ParkedEntities, kind: str, key: bytes, offset: int, waiting: Sequence[Entry], chosen: int, known: set[bytes]
) -> list[int]:
    """Let the queues do a step; returns the offsets of the events that take effect."""
    event_id, poison = event_id_of(key, offset, chosen, known), poison_of(waiting, chosen)
    match kind:
        case "poison":
            parked.park(key, offset)
            return []
        case "event":
            return [] if parked.add(key, WaitingRecord(offset, b"%s/%d" % (key, offset))) else [offset]
        case "add":
            effect = ControlEffect(offset, key, 0, False, event_id, event_id not in known)
        case "redrive" if poison is not None:
            effect = ControlEffect(offset, key, poison, True, event_id, event_id not in known)
        case _:
            effect = ControlEffect(offset, key, poison if poison is not None else 0, True)
    return [event.offset for event in parked.obey(effect)]


def expect(
    oracle: Oracle, kind: str, key: bytes, offset: int, waiting: Sequence[Entry], chosen: int, known: set[bytes],
    every: set[bytes],
) -> list[int]:  # fmt: skip
    """Do the same in the oracle."""
    event_id, poison = event_id_of(key, offset, chosen, known), poison_of(waiting, chosen)
    entries = oracle.entries.setdefault(key, [])
    if kind == "poison":
        entries.append(Entry(offset, None))
    elif kind == "event":
        every.add(b"%s/%d" % (key, offset))
        entries.append(Entry(offset, b"%s/%d" % (key, offset)))
    elif kind == "add":
        if event_id not in known:
            every.add(event_id)
            entries.append(Entry(offset, event_id))
    elif kind == "redrive" and poison is not None:
        waits_at = next((entry.offset for entry in waiting if entry.event_id == event_id), None)
        if (waits_at is None and event_id in known) or (waits_at is not None and waits_at < poison):
            oracle.drop(key, poison)
        else:
            if waits_at is not None:
                oracle.drop(key, waits_at)
            every.add(event_id)
            oracle.entries[key] = [
                Entry(poison, event_id) if entry.offset == poison else entry for entry in oracle.entries[key]
            ]
    elif poison is not None:
        oracle.drop(key, poison)
    return oracle.newly_out()
