"""Records of deliveries: on their topics, and never among the events of the log.

Each begins with three ids of 16 bytes: the dispatcher encodes an event's record once, and puts in the others' ids.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal
from uuid import UUID

from msgspec import Meta

from schemas.entity_states import NO_NUL, Time
from schemas.events import RecordValue

DELIVERIES_TOPIC: Final = "genesis.deliveries"
ATTEMPTS_TOPIC: Final = "genesis.deliveries.attempts"
EXCERPT_MAX_BYTES: Final = 4096
"""Of a request and of an answer, in the record of an attempt."""

DeliveryStream = Literal["live", "backfill", "redrive", "endpoints"]
AttemptResult = Literal["delivered", "failed", "throttled", "gone", "postponed", "cancelled"]
DeliveryState = Literal["delivered", "waiting", "dead", "cancelled"]

DeliveryIdField = Annotated[UUID, Meta(description="Id of the delivery, and the `webhook-id` of each attempt.")]
EndpointIdField = Annotated[UUID, Meta(description="The endpoint, whose id is the record's key.")]
EventTypeField = Annotated[str, Meta(min_length=1, max_length=200, pattern=NO_NUL, description="Type of the event.")]
EventTimeField = Annotated[Time, Meta(description="When the event happened.")]
EntityIdField = Annotated[UUID, Meta(description="The entity that the event is about.")]
StreamField = Annotated[
    DeliveryStream,
    Meta(
        description="`live`; `backfill`: from before the dispatcher knew of the endpoint; `redrive`: an operator's; "
        "`endpoints`: an event of an endpoint, which is on no partition of genesis.events."
    ),
]
SourcePartitionField = Annotated[int, Meta(ge=0, description="Partition of the event in genesis.events.")]
SourceOffsetField = Annotated[
    int,
    Meta(
        ge=0,
        description="Offset at which the event took effect: its own, or that of the control record. Of an endpoint's "
        "event: its number in the order of these.",
    ),
]
AttemptField = Annotated[int, Meta(ge=1, description="Number of the attempt, from 1.")]
SourceRankField = Annotated[int, Meta(ge=0, description="Place among the events that take effect at that offset.")]
HopField = Annotated[
    int, Meta(ge=0, description="Number of the redrive times 2^32, 0 for the first time, and waits since.")
]
TokenField = Annotated[int, Meta(ge=0, description="Fencing token of the owner that wrote the record.")]


class DeliveryQueued(RecordValue, frozen=True, kw_only=True):
    """An event is to be sent to an endpoint: now, or at a time."""

    event_type: ClassVar[str] = "plant.delivery.queued"
    topic: ClassVar[str] = DELIVERIES_TOPIC

    delivery_id: DeliveryIdField
    endpoint_id: EndpointIdField
    type: EventTypeField
    source: Annotated[
        str, Meta(max_length=2_000, pattern=NO_NUL, description="CloudEvents source of the event; may be empty.")
    ]
    occurred_at: EventTimeField
    entity_id: EntityIdField
    traceparent: (
        Annotated[str, Meta(max_length=200, pattern=NO_NUL, description="Trace that the event is part of.")] | None
    ) = None
    data: Annotated[bytes, Meta(description="The event's other fields, as JSON.")]
    stream: StreamField
    source_partition: SourcePartitionField
    source_offset: SourceOffsetField
    source_rank: SourceRankField
    attempt: AttemptField
    hop: HopField
    due_at: Annotated[Time, Meta(description="When it is due; null: at once.")] | None = None
    token: TokenField


class DeliveryAttempted(RecordValue, frozen=True, kw_only=True):
    """An attempt ended, or a delivery was put off or given up without one."""

    event_type: ClassVar[str] = "plant.delivery.attempted"
    topic: ClassVar[str] = ATTEMPTS_TOPIC

    delivery_id: DeliveryIdField
    endpoint_id: EndpointIdField
    type: EventTypeField
    occurred_at: EventTimeField
    entity_id: EntityIdField
    stream: StreamField
    source_partition: SourcePartitionField
    source_offset: SourceOffsetField
    source_rank: SourceRankField
    attempt: AttemptField
    hop: HopField
    attempted_at: Annotated[Time, Meta(description="When the attempt began.")]
    duration_us: Annotated[int, Meta(ge=0, description="How long it took, in microseconds.")]
    outcome: Annotated[
        AttemptResult,
        Meta(description="`postponed`: the endpoint gets no attempts now; `cancelled`: it takes no deliveries."),
    ]
    state: Annotated[DeliveryState, Meta(description="The delivery's from then on.")]
    status_code: Annotated[int, Meta(ge=100, le=999, description="The answer's status code.")] | None = None
    error_class: (
        Annotated[str, Meta(min_length=1, max_length=50, pattern=NO_NUL, description="Why no whole answer came.")]
        | None
    ) = None
    why: Annotated[str, Meta(max_length=1_000, pattern=NO_NUL, description="The same in words; may be empty.")]
    next_attempt_at: Annotated[Time, Meta(description="When the next attempt is due.")] | None = None
    request: Annotated[bytes, Meta(description="The begin of the request's body: at most 4 KiB.")]
    answer: Annotated[bytes, Meta(description="The begin of the answer's body: at most 4 KiB.")]
    token: TokenField


DELIVERY_TYPES: Final[dict[str, type[RecordValue]]] = {
    record.event_type: record for record in (DeliveryQueued, DeliveryAttempted)
}
"""Type of a delivery's record to its struct."""
