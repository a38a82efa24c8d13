"""Dead letters: records that the log holds as poison, published as they are on a topic of their own, with the reason.

A poison record's row in `event_stream` is its dead letter: the transaction that passes over the record writes it, and
it is kept for ever. How far a partition's have been published is a checkpoint, `dead_letters/0`, moved once Kafka has
acknowledged them. So none is lost, and one may come twice: with the same topic, partition and offset in its headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from audit.canonical import read_headers
from runtime import metrics
from streams.errors import RecordTooLarge, StreamsError
from streams.position import Position
from streams.producer import EventProducer
from streams.publish import Publish
from streams.topics import EVENTS

LETTERS_MAX: Final = 50
"""Letters of one round. They fit into what may wait for Kafka, whatever their size."""

KEY_MAX_BYTES: Final = 1024
"""A key that comes with a letter whose record is left out."""

Headers = Sequence[tuple[str, bytes | None]]

UNSENT: Final = """
SELECT letter.* FROM partition_owners AS o
LEFT JOIN checkpoints AS c
    ON c.projection = 'dead_letters' AND c.version = 0 AND c.topic = o.topic AND c.partition = o.partition
CROSS JOIN LATERAL (
    SELECT e.topic, e.partition, e."offset", e.key, e.value, e.headers, e.reason FROM event_stream AS e
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
    """A poison record, and why it is one. `headers` are canonical bytes (`audit/canonical.py`)."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: bytes
    reason: str

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


class DeadLetters:
    """The poison rows through one connection in autocommit, whose errors come out as the driver raises them."""

    def __init__(self, connection: Any) -> None:
        """`connection` is asyncpg's, which has no types."""
        self._connection = connection

    async def unsent(self, letters_max: int) -> list[DeadLetter]:
        """What has not been published, each partition's in the order of offsets."""
        return [DeadLetter(*row) for row in await self._connection.fetch(UNSENT, EVENTS, letters_max)]

    async def advance(self, topic: str, partition: int, next_offset: int) -> None:
        """Note that the partition's letters below this offset have been published."""
        await self._connection.execute(ADVANCE, topic, partition, next_offset)


async def publish_dead_letters(letters: DeadLetters, producer: EventProducer, topic: str) -> int:
    """Publish the next of them, and note it; how many there were. Below LETTERS_MAX, no more are left.

    Raises the first StreamsError of a letter; those that were acknowledged before it, in its partition, are noted.
    """
    waiting = await letters.unsent(LETTERS_MAX)
    settled = await producer.settle_each([_submit(letter, producer, topic) for letter in waiting])
    next_offsets: dict[tuple[str, int], int] = {}
    failures: dict[tuple[str, int], StreamsError] = {}
    for letter, outcome in zip(waiting, settled, strict=True):
        place = (letter.topic, letter.partition)
        if place in failures:
            continue
        if isinstance(outcome, Position):
            next_offsets[place] = letter.offset + 1
            metrics.RELAY_DEAD_LETTERS.inc()
        else:
            failures[place] = outcome
    for place, next_offset in next_offsets.items():
        await letters.advance(*place, next_offset)
    for failure in failures.values():
        raise failure
    return len(waiting)


def _submit(letter: DeadLetter, producer: EventProducer, topic: str) -> Publish:
    headers: Headers = [*((_name(name), value) for name, value in read_headers(letter.headers)), *letter.errors]
    try:
        return producer.submit_record(topic, letter.key, letter.value, headers)
    except RecordTooLarge as error:
        key = letter.key if letter.key is not None and len(letter.key) <= KEY_MAX_BYTES else None
        left_out = ("plant.left-out", f"key if long, value and headers: {error.why}".encode())
        return producer.submit_record(topic, key, None, [*letter.errors, left_out])


def _name(name: str) -> str:
    """A header's name as clients can write it: they take no bytes that are not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
