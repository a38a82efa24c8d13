"""Operators' acts: recorded on `plant.operations` before they take effect, and chained there like any other event."""

from __future__ import annotations

import getpass
import os
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

import msgspec

from runtime.settings import Settings
from schemas.event_id import event_id
from schemas.events import OperationRecorded
from streams.producer import EventProducer
from streams.record_position import RecordPosition
from streams.topics import OPERATIONS_TOPIC

SOURCE: Final = "plant/operations"


class OperatorAction(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator is about to do: `action` such as `keys.add`, to which `target`, and why."""

    action: str
    target: str
    reason: str
    actor: str = ""


async def record(settings: Settings, act: OperatorAction) -> RecordPosition:
    """Record an act; returns when Kafka has it safely, and only then may the act be done.

    Raises KafkaUnavailable, and then nothing must be done. Waits a little for a broker that is only starting.
    """
    operation_id = uuid4()
    event = OperationRecorded(
        event_id=event_id("plant.operations", str(operation_id)),
        operation_id=operation_id,
        occurred_at=datetime.now(UTC),
        actor=act.actor or _account(),
        action=act.action,
        target=act.target,
        reason=act.reason,
    )
    async with EventProducer(settings, topics=(OPERATIONS_TOPIC,)) as producer:
        return await producer.publish(event, source=SOURCE)


def _account() -> str:
    """The system user; in a container it may have a number only."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
