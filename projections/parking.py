"""Entities whose events wait behind a poison record, and what releases them: the rules alone, without a database.

Each key with a waiting poison record has a queue, in the order of offsets. It begins with a poison record, and holds
the entity's later poison records and events. A control record takes a poison record out of its queue, or puts an event
in its place. Then the events at the queue's head take effect, in their order, up to the next poison record.

The owner of a partition keeps its queues while batches come, and a fold of the log follows the same rules.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import KeysView, Sequence
from operator import attrgetter
from typing import NamedTuple


class WaitingRecord(NamedTuple):
    """A record in a queue: a poison record, or an event where it has an id.

    `offset` is its place in the queue: that of the poison record that it was, of the parked event, or of the control
    record that brought it in where its poison record had parked nothing.
    """

    offset: int
    event_id: bytes | None = None
    control_offset: int | None = None
    """The control record that has its bytes, or names the record that has them; None: the record at `offset` has."""

    @property
    def is_poison(self) -> bool:
        """Whether it is a poison record, which no control record has redriven so far."""
        return self.event_id is None


class ControlEffect(NamedTuple):
    """What a control record does that names a poison record which waits for one."""

    offset: int
    """The control record's own."""
    key: bytes | None
    poison_offset: int
    has_parked: bool
    """Whether the poison record has parked its entity."""
    event_id: bytes | None = None
    """The id of the event that takes effect instead; None: the poison record is skipped."""
    is_new: bool = False
    """Whether the log held no record of that id before."""


class ParkedEntities:
    """The queues of one partition. Changes are kept by :meth:`commit`, and taken back by :meth:`rollback`."""

    def __init__(self) -> None:
        self._queues: dict[bytes, _Queue] = {}
        self.records = 0
        """How many records wait, in all queues together."""
        self._undo: list[tuple[bytes, int, int, Sequence[WaitingRecord]]] = []

    def __len__(self) -> int:
        return len(self._queues)

    @property
    def keys(self) -> KeysView[bytes]:
        """The keys of the parked entities."""
        return self._queues.keys()

    @property
    def queues(self) -> dict[bytes, tuple[WaitingRecord, ...]]:
        """The records that wait, in order, by key."""
        return {key: tuple(queue.records) for key, queue in self._queues.items()}

    def queue(self, key: bytes) -> Sequence[WaitingRecord]:
        """Return the records of a key that wait, in order."""
        queue = self._queues.get(key)
        return () if queue is None else queue.records

    def waits(self, key: bytes | None, poison_offset: int) -> bool:
        """Return whether a poison record waits in its key's queue."""
        queue = None if key is None else self._queues.get(key)
        return queue is not None and queue.index_of_poison(poison_offset) is not None

    def park(self, key: bytes, poison_offset: int) -> None:
        """Let the entity wait from a poison record on."""
        self._append(key, self._queues.setdefault(key, _Queue()), WaitingRecord(poison_offset))

    def add(self, key: bytes, event: WaitingRecord) -> bool:
        """Let an event wait if its entity is parked; returns whether it does."""
        queue = self._queues.get(key)
        if queue is None:
            return False
        self._append(key, queue, event)
        return True

    def obey(self, effect: ControlEffect) -> Sequence[WaitingRecord]:
        """Do what a control record says; returns the events that take effect at its place, in order.

        An event takes effect once: where its id waits in the queue already, at the earlier of both places.
        """
        key, event_id = effect.key, effect.event_id
        if key is None:
            return ()
        if not effect.has_parked:
            event = WaitingRecord(effect.offset, event_id, effect.offset)
            return (event,) if effect.is_new and not self.add(key, event) else ()
        queue = self._queues.get(key)
        if queue is None:
            return ()
        event = WaitingRecord(effect.poison_offset, event_id, effect.offset)
        replaced = effect.is_new
        if event_id is not None and (waits_at := queue.ids.get(event_id)) is not None:
            replaced = waits_at > effect.poison_offset
            if replaced:
                index = queue.index_of(waits_at)
                self._change(key, index, index + 1, [])
        poison = queue.index_of_poison(effect.poison_offset)
        if poison is not None:
            self._change(key, poison, poison + 1, [event] if replaced else [])
        return self._release(key, queue)

    def commit(self) -> None:
        """Keep what was changed."""
        self._undo.clear()

    def rollback(self) -> None:
        """Take back what was changed since the last commit."""
        while self._undo:
            self._replace(*self._undo.pop())

    def _append(self, key: bytes, queue: _Queue, record: WaitingRecord) -> None:
        end = len(queue.records)
        queue.records.append(record)
        self.records += 1
        if record.event_id is not None:
            queue.ids[record.event_id] = record.offset
        self._undo.append((key, end, end + 1, ()))

    def _release(self, key: bytes, queue: _Queue) -> Sequence[WaitingRecord]:
        count = 0
        for record in queue.records:
            if record.is_poison:
                break
            count += 1
        return self._change(key, 0, count, []) if count else ()

    def _change(self, key: bytes, start: int, stop: int, records: Sequence[WaitingRecord]) -> Sequence[WaitingRecord]:
        """Put records in the place of others, so that it can be taken back; returns the others."""
        removed = self._replace(key, start, stop, records)
        self._undo.append((key, start, start + len(records), removed))
        return removed

    def _replace(self, key: bytes, start: int, stop: int, records: Sequence[WaitingRecord]) -> Sequence[WaitingRecord]:
        queue = self._queues.setdefault(key, _Queue())
        removed = queue.records[start:stop]
        queue.records[start:stop] = records
        self.records += len(records) - len(removed)
        for record in removed:
            if record.event_id is not None:
                del queue.ids[record.event_id]
        for record in records:
            if record.event_id is not None:
                queue.ids[record.event_id] = record.offset
        if not queue.records:
            del self._queues[key]
        return removed


class _Queue:
    """The records of one key, by offset, and the offsets of its events by id."""

    def __init__(self) -> None:
        self.records: list[WaitingRecord] = []
        self.ids: dict[bytes, int] = {}

    def index_of(self, offset: int) -> int:
        return bisect_left(self.records, offset, key=attrgetter("offset"))

    def index_of_poison(self, offset: int) -> int | None:
        index = self.index_of(offset)
        here = self.records[index : index + 1]
        return index if here and here[0].offset == offset and here[0].is_poison else None
