"""How far a topic's partition is done, where its records end in any order. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from deliveries.delivery_fence import TopicOffsets
from streams.log_end import LoggedRecord, record_digest


class OffsetTracker:
    """The records of one topic's partition that were read, and which of them are done.

    >>> tracker = OffsetTracker(TopicOffsets(5, ((7, 8),)))
    >>> tracker.read(10, [5, 7, 8, 9])
    [5, 8, 9]
    >>> tracker.finish(8)
    >>> tracker.offsets()
    TopicOffsets(next_offset=5, done=((6, 9),), read_to=10, last=None)
    >>> tracker.finish(5)
    >>> tracker.offsets()
    TopicOffsets(next_offset=9, done=(), read_to=10, last=None)
    """

    def __init__(self, start: TopicOffsets) -> None:
        self.position = start.next_offset
        """The offset that is read next."""
        self.judged_to: Final = start.read_to
        """Records below it were told from copies by an owner before."""
        self.last = start.last
        """The last record that was read, here or by an owner before."""
        self._done_before: Final = start.done
        self._starts: Final = [first for first, _ in start.done]
        self._unfinished: dict[int, None] = {}
        """Offsets that were read and are not done, ascending as they were read: an ordered set."""
        self._last_done = -1
        """Behind it none that was read is done."""

    @property
    def next_offset(self) -> int:
        """All below it is done."""
        return next(iter(self._unfinished), self.position)

    @property
    def unfinished(self) -> int:
        """How many records were read and are not done."""
        return len(self._unfinished)

    def read(self, next_offset: int, offsets: Sequence[int]) -> list[int]:
        """Note the records between the position and `next_offset`, ascending; return those that are not done yet."""
        self.position = next_offset
        fresh = []
        for offset in offsets:
            if self._was_done(offset):
                self._last_done = offset
            else:
                fresh.append(offset)
        self._unfinished.update(dict.fromkeys(fresh))
        return fresh

    def compare(self, record: LoggedRecord) -> str | None:
        """Take a record for the last one, if it is; return how it differs from what was read before at its offset."""
        if self.last is not None and record.offset <= self.last.offset:
            differs = record.offset == self.last.offset and not self.last.is_record(record)
            return (
                f"Kafka holds a record at offset {record.offset} that is not the one that was read" if differs else None
            )
        self.last = record_digest(record)
        return None

    def finish(self, offset: int) -> None:
        """Note that a record that was read is done."""
        self._unfinished.pop(offset, None)
        self._last_done = max(self._last_done, offset)

    def offsets(self) -> TopicOffsets:
        """Return what is done, for the checkpoint: all that lies between records that are not, gaps of the log too.

        Where thousands wait behind the last one that is done, they are not gone through.
        """
        between = []
        start = self.next_offset
        for offset in self._unfinished:
            if offset > start:
                between.append((start, offset))
            start = offset + 1
            if offset > self._last_done:
                break
        else:
            if self.position > start > self.next_offset:
                between.append((start, self.position))
        later = [
            (max(start, self.position), end) for start, end in self._done_before if end > self.position
        ]  # read by an owner before, and not by this one yet
        return TopicOffsets(self.next_offset, (*between, *later), max(self.position, self.judged_to), self.last)

    def _was_done(self, offset: int) -> bool:
        rank = bisect_right(self._starts, offset) - 1
        return rank >= 0 and offset < self._done_before[rank][1]
