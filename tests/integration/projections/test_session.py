"""A worker's connection: statements that wait, values as text, what errors mean."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from database.address import connect_arguments
from devstack import sql
from projections.inline import array_literal, elements, insert, prepare_statement
from projections.session import DataRefused, Session
from schemas.polars_import import polars as pl
from tests.conftest import Database
from tests.support.long_form import sized

TYPES = {
    "number": "bigint",
    "small": "integer",
    "yes": "boolean",
    "raw": "bytea",
    "words": "text",
    "moment": "timestamp with time zone",
    "id": "uuid",
    "tiny": "smallint",
    "exact": "numeric",
    "exact_2": "numeric(10,2)",
    "float_4": "real",
    "float_8": "double precision",
    "document": "json",
    "day": "date",
    "clock": "time without time zone",
    "local_moment": "timestamp without time zone",
    "short": "character varying(8)",
    "fixed": "character(3)",
    "texts": "text[]",
    "numbers": "bigint[]",
    "raws": "bytea[]",
}
SCHEMA: dict[str, Any] = {
    "number": pl.Int64,
    "small": pl.Int32,
    "yes": pl.Boolean,
    "raw": pl.Binary,
    "words": pl.String,
    "moment": pl.Datetime("us", "UTC"),
    "id": pl.Binary,
    "tiny": pl.Int16,
    "exact": pl.Decimal(30, 6),
    "exact_2": pl.Decimal(10, 2),
    "float_4": pl.Float32,
    "float_8": pl.Float64,
    "document": pl.String,
    "day": pl.Date,
    "clock": pl.Time,
    "local_moment": pl.Datetime("us"),
    "short": pl.String,
    "fixed": pl.String,
    "texts": pl.List(pl.String),
    "numbers": pl.List(pl.Int64),
    "raws": pl.List(pl.Binary),
}
TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=40)
ROWS = st.tuples(
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.integers(-(2**31), 2**31 - 1),
    st.none() | st.booleans(),
    st.none() | st.binary(max_size=40),
    st.none() | TEXT,
    st.none() | st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC)),
    st.none() | st.binary(min_size=16, max_size=16),
    st.none() | st.integers(-(2**15), 2**15 - 1),
    st.none() | st.decimals(-(10**20), 10**20, places=6),
    st.none() | st.decimals(-(10**6), 10**6, places=2),
    st.none() | st.floats(width=32),
    st.none() | st.floats(),
    st.none() | st.dictionaries(TEXT, TEXT | st.integers() | st.none(), max_size=2).map(json.dumps),
    st.none() | st.dates(date(1, 1, 2)),
    st.none() | st.times(),
    st.none() | st.datetimes(datetime(1, 1, 2)),
    st.none() | st.text("ab'\\", max_size=8),
    st.none() | st.text("ab'\\", max_size=3),
    st.none() | st.lists(st.none() | TEXT | st.sampled_from(["NULL", "null", '"', "{}", "\\", ""]), max_size=3),
    st.none() | st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=3),
    st.none() | st.lists(st.binary(max_size=5), max_size=3),
)


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    made = Session(database.writer_url)
    columns = ", ".join(f"{name} {kind}" for name, kind in TYPES.items())
    made.script(f"CREATE TEMPORARY TABLE copied ({columns})", f"CREATE TEMPORARY TABLE written ({columns})")
    yield made
    made.close()


def test_connecting_reads_no_catalog(database: Database) -> None:
    """The driver does not ask for all types and columns, of which each range of the log brings more."""
    sql.execute(database.superuser_url, ["REVOKE SELECT ON pg_catalog.pg_attribute, pg_catalog.pg_type FROM PUBLIC"])

    with contextlib.closing(Session(database.writer_url)) as made:
        assert made.query("SELECT 1 AS number, 'a'::text AS words") == [(1, "a")]


@settings(max_examples=sized(60, 120), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS, min_size=1, max_size=5))
def test_values_as_text_are_the_values_of_a_copy(session: Session, rows: list[tuple[Any, ...]]) -> None:
    """Quotes, backslashes, controls, ends of ranges, nulls: all ways in store the same."""
    session.script("TRUNCATE copied", "TRUNCATE written")
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    session.copy("copied", frame, temporary=True)
    columns = {column.name: column.to_list() for column in frame.iter_columns()}

    session.script(insert("written", columns, TYPES))
    run_with_rows(session, "INSERT INTO written SELECT * FROM given", "given", frame, TYPES)

    # COPY stores a zero without its scale.
    session.script(*(f"UPDATE {table} SET exact = trim_scale(exact)" for table in ("copied", "written")))
    stored = [
        sorted(map(str, session.query(f"SELECT t::text AS t FROM {table} AS t"))) for table in ("copied", "written")
    ]
    assert sorted(stored[0] * 2) == stored[1]


@pytest.mark.parametrize(
    "opening",
    ["WITH\n", "with\t", "WITH -- rows; all of them\n", "/* rows */ WITH ", "WITH RECURSIVE ", "with\nrecursive\n"],
)
def test_a_with_clause_may_begin_in_any_way(session: Session, opening: str) -> None:
    """White space, comments and RECURSIVE: rows that go with the statement are known in it."""
    session.script("TRUNCATE written")
    frame = pl.DataFrame({"number": [3]})
    own = "counted AS (SELECT number FROM given)"
    if "recursive" in opening.lower():
        own += ", more AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM more WHERE n < 3)"
    statement = f"{opening}{own} INSERT INTO written (number) SELECT number FROM counted"
    run_with_rows(session, statement, "given", frame, {"number": "bigint"})
    assert session.query("SELECT number FROM written") == [(3,)]


def run_with_rows(
    session: Session, statement: str, table: str, frame: pl.DataFrame | None, types: Mapping[str, str]
) -> None:
    """Run a statement to which a table means these rows."""
    columns = {name: [] if frame is None else frame[name].to_list() for name in types}
    values = ", ".join(array_literal(elements(column, types[name])) for name, column in columns.items())
    session.script(
        "DEALLOCATE ALL", prepare_statement("written", statement, {table: types}), f"EXECUTE written ({values})"
    )


def test_a_comment_at_the_end_of_a_statement_ends_there(session: Session) -> None:
    """What comes after it in the same script, such as the commit, is run."""
    session.script("TRUNCATE written")
    session.script("BEGIN", "INSERT INTO written (number) VALUES (1) -- the first", "COMMIT")
    session.rollback()
    assert session.query("SELECT count(*) AS n FROM written") == [(1,)]


def test_a_name_in_a_statement_means_the_rows_that_came_with_it(session: Session) -> None:
    """A subquery hides the table of its name; one without rows has the table's columns and nothing in them."""
    session.script("INSERT INTO copied (number) VALUES (1)")
    statement = "WITH counted AS (SELECT count(*) AS n FROM copied) INSERT INTO written (number) SELECT n FROM counted"
    session.script("TRUNCATE written", statement)
    run_with_rows(session, statement, "copied", None, TYPES)
    assert session.query("SELECT number FROM written") == [(1,), (0,)]


def test_statements_wait_for_the_next_and_keep_their_order(session: Session) -> None:
    """What waits runs before whatever comes next, once; a rollback forgets it."""
    session.later("INSERT INTO copied (number) VALUES (1)", "UPDATE copied SET number = number + 1")
    assert session.query("SELECT number FROM copied") == [(2,)]
    session.later("DELETE FROM copied")
    session.rollback()
    assert session.query("SELECT number FROM copied") == [(2,)]
    session.later("UPDATE copied SET number = 7")
    session.copy("copied", pl.DataFrame({"number": [8]}), temporary=True)
    assert session.query("SELECT number FROM copied ORDER BY 1") == [(7,), (8,)]


def test_a_nul_character_never_cuts_a_script_short(session: Session) -> None:
    """libpq ends a script at a NUL and reports success; here nothing of it runs."""
    session.later(insert("written", {"words": ["a\x00b"]}, TYPES))
    with pytest.raises(DataRefused, match="NUL"):
        session.script("INSERT INTO written (number) VALUES (1)")
    assert session.query("SELECT count(*) AS n FROM written") == [(0,)]


def test_errors_name_what_was_refused_and_repeat_no_events(session: Session) -> None:
    """Table and constraint come from the server's fields, not from a text in which an event could write them."""
    text = 'no such offset, says "event_stream_applied_once"'
    bad = insert(
        "checkpoints",
        {"consumer": [text], "topic": [text], "partition": [0], "next_offset": [-1]},
        {**dict.fromkeys(("consumer", "topic"), "text"), **dict.fromkeys(("partition", "next_offset"), "bigint")},
    )
    with pytest.raises(DataRefused) as refused:
        session.script(bad)
    assert refused.value.about("checkpoints")
    assert refused.value.about("checkpoints_next_offset_check")
    assert not refused.value.about("event_stream")
    assert "says" not in str(refused.value)
    with pytest.raises(DataRefused) as refused:
        session.copy("checkpoints", pl.DataFrame({"consumer": ["p"], "partition": [1 << 40]}))
    assert refused.value.about("checkpoints")


def test_options_of_the_address_leave_the_others_in_force(database: Database) -> None:
    """What the address sets wins; every other limit of a worker's connection stays."""
    made = Session(f"{database.writer_url}?options=-c%20lock_timeout%3D7s")
    try:
        assert made.query("SHOW lock_timeout") == [("7s",)]
        assert made.query("SHOW statement_timeout") == [("1min",)]
        assert made.query("SHOW standard_conforming_strings") == [("on",)]
    finally:
        made.close()


def test_texts_are_copied_as_they_are_whatever_encoding_libpq_was_asked_for(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable of the machine, or a default of the role, would have Postgres decode UTF-8 as another encoding."""
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    role = urlsplit(database.writer_url).username
    sql.execute(database.superuser_url, [f"ALTER ROLE {role} SET client_encoding = 'LATIN1'"])
    made = Session(database.writer_url)
    try:
        made.script("CREATE TEMPORARY TABLE copied (words text)")
        made.copy("copied", pl.DataFrame({"words": ["Zoë 日本"]}), temporary=True)

        assert made.query("SELECT words, octet_length(words) AS size FROM copied") == [("Zoë 日本", 11)]
    finally:
        made.close()
        sql.execute(database.superuser_url, [f"ALTER ROLE {role} RESET client_encoding"])


@pytest.mark.parametrize(
    ("password", "address"),
    [
        ("Made-Up-1", "postgresql+asyncpg://{role}:Made-Up-1@{server}"),
        ("p%zz1", "postgresql://{role}:p%zz1@{server}"),
        ("ab/cd+e=#f?g", "postgresql://{role}:ab/cd+e=#f?g@{server}"),
        ("Made-Up-1", "postgresql://{role}:Made-Up-1@/{database}?host=127.0.0.1:1&host={host}"),
        ("Made-Up-1", "postgresql://{role}:Made-Up-1@127.0.0.1:1,{server}"),
    ],
)
async def test_an_address_means_the_same_to_both_drivers(
    password: str, address: str, database: Database, make_role: Callable[[str], str]
) -> None:
    """A worker asks with asyncpg whether it may start, and writes with libpq."""
    url = urlsplit(make_role("NOINHERIT"))
    role, host = url.username, url.netloc.rpartition("@")[2]
    sql.execute(database.superuser_url, [f"ALTER ROLE {role} PASSWORD {sql.literal(password)}"])
    server, name = f"{host}{url.path}", url.path.strip("/")
    given = address.format(role=role, server=server, host=host, database=name)

    connection = await asyncpg.connect(**connect_arguments(given, application_name="plant test"))
    by_asyncpg = await connection.fetchval("SELECT current_user || '/' || current_database()")
    await connection.close()
    session = Session(given)
    ((by_libpq,),) = session.query("SELECT current_user || '/' || current_database() AS who")
    session.close()

    assert by_asyncpg == by_libpq == f"{role}/{name}"
