"""The staging tables that follow from event structs and statements, and the rows that go into them."""

from __future__ import annotations

import doctest
from typing import Annotated
from uuid import UUID

import msgspec
import pytest
from msgspec import Meta

from audit.canonical import headers_bytes
from projections import inline, read_model, session, staged_names, staging
from projections.session import Session
from projections.staged_changes import changes_in
from projections.staged_names import table_of
from projections.staging import LISTS_ONE_BY_ONE_MAX, StagedColumn, Staging, staged_columns, staging_tables
from schemas import generation
from schemas.binary import avro_types
from schemas.events import EVENT_TYPES, EntityAmended, JobRoleDefined
from schemas.polars_import import polars as pl
from schemas.sender_headers import ChangedVersion, change_headers, sender_headers
from tests.support.made_models import ACTIVITY, AGENTS, made_model


@pytest.mark.parametrize("module", [inline, read_model, session, staged_names, staging])
def test_documented_examples_hold(module: object) -> None:
    """The examples in the docstrings give what they say."""
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_the_tables_of_agents() -> None:
    """The offset and the columns that the statement names, of the four types that it reads."""
    tables = {table: [column.name for column in columns] for table, columns in staging_tables([AGENTS]).items()}
    profile = ["agent__name", "agent__industry_id", "agent__job_role_id", "agent__team_id", "agent__skill_ids"]
    states = ["offset", "entity_id", "occurred_at", "entity_type", *profile, "agent__status", "agent__available"]
    assert tables == {
        "staged_agent_onboarded": [
            "offset", "agent_id", "occurred_at", "name", "industry_id", "job_role_id", "team_id", "skill_ids"
        ],
        "staged_agent_available": ["offset", "agent_id", "occurred_at", "available", "available_from"],
        "staged_entity_amended": states,
        "staged_entity_retired": states,
    }  # fmt: skip


def test_types_and_nulls_follow_from_the_struct() -> None:
    """Ids, times, texts and lists of ids; a field of a record that may be missing may be null."""
    columns = {column.name: column for column in staged_columns(JobRoleDefined)}
    assert columns["job_role_id"] == StagedColumn("job_role_id", "uuid", required=True)
    assert columns["occurred_at"] == StagedColumn("occurred_at", "timestamp with time zone", required=True)
    assert columns["required_skill_ids"] == StagedColumn("required_skill_ids", "text", required=True)
    assert columns["seniority"] == StagedColumn("seniority", "text", required=False)
    nested = {column.name: column for column in staged_columns(EntityAmended)}
    assert nested["agent__available"] == StagedColumn("agent__available", "boolean", required=False)


class Inner(msgspec.Struct):
    """A nested record."""

    ratio: float
    maybe: Annotated[int, Meta(ge=0)] | None = None


class Line(msgspec.Struct):
    """A record of a list."""

    number: int


class Mixed(msgspec.Struct):
    """A field of each type that a schema can have."""

    ratio: float
    raw: bytes
    ratios: tuple[float, ...]
    numbers: tuple[Annotated[int, Meta(ge=0)] | None, ...]
    texts: tuple[str, ...]
    ids: tuple[UUID, ...]
    inner: Inner
    records: tuple[Line, ...]
    maybe: float | None = None


def test_every_type_of_a_schema_has_a_postgres_type() -> None:
    """Lists of records alone are left out, and cost the other fields nothing."""
    assert schema_of_fields(Mixed) == {"ratio", "raw", "ratios", "numbers", "texts", "ids", "inner", "records", "maybe"}
    assert list(staged_columns(Mixed)) == [
        StagedColumn("ratio", "double precision", required=True),
        StagedColumn("raw", "bytea", required=True),
        StagedColumn("ratios", "double precision[]", required=True),
        StagedColumn("numbers", "bigint[]", required=True),
        StagedColumn("texts", "text[]", required=True),
        StagedColumn("ids", "text", required=True),
        StagedColumn("inner__ratio", "double precision", required=True),
        StagedColumn("inner__maybe", "bigint", required=False),
        StagedColumn("maybe", "double precision", required=False),
    ]


def schema_of_fields(struct: type[msgspec.Struct]) -> set[str]:
    """The names of the fields of a struct's Avro schema, which is parsed."""
    schema = generation._record(struct, None)
    return {field.name for field in avro_types.parse(schema).fields}


def test_every_event_type_can_be_staged() -> None:
    """Each has a table of its own, and a Postgres type for each field."""
    assert len({table_of(event_type) for event_type in EVENT_TYPES}) == len(EVENT_TYPES)
    assert all(list(staged_columns(struct)) for struct in EVENT_TYPES.values())


class Statements(Session):
    """A session that keeps statements and runs none."""

    def __init__(self) -> None:
        self._waiting = []


def test_tables_are_made_with_their_columns() -> None:
    """Temporary, empty after each commit, and no null where the struct has none."""
    connection = Statements()
    Staging([AGENTS]).open(connection)
    (available,) = (each for each in connection._waiting if "staged_agent_available" in each)
    assert available == (
        'CREATE TEMPORARY TABLE staged_agent_available ("offset" bigint NOT NULL, "agent_id" uuid NOT NULL, '
        '"occurred_at" timestamp with time zone NOT NULL, "available" boolean NOT NULL, '
        '"available_from" timestamp with time zone) ON COMMIT DELETE ROWS'
    )


def test_a_statement_on_every_event_reads_each_type() -> None:
    """All types are staged with offset, partition and time for it, whatever their number."""
    assert ACTIVITY.reads == {table_of(event_type) for event_type in EVENT_TYPES}
    tables = {table: [column.name for column in columns] for table, columns in staging_tables([ACTIVITY]).items()}
    assert tables == {table: ["offset", "partition", "occurred_at"] for table in ACTIVITY.reads}


def test_every_event_is_a_view_of_the_tables() -> None:
    """It is made where a statement reads it, of all types."""
    connection, without = Statements(), Statements()
    Staging([ACTIVITY]).open(connection)
    Staging([AGENTS]).open(without)
    (view,) = (each for each in connection._waiting if "VIEW staged_events" in each)
    assert all(f"'{event_type}' AS event_type" in view for event_type in EVENT_TYPES)
    assert not any("staged_events" in each for each in without._waiting)


@pytest.mark.parametrize("rows", [2, LISTS_ONE_BY_ONE_MAX, LISTS_ONE_BY_ONE_MAX + 1])
def test_lists_of_ids_are_array_literals(rows: int) -> None:
    """A few are written one by one, more in columns: both in hex, null where the list or an id is."""
    ids = [UUID(int=number).bytes for number in (1, 2)]
    lists: list[list[bytes | None] | None] = [[], None, ids, [None, ids[0]]] * rows
    column = pl.Series("skill_ids", lists[:rows], dtype=pl.List(pl.Binary))
    frame = pl.DataFrame({"row": list(range(rows)), "skill_ids": column})
    made = Staging([made_model("lists", "a text", "SELECT skill_ids FROM staged_agent_onboarded")])

    frames = made.frames({"genesis.agent.onboarded": frame}, list(range(rows)), partition=3)

    texts = ["{}", None, f"{{{ids[0].hex()},{ids[1].hex()}}}", f"{{NULL,{ids[0].hex()}}}"] * rows
    assert frames["staged_agent_onboarded"]["skill_ids"].to_list() == texts[:rows]


LATE = made_model(
    "late", "a bigint",
    "INSERT INTO __schema__.t SELECT effective_offset FROM staged_agent_rated ORDER BY effective_offset, \"offset\"",
)  # fmt: skip
LATE_OF_ALL = made_model(
    "late_of_all", "a bigint", "INSERT INTO __schema__.t SELECT effective_offset FROM staged_events"
)
RATED = pl.DataFrame({"row": [0, 2], "occurred_at": pl.Series([0, 0], dtype=pl.Datetime("us", "UTC"))})


def test_the_effective_offset_is_staged_where_a_statement_names_it() -> None:
    """It is the offset, unless others are passed: those of events that have waited."""
    made = Staging([LATE])
    plain = made.frames({"genesis.agent.rated": RATED}, [40, 41, 42], partition=3)["staged_agent_rated"]
    assert plain.select("offset", "effective_offset").rows() == [(40, 40), (42, 42)]
    waited = made.frames({"genesis.agent.rated": RATED}, [40, 41, 42], partition=3, effective_offsets=[40, 41, 77])
    assert waited["staged_agent_rated"].select("offset", "effective_offset").rows() == [(40, 40), (42, 77)]
    named = [column for column in staging_tables([LATE])["staged_agent_rated"] if column.name == "effective_offset"]
    assert named == [StagedColumn("effective_offset", "bigint", required=True)]
    assert "effective_offset" not in str(staging_tables([AGENTS, ACTIVITY]))


def test_every_event_has_an_effective_offset_where_a_statement_names_it() -> None:
    """In the view, beside a model that does not."""
    connection, made = Statements(), Staging([ACTIVITY, LATE_OF_ALL])
    made.open(connection)
    (view,) = (each for each in connection._waiting if "VIEW staged_events" in each)
    assert view.count('"effective_offset"') == len(EVENT_TYPES)


CHANGED = made_model(
    "changed", "a bigint",
    "INSERT INTO __schema__.t SELECT change_version FROM staged_agent_rated WHERE change_tenant = 'acme'",
)  # fmt: skip


def test_the_change_that_an_event_tells_of_is_staged_where_a_statement_names_it() -> None:
    """By row, and null where there is none; where no model asks, the headers are not looked at."""
    both = Staging([CHANGED, AGENTS])
    assert (both.has_changes(CHANGED.reads), both.has_changes(AGENTS.reads)) == (True, False)
    columns = [column for column in staging_tables([CHANGED])["staged_agent_rated"] if "change" in column.name]
    assert columns == [
        StagedColumn("change_tenant", "text", required=False),
        StagedColumn("change_version", "bigint", required=False),
    ]
    asked = []

    def changes() -> list[ChangedVersion | None]:
        asked.append(1)
        return [None, ChangedVersion("genesis", 9), ChangedVersion("acme", 3)]

    events = {"genesis.agent.rated": RATED}
    (frame,) = both.frames(events, [40, 41, 42], partition=3, changes=changes).values()
    assert frame.select("offset", "change_tenant", "change_version").rows() == [(40, None, None), (42, "acme", 3)]
    assert Staging([LATE]).frames(events, [40, 41, 42], partition=3, changes=changes)
    assert both.frames(events, [40, 41, 42], {"staged_agent_available"}, partition=3, changes=changes) == {}
    assert len(asked) == 1


def test_only_the_relays_headers_tell_of_a_change() -> None:
    """Records without headers, and those of others, tell of none."""
    relays = [*sender_headers("plant.relay"), *change_headers("acme", 3)]
    forged = [*sender_headers("genesis", key_id="7"), *change_headers("acme", 3)]
    found = changes_in([None, headers_bytes([]), headers_bytes(relays), headers_bytes(forged)])
    assert found == [None, None, ("acme", 3), None]
