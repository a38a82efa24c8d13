"""Dead letters: records that the log holds as poison, published as they are on a topic of their own, with the reason.

The checkpoint of a partition's dead letters (`projections/poison_rows.py`) advances once Kafka has acknowledged them.
So none is lost, and one may come twice: with the same topic, partition and offset in its headers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from audit.canonical import read_headers
from projections.poison_rows import PoisonRow, PoisonRows
from runtime import metrics
from runtime.logging import get_logger
from runtime.settings import Settings
from streams.errors import OutcomeUnknown, PublishRefused, RecordTooLarge, StreamsError
from streams.pending_publish import PendingPublish
from streams.producer import EventProducer
from streams.record_position import RecordPosition
from streams.topics import RECORD_MAX_BYTES

log = get_logger(__name__)

DEAD_LETTERS_MAX: Final = 50
"""Dead letters under way at a time. They fit into what may wait for Kafka, whatever their size."""

CYCLE_TIMEOUT_SECONDS: Final = 0.25
"""How long a cycle waits for Kafka, since changes wait meanwhile; a later one sees the outcome."""

FINISH_TIMEOUT_SECONDS: Final = 5.0

KEY_MAX_BYTES: Final = 1024
"""The longest key of a dead letter whose record is left out."""

Submitted = tuple[PoisonRow, PendingPublish]


class DeadLetterRelay:
    """Publishes dead letters, some at a time; none again while its outcome is unknown.

    It has a producer of its own: an error of the topic or of a dead letter keeps nothing else from Kafka.
    """

    def __init__(self, settings: Settings, dead_topic: str, logical_topic: str) -> None:
        self._producer = EventProducer(settings, topics=(dead_topic,))
        self._dead_topic = dead_topic
        self._logical_topic = logical_topic
        self._under_way: list[Submitted] = []
        self._rows_max = DEAD_LETTERS_MAX
        self._refused: RecordPosition | None = None
        self._failing: tuple[str, int] | None = None
        self.sent = 0
        """How many it has published and noted."""

    async def start(self) -> None:
        """Connect. Raises KafkaUnavailable or TopicMissing."""
        await self._producer.start()

    def start_in_background(self) -> None:
        """Connect as soon as Kafka answers and the topic exists."""
        self._producer.start_in_background()

    async def stop(self) -> None:
        """Disconnect, as `EventProducer.stop` does."""
        await self._producer.stop()

    async def run_cycle(self, rows: PoisonRows, timeout_seconds: float = CYCLE_TIMEOUT_SECONDS) -> bool:
        """Publish the next dead letters, or await those under way; return whether there may be more at once.

        Raises StreamsError where one could not be published. Those before it in its partition are noted all the same.
        """
        failure = None
        if not self._under_way and self._producer.connected:
            failure = await self._submit_next(rows)
        waiting = {publish.answer for _, publish in self._under_way if not publish.done()}
        if waiting and (await asyncio.wait(waiting, timeout=timeout_seconds))[1]:
            return False
        submitted, self._under_way = self._under_way, []
        more = len(submitted) == self._rows_max
        failure = await self._note(rows, submitted) or failure
        self._isolate_refused(submitted, failure)
        if failure is not None:
            raise failure
        return more

    async def finish(self, rows: PoisonRows) -> None:
        """Publish all there is. Raises StreamsError."""
        more = True
        while more:
            self._producer.check_connected()
            more = await self.run_cycle(rows, FINISH_TIMEOUT_SECONDS)
        if self._under_way:
            raise OutcomeUnknown(why=f"There was no answer to dead letters within {FINISH_TIMEOUT_SECONDS:g} s.")

    async def _submit_next(self, rows: PoisonRows) -> StreamsError | None:
        """Submit the next dead letters up to the first that can't be; return its error."""
        unsent = await rows.unsent(
            self._logical_topic,
            self._rows_max,
            size_max_bytes=RECORD_MAX_BYTES,
            key_max_bytes=KEY_MAX_BYTES,
            first=self._failing if self._rows_max == 1 else None,
        )
        for row in unsent:
            try:
                self._under_way.append((row, self._submit(row)))
            except StreamsError as error:
                return error
        return None

    async def _note(self, rows: PoisonRows, submitted: Sequence[Submitted]) -> StreamsError | None:
        """Advance each partition's checkpoint up to its first dead letter that failed; return the first error."""
        next_offsets: dict[tuple[str, int], int] = {}
        failures: dict[tuple[str, int], StreamsError] = {}
        for row, publish in submitted:
            partition = (row.topic, row.partition)
            if partition in failures:
                continue
            try:
                publish.position()
            except StreamsError as error:
                failures[partition] = error
            else:
                next_offsets[partition] = row.offset + 1
                self.sent += 1
                metrics.RELAY_DEAD_LETTERS.inc()
        self._failing = next(iter(failures), None)
        for partition, next_offset in next_offsets.items():
            await rows.advance(*partition, next_offset)
        if next_offsets:
            log.warning("dead_letters.relayed", partitions=len(next_offsets), sent=self.sent, topic=self._dead_topic)
        return next(iter(failures.values()), None)

    def _isolate_refused(self, submitted: Sequence[Submitted], failure: StreamsError | None) -> None:
        """Find the dead letter that Kafka refuses, by publishing one at a time.

        Kafka refuses a batch without naming a record in it. So after a refusal the dead letters of its partition go one
        by one, until one is refused alone: that one is sent without its record.
        """
        if not isinstance(failure, PublishRefused):
            self._rows_max = DEAD_LETTERS_MAX
        elif len(submitted) == 1:
            self._refused = _position(submitted[0][0])
        else:
            self._rows_max = 1

    def _submit(self, row: PoisonRow) -> PendingPublish:
        if row.headers is not None and _position(row) != self._refused:
            headers = [*((_utf8(name), value) for name, value in read_headers(row.headers)), *error_headers(row)]
            try:
                return self._producer.submit_record(self._dead_topic, row.key, row.value, headers)
            except RecordTooLarge:
                pass
        key = row.key if row.key is not None and len(row.key) <= KEY_MAX_BYTES else None
        left_out = ("plant.left-out", b"the value, the headers, and the key if it is long: %d bytes" % row.size_bytes)
        return self._producer.submit_record(self._dead_topic, key, None, [*error_headers(row), left_out])


def error_headers(row: PoisonRow) -> list[tuple[str, bytes]]:
    """Return the headers by which a dead letter names its record, as Kafka Connect names its own.

    Source: org.apache.kafka.connect.runtime.errors.DeadLetterQueueReporter
    """
    texts = {
        "topic": row.topic,
        "partition": str(row.partition),
        "offset": str(row.offset),
        "connector.name": "plant",
        "exception.message": row.reason,
    }
    return [(f"__connect.errors.{name}", text.encode()) for name, text in texts.items()]


def _position(row: PoisonRow) -> RecordPosition:
    return RecordPosition(row.topic, row.partition, row.offset)


def _utf8(name: str) -> str:
    """Return a header's name as clients can write it: they take no bytes that are not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
