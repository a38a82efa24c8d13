"""Records of attempts, as a deliverer writes them; batches of them; and what their tables hold, folded one by one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from audit.canonical import headers_bytes
from deliveries.delivery_id import delivery_id
from schemas import codec
from schemas.delivery_records import ATTEMPTS_TOPIC, DeliveryAttempted
from streams.batch import EventBatch
from streams.watermarks import Leadership, Watermarks

PARTITIONS = 4
TOPIC_ID = UUID("0d1c7a52-36f4-4d0e-9a3c-5ed1f3a1b6a9")
WATERMARKS = Watermarks(0, 1_000_000, PARTITIONS, Leadership(TOPIC_ID, 0))
BEGAN_AT = datetime(2026, 11, 27, 22, tzinfo=UTC)
ENDPOINT = UUID(int=0xE0)
WITHOUT_ATTEMPT = ("postponed", "cancelled")


def attempted(number: int = 1, *, endpoint_id: UUID = ENDPOINT, **changes: Any) -> DeliveryAttempted:
    """Return the record of the first attempt to deliver an event, which succeeded, with changes."""
    event_id = UUID(int=number)
    made = DeliveryAttempted(
        event_id=event_id,
        delivery_id=UUID(bytes=delivery_id(event_id.bytes, endpoint_id.bytes)),
        endpoint_id=endpoint_id,
        type="genesis.agent.rated",
        occurred_at=BEGAN_AT + timedelta(seconds=number),
        entity_id=UUID(int=number % 7),
        stream="live",
        source_partition=3,
        source_offset=number,
        source_rank=0,
        attempt=1,
        hop=0,
        attempted_at=BEGAN_AT + timedelta(seconds=number, milliseconds=30),
        duration_us=12_500,
        outcome="delivered",
        state="delivered",
        status_code=200,
        why="",
        request=b'{"type":"genesis.agent.rated"}',
        answer=b"ok",
        token=1,
    )
    return msgspec.structs.replace(made, **changes)


def attempt_batch(
    records: Iterable[DeliveryAttempted | bytes | None], *, token: int, start: int = 0, partition: int = 0
) -> EventBatch:
    """A slice without gaps that begins at `start`; bytes are values as they are."""
    values = [codec.encode(each) if isinstance(each, DeliveryAttempted) else each for each in records]
    offsets = list(range(start, start + len(values)))
    return EventBatch(
        topic=ATTEMPTS_TOPIC,
        partition=partition,
        token=token,
        fetched_from=start,
        next_offset=start + len(values),
        offsets=offsets,
        timestamps_ms=[1_795_816_800_000 + offset for offset in offsets],
        keys=[str(ENDPOINT).encode()] * len(values),
        values=values,
        headers=[headers_bytes([])] * len(values),
    )


def folded(records: Sequence[DeliveryAttempted]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of deliveries and of attempts that records make, taken one after the other."""
    attempts: dict[tuple[Any, ...], dict[str, Any]] = {}
    deliveries: dict[UUID, dict[str, Any]] = {}
    for record in records:
        key = (record.occurred_at, record.delivery_id, record.attempted_at, record.hop, record.token)
        if key in attempts:
            continue
        fields = msgspec.structs.asdict(record)
        attempts[key] = {name: value for name, value in fields.items() if name not in _OF_THE_DELIVERY}
        before = deliveries.get(record.delivery_id)
        if before is None or record.token >= before["token"]:
            deliveries[record.delivery_id] = _delivery_after(record, fields, before)
    order = ("delivery_id", "attempted_at", "hop", "token")
    in_order = sorted(attempts.values(), key=lambda row: [row[name] for name in order])
    return sorted(deliveries.values(), key=lambda row: row["id"].bytes), in_order


_OF_THE_DELIVERY = ("event_id", "endpoint_id", "type", "entity_id", "source_partition", "source_offset", "source_rank")
_TAKEN_OVER = (
    *_OF_THE_DELIVERY, "occurred_at", "stream", "state", "hop", "token", "next_attempt_at", "status_code",
    "error_class", "why",
)  # fmt: skip


def _delivery_after(record: DeliveryAttempted, fields: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    row = {name: fields[name] for name in _TAKEN_OVER}
    row |= {"id": record.delivery_id, "state_at": record.attempted_at}
    tried = record.outcome not in WITHOUT_ATTEMPT
    row["attempts"] = record.attempt if tried else record.attempt - 1
    row["last_attempted_at"] = row["first_attempted_at"] = record.attempted_at if tried else None
    row["redriven"] = int(record.stream == "redrive")
    if before is None:
        return row
    repeats = record.token != before["token"] and (record.stream, record.hop) == (before["stream"], before["hop"])
    row["redriven"] = before["redriven"] + int(before["state"] != "waiting" and not repeats)
    row["first_attempted_at"] = before["first_attempted_at"] or row["first_attempted_at"]
    if not tried:
        row |= {name: before[name] for name in ("last_attempted_at", "status_code", "error_class")}
    return row
