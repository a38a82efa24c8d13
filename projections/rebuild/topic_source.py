"""Records of a chunk from Kafka's topic instead of the log's own copy of them; what they are is what the log says.

The log keeps the disposition of each record. The few that are not applied are asked for by their index, and left out:
nothing is judged again. Parked events that take effect, which are few as well, come from the log. A topic that begins
later than a chunk, or ends before it, is refused by name, and never is anything skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Final, Protocol
from uuid import UUID

from projections.checkpoints import PROJECTOR, recorded_topic_id
from projections.effective_events import unapplied_offsets
from projections.fold import ENTITY
from projections.rebuild.errors import TopicUnusable
from projections.session import Session
from runtime.settings import Settings
from schemas.polars_import import polars as pl
from streams.errors import CheckpointOutOfLog, KafkaUnavailable
from streams.log_end import LogEnd
from streams.log_reader import UNFENCED, LogReader

FETCH_STALLED_TIMEOUT_SECONDS: Final = 60.0
"""How long nothing may come of a topic that has more."""

_READ: Final = {"offset": pl.Int64, "value": pl.Binary, ENTITY: pl.Binary}


class ChunkSource(Protocol):
    """Where a thread of a rebuild has applied records from; a context manager."""

    def __enter__(self) -> ChunkSource: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def applied(self, session: Session, topic: str, partition: int, offsets: tuple[int, int]) -> pl.DataFrame:
        """Return the applied records from `offsets[0]` on and below `offsets[1]`, in order.

        They have `offset`, `value` and `entity`.
        """


MakeSource = Callable[[], ChunkSource]
"""Makes the source of a thread."""


class TopicSource:
    """Kafka's topic, read by one thread with a plain consumer a partition and no group."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._runner = asyncio.Runner()
        self._open: tuple[str, int, LogReader] | None = None

    def __enter__(self) -> TopicSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._runner:
            self._runner.run(self._close())

    def applied(self, session: Session, topic: str, partition: int, offsets: tuple[int, int]) -> pl.DataFrame:
        """Return the applied records of a chunk.

        Raises TopicUnusable where the topic does not hold all of it, and KafkaUnavailable.
        """
        known = recorded_topic_id(session, PROJECTOR, topic, partition)
        try:
            read = self._runner.run(self._read(topic, partition, offsets, known))
        except CheckpointOutOfLog as error:
            raise TopicUnusable(topic, partition, error.why) from error
        unapplied = unapplied_offsets(session, topic, partition, offsets)
        return read.filter((pl.col("offset") < offsets[1]) & ~pl.col("offset").is_in(sorted(unapplied)))

    async def _read(
        self, topic: str, partition: int, offsets: tuple[int, int], known: UUID | None
    ) -> pl.DataFrame:  # fmt: skip
        reader, (first, until) = await self._reader(topic, partition), offsets
        watermarks = await reader.watermarks()
        if known is not None and known != watermarks.leadership.topic_id:
            why = "Kafka has another topic of this name than the one that the log is of."
            raise TopicUnusable(topic, partition, why)
        if watermarks.high < until:
            why = f"It ends at offset {watermarks.high}, and the log has records up to {until}."
            raise TopicUnusable(topic, partition, why)
        reader.open(UNFENCED, watermarks, LogEnd(None, first, compared=False))
        read = pl.DataFrame(schema=_READ)
        async with contextlib.aclosing(reader.batches(until)) as batches:
            while True:
                try:
                    batch = await asyncio.wait_for(anext(batches, None), FETCH_STALLED_TIMEOUT_SECONDS)
                except TimeoutError as error:
                    raise KafkaUnavailable(why=f"Nothing came of {topic}/{partition} any more.") from error
                if batch is None:
                    return read
                # The key of an applied record is the id of its entity: any other makes it poison.
                columns = {"offset": batch.offsets, "value": batch.values, ENTITY: batch.keys}
                read.extend(pl.DataFrame(columns, schema=_READ))

    async def _reader(self, topic: str, partition: int) -> LogReader:
        """Return the reader of a partition; a thread reads one at a time."""
        if self._open is None or self._open[:2] != (topic, partition):
            await self._close()
            reader = await LogReader(self._settings, topic, partition, with_headers=False).__aenter__()
            self._open = (topic, partition, reader)
        return self._open[2]

    async def _close(self) -> None:
        if self._open is not None:
            (*_, reader), self._open = self._open, None
            await reader.__aexit__()
