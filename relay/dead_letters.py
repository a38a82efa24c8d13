"""Dead letters: records that the log holds as poison, published as they are on a topic of their own, with the reason.

A poison record's row in `event_stream` is its dead letter: the transaction that passes over the record writes it, and
it is kept for ever. How far a partition's have been published is a checkpoint, `dead_letters/0`, moved once Kafka has
acknowledged them. So none is lost, and one may come twice: with the same topic, partition and offset in its headers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from audit.canonical import read_headers
from runtime import metrics
from runtime.logging import get_logger
from runtime.settings import Settings
from streams.errors import OutcomeUnknown, PublishRefused, RecordTooLarge, StreamsError
from streams.pending_publish import PendingPublish
from streams.producer import EventProducer
from streams.topics import RECORD_MAX_BYTES

log = get_logger(__name__)

LETTERS_MAX: Final = 50
"""Letters under way at a time. They fit into what may wait for Kafka, whatever their size."""

ANSWER_SECONDS: Final = 0.25
"""How long a round waits for Kafka, since changes wait meanwhile; a later one sees what has come of it."""

FINISH_SECONDS: Final = 5.0

KEY_MAX_BYTES: Final = 1024
"""A key that comes with a letter whose record is left out."""

PoisonPosition = tuple[str, int, int]
"""Topic, partition and offset."""

# What is too large for a letter is not fetched.
UNSENT: Final = """
SELECT letter.topic, letter.partition, letter."offset", letter.reason, letter.size_bytes,
    CASE WHEN letter.size_bytes <= $3 OR octet_length(letter.key) <= $4 THEN letter.key END AS key,
    CASE WHEN letter.size_bytes <= $3 THEN letter.value END AS value,
    CASE WHEN letter.size_bytes <= $3 THEN letter.headers END AS headers
FROM partition_owners AS o
LEFT JOIN checkpoints AS c
    ON c.projection = 'dead_letters' AND c.version = 0 AND c.topic = o.topic AND c.partition = o.partition
CROSS JOIN LATERAL (
    SELECT e.topic, e.partition, e."offset", e.reason, e.key, e.value, e.headers,
        coalesce(octet_length(e.key), 0) + coalesce(octet_length(e.value), 0) + octet_length(e.headers) AS size_bytes
    FROM event_stream AS e
    WHERE e.disposition = 'poison' AND e.topic = o.topic AND e.partition = o.partition
      AND e."offset" >= coalesce(c.next_offset, 0)
    ORDER BY e."offset" LIMIT $2
) AS letter
WHERE split_part(o.topic, '-', 1) = $1 LIMIT $2
"""

ADVANCE: Final = """
INSERT INTO checkpoints AS c (projection, version, topic, partition, next_offset) VALUES ('dead_letters', 0, $1, $2, $3)
ON CONFLICT (projection, version, topic, partition) DO UPDATE SET next_offset = greatest(c.next_offset, $3)
"""


class DeadLetter(NamedTuple):
    """A poison record, and why it is one. `headers` are canonical bytes (`audit/canonical.py`); None: left out."""

    topic: str
    partition: int
    offset: int
    reason: str
    size_bytes: int
    key: bytes | None
    value: bytes | None
    headers: bytes | None

    @property
    def place(self) -> PoisonPosition:
        return self.topic, self.partition, self.offset

    @property
    def errors(self) -> list[tuple[str, bytes]]:
        """What a dead letter says of its record, in the headers that Kafka Connect gives to its own.

        Source: org.apache.kafka.connect.runtime.errors.DeadLetterQueueReporter
        """
        said = {
            "topic": self.topic,
            "partition": str(self.partition),
            "offset": str(self.offset),
            "connector.name": "plant",
            "exception.message": self.reason,
        }
        return [(f"__connect.errors.{name}", text.encode()) for name, text in said.items()]


class PoisonRows:
    """The poison rows through one connection in autocommit, whose errors come out as the driver raises them."""

    def __init__(self, connection: Any) -> None:
        """`connection` is asyncpg's, which has no types."""
        self._connection = connection

    async def unsent(self, family: str, letters_max: int) -> list[DeadLetter]:
        """What has not been published of this family's topics, each partition's in the order of offsets."""
        rows = await self._connection.fetch(UNSENT, family, letters_max, RECORD_MAX_BYTES, KEY_MAX_BYTES)
        return [DeadLetter(**row) for row in rows]

    async def advance(self, topic: str, partition: int, next_offset: int) -> None:
        """Note that the partition's letters below this offset have been published."""
        await self._connection.execute(ADVANCE, topic, partition, next_offset)


class DeadLetterRelay:
    """Publishes letters, some at a time: none again while Kafka has not said what became of it.

    It has a producer of its own: whatever is wrong with the topic or a letter keeps nothing else from Kafka.
    """

    def __init__(self, settings: Settings, topic: str, family: str) -> None:
        self._producer = EventProducer(settings, topics=(topic,))
        self._topic = topic
        self._family = family
        self._under_way: list[tuple[DeadLetter, PendingPublish]] = []
        self._letters_max = LETTERS_MAX
        self._refused: PoisonPosition | None = None
        self.sent = 0
        """How many it has published and noted."""

    async def start(self) -> None:
        """Connect. Raises KafkaUnavailable or TopicMissing."""
        await self._producer.start()

    def start_in_background(self) -> None:
        """Connect as soon as Kafka answers and the topic is there."""
        self._producer.start_in_background()

    async def stop(self) -> None:
        """Disconnect, as `EventProducer.stop` does."""
        await self._producer.stop()

    async def round(self, rows: PoisonRows, answer_seconds: float = ANSWER_SECONDS) -> bool:
        """Publish the next letters, or see what became of the last ones; whether there is more to do at once.

        Raises StreamsError where a letter could not be published. What was, is noted all the same.
        """
        failure: StreamsError | None = None
        if not self._under_way and self._producer.connected:
            for letter in await rows.unsent(self._family, self._letters_max):
                try:
                    self._under_way.append((letter, self._submit(letter)))
                except StreamsError as error:
                    failure = error
                    break
        waiting = {publish.answer for _, publish in self._under_way if not publish.done()}
        if waiting and (await asyncio.wait(waiting, timeout=answer_seconds))[1]:
            return False
        submitted, self._under_way = self._under_way, []
        more = len(submitted) == self._letters_max
        failure = await self._note(rows, submitted) or failure
        self._find_refused(submitted, failure)
        if failure is not None:
            raise failure
        return more

    async def finish(self, rows: PoisonRows) -> None:
        """Publish all there is. Raises StreamsError."""
        more = True
        while more:
            self._producer.check_connected()
            more = await self.round(rows, FINISH_SECONDS)
        if self._under_way:
            raise OutcomeUnknown(why=f"There was no answer to dead letters within {FINISH_SECONDS:g} s.")

    async def _note(
        self, rows: PoisonRows, submitted: Sequence[tuple[DeadLetter, PendingPublish]]
    ) -> StreamsError | None:
        """Note each partition's letters up to the first that failed; why that one did."""
        next_offsets: dict[tuple[str, int], int] = {}
        failures: dict[tuple[str, int], StreamsError] = {}
        for letter, publish in submitted:
            partition = (letter.topic, letter.partition)
            if partition in failures:
                continue
            try:
                publish.position()
            except StreamsError as error:
                failures[partition] = error
            else:
                next_offsets[partition] = letter.offset + 1
                self.sent += 1
                metrics.RELAY_DEAD_LETTERS.inc()
        for partition, next_offset in next_offsets.items():
            await rows.advance(*partition, next_offset)
        if next_offsets:
            log.warning("dead_letters.relayed", partitions=len(next_offsets), sent=self.sent, topic=self._topic)
        return next(iter(failures.values()), None)

    def _find_refused(
        self, submitted: Sequence[tuple[DeadLetter, PendingPublish]], failure: StreamsError | None
    ) -> None:
        """Kafka refuses a batch, and not the letter in it that it does not take: that one shows when it is alone."""
        if not isinstance(failure, PublishRefused):
            self._letters_max = LETTERS_MAX
        elif len(submitted) == 1:
            self._refused = submitted[0][0].place
        else:
            self._letters_max = 1

    def _submit(self, letter: DeadLetter) -> PendingPublish:
        if letter.headers is not None and letter.place != self._refused:
            headers = [*((_name(name), value) for name, value in read_headers(letter.headers)), *letter.errors]
            try:
                return self._producer.submit_record(self._topic, letter.key, letter.value, headers)
            except RecordTooLarge:
                pass
        key = letter.key if letter.key is not None and len(letter.key) <= KEY_MAX_BYTES else None
        left_out = (
            "plant.left-out",
            b"the value, the headers, and the key if it is long: %d bytes" % letter.size_bytes,
        )
        return self._producer.submit_record(self._topic, key, None, [*letter.errors, left_out])


def _name(name: str) -> str:
    """A header's name as clients can write it: they take no bytes that are not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
