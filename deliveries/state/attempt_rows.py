"""The records of attempts as rows: decoded in columns, divided so that no delivery is twice in a round, and sorted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from schemas.batch_decoder import RejectedValue, decode_batch
from schemas.delivery_records import EXCERPT_MAX_BYTES, DeliveryAttempted
from schemas.errors import UnknownSchema
from schemas.polars_import import polars as pl
from streams.batch import EventBatch
from streams.errors import SchemaNewer
from streams.topics import logical_topic

ROUND: Final = "round"
"""Rank of a row among those of its delivery, in the order of the records."""

COLUMNS: Final[Mapping[str, str]] = {
    "occurred_at": "timestamptz",
    "delivery_id": "uuid",
    "attempted_at": "timestamptz",
    "hop": "bigint",
    "token": "bigint",
    "attempt": "bigint",
    "stream": "text",
    "outcome": "text",
    "state": "text",
    "duration_us": "bigint",
    "status_code": "bigint",
    "error_class": "text",
    "why": "text",
    "next_attempt_at": "timestamptz",
    "request": "bytea",
    "answer": "bytea",
    "endpoint_id": "uuid",
    "event_id": "uuid",
    "type": "text",
    "entity_id": "uuid",
    "source_partition": "bigint",
    "source_offset": "bigint",
    ROUND: "bigint",
}
"""The columns of the staging table, and their types."""

_KEY: Final = ("occurred_at", "delivery_id", "attempted_at", "hop", "token")
_EXCERPTS: Final = ("request", "answer")


@dataclass(frozen=True, slots=True)
class AttemptRows:
    """The rows of a batch in the order of their key; `rounds` is how many there are. What is no attempt is skipped."""

    frame: pl.DataFrame
    rounds: int
    skipped: Sequence[RejectedValue]


def attempt_rows(batch: EventBatch) -> AttemptRows:
    """Return a batch's rows. Raises UnknownSchema where a later release may know the schema of one."""
    decoded, skipped = decode_batch(batch.values, logical_topic(batch.topic))
    others = [each for each in decoded if each.event_type != DeliveryAttempted.event_type]
    skipped += [RejectedValue(int(row), f"is {each.event_type}") for each in others for row in each.rows]
    frames = [each.frame for each in decoded if each.event_type == DeliveryAttempted.event_type]
    if not frames:
        return AttemptRows(pl.DataFrame(), 0, skipped)
    frame = _in_rounds(_excerpted(frames[0]))
    rounds = int(frame[ROUND].max()) + 1  # type: ignore[arg-type]  # it has rows, of numbers
    return AttemptRows(frame.select(*COLUMNS).sort(ROUND, *_KEY), rounds, skipped)


def known_part(batch: EventBatch) -> tuple[EventBatch, SchemaNewer | None]:
    """Return the records before the first one whose schema a later release may know, and the reason to stop there."""
    try:
        decode_batch(batch.values, logical_topic(batch.topic))
    except UnknownSchema as error:
        newer = SchemaNewer(batch.topic, batch.partition, batch.offsets[error.row], error.schema_id)
        return batch.between(0, error.row), newer
    return batch, None


def halves(batch: EventBatch) -> Iterator[EventBatch]:
    """Yield both halves of a batch of several records."""
    middle = len(batch) // 2
    yield batch.between(0, middle)
    yield batch.between(middle, len(batch))


def _in_rounds(frame: pl.DataFrame) -> pl.DataFrame:
    """Number the rows of each delivery, which nearly always is once in a batch."""
    if frame["delivery_id"].n_unique() == frame.height:
        return frame.with_columns(pl.lit(0, pl.Int64).alias(ROUND))
    return frame.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).over("delivery_id").alias(ROUND))


def _excerpted(frame: pl.DataFrame) -> pl.DataFrame:
    """Cut requests and answers that are longer than an excerpt; no schema bounds them."""
    long = [name for name in _EXCERPTS if (frame[name].bin.size().max() or 0) > EXCERPT_MAX_BYTES]  # type: ignore[operator]  # numbers
    return frame.with_columns(pl.col(name).bin.slice(0, EXCERPT_MAX_BYTES) for name in long) if long else frame
