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
    "status_code": "integer",
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
    "source_rank": "bigint",
    ROUND: "bigint",
}
"""The columns of the staging table, and their types."""

ATTEMPT_COLUMNS: Final = tuple(COLUMNS)[: list(COLUMNS).index("endpoint_id")]
"""Those of them that the table of attempts has."""

_OF_A_NEW_DELIVERY: Final = {
    **{
        name: pl.col(name)
        for name in ("occurred_at", "endpoint_id", "event_id", "type", "entity_id", "source_partition", "source_offset",
                     "source_rank", "stream", "state", "hop", "token", "next_attempt_at", "status_code", "error_class",
                     "why")
    },
    "id": pl.col("delivery_id"),
    "attempts": pl.col("attempt"),
    "redriven": (pl.col("stream") == "redrive").cast(pl.Int64),
    **{name: pl.col("attempted_at") for name in ("state_at", "first_attempted_at", "last_attempted_at")},
}  # fmt: skip
"""The columns of a delivery after its first attempt: those that record_attempts.sql gives it, too."""

_KEY: Final = ("occurred_at", "delivery_id", "attempted_at", "hop", "token")
_EXCERPTS: Final = ("request", "answer")


@dataclass(frozen=True, slots=True)
class AttemptRows:
    """The rows of a batch in the order of their key; `rounds` is how many there are. What is no attempt is skipped."""

    frame: pl.DataFrame
    rounds: int
    skipped: Sequence[RejectedValue]

    def divided(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return the first attempts of deliveries that are new as it seems, and the other rows."""
        is_first = (
            (pl.col(ROUND) == 0) & (pl.col("attempt") == 1) & (pl.col("hop") == 0)
            & pl.col("outcome").is_in(["delivered", "failed", "throttled", "gone"])
        )  # fmt: skip
        return self.frame.filter(is_first), self.frame.filter(~is_first)


def attempt_rows(batch: EventBatch) -> AttemptRows:
    """Return a batch's rows. Raises UnknownSchema where a later release may know the schema of one."""
    decoded, skipped = decode_batch(batch.values, logical_topic(batch.topic))
    others = [each for each in decoded if each.event_type != DeliveryAttempted.event_type]
    skipped += [RejectedValue(int(row), f"is {each.event_type}") for each in others for row in each.rows]
    frames = [each.frame for each in decoded if each.event_type == DeliveryAttempted.event_type]
    if not frames:
        return AttemptRows(pl.DataFrame(), 0, skipped)
    frame = _in_rounds(_excerpted(frames[0])).with_columns(pl.col("status_code").cast(pl.Int32))
    rounds = int(frame[ROUND].max()) + 1  # type: ignore[arg-type]  # it has rows, of numbers
    return AttemptRows(frame.select(*COLUMNS).sort(ROUND, *_KEY), rounds, skipped)


def new_deliveries(first: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of deliveries that had one attempt, from those of the attempts."""
    return first.select(expression.alias(name) for name, expression in _OF_A_NEW_DELIVERY.items())


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
