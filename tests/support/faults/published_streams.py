"""Partitions of a topic with poison and control records among their records, next to what has to become of each."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from functools import partial

from confluent_kafka import Producer

from runtime.settings import Settings
from schemas.events import Event
from tests.support.batches import Record
from tests.support.mixed_events import MixedEvents
from tests.support.parked_streams import ParkedStream
from tests.support.read_model_folds import Applied

HEADERS = [("ce_specversion", b"1.0"), ("ce_source", b"test")]
FLUSH_SECONDS = 120.0


class PublishedStreams:
    """A topic's partitions from their first record on. Nobody else publishes to it, so a record's index is its offset.

    `streams` has the oracle of each partition.
    """

    def __init__(self, settings: Settings, topic: str, partitions: int, seed: int, entities: int) -> None:
        self._topic = topic
        self._made = MixedEvents(seed, entities)
        self._producer = Producer({"bootstrap.servers": settings.kafka_address(), "enable.idempotence": True})
        self._chance = random.Random(seed)
        self.streams = [
            ParkedStream(number, random.Random(seed + number), partial(self._next_event, number, partitions))
            for number in range(partitions)
        ]
        self._applied: list[list[int]] = [[0] for _ in self.streams]

    @property
    def ends(self) -> dict[int, int]:
        """How many records each partition has."""
        return {number: len(stream.rows) for number, stream in enumerate(self.streams)}

    def publish(self, partition: int, count: int) -> None:
        """Publish a partition's next records, and wait until they are acknowledged."""
        stream = self.streams[partition]
        self._publish(partition, (stream.take() for _ in range(count)))

    def skip_waiting(self) -> None:
        """Publish a skip of every poison record that waits, so that nothing is parked any more."""
        for number, stream in enumerate(self.streams):
            self._publish(number, stream.skip_waiting())

    def applied(self, ends: Mapping[int, int]) -> list[Applied]:
        """Return the events that have taken effect with the records below these offsets."""
        return [
            event
            for number, stream in enumerate(self.streams)
            for event in stream.applied[: self._applied[number][ends.get(number, 0)]]
        ]

    def _publish(self, partition: int, records: Iterable[Record]) -> None:
        stream = self.streams[partition]
        for key, value in records:
            self._applied[partition].append(len(stream.applied))
            self._producer.produce(self._topic, value, key, partition=partition, headers=HEADERS)
            self._producer.poll(0)
        if left := self._producer.flush(FLUSH_SECONDS):
            raise TimeoutError(f"{left} records of partition {partition} were not acknowledged")

    def _next_event(self, partition: int, partitions: int) -> Event:
        """Make an event of an entity of this partition; those of others are left out."""
        while True:
            (event,) = self._made.take(1)
            if event.entity_id.int % partitions == partition:
                return event
