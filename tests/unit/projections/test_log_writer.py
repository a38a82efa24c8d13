"""The rows of the log, whichever way they go to Postgres."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from audit.chain import CHAIN_START, extend
from projections import log_writer
from projections.log_writer import LogWriter
from projections.prepared import PreparedBatch, prepare
from projections.repeats import EventRecord
from projections.session import Session
from schemas.examples import examples
from schemas.polars_import import polars as pl
from tests.support.batches import TOPIC, batch_of

EVENT = examples()["genesis.agent.rated"]
MADE = prepare(batch_of([EVENT, (None, b"no event"), (b"k", None)], token=1, start=7)).with_dispositions(None)
POSITION = ["topic", "partition", "offset", "created_at"]
STREAM = ["disposition", "event_id", "key", "value", "headers", "reason"]
AUDIT = ["entity_type", "entity_id", "event_type", "previous_hash", "hash"]


class Recorded:
    """A session that keeps what is written to it."""

    def __init__(self, seen: pl.DataFrame | None = None) -> None:
        self.frames: dict[str, pl.DataFrame] = {}
        self.temporary: list[str] = []
        self.statements: list[str] = []
        self.asked: list[str] = []
        self._seen = seen

    def column_types(self, table: str) -> dict[str, str]:
        return {"types of": table}

    def copy(self, table: str, frame: pl.DataFrame, *, temporary: bool = False) -> None:
        self.frames[table] = frame
        if temporary:
            self.temporary.append(table)

    def later(self, statement: str) -> None:
        self.statements.append(statement)

    def frame(self, sql: str) -> pl.DataFrame:
        self.asked.append(sql)
        assert self._seen is not None
        return self._seen


def written(session: Recorded, prepared: PreparedBatch = MADE, *, inline: bool = False) -> bytes:
    writer = LogWriter(TOPIC, 3)
    writer.open(cast(Session, session))
    return writer.write(cast(Session, session), prepared, CHAIN_START, inline=inline)


def expected() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of both tables."""
    batch, rows = MADE.batch, MADE.rows.to_dicts()
    hashes = extend(TOPIC, 3, CHAIN_START, batch.offsets, batch.timestamps_ms, batch.keys, batch.values, MADE.headers)
    stream, audit = [], []
    for index, row in enumerate(rows):
        created_at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=batch.timestamps_ms[index])
        position = {"topic": TOPIC, "partition": 3, "offset": 7 + index, "created_at": created_at}
        record = {"key": batch.keys[index], "value": batch.values[index], "headers": MADE.headers[index]}
        judged = {name: row[name] for name in ("disposition", "event_id", "reason")}
        stream.append({**position, **judged, **record})
        about = {name: row[name] for name in ("entity_type", "entity_id", "event_type")}
        previous = hashes[index - 1] if index else CHAIN_START
        audit.append({**position, **about, "previous_hash": previous, "hash": hashes[index]})
    return stream, audit


def test_rows_are_copied_with_the_types_of_their_columns() -> None:
    """Nulls included: a column of nulls has its type all the same."""
    session = Recorded()
    head = written(session)
    stream, audit = expected()
    assert session.frames["event_stream"].to_dicts() == [
        {name: row[name] for name in POSITION + STREAM} for row in stream
    ]
    assert session.frames["audit_log"].to_dicts() == [{name: row[name] for name in POSITION + AUDIT} for row in audit]
    assert head == audit[-1]["hash"]
    texts, moments = ("topic", "disposition", "reason"), pl.Datetime("us", "UTC")
    types = {"partition": pl.Int32, "offset": pl.Int64, "created_at": moments, **dict.fromkeys(texts, pl.String)}
    schema = dict(session.frames["event_stream"].schema)
    assert schema == {name: types.get(name, pl.Binary) for name in POSITION + STREAM}
    assert (session.statements, session.temporary) == ([], [])


def test_rows_go_inline_with_the_same_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """As lists, with the types that Postgres has for the table."""
    inserted: list[tuple[str, dict[str, list[Any]], dict[str, str]]] = []
    monkeypatch.setattr(log_writer, "insert", lambda *arguments: inserted.append(arguments) or arguments[0])
    session = Recorded()
    head = written(session, inline=True)
    stream, audit = expected()
    for (table, columns, types), name, rows in zip(
        inserted, ("event_stream", "audit_log"), (stream, audit), strict=True
    ):
        assert (table, types) == (name, {"types of": name})
        assert columns == {column: [row[column] for row in rows] for column in columns}
        assert set(columns) == set(POSITION + (STREAM if name == "event_stream" else AUDIT))
    assert (head, session.frames) == (audit[-1]["hash"], {})
    assert session.statements == ["event_stream", "audit_log"]


def test_a_batch_without_records_leaves_the_chain_where_it_is() -> None:
    """Where only offsets without records were left of it."""
    session = Recorded()
    assert written(session, prepare(batch_of([], token=1)), inline=False) == CHAIN_START
    assert session.frames == {}


def test_what_was_seen_is_found_by_its_id() -> None:
    """Among the applied records of this partition alone; records without an id are not asked for."""
    seen = pl.DataFrame(
        {
            "event_id": [EVENT.event_id.bytes],
            "headers": [b"h"],
            "fingerprint": [b"f"],
            "value": [b"v"],
            "event_type": ["genesis.agent.rated"],
        }
    )
    session = Recorded(seen)
    found = LogWriter(TOPIC, 3).seen(cast(Session, session), MADE)
    assert found == {EVENT.event_id.bytes: EventRecord(b"f", "genesis.agent.rated", b"v", b"h")}
    assert session.frames["staged_event_ids"].to_dicts() == [{"event_id": EVENT.event_id.bytes}]
    assert session.temporary == ["staged_event_ids"]
    assert f"e.partition = 3 AND e.topic = '{TOPIC}'" in session.asked[0]
