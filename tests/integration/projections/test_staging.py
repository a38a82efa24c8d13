"""Rows reach a read model's statement the same way however many they are: in its text, or by COPY."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

import msgspec
import pytest
from msgspec import Meta

from projections import staging
from projections.inline_folds import InlineFolds, InlineRows
from projections.read_model import ReadModel
from projections.session import Session
from projections.staging import Staging
from schemas import generation
from schemas.binary import avro_types, frames
from schemas.events import Event
from schemas.polars_import import polars as pl
from tests.conftest import Database
from tests.support.made_models import made_model


class Inner(msgspec.Struct, frozen=True):
    """A nested record."""

    ratio: float
    words: tuple[str, ...]


class Measured(Event, frozen=True, kw_only=True):
    """A field of each type that a schema can have."""

    event_type: ClassVar[str] = "genesis.agent.measured"
    entity_type: ClassVar[str] = "agent"
    entity_field: ClassVar[str] = "subject"

    subject: UUID
    occurred_at: datetime
    yes: bool
    number: Annotated[int, Meta(ge=0, le=100)]
    ratio: float
    words: str
    kind: Literal["a", "b"]
    raw: bytes
    subjects: tuple[UUID, ...]
    texts: tuple[str, ...]
    numbers: tuple[int, ...]
    ratios: tuple[float, ...]
    flags: tuple[bool, ...]
    moments: tuple[datetime, ...]
    raws: tuple[bytes, ...]
    inner: Inner
    maybe: float | None = None
    maybe_moment: datetime | None = None
    maybe_raw: bytes | None = None
    maybe_texts: tuple[str, ...] | None = None


COLUMNS = """
    "offset" bigint PRIMARY KEY, subject uuid, moment timestamptz, day date, clock time, yes boolean,
    tiny smallint, small integer, number bigint, exact numeric, exact_2 numeric(10,2), float_4 real,
    ratio double precision, words text, short varchar(40), kind char(1), document jsonb, raw bytea,
    subjects uuid[], texts text[],
    numbers bigint[], ratios double precision[], flags boolean[], moments timestamptz[], raws bytea[],
    inner_ratio double precision, inner_words text[], maybe double precision, maybe_moment timestamptz, maybe_raw bytea,
    maybe_texts text[], height integer
"""
APPLY = """
{opening}
    counted AS (SELECT count(*) AS height FROM staged_agent_measured)
INSERT INTO __schema__.measured
SELECT "offset", subject, occurred_at, occurred_at::date, occurred_at::time, yes, number, number, number, number, ratio,
       ratio, ratio, words, words, kind, jsonb_build_object('words', words, 'number', number), raw,
       subjects::uuid[], texts,
       numbers, ratios, flags, moments, raws, inner__ratio, inner__words, maybe, maybe_moment, maybe_raw, maybe_texts,
       height
FROM staged_agent_measured CROSS JOIN counted ORDER BY "offset"
"""
ID = UUID(int=9).bytes
NOW = datetime(2026, 2, 28, 23, 59, 59, 999999, tzinfo=UTC)
ODD = "'\\\"{},NULL\n\té -- ; $1"
RECORDS: list[dict[str, Any]] = [
    {
        "event_id": ID, "subject": UUID(int=1).bytes, "occurred_at": NOW, "yes": True, "number": 100, "ratio": 0.1,
        "words": ODD, "kind": "a",
        "raw": b"\x00\\'", "subjects": [UUID(int=2).bytes, UUID(int=3).bytes], "texts": [ODD, "NULL", "", "null"],
        "numbers": [-(2**63), 2**63 - 1], "ratios": [1e-300, -0.0, math.inf], "flags": [True, False],
        "moments": [NOW, NOW], "raws": [b"", b"\x00\xff\\"], "inner": {"ratio": 1e22, "words": [ODD]}, "maybe": -1e308,
        "maybe_moment": NOW, "maybe_raw": b"", "maybe_texts": [],
    },
    {
        "event_id": ID, "subject": UUID(int=4).bytes, "occurred_at": NOW, "yes": False, "number": 0, "ratio": -123.456,
        "words": "", "kind": "b",
        "raw": b"", "subjects": [], "texts": [], "numbers": [], "ratios": [], "flags": [], "moments": [], "raws": [],
        "inner": {"ratio": -0.0, "words": []}, "maybe": None, "maybe_moment": None, "maybe_raw": None,
        "maybe_texts": None,
    },
]  # fmt: skip


@pytest.fixture
def session(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.setattr(staging, "EVENT_TYPES", {Measured.event_type: Measured})
    made = Session(database.superuser_url)
    made.script("CREATE SCHEMA measured_v1", f"CREATE TABLE measured_v1.measured ({COLUMNS})")
    yield made
    made.close()


@pytest.mark.parametrize("opening", ["WITH", "with/* a count */", "WITH RECURSIVE", "\twith\n\trecursive"])
@pytest.mark.parametrize("records", [RECORDS, RECORDS[1:]], ids=["values", "nulls"])
def test_columns_of_every_type_are_the_same_in_text_and_by_copy(
    session: Session, opening: str, records: list[dict[str, Any]]
) -> None:
    """Every type that an event may have, into columns of every common type, whatever the statement begins with."""
    model = made_model("measured", COLUMNS, APPLY.format(opening=opening))
    copied = by_copy(session, model, frame_of(records))
    inline = inline_of(session, model, frame_of(records))

    assert copied == inline
    assert len(copied) == len(records)
    assert [row["height"] for row in copied] == [len(records)] * len(records)
    assert copied[-1]["maybe"] is None
    if len(records) > 1:
        assert (copied[0]["words"], copied[0]["texts"]) == (ODD, RECORDS[0]["texts"])
        assert (copied[0]["float_4"], copied[0]["ratio"], copied[0]["exact_2"]) == (0.1, 0.1, 0.1)
        assert copied[0]["subjects"] == [str(UUID(int=2)), str(UUID(int=3))]
        assert copied[0]["document"] == {"words": ODD, "number": 100}


def frame_of(records: list[dict[str, Any]]) -> pl.DataFrame:
    """The frame that a batch of such records is decoded to."""
    avro = avro_types.parse(generation.schema_of(Measured))
    whole = pl.DataFrame(records, schema=frames.columns(avro))
    return whole.with_columns(pl.Series("row", range(len(records)), dtype=pl.Int64))


def by_copy(session: Session, model: ReadModel, frame: pl.DataFrame) -> list[dict[str, Any]]:
    """The rows after the frame was copied to its staging table."""
    made = Staging([model])
    session.script("TRUNCATE measured_v1.measured", "DROP TABLE IF EXISTS staged_agent_measured, staged_event_ids")
    made.open(session)
    session.begin()
    made.fill(session, made.frames({Measured.event_type: frame}, range(7, 7 + frame.height), partition=3))
    session.script(*model.folds(), "COMMIT")
    return rows(session)


def inline_of(session: Session, model: ReadModel, frame: pl.DataFrame) -> list[dict[str, Any]]:
    """The rows after the frame went within the statement."""
    made = Staging([model])
    session.script("TRUNCATE measured_v1.measured")
    rows_inline = InlineRows(made, {Measured.event_type: frame}, range(7, 7 + frame.height), partition=3)
    folds = InlineFolds(made).statements([model], rows_inline)
    session.script("DEALLOCATE ALL", "BEGIN", *folds, "COMMIT")
    return rows(session)


def rows(session: Session) -> list[dict[str, Any]]:
    query = 'SELECT to_json(m)::text AS row FROM measured_v1.measured AS m ORDER BY "offset"'
    return [msgspec.json.decode(row) for (row,) in session.query(query)]
