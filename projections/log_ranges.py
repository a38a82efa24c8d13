"""The ranges of one partition's log in Postgres: the next one made, full ones closed, and every one asked for repeats.

    open range     the last one; no key on event ids. Its owner alone writes it, so it knows the ids (`known_ids.py`)
    full range     it gets its unique index in bulk: no id is applied or parked twice in it
    closed range   every earlier range was asked for its ids, as the log holds them: no id was applied twice at all

A batch's ids are asked for in the open range and in every earlier one. What may be there is looked up in the log. Until
a range's filter is there, and where the budget has no room for one, its index is asked for every id. Filters are made
from the log between batches, a part at a time, the newest range first.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final
from uuid import UUID

import numpy

from projections.errors import RepeatApplied
from projections.id_budget import IdBudget
from projections.known_ids import (
    FILTER_BYTES,
    LOG_RANGE_OFFSETS,
    LOG_SCHEMA,
    OPEN_IDS_BYTES,
    FilterPositions,
    Hashes,
    IdFilter,
    OpenIds,
    id_hashes,
)
from projections.parking_log import ParkingLog
from projections.repeats import IDS_KNOWN, EventRecord, KnownRecord, look_up
from projections.session import DataRefused, RangeRefused, Session, TableLocked, WorkerOutdated, quoted_table
from runtime.logging import get_logger
from schemas.control import RecordRedriven
from schemas.polars_import import polars as pl
from streams.batch import EventBatch
from streams.errors import OwnershipLost

log = get_logger(__name__)

LOADED_OFFSETS: Final = 1 << 16
"""Offsets whose ids are read from the log at a time."""

SUMMARIZED_OFFSETS: Final = 1 << 10
"""Offsets after which look-ups by event id are let pass over what came into the open range. What they do not pass over
they read: these and a group of pages that is not full, some 1,600 records of each partition at most, half a
millisecond."""

NEXT_RANGE_AT: Final = 0.75
"""How full a range is when the next one is made: its table is there when it is needed, also where somebody holds the
lock of the partition's table for long, as ANALYZE of it does."""

INDEX_TIMEOUT_SECONDS: Final = 600
"""How long making an index may take. All partitions may do it at once, on a slow disk; one that is given up begins
again at its first row."""

LOCK_TIMEOUT_SECONDS: Final = 3
"""How long making an index waits for the table's lock, which a vacuum holds, and making a range ahead of time for that
of the partition's table, which ANALYZE holds. Postgres ends an autovacuum for whoever waits for a second; one against
wraparound, and an operator's, are never ended."""

AGAIN_SECONDS: Final = 30.0
"""How long the lock is not asked for again, so that waiting for it takes a tenth of a partition's time at most."""

INDEX_ON_IDS: Final = "event_ids_"
"""How the names of the ranges' unique indexes begin."""

REDRIVEN: Final = RecordRedriven.event_type

_RANGES = """
SELECT first_offset, first_offset + log_range_offsets() AS until, table_name,
    closed_at IS NOT NULL AND i.indexrelid IS NOT NULL AS closed,
    coalesce(pg_get_expr(i.indpred, i.indrelid) !~ 'entity_id', false) AS narrow
FROM log_ranges LEFT JOIN pg_index AS i
    ON i.indexrelid = to_regclass(format('log.%I', 'event_ids_' || md5(table_name)))
WHERE topic = $1 AND partition = $2 ORDER BY first_offset
"""

_MAKE = "SELECT make_log_range($1, $2::int, $3) AS name"

_IDS = f"""
SELECT event_id, "offset" FROM {{table}}
WHERE "offset" >= {{first}} AND "offset" < {{until}} AND {IDS_KNOWN}
"""  # noqa: S608 (a constant)


@dataclass
class LogRange:
    """An earlier range. `filter` is complete once `loaded_until` is the end; None: its index is asked."""

    first_offset: int
    until: int
    """The first offset behind it."""
    table: str
    closed: bool
    is_narrow: bool = False
    """Whether its index was made before control records could bring ids in: it holds none of these."""
    filter: IdFilter | None = None
    loaded_until: int = 0
    is_suspect: bool = False
    """Whether an id of it was in an earlier range when it was asked last."""

    @property
    def is_filtered(self) -> bool:
        """Whether its filter holds all of its ids."""
        return self.filter is not None and self.loaded_until == self.until


class LogRanges:
    """A partition's ranges as its owner sees them.

    What it knows of the log stays true when the partition is acquired again: records never change, so only later ones
    are read then.
    """

    def __init__(self, topic: str, partition: int, budget: IdBudget) -> None:
        self._topic = topic
        self._partition = partition
        self._budget = budget
        self._parking_log = ParkingLog(topic, partition)
        self._earlier: list[LogRange] = []
        self._open: OpenIds | None = None
        self.table = ""
        """The table of the open range; nothing before the first record."""
        self._summarized_until = 0
        self._summarized_block = 0
        self._range_offsets = LOG_RANGE_OFFSETS
        self._index_again_at = 0.0
        self._has_next = False
        self._next_again_at = 0.0

    def open(self, session: Session, next_offset: int, interrupted: threading.Event) -> None:
        """Read which ranges there are, and the ids of the open one below `next_offset`, the log's end.

        Gives full ranges their index where a former owner did not get to it, or somebody has dropped it. Raises
        RepeatApplied, TableLocked where a range that has no filter is being vacuumed, and OwnershipLost once
        `interrupted` is set.
        """
        ((self._range_offsets,),) = session.query("SELECT log_range_offsets() AS count")
        if self._range_offsets > LOG_RANGE_OFFSETS:
            raise WorkerOutdated(
                why=f"Ranges have {self._range_offsets} offsets, and this version knows ids of {LOG_RANGE_OFFSETS}.",
                next_step="plant --version",
            )
        known = {each.first_offset: each for each in self._earlier}
        ranges = [LogRange(*row) for row in session.query(_RANGES, (self._topic, self._partition))]
        # One behind the log's end is empty: a former owner made it and wrote nothing. Kafka may have lost that tail.
        ranges = [each for each in ranges if each.first_offset <= next_offset]
        self._earlier = ranges[:-1]
        for each in self._earlier:
            # Whether it is closed is the database's to say: a standby that took over may not have come so far.
            if (before := known.pop(each.first_offset, None)) is not None:
                each.filter, each.loaded_until = before.filter, before.loaded_until
                each.is_suspect = before.is_suspect
        for gone in known.values():
            self._drop_filter(gone)
        for each in self._earlier:
            if not each.closed:
                self._index(session, each)
            if each.is_suspect:
                self._close(session, each)
        if not ranges:
            self._forget_open()
            return
        last = ranges[-1]
        if self._open is None or self._open.first_offset != last.first_offset or self._open.next_offset > next_offset:
            self._forget_open()
            self._begin(last.first_offset, last.table)
        self.table = last.table
        self._load_open(session, next_offset, interrupted)

    def forget(self) -> None:
        """Give back the memory: the partition has moved to another worker."""
        for each in self._earlier:
            self._drop_filter(each)
        self._earlier = []
        self._forget_open()

    def advance_to(self, session: Session, offset: int) -> None:
        """Open the range of a record at the log's end where it is the next one, and index the one that is full.

        Call it outside transactions. Raises RepeatApplied where the full range holds an id twice, RangeRefused where
        there are too many empty ranges ahead, and TableLocked where the full range is being vacuumed and there is no
        room for its filter, or where the next one is not there yet and the partition's table is locked.
        """
        first_offset = offset - offset % self._range_offsets
        if self._open is not None and self._open.first_offset == first_offset:
            return
        ((table,),) = session.query(_MAKE, (self._topic, self._partition, first_offset))
        full, full_table = self._open, self.table
        self._begin(first_offset, table)
        if full is not None:
            self._index_full(session, full, full_table)
            if full.first_offset + self._range_offsets < first_offset:
                # Empty ones in a gap, made ahead of time or by a former owner: later ranges are closed behind them.
                rows = session.query(_RANGES, (self._topic, self._partition))
                self._earlier += [LogRange(*row) for row in rows if full.first_offset < row[0] < first_offset]

    def split(self, batch: EventBatch) -> tuple[EventBatch, EventBatch | None]:
        """Return the records of the range that the first one is in, and the others, if there are some."""
        if not batch.offsets:
            return batch, None
        until = batch.offsets[0] - batch.offsets[0] % self._range_offsets + self._range_offsets
        if batch.offsets[-1] < until:
            return batch, None
        index = bisect_left(batch.offsets, until)
        return batch.between(0, index), batch.between(index, len(batch))

    def candidates(self, event_ids: pl.Series) -> tuple[Hashes, Iterator[KnownRecord]]:
        """Return the hashes of a batch's ids, none null, and the records that may have one of them."""
        hashes = id_hashes(event_ids)
        bits = FilterPositions.of(hashes)
        found = self._in_earlier(event_ids, bits, self._earlier)
        return hashes, chain(found, self._in_open(event_ids, hashes, bits))

    def look_up(self, session: Session, candidates: Iterable[KnownRecord]) -> dict[bytes, EventRecord]:
        """Return the event ids among the candidates that the log holds, each with the record of its event."""
        tables = {each.first_offset: each.table for each in self._earlier}
        if self._open is not None:
            tables[self._open.first_offset] = self.table
        found = look_up(session, tables, candidates, {each.first_offset for each in self._earlier if each.is_narrow})
        brought_in = {event_id: record for event_id, record in found.items() if record.event_type == REDRIVEN}
        return found | self._parking_log.brought_in(session, brought_in) if brought_in else found

    def add(self, hashes: Hashes, offsets: Sequence[int], next_offset: int) -> None:
        """Note the ids that a committed transaction has applied or parked, and that it reaches up to `next_offset`."""
        if self._open is None:
            return
        until = self._open.first_offset + self._range_offsets
        self._open.add(hashes, numpy.asarray(offsets, numpy.int64), min(next_offset, until))

    def load_more(self, session: Session) -> bool:
        """Do what is due in the open range and one thing more, and return whether there may be more.

        Let look-ups by id pass over more of the open range, and make the next one where it is nearly full. Give up a
        filter where open ranges, this partition's or others', have taken its room. Then read a part of a filter, or
        close a range that is full.
        """
        self._look_after_open(session)
        if self._budget.is_exceeded:
            # Only of closed ranges: one without index and filter would be read for each id.
            filtered = (each for each in self._earlier if each.closed and each.filter is not None)
            if (oldest := next(filtered, None)) is not None:
                self._drop_filter(oldest)
        for each in reversed(self._earlier):
            if each.is_filtered or (each.filter is None and not self._budget.try_reserve(FILTER_BYTES)):
                continue
            if each.filter is None:
                each.filter, each.loaded_until = IdFilter(), each.first_offset
            until = min(each.loaded_until + LOADED_OFFSETS, each.until)
            ids = self._read_ids(session, each.table, each.loaded_until, until)
            each.filter.add(FilterPositions.of(id_hashes(ids["event_id"])))
            each.loaded_until = until
            return True
        for each in self._earlier:
            if not each.closed:
                # The first one alone: closing a later range would look ids up in this one, which has no index.
                if time.monotonic() < self._index_again_at or not self._index(session, each):
                    return False
                self._close(session, each)
                return True
        return False

    def _look_after_open(self, session: Session) -> None:
        if self._open is None:
            return
        if self._open.next_offset - self._summarized_until >= SUMMARIZED_OFFSETS:
            self._summarized_until = self._open.next_offset
            key = (self._topic, self._partition, self._open.first_offset, self._summarized_block)
            ((block,),) = session.query("SELECT summarize_log_range($1, $2::int, $3, $4) AS block", key)
            if block is not None:  # else the range is vacuumed or analysed, and the next call does what was left
                self._summarized_block = block
        is_nearly_full = self._open.next_offset - self._open.first_offset >= NEXT_RANGE_AT * self._range_offsets
        if is_nearly_full and not self._has_next and time.monotonic() >= self._next_again_at:
            self._make_next(session, self._open.first_offset + self._range_offsets)

    def _make_next(self, session: Session, first_offset: int) -> None:
        """Make the range behind the open one ahead of time; later, where the partition's table is locked."""
        try:
            session.script(f"SET lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'")
            session.query(_MAKE, (self._topic, self._partition, first_offset))
            self._has_next = True
        except (TableLocked, RangeRefused):  # if it is still so when the range is full, the partition waits or stops
            self._next_again_at = time.monotonic() + AGAIN_SECONDS
            log.info("log_range.not_made", topic=self._topic, partition=self._partition, first_offset=first_offset)
        session.script("RESET lock_timeout")

    def _begin(self, first_offset: int, table: str) -> None:
        """Take a range for the open one, of which nothing is known yet."""
        self._open, self.table = OpenIds(first_offset), table
        self._summarized_until, self._summarized_block, self._has_next = first_offset, 0, False
        self._budget.reserve(OPEN_IDS_BYTES)

    def _forget_open(self) -> None:
        if self._open is not None:
            self._budget.release(OPEN_IDS_BYTES)
        self._open, self.table = None, ""

    def _drop_filter(self, each: LogRange) -> None:
        if each.filter is not None:
            each.filter = None
            self._budget.release(FILTER_BYTES)

    def _load_open(self, session: Session, next_offset: int, interrupted: threading.Event) -> None:
        assert self._open is not None
        end = min(next_offset, self._open.first_offset + self._range_offsets)
        while self._open.next_offset < end:
            if interrupted.is_set():
                raise OwnershipLost(why="The partition was given up before its event ids were read.")
            until = min(self._open.next_offset + LOADED_OFFSETS, end)
            ids = self._read_ids(session, self.table, self._open.next_offset, until)
            self.add(id_hashes(ids["event_id"]), ids["offset"].to_list(), until)

    def _read_ids(self, session: Session, table: str, first: int, until: int) -> pl.DataFrame:
        frame = session.frame(_IDS.format(table=quoted_table(LOG_SCHEMA, table), first=first, until=until))
        return frame.with_columns(pl.col("event_id").cast(pl.Binary))

    def _in_earlier(
        self, event_ids: pl.Series, bits: FilterPositions, ranges: Iterable[LogRange]
    ) -> Iterator[KnownRecord]:
        for each in ranges:
            if each.filter is not None and each.is_filtered:
                for row in each.filter.ask(bits):
                    yield KnownRecord(each.first_offset, event_ids[int(row)], None)
            else:
                for event_id in event_ids:
                    yield KnownRecord(each.first_offset, event_id, None)

    def _in_open(self, event_ids: pl.Series, hashes: Hashes, bits: FilterPositions) -> Iterator[KnownRecord]:
        if self._open is not None:
            for row, offset in self._open.ask(hashes, bits):
                yield KnownRecord(self._open.first_offset, event_ids[row], offset)

    def _index_full(self, session: Session, ids: OpenIds, table: str) -> None:
        """Index the range that is full now; its ids are known, so its filter is there at once.

        `load_more` closes it, after the batch: until that is committed the log may go on in this range, where Kafka has
        lost the records behind it.
        """
        self._budget.release(OPEN_IDS_BYTES)
        full = LogRange(ids.first_offset, ids.first_offset + self._range_offsets, table, closed=False)
        if self._budget.try_reserve(FILTER_BYTES):
            full.filter, full.loaded_until = ids.filter, full.until
        self._earlier.append(full)
        self._index(session, full)

    def _index(self, session: Session, full: LogRange) -> bool:
        """Give a full range its unique index, and return whether it has it. Raises RepeatApplied.

        False: it is being vacuumed. With its filter its ids are known, so it is tried again later; without one
        TableLocked is raised, since each look-up would read the range.
        """
        try:
            session.script(
                f"SET statement_timeout = '{INDEX_TIMEOUT_SECONDS}s'",
                f"SET lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'",
            )
            session.query("SELECT index_log_range($1, $2::int, $3) AS made", self._key(full))
            is_indexed = True
        except TableLocked:
            if not full.is_filtered:
                raise
            is_indexed, self._index_again_at = False, time.monotonic() + AGAIN_SECONDS
            log.info("log_range.locked", topic=self._topic, partition=self._partition, first_offset=full.first_offset)
        except DataRefused as error:
            if not error.about(INDEX_ON_IDS):
                raise
            raise RepeatApplied(self._topic, self._partition, full.first_offset, str(error)) from error
        session.script("RESET statement_timeout", "RESET lock_timeout")
        return is_indexed

    def _close(self, session: Session, full: LogRange) -> None:
        """Ask every earlier range for the ids that a full one holds, as the log has them. Raises RepeatApplied.

        The first range has none before it; its filter gets what others have put there, as that of each range does.
        """
        earlier = [each for each in self._earlier if each.first_offset < full.first_offset]
        for first in range(full.first_offset, full.until, LOADED_OFFSETS):
            ids = self._read_ids(session, full.table, first, first + LOADED_OFFSETS)["event_id"]
            bits = FilterPositions.of(id_hashes(ids))
            if full.filter is not None and len(full.filter.ask(bits)) < len(ids):
                full.filter.add(bits)  # ids that others have put there
            again = self.look_up(session, self._in_earlier(ids, bits, earlier))
            full.is_suspect = bool(again)
            if again:
                event_id = UUID(bytes=next(iter(again)))
                raise RepeatApplied(
                    self._topic,
                    self._partition,
                    full.first_offset,
                    f"the event id {event_id} is in an earlier range too",
                )
        ((full.closed,),) = session.query("SELECT close_log_range($1, $2::int, $3) AS closed", self._key(full))
        event = "log_range.closed" if full.closed else "log_range.left_open"
        log.info(event, topic=self._topic, partition=self._partition, first_offset=full.first_offset)

    def _key(self, each: LogRange) -> tuple[str, int, int]:
        return self._topic, self._partition, each.first_offset
