"""The statements of small batches: for which tables they are prepared, and which rows they carry."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest

from projections import inline_folds
from projections.inline_folds import KEPT_PLANS, InlineFolds, InlineRows
from projections.read_model import ReadModel
from projections.staging import Staging
from schemas.polars_import import polars as pl
from schemas.sender_headers import ChangedVersion
from tests.support.made_models import ACTIVITY, AGENTS, MARKETPLACE, made_model

IDS = [UUID(int=number).bytes for number in (1, 2)]
TIMES = pl.Series([0, 0], dtype=pl.Datetime("us", "UTC"))
MOMENTS = ",".join(["1970-01-01T00:00:00+00:00"] * 2)
RATED = pl.DataFrame({"row": [0, 2], "agent_id": pl.Series(IDS, dtype=pl.Binary), "occurred_at": TIMES})
AVAILABLE = RATED.with_columns(available=pl.Series([True, False]), available_from=TIMES)
ONBOARDED = RATED.with_columns(name=pl.lit("it's"), skill_ids=pl.Series([IDS, []], dtype=pl.List(pl.Binary)))
OFFSETS = [40, 41, 42]


def folds_of(folds: InlineFolds, models: Sequence[ReadModel], rows: InlineRows) -> list[str]:
    """The statements for rows, without those before them that say how Postgres plans them."""
    made = folds.statements(models, rows)
    assert not made or made[: len(KEPT_PLANS)] == [*KEPT_PLANS]
    return made[len(KEPT_PLANS) :]


def rows_of(staging: Staging, **more: Any) -> InlineRows:
    """Two ratings in a batch of three, the first and the last."""
    return InlineRows(staging, {"genesis.agent.rated": RATED}, OFFSETS, partition=3, **more)


def test_a_statement_carries_the_columns_that_it_names() -> None:
    """Of the tables that have rows; a statement that has no rows is left out, and one that is prepared is run again."""
    staging = Staging([AGENTS, MARKETPLACE])
    events = {"genesis.agent.available": AVAILABLE, "genesis.team.formed": RATED, "genesis.agent.rated": RATED[:0]}
    rows, folds = InlineRows(staging, events, OFFSETS, partition=3), InlineFolds(staging)
    assert rows.tables == {"staged_agent_available"}

    prepare, execute = folds_of(folds, [AGENTS], rows)

    ids = ",".join(each.hex() for each in IDS)
    assert execute == f"EXECUTE fold_0 ('{{40,42}}', '{{{ids}}}', '{{{MOMENTS}}}', '{{t,f}}', '{{{MOMENTS}}}')"
    assert prepare.startswith(
        "PREPARE fold_0 (bigint[], uuid[], timestamp with time zone[], boolean[], timestamp with time zone[]) AS WITH"
    )
    assert folds_of(folds, [AGENTS], rows) == [execute]
    assert folds_of(folds, [AGENTS], InlineRows(staging, {}, OFFSETS, partition=3)) == []
    standings_prepare, standings = folds_of(folds, [MARKETPLACE], rows)
    assert standings == f"EXECUTE fold_1 ('{{40,42}}', '{{{ids}}}', '{{t,f}}', '{{{MOMENTS}}}')"
    assert "marketplace_v3.marketplace_standings" in standings_prepare


def test_tables_without_rows_are_empty_in_what_is_prepared() -> None:
    """Each table that a statement reads is known in it, one without rows for Postgres to leave out."""
    prepare, _ = folds_of(
        InlineFolds(staging := Staging([AGENTS])),
        [AGENTS],
        InlineRows(staging, {"genesis.agent.available": AVAILABLE}, OFFSETS, partition=3),
    )
    (empty, filled), own = part(prepare), prepare.partition(" profile AS ")[0]
    assert filled == ["staged_agent_available"]
    assert empty == sorted(AGENTS.reads - {"staged_agent_available"})
    assert all(f"{table} AS " in own for table in AGENTS.reads)


def part(prepare: str) -> tuple[list[str], list[str]]:
    """The tables without rows and with rows of a statement that is prepared."""
    empty, filled = r"(\w+) AS NOT MATERIALIZED \(", r"(\w+) AS \(SELECT [^(]+ FROM unnest"
    return re.findall(empty, prepare), re.findall(filled, prepare)


def test_a_statement_is_prepared_for_each_set_of_tables_with_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until there are too many: then it is run as prepared for more tables, at last for all, where they come empty."""
    monkeypatch.setattr(inline_folds, "SETS_MAX", 2)
    staging = Staging([AGENTS])
    folds = InlineFolds(staging)

    def run(**frames: pl.DataFrame) -> list[str]:
        events = {f"genesis.agent.{name}": frame for name, frame in frames.items()}
        return folds_of(folds, [AGENTS], InlineRows(staging, events, OFFSETS, partition=3))

    first, available = run(available=AVAILABLE)
    second, both = run(onboarded=with_profiles(ONBOARDED), available=AVAILABLE)
    assert [len(part(each)[1]) for each in (first, second)] == [1, 2]
    assert run(available=AVAILABLE) == [available]
    (onboarded,) = run(onboarded=with_profiles(ONBOARDED))
    assert onboarded.startswith("EXECUTE fold_1 (")
    assert onboarded.count("'{}'") == 5  # the columns of available
    assert both.count("'{}'") == 0

    prepare, of_all = folds_of(folds, [AGENTS], InlineRows(staging, AMENDED, OFFSETS, partition=3))
    assert part(prepare) == ([], sorted(AGENTS.reads))
    assert of_all.startswith("EXECUTE fold_2 (")
    assert of_all.count("'{}'") > 5
    assert folds_of(folds, [AGENTS], InlineRows(staging, AMENDED, OFFSETS, partition=3)) == [of_all]


def with_profiles(frame: pl.DataFrame) -> pl.DataFrame:
    """Add the ids of an onboarded event that may be null."""
    nothing = pl.Series([None, None], dtype=pl.Binary)
    return frame.with_columns(industry_id=nothing, job_role_id=nothing, team_id=nothing)


STATE = pl.DataFrame(
    {name: pl.Series([None, None], dtype=pl.Binary) for name in ("industry_id", "job_role_id", "team_id")}
    | {"name": ["a", "b"], "status": ["x", "y"], "available": [True, None], "skill_ids": ONBOARDED["skill_ids"]}
)
AMENDED = {
    "genesis.entity.amended": pl.DataFrame(
        {
            "row": [0, 2], "entity_id": pl.Series(IDS, dtype=pl.Binary), "occurred_at": TIMES, "entity_type": "agent",
            "agent": STATE.to_struct(),
        }
    )
}  # fmt: skip


def test_what_is_prepared_is_forgotten_with_the_session() -> None:
    """Its names begin anew."""

    class Waiting:
        def __init__(self) -> None:
            self.statements: list[str] = []

        def later(self, *statements: str) -> None:
            self.statements += statements

    folds, session = InlineFolds(staging := Staging([LATE])), Waiting()
    before = folds_of(folds, [LATE], rows_of(staging))
    folds.prepare_again(session)  # type: ignore[arg-type]
    assert session.statements == ["DEALLOCATE ALL"]
    assert folds_of(folds, [LATE], rows_of(staging)) == before
    assert before[0].startswith("PREPARE fold_0 ")


def test_every_event_is_read_with_its_type() -> None:
    """In the order of the tables: partition, type and time of each, and its effective offset where that is named."""
    staging = Staging([ACTIVITY, LATE_OF_ALL])
    events = {"genesis.agent.rated": RATED, "genesis.team.formed": RATED[:1]}
    rows = InlineRows(staging, events, OFFSETS, partition=3, effective_offsets=[40, 41, 77])
    prepare, execute = folds_of(InlineFolds(staging), [ACTIVITY], rows)
    types = '"genesis.agent.rated","genesis.agent.rated","genesis.team.formed"'
    moments = f"{MOMENTS},1970-01-01T00:00:00+00:00"
    assert execute == f"EXECUTE fold_0 ('{{3,3,3}}', '{{{types}}}', '{{{moments}}}')"
    assert prepare.count("staged_events AS (SELECT") == 1
    assert "staged_team_formed" not in prepare
    _, execute = folds_of(InlineFolds(staging), [LATE_OF_ALL], rows)
    assert execute == "EXECUTE fold_0 ('{40,77,40}')"


def test_several_models_read_the_same_rows() -> None:
    """Each statement carries those of the tables that it names, whichever statement was before it."""
    models = (LATE, ACTIVITY, LATE_OF_ALL, COUNTED)
    staging = Staging(models)
    folds, rows = InlineFolds(staging), rows_of(staging)
    together = folds_of(folds, models, rows)
    apart = [folds_of(folds, [model], rows_of(staging)) for model in models]
    assert together[1::2] == [execute for (execute,) in apart]
    assert len(set(together)) == 8
    assert together[-1] == "EXECUTE fold_3 ('{40,42}')"


def model_of(name: str, statement: str) -> ReadModel:
    """A model of one statement."""
    return made_model(name, "a bigint", f"INSERT INTO __schema__.t {statement}")


LATE = model_of("late", 'SELECT effective_offset FROM staged_agent_rated ORDER BY effective_offset, "offset"')
LATE_OF_ALL = model_of("late_of_all", "SELECT effective_offset FROM staged_events")
COUNTED = model_of("counted", "SELECT count(*) FROM staged_agent_rated")
CHANGED = model_of("changed", "SELECT change_version FROM staged_agent_rated WHERE change_tenant = 'acme'")


def test_effective_offsets_are_those_of_events_that_have_waited() -> None:
    """They are the offsets unless others are passed."""
    staging = Staging([LATE])
    plain = folds_of(InlineFolds(staging), [LATE], rows_of(staging))[1]
    waited = folds_of(InlineFolds(staging), [LATE], rows_of(staging, effective_offsets=[40, 41, 77]))[1]
    assert plain == "EXECUTE fold_0 ('{40,42}', '{40,42}')"
    assert waited == "EXECUTE fold_0 ('{40,42}', '{40,77}')"


def test_changes_are_read_once_and_where_a_statement_names_them() -> None:
    """Null where there is none; other statements leave the headers alone."""
    staging, asked = Staging([CHANGED, LATE]), []

    def changes() -> list[ChangedVersion | None]:
        asked.append(1)
        return [None, ChangedVersion("genesis", 9), ChangedVersion("acme", 3)]

    rows = rows_of(staging, changes=changes)
    assert folds_of(InlineFolds(staging), [LATE], rows)
    assert not asked
    _, execute = folds_of(InlineFolds(staging), [CHANGED], rows)
    assert execute == "EXECUTE fold_0 ('{NULL,\"acme\"}', '{NULL,3}')"
    assert asked == [1]
    _, execute = folds_of(InlineFolds(staging), [CHANGED], rows_of(staging))
    assert execute == "EXECUTE fold_0 ('{NULL,NULL}', '{NULL,NULL}')"
