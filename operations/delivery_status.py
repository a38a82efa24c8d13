"""The state of the parts of deliveries: dispatchers, deliverers and recorders, by the partitions that they own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from deliveries.delivery_progress import DeliveryCheckpoint, DeliveryPartition
from projections.log_progress import ConsumerProgress
from streams.topic_watermarks import TopicWatermarks


class DeliveryStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A partition of a part of deliveries. None: not known, or the part has no such thing.

    A dispatcher's lag is what the log has and it has not; the others' is what their topics have, all together.
    """

    part: str
    topic: str
    partition: int
    state: Literal["owned", "unowned", "stopped"]
    lag: int | None
    waiting: int | None
    due: int | None
    blocking: int | None
    owner: str | None
    stop_reason: str | None


def delivery_statuses(
    dispatchers: Sequence[ConsumerProgress],
    partitions: Sequence[DeliveryPartition],
    checkpoints: Sequence[DeliveryCheckpoint],
    watermarks: Mapping[str, TopicWatermarks] | None,
) -> list[DeliveryStatus]:
    """Return the state of every partition that a dispatcher, deliverer or recorder has owned."""
    found = [
        DeliveryStatus(
            part="dispatcher", topic=each.topic, partition=each.partition,
            state=_state(each.stop_reason, each.connected), lag=each.lag, waiting=None, due=None, blocking=None,
            owner=each.owner, stop_reason=each.stop_reason,
        )
        for each in dispatchers
    ]  # fmt: skip
    for each in partitions:
        own = [at for at in checkpoints if (at.consumer, at.partition) == (each.consumer, each.partition)]
        found.append(
            DeliveryStatus(
                part=each.consumer, topic=min((at.topic for at in own), default=""), partition=each.partition,
                state=_state(each.stop_reason, each.connected), lag=_lag(own, watermarks), waiting=each.waiting,
                due=each.due, blocking=each.blocking, owner=each.owner, stop_reason=each.stop_reason,
            )
        )  # fmt: skip
    return found


def _state(stop_reason: str | None, connected: bool) -> Literal["owned", "unowned", "stopped"]:
    if stop_reason is not None:
        return "stopped"
    return "owned" if connected else "unowned"


def _lag(checkpoints: Sequence[DeliveryCheckpoint], watermarks: Mapping[str, TopicWatermarks] | None) -> int | None:
    """Return how many offsets are not done; None where the end of one of the topics is not known."""
    lag = 0
    for each in checkpoints:
        held = (watermarks or {}).get(each.topic)
        bounds = None if held is None else held.bounds.get(each.partition)
        if bounds is None:
            return None
        lag += max(0, bounds[1] - max(bounds[0], each.next_offset))
    return lag
