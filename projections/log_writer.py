"""The rows of a partition's log, copied or inline: one row a record, which is its link in the audit chain too."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from audit.chain import ChainSlice, extend_slice
from projections.inline import insert
from projections.known_ids import LOG_SCHEMA
from projections.prepared import PreparedBatch
from projections.session import Session, quoted_table, sql_literal
from schemas.control import ChainVersionRaised
from schemas.polars_import import polars as pl

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Column = Sequence[Any] | pl.Series

# The partial index of each range on what is not applied has it.
_RAISED = f"""
SELECT EXISTS (
    SELECT FROM log_records WHERE topic = {{topic}} AND partition = {{partition}} AND disposition = 'control'
    AND event_type = '{ChainVersionRaised.event_type}'
) AS raised
"""  # noqa: S608 (a constant, and literals)


class LogWriter:
    """Writes a partition's log on one connection after the other, in the caller's transactions."""

    def __init__(self, topic: str, partition: int) -> None:
        self._topic = topic
        self._partition = partition
        self._types: dict[str, str] = {}
        self._is_v2 = False

    def open(self, session: Session) -> None:
        """Read on a fresh connection the types of the columns, and whether the chain has gone over to v2."""
        self._types = session.column_types("log_records")
        topic, partition = sql_literal(self._topic), sql_literal(self._partition)
        ((self._is_v2,),) = session.query(_RAISED.format(topic=topic, partition=partition))

    def write(self, session: Session, prepared: PreparedBatch, head: bytes, table: str, *, inline: bool) -> bytes:
        """Append the batch to a range's table; its chain goes on from `head`. Returns the new head.

        Call :meth:`note_committed` once the transaction has been committed.
        """
        batch, rows = prepared.batch, prepared.rows
        if not len(batch):
            return head
        raised_at = len(batch) if prepared.chain_raised_at is None else prepared.chain_raised_at
        first_v2 = 0 if self._is_v2 else raised_at
        judged = [rows[name].to_list() if first_v2 < len(batch) else [] for name in ("disposition", "event_id")]
        records = ChainSlice(
            batch.offsets, batch.timestamps_ms, batch.keys, batch.values, batch.headers, *judged
        )  # fmt: skip
        hashes = extend_slice(self._topic, self._partition, head, records, first_v2)
        columns: dict[str, Column] = {
            "offset": batch.offsets if inline else pl.Series(batch.offsets, dtype=pl.Int64),
            "created_at": _times(batch.timestamps_ms, inline=inline),
            **prepared.stored_columns(),
            "hash": hashes,
            "value": batch.values,
            "headers": batch.headers,
        }
        if inline:
            values = {n: v.to_list() if isinstance(v, pl.Series) else v for n, v in columns.items()}
            session.later(insert(quoted_table(LOG_SCHEMA, table), values, self._types))
        else:
            series = [
                v.alias(n) if isinstance(v, pl.Series) else pl.Series(n, v, pl.Binary) for n, v in columns.items()
            ]
            session.copy(table, pl.DataFrame(series), schema=LOG_SCHEMA)
        return hashes[-1]

    def note_committed(self, prepared: PreparedBatch) -> None:
        """Go on in v2 where a batch that has been committed went over to it."""
        self._is_v2 |= prepared.chain_raised_at is not None


def _times(timestamps_ms: Sequence[int], *, inline: bool) -> Column:
    if inline:
        return [EPOCH + timedelta(milliseconds=ms) for ms in timestamps_ms]
    return pl.Series([ms * 1000 for ms in timestamps_ms], dtype=pl.Datetime("us", "UTC"))
