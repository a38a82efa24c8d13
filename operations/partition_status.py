"""The state of every partition: what Postgres knows of it, next to what Kafka holds.

Each side may be away; the other one is shown then, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final, Literal, TypeAlias

import msgspec

from deliveries.delivery_progress import DeliveryCheckpoint, DeliveryPartition, delivery_partitions
from operations.delivery_status import DeliveryStatus, delivery_statuses
from projections.checkpoints import DISPATCHER
from projections.log_progress import ConsumerProgress, ModelProgress, PartitionProgress, followers, progress
from runtime.errors import PlantError
from runtime.settings import Settings
from streams.errors import KafkaUnavailable, TopicMissing
from streams.topic_watermarks import TopicWatermarks, read_watermarks
from streams.topics import EVENTS_TOPIC, OPERATIONS_TOPIC

TOPICS: Final = (EVENTS_TOPIC, OPERATIONS_TOPIC)
"""The topics that workers read, shown before any worker has."""

State = Literal["owned", "unowned", "stopped", "topic gone", "topic remade", "out of log", "unknown"]
WRONG: Final[frozenset[State]] = frozenset({"stopped", "topic gone", "topic remade", "out of log"})
"""States that an operator has to do something about."""

DeliveryParts: TypeAlias = tuple[list[ConsumerProgress], list[DeliveryPartition], list[DeliveryCheckpoint]]
"""What Postgres knows of dispatchers, and of deliverers and recorders."""

CIRCLE: Final = "plant status"
"""The next step of many errors; here it would lead nowhere."""


class PartitionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A partition. None: not known, or there is none. `lag` counts offsets, those of transactions' ends among them."""

    topic: str
    partition: int
    state: State
    checkpoint: int | None
    log_start: int | None
    log_end: int | None
    lag: int | None
    owner: str | None
    owner_connected: bool
    owned_since: datetime | None
    token: int | None
    stop_reason: str | None


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A read model that does not follow a partition's log."""

    model: str
    topic: str
    partition: int
    state: Literal["stopped", "behind"]
    checkpoint: int
    log_checkpoint: int
    log_end: int | None
    lag: int | None
    stop_reason: str | None


class ClusterStatus(msgspec.Struct, frozen=True):
    """Partitions, read models that are out, and the reasons for which something could not be looked at."""

    partitions: Sequence[PartitionStatus]
    models: Sequence[ModelStatus]
    problems: Sequence[PlantError]
    deliveries: Sequence[DeliveryStatus] = ()

    @property
    def needs_operator(self) -> bool:
        """Whether a partition or a read model is stopped, or a log is not the one that was read."""
        wrong = any(partition.state in WRONG for partition in self.partitions)
        stopped = any(each.state == "stopped" for each in self.deliveries)
        return wrong or stopped or any(model.state == "stopped" for model in self.models)


async def read_cluster(settings: Settings, explain: Callable[[BaseException], PlantError | None]) -> ClusterStatus:
    """Ask Postgres, as plant_operator, and then Kafka; what can't be reached is a problem, and the rest is shown.

    Postgres first: a checkpoint that is beyond Kafka's end then is so indeed. `explain` returns the error to show
    instead of a driver's own; what it can't explain is raised.
    """
    problems: list[PlantError] = []
    known: list[PartitionProgress] | None = None
    models: list[ModelProgress] = []
    parts: DeliveryParts = ([], [], [])
    watermarks: dict[str, TopicWatermarks] | None = None
    try:
        known, models, parts = await _progress(settings)
    except PlantError as error:
        problems.append(error)
    except Exception as error:
        if (explained := explain(error)) is None:
            raise
        problems.append(explained)
    topics = {*TOPICS, *(partition.topic for partition in known or ())}
    try:
        settings.kafka_address()
        watermarks = await read_watermarks(settings, {*topics, *(each.topic for each in parts[2])})
    except PlantError as error:
        problems.append(error)
    else:
        problems += [_missing(topic) for topic in TOPICS if topic not in watermarks]
        problems += _unanswered(watermarks)
    logged = None if watermarks is None else {name: each for name, each in watermarks.items() if name in topics}
    partitions = partition_statuses(known, logged)
    return ClusterStatus(
        partitions,
        model_statuses(models, partitions),
        [_with_way_out(each) for each in problems],
        delivery_statuses(*parts, watermarks),
    )


def partition_statuses(
    known: Sequence[PartitionProgress] | None, watermarks: Mapping[str, TopicWatermarks] | None
) -> list[PartitionStatus]:
    """Return every partition that either side has, by topic and number; None for a side that is away."""
    rows = {(row.topic, row.partition): row for row in known or ()}
    held = {(topic, number) for topic, each in (watermarks or {}).items() for number in each.bounds}
    return [
        _partition(topic, number, rows.get((topic, number)), known is not None, watermarks)
        for topic, number in sorted(rows.keys() | held)
    ]


def model_statuses(models: Sequence[ModelProgress], partitions: Sequence[PartitionStatus]) -> list[ModelStatus]:
    """Return the read models that are out, with the end of their partition's log."""
    ends = {(partition.topic, partition.partition): partition.log_end for partition in partitions}
    return [
        ModelStatus(
            model=model.model,
            topic=model.topic,
            partition=model.partition,
            state="behind" if model.stop_reason is None else "stopped",
            checkpoint=model.next_offset,
            log_checkpoint=model.log_next_offset,
            log_end=(end := ends.get((model.topic, model.partition))),
            lag=None if end is None else max(0, end - model.next_offset),
            stop_reason=model.stop_reason,
        )
        for model in models
    ]


def _partition(
    topic: str,
    number: int,
    row: PartitionProgress | None,
    database_answers: bool,
    watermarks: Mapping[str, TopicWatermarks] | None,
) -> PartitionStatus:
    held = watermarks.get(topic) if watermarks is not None else None
    low, high = (held.bounds.get(number) if held is not None else None) or (None, None)
    checkpoint = row.next_offset if row is not None else None
    lag = None
    if low is not None and high is not None and database_answers:
        lag = max(0, high - (low if checkpoint is None else checkpoint))
    return PartitionStatus(
        topic=topic,
        partition=number,
        state=_state(number, row, database_answers, held, kafka_answers=watermarks is not None),
        checkpoint=checkpoint,
        log_start=low,
        log_end=high,
        lag=lag,
        owner=row.owner if row is not None else None,
        owner_connected=row is not None and row.connected,
        owned_since=row.taken_at if row is not None else None,
        token=row.token if row is not None else None,
        stop_reason=row.stop_reason if row is not None else None,
    )


def _state(
    number: int,
    row: PartitionProgress | None,
    database_answers: bool,
    held: TopicWatermarks | None,
    *,
    kafka_answers: bool,
) -> State:
    """Return a partition's state; a reason that its owner wrote down goes before what is seen from here."""
    if not database_answers:
        return "unknown"
    if row is None:
        return "unowned"
    if row.stop_reason is not None:
        return "stopped"
    if kafka_answers and (held is None or number not in held.bounds):
        return "topic gone"
    if held is not None:
        if row.topic_id is not None and row.topic_id != held.topic_id:
            return "topic remade"
        bounds = held.bounds[number]
        if bounds is not None and row.next_offset is not None and not bounds[0] <= row.next_offset <= bounds[1]:
            return "out of log"
    return "owned" if row.connected else "unowned"


async def _progress(settings: Settings) -> tuple[list[PartitionProgress], list[ModelProgress], DeliveryParts]:
    from database.connector import connect

    database = connect(settings, "operator")
    try:
        known, models = await progress(database)
        return known, models, (await followers(database, DISPATCHER), *await delivery_partitions(database))
    finally:
        await database.close()


def _missing(topic: str) -> PlantError:
    return TopicMissing(
        f"The topic {topic} does not exist.", why="Workers have nothing to read there.", next_step="plant topics apply"
    )


def _unanswered(watermarks: Mapping[str, TopicWatermarks]) -> list[PlantError]:
    names = [
        f"{topic}/{number}"
        for topic, each in sorted(watermarks.items())
        for number, bounds in each.bounds.items()
        if bounds is None
    ]
    why = f"No leader tells the log's end of {', '.join(names)}."
    return [KafkaUnavailable("Partitions do not answer.", why=why, next_step="plant topics list")] if names else []


def _with_way_out(error: PlantError) -> PlantError:
    if error.next_step == CIRCLE:
        error.next_step = "plant doctor"
    return error
