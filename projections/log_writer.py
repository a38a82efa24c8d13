"""The rows of a partition's log, copied or inline: one row a record, which is its link in the audit chain too."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from audit.chain import extend
from projections.inline import insert
from projections.prepared import PreparedBatch
from projections.session import Session
from schemas.polars_import import polars as pl

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

SCHEMA = "log"
"""The schema of the ranges' tables."""

Column = Sequence[Any] | pl.Series


class LogWriter:
    """Writes a partition's log on one connection after the other, in the caller's transactions."""

    def __init__(self, topic: str, partition: int) -> None:
        self._topic = topic
        self._partition = partition
        self._types: dict[str, str] = {}

    def open(self, session: Session) -> None:
        """Read the types of the columns on a fresh connection."""
        self._types = session.column_types("log_records")

    def write(self, session: Session, prepared: PreparedBatch, head: bytes, table: str, *, inline: bool) -> bytes:
        """Append the batch to a range's table; its chain goes on from `head`. Returns the new head."""
        batch = prepared.batch
        hashes = extend(
            self._topic, self._partition, head,
            batch.offsets, batch.timestamps_ms, batch.keys, batch.values, prepared.headers,
        )  # fmt: skip
        columns: dict[str, Column] = {
            "offset": batch.offsets if inline else pl.Series(batch.offsets, dtype=pl.Int64),
            "created_at": _times(batch.timestamps_ms, inline=inline),
            **prepared.stored_columns(),
            "hash": hashes,
            "value": batch.values,
            "headers": prepared.headers,
        }
        if inline:
            values = {n: v.to_list() if isinstance(v, pl.Series) else v for n, v in columns.items()}
            session.later(insert(f'{SCHEMA}."{table}"', values, self._types))
        else:
            series = [
                v.alias(n) if isinstance(v, pl.Series) else pl.Series(n, v, pl.Binary) for n, v in columns.items()
            ]
            session.copy(table, pl.DataFrame(series), schema=SCHEMA)
        return hashes[-1]


def _times(timestamps_ms: Sequence[int], *, inline: bool) -> Column:
    if inline:
        return [EPOCH + timedelta(milliseconds=ms) for ms in timestamps_ms]
    return pl.Series([ms * 1000 for ms in timestamps_ms], dtype=pl.Datetime("us", "UTC"))
