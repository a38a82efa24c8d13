"""The rows of the log, whichever way they go to Postgres."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import msgspec
import pytest

from audit.chain import CHAIN_START, ChainSlice, extend, extend_slice
from projections import log_writer
from projections.log_writer import LogWriter
from projections.prepared import PreparedBatch, prepare
from projections.session import Session
from schemas import codec
from schemas.control import chain_version_raised
from schemas.events import Event
from schemas.examples import examples
from schemas.polars_import import polars as pl
from tests.support.batches import TOPIC, batch_of

EVENT = examples()["genesis.agent.rated"]
ONE = prepare(batch_of([EVENT], token=1, start=7)).with_dispositions({})
NULL = prepare(batch_of([(None, None)], token=1, start=7)).with_dispositions({})
MIXED = prepare(batch_of([EVENT, (None, b"no event"), (b"k", None), EVENT], token=1, start=7)).with_dispositions({})
ALWAYS = ["offset", "created_at", "event_id", "entity_id", "entity_type", "event_type"]
BYTES = ["hash", "value", "headers"]
TABLE = "genesis.events/3/0"


def another(number: int) -> Event:
    """Return an event with an id of its own."""
    return msgspec.structs.replace(EVENT, event_id=UUID(int=number))


class Recorded:
    """A session that keeps what is written to it."""

    def __init__(self, *, is_v2: bool = False) -> None:
        self.is_v2 = is_v2
        self.frames: dict[tuple[str | None, str], pl.DataFrame] = {}
        self.statements: list[str] = []

    def column_types(self, table: str) -> dict[str, str]:
        return {"types of": table}

    def query(self, sql: str) -> list[tuple[bool]]:
        assert "partition = 3" in sql
        return [(self.is_v2,)]

    def copy(self, table: str, frame: pl.DataFrame, *, schema: str | None = None) -> None:
        self.frames[schema, table] = frame

    def later(self, statement: str) -> None:
        self.statements.append(statement)


def written(session: Recorded, prepared: PreparedBatch, *, inline: bool = False) -> bytes:
    writer = LogWriter(TOPIC, 3)
    writer.open(cast(Session, session))
    return writer.write(cast(Session, session), prepared, CHAIN_START, TABLE, inline=inline)


def chain_of(made: PreparedBatch, first_v2: int) -> list[bytes]:
    batch, judged = made.batch, (made.rows["disposition"].to_list(), made.rows["event_id"].to_list())
    records = (batch.offsets, batch.timestamps_ms, batch.keys, batch.values, made.batch.headers, *judged)
    return extend_slice(TOPIC, 3, CHAIN_START, ChainSlice(*records), first_v2)


def expected(made: PreparedBatch) -> list[dict[str, Any]]:
    """The rows, with every column that one of them may have."""
    batch = made.batch
    hashes = extend(
        TOPIC, 3, CHAIN_START, batch.offsets, batch.timestamps_ms, batch.keys, batch.values, made.batch.headers
    )
    rows = []
    for index, row in enumerate(made.rows.to_dicts()):
        key = None if row["entity_id"] is not None else batch.keys[index]
        created_at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=batch.timestamps_ms[index])
        record = {"key": key, "value": batch.values[index], "headers": made.batch.headers[index], "hash": hashes[index]}
        rows.append({**row, **record, "offset": 7 + index, "created_at": created_at})
    return rows


@pytest.mark.parametrize(
    ("made", "more"),
    [(ONE, []), (MIXED, ["key", "reason", "disposition"]), (NULL, ["key", "reason", "disposition"])],
    ids=["all applied", "mixed", "without values"],
)
def test_rows_are_copied_with_the_types_of_their_columns(made: PreparedBatch, more: list[str]) -> None:
    """Nulls included; columns that would hold nothing but their defaults are left out."""
    session = Recorded()
    head = written(session, made)
    columns = [*ALWAYS, *more, *BYTES]
    rows = expected(made)
    ((table, frame),) = session.frames.items()
    assert table == ("log", TABLE)
    assert frame.to_dicts() == [{name: row[name] for name in columns} for row in rows]
    assert head == rows[-1]["hash"]
    texts = ("disposition", "reason", "entity_type", "event_type")
    types = {"offset": pl.Int64, "created_at": pl.Datetime("us", "UTC"), **dict.fromkeys(texts, pl.String)}
    assert dict(frame.schema) == {name: types.get(name, pl.Binary) for name in columns}
    assert session.statements == []


def test_rows_go_inline_with_the_same_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """As lists, with the types that Postgres has for the log."""
    inserted: list[tuple[str, dict[str, list[Any]], dict[str, str]]] = []
    monkeypatch.setattr(log_writer, "insert", lambda *arguments: inserted.append(arguments) or arguments[0])
    session = Recorded()
    head = written(session, MIXED, inline=True)
    rows = expected(MIXED)
    ((table, columns, types),) = inserted
    assert (table, types) == (f'"log"."{TABLE}"', {"types of": "log_records"})
    assert columns == {column: [row[column] for row in rows] for column in columns}
    assert set(columns) == {*ALWAYS, *BYTES, "key", "reason", "disposition"}
    assert (head, session.frames) == (rows[-1]["hash"], {})
    assert session.statements == [f'"log"."{TABLE}"']


def test_a_chain_goes_over_to_v2_at_its_control_record_and_stays_there() -> None:
    """Once the batch is committed; one that was rolled back is hashed again as it was."""
    raised = (None, codec.encode(chain_version_raised(TOPIC, 3)))
    made = prepare(batch_of([EVENT, raised, another(1)], token=1)).with_dispositions({})
    later = prepare(batch_of([another(2), raised], token=1, start=3)).with_dispositions({})
    session = Recorded()
    writer = LogWriter(TOPIC, 3)
    writer.open(cast(Session, session))
    writer.note_committed(ONE)
    for _ in range(2):
        assert writer.write(cast(Session, session), made, CHAIN_START, TABLE, inline=False) == chain_of(made, 1)[-1]
    assert chain_of(made, 1)[-1] not in (chain_of(made, 0)[-1], chain_of(made, 3)[-1])
    writer.note_committed(made)
    for each in (later, ONE):
        writer.note_committed(each)
    assert writer.write(cast(Session, session), later, CHAIN_START, TABLE, inline=False) == chain_of(later, 0)[-1]


def test_a_chain_that_went_over_goes_on_in_v2() -> None:
    """What the log holds decides, whoever wrote it."""
    assert written(Recorded(is_v2=True), ONE) == chain_of(ONE, 0)[-1]
    assert written(Recorded(), ONE) == chain_of(ONE, 1)[-1]
