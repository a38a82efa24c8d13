"""The search for a skip of the record that a partition waits at, since its schema is not known to this release.

It reads ahead of the checkpoint, and applies nothing. Of each record it looks at the key, and at the bytes of the value
that name its schema; only skips with the waiting record's key are decoded. Memory is that of one fetch.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Final

from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from runtime.logging import get_logger
from runtime.settings import Settings
from schemas import codec
from schemas.control import RecordSkipped
from schemas.errors import Undecodable
from streams.errors import SchemaNewer
from streams.kafka.clients import make_consumer
from streams.kafka.consumer import RepairedConsumer

log = get_logger(__name__)

FETCH_MAX_BYTES: Final = 1024 * 1024
FETCH_TIMEOUT_MS: Final = 250
FETCHED_RECORDS_MAX: Final = 2_000
PREFIXES_MAX: Final = 1_000
CONNECT_TIMEOUT_SECONDS: Final = 5.0
"""A partition that is revoked meanwhile waits no longer than this."""


class SkipSearch:
    """The search on one partition. It goes on from where the last look ended."""

    def __init__(self, settings: Settings, topic: str, partition: int) -> None:
        self._settings = settings
        self._tp = TopicPartition(topic, partition)
        self._offset: int | None = None
        self._next_offset = 0
        self._key: bytes | None = None
        self._by_prefix: dict[bytes, bool] = {}

    def look(self, waiting: SchemaNewer, interrupted: threading.Event) -> str | None:
        """Return the reason of the first skip of the record that is waited at; None where the log has none so far.

        It blocks until the log's end, with an event loop of its own: uvloop's does not suit aiokafka
        (`streams/transport.py`). Once `interrupted` is set it ends after a fetch. None too where Kafka does not answer.
        """
        if self._offset != waiting.offset:
            self._offset = self._next_offset = waiting.offset
        try:
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                return runner.run(self._read_ahead(waiting.offset, interrupted))
        except (KafkaError, TimeoutError) as error:
            log.warning("skip.not_searched", topic=self._tp.topic, partition=self._tp.partition, why=repr(error))
            return None

    async def _read_ahead(self, offset: int, interrupted: threading.Event) -> str | None:
        consumer = make_consumer(
            self._settings,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            max_partition_fetch_bytes=FETCH_MAX_BYTES,
        )
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                await consumer.start()
                consumer.assign([self._tp])
                consumer.seek(self._tp, self._next_offset)
                end = (await consumer.end_offsets([self._tp]))[self._tp]
            while not interrupted.is_set() and self._next_offset < end:
                reason = await self._fetch(consumer, offset)
                if reason is not None:
                    return reason
            return None
        finally:
            await consumer.stop()

    async def _fetch(self, consumer: RepairedConsumer, offset: int) -> str | None:
        fetched = await consumer.getmany(timeout_ms=FETCH_TIMEOUT_MS, max_records=FETCHED_RECORDS_MAX)
        for record in fetched.get(self._tp, ()):
            if record.offset == offset:
                self._key = record.key
            elif (skipped := self._skip_in(record)) is not None and skipped.poison_offset == offset:
                return skipped.reason
        self._next_offset = await consumer.position(self._tp)
        return None

    def _skip_in(self, record: ConsumerRecord) -> RecordSkipped | None:
        """Return the skip that a record is, if it has the key of the record that is waited at."""
        if record.key != self._key or record.value is None:
            return None
        prefix = record.value[: codec.WIRE_PREFIX.size]
        is_skip = self._by_prefix.get(prefix)
        if is_skip is None:
            if len(self._by_prefix) == PREFIXES_MAX:  # foreign bytes may begin in any way
                self._by_prefix.clear()
            is_skip = self._by_prefix[prefix] = _names_skips(prefix)
        if not is_skip:
            return None
        try:
            skipped = codec.decode_record(record.value)
        except Undecodable:
            return None
        assert isinstance(skipped, RecordSkipped)
        return skipped


def _names_skips(prefix: bytes) -> bool:
    try:
        return codec.registered(prefix).event is RecordSkipped
    except Undecodable:
        return False
