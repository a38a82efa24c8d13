"""The state of partitions, from what Postgres knows and what Kafka holds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest

from operations.partition_status import ClusterStatus, model_statuses, partition_statuses
from projections.log_progress import ModelProgress, PartitionProgress
from streams.topic_watermarks import TopicWatermarks

TOPIC_ID = UUID(int=1)
OWNED = PartitionProgress(
    topic="t",
    partition=0,
    next_offset=7,
    owner="host:1",
    token=2,
    topic_id=TOPIC_ID,
    stop_reason=None,
    taken_at=datetime(2026, 11, 27, tzinfo=UTC),
    connected=True,
)
HELD = {"t": TopicWatermarks(TOPIC_ID, {0: (0, 10)})}


@pytest.mark.parametrize(
    ("changes", "bounds", "state", "lag"),
    [
        ({}, (0, 10), "owned", 3),
        ({"connected": False}, (0, 10), "unowned", 3),
        ({"stop_reason": "SchemaNewer: wait", "connected": False}, (0, 10), "stopped", 3),
        ({"next_offset": 11}, (0, 10), "out of log", 0),
        ({}, (8, 10), "out of log", 3),
        ({}, None, "owned", None),
        ({"topic_id": UUID(int=2)}, (0, 10), "topic remade", 3),
        ({"topic_id": None, "next_offset": None}, (4, 10), "owned", 6),
    ],
)
def test_the_state_of_a_partition(
    changes: dict[str, Any], bounds: tuple[int, int] | None, state: str, lag: int | None
) -> None:
    """The owner's reason goes first, then whether the log is the one that was read, then whether it has an owner."""
    row = msgspec.structs.replace(OWNED, **changes)
    (shown,) = partition_statuses([row], {"t": TopicWatermarks(TOPIC_ID, {0: bounds})})
    assert (shown.state, shown.lag) == (state, lag)
    assert ClusterStatus([shown], [], []).needs_operator == (state in {"stopped", "out of log", "topic remade"})


def test_a_partition_that_one_side_alone_has_is_shown() -> None:
    """A partition of Kafka's that nobody read is unowned; one that Kafka has no more needs an operator."""
    kafka_only = {"t": TopicWatermarks(TOPIC_ID, {0: (0, 10), 1: (2, 5)})}
    shown = {(each.topic, each.partition): each for each in partition_statuses([OWNED], kafka_only)}
    assert (shown["t", 1].state, shown["t", 1].lag, shown["t", 1].owner) == ("unowned", 3, None)
    (gone,) = partition_statuses([OWNED], {})
    assert (gone.state, gone.checkpoint, gone.log_end, gone.lag) == ("topic gone", 7, None, None)


def test_what_one_side_knows_is_shown_while_the_other_is_away() -> None:
    """Nothing is guessed: no lag without both, and no state without Postgres."""
    (no_kafka,) = partition_statuses([OWNED], None)
    assert (no_kafka.state, no_kafka.checkpoint, no_kafka.lag, no_kafka.owner) == ("owned", 7, None, "host:1")
    (no_database,) = partition_statuses(None, HELD)
    assert (no_database.state, no_database.log_end, no_database.lag) == ("unknown", 10, None)
    assert partition_statuses(None, None) == []


def test_a_read_model_that_is_out_has_its_reason_and_its_lag() -> None:
    """One with a reason is stopped and needs an operator; one without is behind and does not."""
    stopped = ModelProgress(
        model="agents/1", topic="t", partition=0, next_offset=4, stop_reason="refused", log_next_offset=7
    )
    partitions = partition_statuses([OWNED], HELD)
    shown = model_statuses([stopped, msgspec.structs.replace(stopped, stop_reason=None)], partitions)
    assert [(each.state, each.lag) for each in shown] == [("stopped", 6), ("behind", 6)]
    assert ClusterStatus(partitions, shown[:1], []).needs_operator
    assert not ClusterStatus(partitions, shown[1:], []).needs_operator
