"""The parts of a partition of deliveries, without Kafka, Postgres and receivers: a test does their part by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from deliveries.deliverer.attempt_records import DeliveryEnd, EndedDelivery, OutgoingRecord
from deliveries.deliverer.attempt_slots import AttemptSlots
from deliveries.deliverer.delivery import Delivery
from deliveries.deliverer.delivery_process import DelivererLimits, DeliveryProcess, DeliveryTopics
from deliveries.deliverer.endpoint_queues import EndpointQueues
from deliveries.deliverer.entity_order import EntityOfEndpoint
from deliveries.deliverer.partition_deliveries import PartitionDeliveries
from deliveries.deliverer.recorded_attempts import RecordedAttempts
from deliveries.deliverer.round_writer import DeliveryRound, RoundAnswer
from runtime.clock import FixedClock
from runtime.logging import get_logger
from schemas.delivery_records import DELIVERIES_TOPIC
from streams.batch import EventBatch
from tests.support.made_deliveries import made_delivery

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TOKEN = 7
NOTHING = RoundAnswer({}, (), None, ())


class SeenEndpoints:
    """The endpoints that a process knows: some of them ordered."""

    def __init__(self, ordered: Iterable[int]) -> None:
        self._ordered = {number.to_bytes(16, "big") for number in ordered}
        self.loaded: list[set[bytes]] = []
        self.disabled: list[bytes] = []
        self.refreshed = 0

    def is_ordered(self, endpoint_id: bytes) -> bool:
        return endpoint_id in self._ordered

    def get(self, _endpoint_id: bytes) -> None:
        return None

    def disable(self, endpoint_id: bytes) -> None:
        self.disabled.append(endpoint_id)

    async def load(self, endpoint_ids: set[bytes]) -> None:
        self.loaded.append(endpoint_ids)

    async def refresh(self) -> None:
        self.refreshed += 1


class QueuesByHand:
    """Queues that begin nothing: a test says what came of a delivery."""

    def __init__(
        self, _process: DeliveryProcess, on_end: Callable[[EndedDelivery], None], put_back: Callable[[Delivery], None]
    ) -> None:
        self.on_end = on_end
        self.put_back = put_back
        self.enqueued: list[Delivery] = []
        self.gone: dict[bytes, str] = {}
        self.written: list[int] = []
        self.stopped = False
        self.busy = {b"busy"}
        self.suspect: set[bytes] = set()
        self.without_rows: set[bytes] = set()
        self.rows_max = 8

    def enqueue(self, delivery: Delivery) -> None:
        self.enqueued.append(delivery)

    def note_gone(self, endpoint_id: bytes) -> None:
        self.gone[endpoint_id] = "It answered 410 Gone."

    def note_written(self, attempts: int) -> None:
        self.written.append(attempts)

    def set_aside(self) -> set[bytes]:
        return self.busy | self.suspect

    def note_without_rows(self, endpoint_ids: Iterable[bytes]) -> None:
        self.without_rows.update(endpoint_ids)

    def is_busy(self, endpoint_id: bytes) -> bool:
        return endpoint_id in self.busy

    def rows_wanted(self, endpoint_ids: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
        for each in endpoint_ids:
            if each not in self.busy:
                yield each, 1 if each in self.suspect else self.rows_max

    def probed(self, wanted: Mapping[bytes, int]) -> set[bytes]:
        return self.suspect & wanted.keys()

    def stop(self) -> None:
        self.stopped = True

    async def finish(self) -> None:
        """Nothing is under way."""

    async def cancel(self) -> None:
        """Nothing is under way."""


class SeenWriter:
    """A writer of rounds that answers what it was given, in turn."""

    def __init__(self, *answers: RoundAnswer) -> None:
        self.fence = SimpleNamespace(token=TOKEN)
        self.rounds: list[DeliveryRound] = []
        self.answers = list(answers)

    async def write(self, work: DeliveryRound) -> RoundAnswer:
        self.rounds.append(work)
        return self.answers.pop(0) if self.answers else NOTHING


def sweep_until(slots: AttemptSlots, until_seconds: float, from_seconds: float = 0.0) -> None:
    """Sweep as a process does that has its turns, eight times a second."""
    for step in range(1, round((until_seconds - from_seconds) * 8) + 1):
        slots.sweep(from_seconds + step / 8)


class PartitionParts:
    """A process that is none, and a partition's deliveries in it."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, ordered: Iterable[int] = (), held: Iterable[EntityOfEndpoint] = (),
        recorded: Mapping[Any, Any] | None = None, needed_until: datetime = NOW, **limits: Any,
    ) -> None:  # fmt: skip
        monkeypatch.setattr("deliveries.deliverer.partition_deliveries.EndpointQueues", QueuesByHand)
        self.clock = FixedClock(NOW)
        self.endpoints = SeenEndpoints(ordered)
        self.published: list[list[OutgoingRecord]] = []
        self.behind: list[int] = []
        self.swept: list[float] = []
        self.topics = DeliveryTopics()
        self.process = cast(
            DeliveryProcess,
            SimpleNamespace(
                clock=self.clock, endpoints=self.endpoints, topics=self.topics, publish=self._publish,
                limits=DelivererLimits(**{"round_seconds": 0.0, "write_seconds": 0.0, **limits}),
                slots=SimpleNamespace(sweep=self.swept.append),
            ),
        )  # fmt: skip
        self.log = get_logger("test")
        self.recorded = RecordedAttempts(dict(recorded or {}), 40, needed_until)
        self.deliveries = PartitionDeliveries(self.process, set(held), self.recorded, self.log)

    @property
    def queues(self) -> QueuesByHand:
        """The queues of the partition."""
        return queues_of(self.deliveries.queues)

    @property
    def begun(self) -> list[int]:
        """The offsets of the deliveries that were let in to be attempted."""
        return [each.source_offset for each in self.queues.enqueued]

    @property
    def ends(self) -> list[tuple[int, str]]:
        """What the next round writes: the offsets of the deliveries, and their ends."""
        return [(each.delivery.source_offset, type(each.end).__name__) for each in self.deliveries.ended]

    def end(self, delivery: Delivery, end: DeliveryEnd, **changes: Any) -> EndedDelivery:
        """Have a delivery end as one of which an attempt was made."""
        ordered = self.endpoints.is_ordered(delivery.endpoint_id)
        made = EndedDelivery(
            delivery=delivery, end=end, began_at=NOW, **{"attempted": True, "ordered": ordered, **changes}
        )
        self.queues.on_end(made)
        return made

    async def _publish(self, records: list[OutgoingRecord]) -> int:
        self.published.append(records)
        return self.behind.pop(0) if self.behind else 0


def queues_of(queues: EndpointQueues) -> QueuesByHand:
    """Return queues as what they are here."""
    assert isinstance(queues, QueuesByHand)
    return queues


def read_delivery(offset: int, endpoint: int = 1, *, topic: str = DELIVERIES_TOPIC, **changes: Any) -> Delivery:
    """Return a delivery that was read from a topic, at the offset that its event has."""
    made = made_delivery(endpoint, offset=offset, topic=topic, partition=0, **changes)
    return msgspec.structs.replace(made, offset=offset)


def batch_at(*offsets: int, values: Sequence[bytes | None] = (), token: int = TOKEN, start: int | None = None) -> Any:
    """Return a batch of records at offsets, which read on from `start`, or from the first of them."""
    first = offsets[0] if start is None else start
    count = len(offsets)
    return EventBatch(
        topic=DELIVERIES_TOPIC, partition=0, token=token, fetched_from=first,
        next_offset=offsets[-1] + 1 if offsets else first, offsets=list(offsets), timestamps_ms=[1] * count,
        keys=[None] * count, values=list(values) or [b"%d" % offset for offset in offsets], headers=[b""] * count,
    )  # fmt: skip
