"""What the partitions of a dispatcher share."""

from __future__ import annotations

from dataclasses import dataclass

from deliveries.dispatch.backfill_reader import BackfillRate
from deliveries.dispatch.delivery_sender import DeliverySender
from deliveries.dispatch.endpoint_directory import EndpointDirectory
from projections.log_checkpoints import LogCheckpoints
from schemas.delivery_records import DELIVERIES_TOPIC


@dataclass(frozen=True)
class DispatcherParts:
    """Made once, for all partitions of the process."""

    url: str
    log_checkpoints: LogCheckpoints
    directory: EndpointDirectory
    sender: DeliverySender
    backfill_rate: BackfillRate
    deliveries_topic: str = DELIVERIES_TOPIC
