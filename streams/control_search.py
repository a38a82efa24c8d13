"""The search for control records ahead of a partition that stands still, which let it go on.

It may wait at a record whose schema is not known to this release, until a skip names that record; or at one that would
have its owner keep too much of parked entities, until control records further on make room (docs/decisions/0063).

It reads ahead of the checkpoint, and applies nothing. Of each record it looks at the key, and at the bytes of the value
that name its schema; only control records are decoded. Memory is that of one fetch, and of the names of NAMED_MAX
poison records.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from runtime.logging import get_logger
from runtime.settings import Settings
from schemas import codec
from schemas.control import RecordRedriven, RecordSkipped
from schemas.errors import Undecodable
from streams.errors import SchemaNewer, TooMuchParked
from streams.kafka.clients import make_consumer
from streams.kafka.consumer import RepairedConsumer

log = get_logger(__name__)

FETCH_MAX_BYTES: Final = 1024 * 1024
FETCH_TIMEOUT_MS: Final = 250
FETCHED_RECORDS_MAX: Final = 2_000
PREFIXES_MAX: Final = 1_000
NAMED_MAX: Final = 100_000
CONNECT_TIMEOUT_SECONDS: Final = 5.0
"""A partition that is revoked meanwhile waits no longer than this."""


class NamedPoison(NamedTuple):
    """A poison record as a control record names it."""

    key: bytes | None
    offset: int


class ControlSearch:
    """The search on one partition. It goes on from where the last look ended."""

    def __init__(self, settings: Settings, topic: str, partition: int) -> None:
        self._settings = settings
        self._tp = TopicPartition(topic, partition)
        self._offset: int | None = None
        self._next_offset = 0
        self._key: bytes | None = None
        self._named: set[NamedPoison] = set()
        self._by_prefix: dict[bytes, bool] = {}

    def find_skip(self, waiting: SchemaNewer, interrupted: threading.Event) -> str | None:
        """Return the reason of the first skip of the record that is waited at; None where the log has none so far.

        It blocks until the log's end, with an event loop of its own. Once `interrupted` is set it ends after a fetch.
        None too where Kafka does not answer.
        """
        reasons: list[str] = []

        def is_skip(record: ConsumerRecord) -> bool:
            if record.offset == waiting.offset:
                self._key = record.key
            elif record.key == self._key:
                control = self._control_in(record)
                if isinstance(control, RecordSkipped) and control.poison_offset == waiting.offset:
                    reasons.append(control.reason)
            return bool(reasons)

        self._look(waiting.offset, is_skip, interrupted)
        return reasons[0] if reasons else None

    def find_named(self, full: TooMuchParked, interrupted: threading.Event) -> frozenset[NamedPoison]:
        """Return the poison records that control records name, from the record on at which the partition stands.

        It blocks as `find_skip` does, and ends as that does.
        """

        def add(record: ConsumerRecord) -> bool:
            control = self._control_in(record)
            if control is not None:
                self._named.add(NamedPoison(record.key, control.poison_offset))
            return len(self._named) >= NAMED_MAX

        self._look(full.offset, add, interrupted)
        return frozenset(self._named)

    def _look(self, offset: int, ends: Callable[[ConsumerRecord], bool], interrupted: threading.Event) -> None:
        """Read from an offset on until `ends` says so of a record, or the log ends."""
        if self._offset != offset:
            self._offset = self._next_offset = offset
            self._named.clear()
        try:
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(self._read_ahead(ends, interrupted))
        except (KafkaError, TimeoutError) as error:
            log.warning("controls.not_searched", topic=self._tp.topic, partition=self._tp.partition, why=repr(error))

    async def _read_ahead(self, ends: Callable[[ConsumerRecord], bool], interrupted: threading.Event) -> None:
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
                if await self._fetch(consumer, ends):
                    return
        finally:
            await consumer.stop()

    async def _fetch(self, consumer: RepairedConsumer, ends: Callable[[ConsumerRecord], bool]) -> bool:
        fetched = await consumer.getmany(timeout_ms=FETCH_TIMEOUT_MS, max_records=FETCHED_RECORDS_MAX)
        if any(ends(record) for record in fetched.get(self._tp, ())):
            return True
        self._next_offset = await consumer.position(self._tp)
        return False

    def _control_in(self, record: ConsumerRecord) -> RecordRedriven | RecordSkipped | None:
        """Return the control record about a poison record that a record is, if it is one."""
        if record.value is None:
            return None
        prefix = record.value[: codec.WIRE_PREFIX.size]
        is_control = self._by_prefix.get(prefix)
        if is_control is None:
            if len(self._by_prefix) == PREFIXES_MAX:  # foreign bytes may begin in any way
                self._by_prefix.clear()
            is_control = self._by_prefix[prefix] = _names_controls(prefix)
        if not is_control:
            return None
        try:
            control = codec.decode_record(record.value)
        except Undecodable:
            return None
        assert isinstance(control, RecordRedriven | RecordSkipped)
        return control


def _names_controls(prefix: bytes) -> bool:
    try:
        return codec.registered(prefix).event in (RecordRedriven, RecordSkipped)
    except Undecodable:
        return False
