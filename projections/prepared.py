"""A batch made ready for Postgres, before any transaction: decoded columns, and a verdict on each record.

Everything here is a function of the records alone, so a batch that has to be tried again gives the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy
from numpy.typing import NDArray

from projections.constant_column import constant_column
from projections.poison_controls import PoisonControl, parked_ids, poison_controls
from projections.repeats import ID_REUSED, EventRecord, content_fingerprint, event_record, same_event
from schemas.batch_decoder import DecodedEvents, decode_batch
from schemas.control import CONTROL_TYPES, ChainVersionRaised
from schemas.errors import UnknownSchema
from schemas.events import EVENT_TYPES
from schemas.polars_import import polars as pl
from streams.batch import EventBatch
from streams.errors import SchemaNewer
from streams.topics import logical_topic

_ID_COLUMNS = {
    "row": pl.Int64, "event_id": pl.Binary, "entity_type": pl.String, "entity_id": pl.Binary, "event_type": pl.String
}  # fmt: skip

_DASHES = [8, 13, 18, 23]
_ID_CHARACTERS = 36
_DIGITS = [index for index in range(_ID_CHARACTERS) if index not in _DASHES]
_NO_ID = bytes(_ID_CHARACTERS)

ENTITY_DATA_COLUMN = "entity_type"
"""Amended and retired events say in this column what kind of entity they are about."""


@dataclass(frozen=True)
class PreparedBatch:
    """A batch and what its records are.

    `rows` has one row a record, in offset order: `event_id`, `entity_type`, `entity_id`, `event_type` (null where
    nothing could be decoded) and `reason` (null unless the record is poison). `events` holds the decoded columns by
    event type, each with `row` (the record's index), valid records only. `controls` holds the rows of the control
    records by their type, ascending: they have an event id and a type, and are about no entity.

    `parking` holds the rows of poison records that park their entity, for each may have been an event of it: they have
    an `entity_id` and no event id. `poison_controls` holds the control records that redrive or skip one, by row.

    Once entities were parked and released (projections/partition_parking.py), `events` has further rows behind the
    batch's own: the events that a control record of this batch releases. `released` has the offset of each, and the
    offset at which it takes effect; their values have `released_bytes` together.
    """

    batch: EventBatch
    rows: pl.DataFrame
    events: Mapping[str, pl.DataFrame]
    controls: Mapping[str, list[int]] = field(default_factory=dict)
    parking: Sequence[int] = ()
    poison_controls: Mapping[int, PoisonControl] = field(default_factory=dict)
    released: Sequence[tuple[int, int]] = ()
    released_bytes: int = 0
    asked: NDArray[numpy.bool_] | None = None
    """The rows whose event ids were looked up, where some of them are not logged."""

    @property
    def chain_raised_at(self) -> int | None:
        """The row of the first control record that takes the chain to v2; None where there is none."""
        rows = self.controls.get(ChainVersionRaised.event_type)
        return rows[0] if rows else None

    @property
    def staged_offsets(self) -> list[int]:
        """The offsets of all rows of `events`, by row."""
        own = self.batch.offsets
        return [*own, *(offset for offset, _ in self.released)] if self.released else own

    @property
    def effective_offsets(self) -> list[int]:
        """The offsets at which the rows of `events` take effect, by row."""
        own = self.batch.offsets
        return [*own, *(offset for _, offset in self.released)] if self.released else own

    def stored_columns(self) -> dict[str, pl.Series]:
        """Return the log's columns of what the records are; those that would hold only their default are left out.

        A key that is the entity's id in text is not stored a second time.
        """
        rows = self.rows
        columns = {name: rows[name] for name in ("event_id", "entity_id", "entity_type", "event_type")}
        if rows["entity_id"].null_count():
            keys = [
                key if entity is None else None for key, entity in zip(self.batch.keys, rows["entity_id"], strict=True)
            ]
            columns["key"] = pl.Series(keys, dtype=pl.Binary)
        if rows["reason"].null_count() < rows.height:
            columns["reason"] = rows["reason"]
        if (rows["disposition"] != "applied").any():
            columns["disposition"] = rows["disposition"]
        if "control_offset" in rows.columns:
            columns["control_offset"] = rows["control_offset"]
        return columns

    def first_occurrences(self, hashes: NDArray[numpy.uint64]) -> tuple[NDArray[numpy.uint64], Sequence[int]]:
        """Return hashes and offsets of the records whose event ids are known from now on.

        They are applied, or parked, or bring an event in; `hashes` has one for each event id that was looked up.
        """
        if len(hashes) == len(self.rows) and (self.rows["disposition"] == "applied").all():
            return hashes, self.batch.offsets
        have_ids = self.rows["event_id"].is_not_null().to_numpy() if self.asked is None else self.asked
        brings_in = (pl.col("disposition") == "control") & pl.col("entity_id").is_not_null()
        kept = self.rows.select(pl.col("disposition").is_in(["applied", "parked"]) | brings_in).to_series().to_numpy()
        return hashes[kept[have_ids]], numpy.asarray(self.batch.offsets)[kept & have_ids].tolist()

    def with_dispositions(self, seen: Mapping[bytes, EventRecord]) -> PreparedBatch:
        """Give each record its disposition and keep only first occurrences among `events`.

        A repeat is a record whose event id stands earlier in the batch or in `seen`, the ids that are already applied,
        each with its record. One with another event's content is poison: its producer used the
        id twice, and the second event is never applied. Control records are neither repeated nor repeats.
        """
        if self.controls:
            return self._with_controls(seen)
        ids = self.rows["event_id"]
        if not seen and self.rows["reason"].null_count() == len(ids) == ids.n_unique():  # the usual case
            return replace(self, rows=self.rows.hstack([_constant("disposition", "applied", len(ids))]))
        known = pl.col("event_id")
        repeated = known.is_not_null() & ~known.is_first_distinct()
        if seen:
            repeated |= known.is_in(pl.Series(list(seen), dtype=pl.Binary).implode()).fill_null(False)
        again = self.rows.select(repeated & pl.col("reason").is_null()).to_series()
        if not again.any():
            return replace(self, rows=self.rows.with_columns(_disposition()))
        reused = self._reused(again.arg_true().to_list(), seen)
        reasons = self.rows["reason"].to_list()
        for row in reused:
            reasons[row] = ID_REUSED
        rows = self.rows.with_columns(pl.Series("reason", reasons, dtype=pl.String), again.alias("repeated"))
        rows = rows.with_columns(_disposition(repeated=pl.col("repeated"))).drop("repeated")
        gone = rows["row"].filter(again).implode()
        first = {name: frame.filter(~frame["row"].is_in(gone)) for name, frame in self.events.items()}
        return replace(self, rows=rows, events={name: frame for name, frame in first.items() if frame.height})

    def _with_controls(self, seen: Mapping[bytes, EventRecord]) -> PreparedBatch:
        """Judge the other records as if the control records had no event id, and give these their disposition."""
        control = pl.col("row").is_in([row for rows in self.controls.values() for row in rows])
        event_ids = self.rows.select(pl.when(~control).then(pl.col("event_id")).alias("event_id")).to_series()
        others = replace(self, rows=self.rows.with_columns(event_ids), controls={}).with_dispositions(seen)
        disposition = pl.when(control).then(pl.lit("control")).otherwise(pl.col("disposition")).alias("disposition")
        rows = others.rows.with_columns(disposition, self.rows["event_id"])
        return replace(others, rows=rows, controls=self.controls)

    def _reused(self, again: Sequence[int], seen: Mapping[bytes, EventRecord]) -> list[int]:
        """Return the rows whose event id came before, with another event."""
        ids, values = self.rows["event_id"].to_list(), self.batch.values
        wanted = {ids[row] for row in again}
        fingerprints = {event_id: record.fingerprint for event_id, record in seen.items()}
        first_rows: dict[bytes, int] = {}
        reused = []
        for row, event_id in enumerate(ids):
            if event_id not in wanted:
                continue
            fingerprint = content_fingerprint(values[row] or b"")
            first = fingerprints.setdefault(event_id, fingerprint)
            first_row = first_rows.setdefault(event_id, row)
            if first == fingerprint:  # nearly every repeat, so no more is looked at
                continue
            earlier = seen[event_id] if event_id in seen else self.record(first_row)
            if not same_event(earlier, self.record(row)):
                reused.append(row)
        return reused

    def record(self, row: int) -> EventRecord:
        """Return what tells a row's event from another of its id."""
        return event_record(self.batch.values[row] or b"", self.rows["event_type"][row], self.batch.headers[row])


def _disposition(repeated: pl.Expr | None = None) -> pl.Expr:
    poison = pl.when(pl.col("reason").is_not_null()).then(pl.lit("poison"))
    judged = poison if repeated is None else poison.when(repeated).then(pl.lit("repeat"))
    return judged.otherwise(pl.lit("applied")).alias("disposition")


def prepare(batch: EventBatch, skipped: Mapping[int, str] | None = None) -> PreparedBatch:
    """Decode and judge every record of a batch.

    `skipped` are offsets of records that an operator skipped while the partition waited at them, with the reasons: they
    are poison. Raises SchemaNewer for the first other record whose schema a later release may know, and for no other
    record.
    """
    topic = logical_topic(batch.topic)
    values = batch.values
    if skipped:
        values = [None if offset in skipped else value for offset, value in zip(batch.offsets, values, strict=True)]
    try:
        decoded, rejected = decode_batch(values, topic=topic)
    except UnknownSchema as error:
        raise SchemaNewer(batch.topic, batch.partition, batch.offsets[error.row], error.schema_id) from error
    reasons: dict[int, str] = {value.row: value.reason for value in rejected}
    if skipped:
        reasons |= {row: _skipped(skipped[offset]) for row, offset in enumerate(batch.offsets) if offset in skipped}
    decoded_ids, events = [], {}
    controls = [group for group in decoded if group.event_type in CONTROL_TYPES]
    for group in (group for group in decoded if group.event_type in EVENT_TYPES):
        kind = EVENT_TYPES[group.event_type]
        frame = group.frame.insert_column(0, pl.Series("row", group.rows, dtype=pl.Int64))
        ids = [
            frame["row"],
            frame["event_id"],
            _constant("entity_type", kind.entity_type, frame.height)
            if isinstance(kind.entity_type, str)
            else frame[ENTITY_DATA_COLUMN],
            frame[kind.entity_field].alias("entity_id"),
            _constant("event_type", group.event_type, frame.height),
        ]
        decoded_ids.append(pl.DataFrame(ids))
        events[group.event_type] = frame
    known = _in_order(decoded_ids)
    misplaced = known["row"].filter(pl.Series(_misplaced(batch.keys, known)))
    if len(misplaced):
        reasons |= dict.fromkeys(misplaced, "key: not the id of the entity that the event is about")
        known = known.filter(~known["row"].is_in(misplaced.implode()))
        kept = {name: frame.filter(~frame["row"].is_in(misplaced.implode())) for name, frame in events.items()}
        events = {name: frame for name, frame in kept.items() if frame.height}
    parking = parked_ids(batch, rejected)
    if not controls:
        known = _in_order([known, _parking_rows(parking)]) if parking else known
        return PreparedBatch(batch, _rows(batch, known, reasons), events, parking=list(parking))
    frames = {group.event_type: _control_rows(group, batch.keys, reasons) for group in controls}
    rows = _rows(batch, _in_order([known, _parking_rows(parking), *frames.values()]), reasons)
    by_type = {name: frame["row"].to_list() for name, frame in frames.items() if frame.height}
    return PreparedBatch(batch, rows, events, by_type, list(parking), poison_controls(controls))


def _skipped(reason: str) -> str:
    return f"skipped, while no schema was known for its id: {reason}"


def _parking_rows(ids: Mapping[int, bytes]) -> pl.DataFrame:
    """Return the ids of records that park their entity: they have no other."""
    nothing = [None] * len(ids)
    columns = (list(ids), nothing, nothing, list(ids.values()), nothing)
    return pl.DataFrame(dict(zip(_ID_COLUMNS, columns, strict=True)), schema=_ID_COLUMNS)


def _control_rows(group: DecodedEvents, keys: Sequence[bytes | None], reasons: dict[int, str]) -> pl.DataFrame:
    """Return the ids and types of one type's control records.

    One that raises the chain's version and has a key is none, and gets a reason.
    """
    rows = pl.Series("row", group.rows, dtype=pl.Int64)
    has_no_key = group.event_type == ChainVersionRaised.event_type
    keyed = [row for row in rows if keys[row] is not None] if has_no_key else []
    reasons |= dict.fromkeys(keyed, "key: a control record of this type has none")
    nothing = pl.Series([None], dtype=pl.String).new_from_index(0, len(rows))
    columns = {
        "row": rows,
        "event_id": group.frame["event_id"],
        "entity_type": nothing,
        "entity_id": nothing.cast(pl.Binary),
        "event_type": _constant("event_type", group.event_type, len(rows)),
    }
    return pl.DataFrame(columns).filter(~rows.is_in(keyed))


def _constant(name: str, value: str | None, rows: int) -> pl.Series:
    return constant_column(name, value, pl.String, rows)


def _misplaced(keys: Sequence[bytes | None], known: pl.DataFrame) -> NDArray[numpy.bool_]:
    """Return which decoded records have another key than their entity's id, and so might overtake its events."""
    texts = [key if key is not None and len(key) == _ID_CHARACTERS else _NO_ID for key in keys]
    if known.height < len(keys):
        texts = [texts[row] for row in known["row"]]
    key = numpy.frombuffer(b"".join(texts), numpy.uint8).reshape(-1, _ID_CHARACTERS)
    ids = b"".join(known["entity_id"].to_list())
    digits = numpy.frombuffer(ids.hex().encode(), numpy.uint8).reshape(-1, 32)
    right: NDArray[numpy.bool_] = (key[:, _DIGITS] == digits).all(axis=1) & (key[:, _DASHES] == ord("-")).all(axis=1)
    return numpy.logical_not(right)


def _in_order(decoded_ids: list[pl.DataFrame]) -> pl.DataFrame:
    """Return the decoded records' ids and types in the batch's order."""
    if not decoded_ids:
        return pl.DataFrame(schema=_ID_COLUMNS)
    if len(decoded_ids) == 1:
        return decoded_ids[0]
    together = reduce(pl.DataFrame.vstack, decoded_ids)
    order = pl.Series(numpy.argsort(together["row"].to_numpy()))
    return pl.DataFrame([column[order] for column in together.iter_columns()])


def _rows(batch: EventBatch, known: pl.DataFrame, reasons: Mapping[int, str]) -> pl.DataFrame:
    if not reasons:
        return known.hstack([_constant("reason", None, known.height)])
    every = pl.DataFrame({"row": pl.int_range(len(batch), dtype=pl.Int64, eager=True)})
    rejected = pl.DataFrame(
        {"row": list(reasons), "reason": [text.replace("\x00", "\\0") for text in reasons.values()]},
        schema={"row": pl.Int64, "reason": pl.String},
    )
    rows = every.join(known, on="row", how="left", maintain_order="left")
    return rows.join(rejected, on="row", how="left", maintain_order="left")
