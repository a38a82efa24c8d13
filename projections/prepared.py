"""A batch made ready for Postgres, before any transaction: canonical headers, decoded columns, verdict on each record.

Everything here is a function of the records alone, so a batch that has to be tried again gives the same rows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace

from audit.canonical import headers_bytes
from schemas.block import decode_batch
from schemas.columns import polars as pl
from schemas.events import EVENTS
from streams.batch import EventBatch
from streams.topics import family

_DECODED = ("event_id", "entity_type", "entity_id", "event_type")

ENTITY_DATA_COLUMN = "entity_type"
"""Amended and retired events say in this column what kind of entity they are about."""


@dataclass(frozen=True)
class PreparedBatch:
    """A batch and what its records are.

    `rows` has one row a record, in offset order: `event_id`, `entity_type`, `entity_id`, `event_type` (null where
    nothing could be decoded) and `reason` (null unless the record is poison). `events` holds the decoded columns by
    event type, each with `row` (the record's index), valid records only.
    """

    batch: EventBatch
    headers: list[bytes]
    rows: pl.DataFrame
    events: Mapping[str, pl.DataFrame]

    def from_offset(self, offset: int) -> PreparedBatch:
        """The part at and after an offset; the batch itself when that is all of it."""
        offsets = self.batch.offsets
        if not offsets or offsets[0] >= offset:
            return self
        return prepare(self.batch.between(bisect_left(offsets, offset), len(offsets)))

    def settle(self, seen: pl.Series | None) -> PreparedBatch:
        """Give each record its disposition and keep only first occurrences among `events`.

        A repeat is a record whose event id stands earlier in the batch or in `seen`, the ids that are already applied.
        """
        known = pl.col("event_id")
        repeated = known.is_not_null() & ~known.is_first_distinct()
        if seen is not None and len(seen):
            repeated |= known.is_in(seen.implode()).fill_null(False)
        disposition = pl.when(pl.col("reason").is_not_null()).then(pl.lit("poison"))
        rows = self.rows.with_columns(
            disposition.when(repeated).then(pl.lit("repeat")).otherwise(pl.lit("applied")).alias("disposition")
        )
        if "repeat" not in rows["disposition"]:
            return replace(self, rows=rows)
        again = rows["row"].filter(rows["disposition"] == "repeat").implode()
        first = {name: frame.filter(~frame["row"].is_in(again)) for name, frame in self.events.items()}
        return replace(self, rows=rows, events={name: frame for name, frame in first.items() if frame.height})

    def refused(self, reason: str) -> PreparedBatch:
        """The same batch, all of it poison."""
        unknown = [pl.lit(None, self.rows.schema[name]).alias(name) for name in _DECODED]
        return replace(self, rows=self.rows.with_columns(*unknown, pl.lit(reason).alias("reason")), events={})


def prepare(batch: EventBatch) -> PreparedBatch:
    """Decode and judge every record of a batch. No record can make this raise."""
    decoded, rejected = decode_batch(batch.values, topic=family(batch.topic))
    reasons: dict[int, str] = {refusal.row: refusal.reason for refusal in rejected}
    keys = pl.Series("key", batch.keys, dtype=pl.Binary)
    identities, events = [], {}
    for group in decoded:
        kind = EVENTS[group.event_type]
        frame = group.frame.insert_column(0, pl.Series("row", group.rows, dtype=pl.Int64))
        identity = pl.DataFrame(
            [
                frame["row"],
                frame["event_id"],
                _constant("entity_type", kind.entity_type, frame.height)
                if isinstance(kind.entity_type, str)
                else frame[ENTITY_DATA_COLUMN],
                frame[kind.entity_field].alias("entity_id"),
                _constant("event_type", group.event_type, frame.height),
            ]
        )
        misplaced = _misplaced(identity, keys)
        if misplaced.any():
            for row in identity.filter(misplaced)["row"]:
                reasons[row] = "key: not the id of the entity that the event is about"
            identity, frame = identity.filter(~misplaced), frame.filter(~misplaced)
        identities.append(identity)
        events[group.event_type] = frame
    return PreparedBatch(
        batch, [headers_bytes(headers) for headers in batch.headers], _rows(batch, identities, reasons), events
    )


def _constant(name: str, value: str | None, count: int) -> pl.Series:
    return pl.Series(name, [value], dtype=pl.String).new_from_index(0, count)


def _misplaced(identity: pl.DataFrame, keys: pl.Series) -> pl.Series:
    """Which records have a key other than their entity's id: they would be out of order with that entity's events."""
    text = _text(keys if len(keys) == identity.height else keys.gather(identity["row"]))
    key = pl.col("key")
    plain = key.str.replace_all("-", "", literal=True)
    right = (plain == pl.col("entity_id").bin.encode("hex")) & (key.str.len_bytes() == 36)
    return pl.DataFrame([text, identity["entity_id"]]).select(~right.fill_null(False)).to_series()


def _text(keys: pl.Series) -> pl.Series:
    try:
        return keys.cast(pl.String)
    except pl.exceptions.ComputeError:  # a key that is not UTF-8 is nobody's id
        texts = [key.decode() if key is not None and key.isascii() else None for key in keys]
        return pl.Series(keys.name, texts, dtype=pl.String)


def _rows(batch: EventBatch, identities: list[pl.DataFrame], reasons: Mapping[int, str]) -> pl.DataFrame:
    every = pl.DataFrame({"row": pl.int_range(len(batch), dtype=pl.Int64, eager=True)})
    if len(identities) == 1 and identities[0].height == len(batch):
        rows = identities[0]
    elif identities:
        rows = every.join(pl.concat(identities), on="row", how="left", maintain_order="left")
    else:
        rows = every.with_columns(
            pl.lit(None, pl.Binary).alias("event_id"),
            pl.lit(None, pl.String).alias("entity_type"),
            pl.lit(None, pl.Binary).alias("entity_id"),
            pl.lit(None, pl.String).alias("event_type"),
        )
    if not reasons:
        return rows.with_columns(_constant("reason", None, rows.height))
    said = pl.DataFrame(
        {"row": list(reasons), "reason": [text.replace("\x00", "\\0") for text in reasons.values()]},
        schema={"row": pl.Int64, "reason": pl.String},
    )
    return rows.join(said, on="row", how="left", maintain_order="left")
