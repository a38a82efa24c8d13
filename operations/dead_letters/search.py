"""Finds dead letters: by what they are asked for, page by page, or by their positions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final, Literal

import msgspec

from operations.dead_letters.dead_letter import DeadLetter
from operations.dead_letters.errors import DeadLetterResolved, NoDeadLetter, NotLogged
from projections.dead_letter_rows import PAGE_BYTES, DeadLetterRows, LoggedRow, ParkedCount, RowFilter
from streams.record_position import RecordPosition
from streams.start import OFFSET_MAX

StateFilter = Literal["waiting", "resolved", "all"]

Unread = Callable[[RecordPosition], Awaitable[DeadLetter | None]]
"""Returns a record that its partition waits at, as a dead letter; None where it does not."""

LOOKED_UP_MAX: Final = 500
"""Positions that are looked up at a time."""


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """What dead letters are asked for; None asks for all. A type is that of the header `ce_type`, or of the value."""

    rows: RowFilter = RowFilter()
    event_type: str | None = None
    state: StateFilter = "waiting"

    def includes(self, dead_letter: DeadLetter) -> bool:
        """Return whether it asks for a dead letter that its rows include."""
        if self.state not in ("all", dead_letter.state):
            return False
        return self.event_type is None or self.event_type in (dead_letter.event_type, dead_letter.decoded_type)


class DeadLetterSearch:
    """Reads dead letters from the log as it is when the first of them is read: later ones are left out."""

    def __init__(self, rows: DeadLetterRows) -> None:
        self.rows = rows
        self._ends: dict[tuple[str, int], int] | None = None

    async def pages(
        self, asked: Search, *, whole: bool = False, count_parked: bool = False
    ) -> AsyncIterator[list[DeadLetter]]:
        """Yield dead letters by topic, partition and offset, some at a time, so that memory is bounded.

        With `whole` each has its whole value, and with `count_parked` the number of events that wait behind it.
        """
        ends = await self.log_ends()
        for topic, partition in await self.rows.partitions():
            if not asked.rows.includes(topic, partition):
                continue
            first, until = 0, ends.get((topic, partition), OFFSET_MAX)
            while page := await self.rows.page(topic, partition, asked.rows, first=first, until=until):
                first = page[-1].offset + 1
                wanted = [entry for entry in page if entry.asked]
                if not wanted:
                    continue
                resolved = await self.rows.resolved(topic, partition, wanted[0].offset, wanted[-1].offset)
                wanted = [entry for entry in wanted if _may_be_asked(asked, entry.offset in resolved)]
                for offsets in chunks((entry.offset, entry.size_bytes) for entry in wanted):
                    logged = await self.rows.records(topic, partition, offsets, whole=whole)
                    parked = await self.rows.parked(logged) if count_parked else {}
                    found = [dead_letter_of(row, resolved, parked) for row in logged]
                    yield [each for each in found if asked.includes(each)]

    async def at(
        self, positions: Sequence[RecordPosition], *, whole: bool = False, unread: Unread | None = None
    ) -> AsyncIterator[DeadLetter]:
        """Yield the dead letters at positions, in order, resolved ones too.

        `unread` is asked for a record that the log does not have. Raises NotLogged and NoDeadLetter.
        """
        for some in chunked(sorted(set(positions)), LOOKED_UP_MAX):
            for (topic, partition), group in groupby(some, key=lambda each: (each.topic, each.partition)):
                offsets = [each.offset for each in group]
                found = await self.look_up(topic, partition, offsets, whole=whole)
                for offset in offsets:
                    position = RecordPosition(topic, partition, offset)
                    if offset not in found:
                        if unread is None or (dead_letter := await unread(position)) is None:
                            raise await self.not_logged(position)
                        yield dead_letter
                        continue
                    if (disposition := found[offset].row.disposition) != "poison":
                        raise NoDeadLetter(position, disposition)
                    yield found[offset]

    async def look_up(
        self, topic: str, partition: int, offsets: Sequence[int], *, whole: bool
    ) -> dict[int, DeadLetter]:
        """Return the records that the log has at offsets, whatever they are; their values if `whole` says so."""
        rows = await self.rows.records(topic, partition, offsets, whole=whole)
        resolved = await self.rows.resolved(topic, partition, min(offsets), max(offsets))
        return {row.offset: dead_letter_of(row, resolved, {}) for row in rows}

    async def not_logged(self, position: RecordPosition) -> NotLogged:
        """Return why the log has no record at a position."""
        end = (await self.log_ends()).get((position.topic, position.partition))
        if end is None:
            why = f"No worker has read {position.topic}/{position.partition}."
        elif position.offset >= end:
            why = f"Workers have not come to it: offset {end} is read next."
        else:
            why = "Kafka has no record with this offset: it is a gap, such as the end of a transaction."
        return NotLogged(position, why)

    async def log_ends(self) -> dict[tuple[str, int], int]:
        """Return each partition's next offset, as it was when it was first asked for."""
        if self._ends is None:
            self._ends = await self.rows.log_ends()
        return self._ends


def refuse_resolved(dead_letter: DeadLetter) -> None:
    """Raise DeadLetterResolved for one that a control record took effect on."""
    if dead_letter.resolved_at is not None:
        raise DeadLetterResolved(dead_letter.position, dead_letter.resolved_at)


def dead_letter_of(row: LoggedRow, resolved: dict[int, int], parked: dict[int, ParkedCount]) -> DeadLetter:
    """Return a row with what became of it."""
    return DeadLetter(row=row, resolved_at=resolved.get(row.offset), parked=parked.get(row.offset, ParkedCount()))


def chunks(page: Iterable[tuple[int, int]]) -> Iterator[list[int]]:
    """Cut offsets with sizes into runs of at most PAGE_BYTES, or of one record.

    >>> list(chunks([(1, 10), (2, PAGE_BYTES), (3, 10), (4, 10)]))
    [[1], [2], [3, 4]]
    """
    run: list[int] = []
    run_bytes = 0
    for offset, size_bytes in page:
        if run and run_bytes + size_bytes > PAGE_BYTES:
            yield run
            run, run_bytes = [], 0
        run.append(offset)
        run_bytes += size_bytes
    if run:
        yield run


def chunked(positions: Sequence[RecordPosition], size: int) -> Iterator[Sequence[RecordPosition]]:
    """Cut positions into runs of at most `size`."""
    for start in range(0, len(positions), size):
        yield positions[start : start + size]


def _may_be_asked(asked: Search, resolved: bool) -> bool:
    return asked.state == "all" or (asked.state == "resolved") == resolved
