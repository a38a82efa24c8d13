"""The rows of the log and of its chain, for one partition: `event_stream` and `audit_log`, copied or inline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from audit.chain import extend
from projections.inline import insert
from projections.prepared import PreparedBatch
from projections.repeats import SEEN, EventRecord
from projections.session import Session, sql_literal
from schemas.polars_import import polars as pl
from streams.batch import EventBatch

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Column = Sequence[Any] | pl.Series
_POSITION = ("topic", "partition", "offset", "created_at")


class LogWriter:
    """Writes a partition's log on one connection after the other, in the caller's transactions."""

    def __init__(self, topic: str, partition: int) -> None:
        self._topic = topic
        self._partition = partition
        self._types: dict[str, dict[str, str]] = {}

    def open(self, session: Session) -> None:
        """Read the types of the columns on a fresh connection."""
        self._types = {table: session.column_types(table) for table in ("event_stream", "audit_log")}

    def seen(self, session: Session, prepared: PreparedBatch) -> dict[bytes, EventRecord]:
        """Return the batch's event ids that are applied already, each with the record of its event."""
        ids = prepared.rows["event_id"].drop_nulls()
        session.copy("staged_event_ids", pl.DataFrame({"event_id": ids}), temporary=True)
        seen = session.frame(SEEN.format(topic=sql_literal(self._topic), partition=sql_literal(self._partition)))
        columns = ("fingerprint", "event_type", "value", "headers")
        records = map(EventRecord._make, seen.select(columns).rows())
        return dict(zip(seen["event_id"].cast(pl.Binary), records, strict=True))

    def write(self, session: Session, prepared: PreparedBatch, head: bytes, *, inline: bool) -> bytes:
        """Write log and chain, which goes on from `head`; returns its new head."""
        batch = prepared.batch
        if not len(batch):
            return head
        hashes = extend(
            self._topic, self._partition, head,
            batch.offsets, batch.timestamps_ms, batch.keys, batch.values, prepared.headers,
        )  # fmt: skip
        rows, position = prepared.rows, self._position(batch, inline)
        stream: dict[str, Column] = {
            "disposition": rows["disposition"],
            "event_id": rows["event_id"],
            "key": batch.keys,
            "value": batch.values,
            "headers": prepared.headers,
            "reason": rows["reason"],
        }
        audit: dict[str, Column] = {
            "entity_type": rows["entity_type"],
            "entity_id": rows["entity_id"],
            "event_type": rows["event_type"],
            "previous_hash": [head, *hashes[:-1]],
            "hash": hashes,
        }
        self._append(session, "event_stream", {**position, **stream}, inline)
        self._append(session, "audit_log", {**position, **audit}, inline)
        return hashes[-1]

    def _position(self, batch: EventBatch, inline: bool) -> dict[str, Column]:
        """Return the columns of each record's position and time; as lists where they go inline."""
        count = len(batch)
        if inline:
            created_at = [EPOCH + timedelta(milliseconds=ms) for ms in batch.timestamps_ms]
            lists: list[Column] = [[self._topic] * count, [self._partition] * count, batch.offsets, created_at]
            return dict(zip(_POSITION, lists, strict=True))
        # Put together from whole columns: an expression costs 50 us however few the rows.
        microseconds = [ms * 1000 for ms in batch.timestamps_ms]
        columns: list[Column] = [
            pl.Series([self._topic]).new_from_index(0, count),
            pl.Series([self._partition], dtype=pl.Int32).new_from_index(0, count),
            pl.Series(batch.offsets, dtype=pl.Int64),
            pl.Series(microseconds, dtype=pl.Datetime("us", "UTC")),
        ]
        return dict(zip(_POSITION, columns, strict=True))

    def _append(self, session: Session, table: str, columns: Mapping[str, Column], inline: bool) -> None:
        if inline:
            values = {n: v.to_list() if isinstance(v, pl.Series) else v for n, v in columns.items()}
            session.later(insert(table, values, self._types[table]))
            return
        series = [v.alias(n) if isinstance(v, pl.Series) else pl.Series(n, v, pl.Binary) for n, v in columns.items()]
        session.copy(table, pl.DataFrame(series))
