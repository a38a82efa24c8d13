"""Verifying ranges, several chains and in parallel; who may change the log; what the docs promise outsiders."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from audit.verifier import chains as verification
from audit.verifier.chain_range import Chain
from audit.verifier.chains import read_heads, verify_chains
from audit.verifier.errors import BadIdsFile, LogUnreadable
from audit.verifier.stored_log import _ROWS, PLANNER
from database.errors import DatabaseUnreachable
from devstack import sql
from tests.conftest import Database
from tests.support import ROOT, log_rows
from tests.support.log_rows import Row
from tests.support.services import Services

REGISTRY = ROOT / "schemas" / "registry.json"
NOWHERE = "postgresql://plant_auditor@127.0.0.1:1/plant"
LOG = ("log_records", 'log."genesis.events/0"', 'log."genesis.events/0/0"')


def tamper(log_database: Database, statement: str) -> None:
    sql.execute(log_database.superuser_url, ["SET session_replication_role = replica", statement])


def test_an_empty_log_has_no_chains(log_database: Database) -> None:
    """Nothing to check is no error, a chain that is asked for by name has 0 entries, a bad ids file is refused."""
    assert verify_chains(log_database.auditor_url, jobs=1) == []
    assert read_heads(log_database.auditor_url) == []
    with pytest.raises(BadIdsFile):
        verify_chains(log_database.auditor_url, jobs=1, schema_ids=ROOT / "missing.json")
    (verdict,) = verify_chains(log_database.auditor_url, jobs=1, chains=[Chain("genesis.events", 5)])
    assert (verdict.partition, verdict.entries, verdict.head_hash, verdict.finding) == (5, 0, None, None)


def test_gaps_of_any_size_are_accepted(log_database: Database) -> None:
    """Offsets far apart are one chain, and checking it does not walk through every offset between."""
    places = (0, 1, 50, 1_000_000, 1_300_000)
    rows = [log_rows.row("t", 0, offset, log_rows.onboarded(offset)) for offset in places]
    log_rows.store(log_database, log_rows.linked(rows))
    far = [log_rows.poison("t", 1, offset, None, None) for offset in (7, 2**62)]
    log_rows.store(log_database, log_rows.linked(far))
    near, wide = verify_chains(log_database.auditor_url, jobs=1)
    assert (near.entries, near.head_offset, near.finding) == (5, 1_300_000, None)
    assert (wide.entries, wide.head_offset, wide.finding) == (2, 2**62, None)


def test_a_range_is_checked_from_the_entry_before_it(log_database: Database, stored_log: list[Row]) -> None:
    """A range that starts later takes the stored hash before it; what is outside is not looked at."""
    tamper(log_database, "UPDATE log_records SET key = 'x' WHERE \"offset\" = 8")
    (after,) = verify_chains(log_database.auditor_url, jobs=1, first=9, last=14)
    (before,) = verify_chains(log_database.auditor_url, jobs=1, last=7)
    (within,) = verify_chains(log_database.auditor_url, jobs=1, first=5, last=8)
    assert (after.entries, after.head_offset, after.finding) == (4, 14, None)
    assert (before.entries, before.head_offset, before.finding) == (5, 7, None)
    assert within.finding is not None
    assert within.finding.offset == 8


def test_a_range_beyond_the_end_is_empty(log_database: Database, stored_log: list[Row]) -> None:
    """A range without entries is no finding."""
    (verdict,) = verify_chains(log_database.auditor_url, jobs=1, first=1000)
    assert (verdict.entries, verdict.finding) == (0, None)


def test_chains_are_chosen_by_topic_partition_or_name(log_database: Database) -> None:
    """Each way to choose leaves the other chains alone."""
    for topic, partition in (("a", 0), ("a", 1), ("b", 0)):
        log_rows.store(log_database, log_rows.linked([log_rows.poison(topic, partition, 0, None, None)]))

    def names(**choice: Any) -> list[str]:
        return [f"{each.topic}/{each.partition}" for each in verify_chains(log_database.auditor_url, jobs=1, **choice)]

    assert names() == ["a/0", "a/1", "b/0"]
    assert names(topic="a") == ["a/0", "a/1"]
    assert names(partition=0) == ["a/0", "b/0"]
    assert names(topic="b", partition=1) == []
    assert names(chains=[Chain("a", 1), Chain("b", 0)]) == ["a/1", "b/0"]
    assert names(expect=read_heads(log_database.auditor_url), topic="b") == ["b/0"]


def test_schemas_of_an_external_registry_are_judged_by_its_ids_file(log_database: Database, tmp_path: Path) -> None:
    """Without the file the entry can't be judged; with it, its columns are compared."""
    event = log_rows.onboarded(1)
    row = log_rows.row("t", 0, 0, event)
    assert row.value is not None
    external = replace(row, value=struct.pack(">bi", 0, 70_000) + row.value[5:])
    log_rows.store(log_database, log_rows.linked([external]))
    entry = next(each for each in json.loads(REGISTRY.read_text("utf-8")) if each["id"] == row.value[4])
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps([{"id": 70_000, "own_id": entry["id"], "sha256": entry["sha256"]}]))
    (unknown,) = verify_chains(log_database.auditor_url, jobs=1)
    (known,) = verify_chains(log_database.auditor_url, jobs=1, schema_ids=ids)
    assert (unknown.finding, known.finding) == (None, None)
    assert unknown.unjudged is not None
    assert known.unjudged is None
    tamper(log_database, "UPDATE log_records SET entity_type = 'skill'")
    (wrong,) = verify_chains(log_database.auditor_url, jobs=1, schema_ids=ids)
    assert wrong.finding is not None


@pytest.mark.parametrize("bad_offset", [None, 3, 13, 25])
def test_parallel_equals_serial(
    log_database: Database, stored_log: list[Row], monkeypatch: pytest.MonkeyPatch, bad_offset: int | None
) -> None:
    """Many small ranges over two processes give the verdicts of one range in one, good or bad."""
    log_rows.store(log_database, log_rows.log("genesis.events", 1))
    if bad_offset is not None:
        tamper(log_database, f"UPDATE log_records SET key = 'x' WHERE \"offset\" IN ({bad_offset}, {bad_offset + 2})")
    serial = verify_chains(log_database.auditor_url, jobs=1)
    monkeypatch.setattr(verification, "RANGE_OFFSETS", 5)
    done: list[tuple[int, int]] = []
    planned: list[int] = []
    parallel = verify_chains(
        log_database.auditor_url, jobs=2, planned=planned.append, progress=lambda offsets, _: done.append((offsets, _))
    )
    assert parallel == serial
    assert planned == [46]
    assert (len(done), sum(offsets for offsets, _ in done)) == (10, 46)


def test_rows_are_read_in_order_without_sorting(log_database: Database, stored_log: list[Row]) -> None:
    """The plan of the big query scans the primary key of each range in order: no sort, no hash table."""

    async def plan(connection: Any) -> str:
        rows = _ROWS.format(table='log."genesis.events/0/0"')
        return "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {rows}", "genesis.events", 0, 0, 10**9))

    async def with_settings(connection: Any) -> str:
        for name, value in PLANNER.items():
            await connection.execute(f"SET {name} = '{value}'")
        return await plan(connection)

    shown = log_rows.on_connection(log_database.auditor_url, with_settings)
    assert 'Index Scan using "genesis.events/0/0_pkey"' in shown
    assert "Sort" not in shown.replace("Sort Key", "")
    assert "Hash" not in shown


@pytest.mark.parametrize("role", ["owner", "writer", "api", "auditor"])
@pytest.mark.parametrize("table", LOG)
@pytest.mark.parametrize(
    "statement", ["UPDATE {} SET partition = partition", "DELETE FROM {}", "TRUNCATE {}", "DELETE FROM {} WHERE false"]
)
def test_no_role_may_change_the_log(
    log_database: Database, stored_log: list[Row], role: str, table: str, statement: str
) -> None:
    """UPDATE, DELETE and TRUNCATE are refused to each service role and, by trigger, to the owner; rows stay."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        sql.execute(getattr(log_database, f"{role}_url"), [statement.format(table)])
    assert sql.value(log_database.superuser_url, f"SELECT count(*) FROM {table}") == len(stored_log)


@pytest.mark.parametrize("role", ["owner", "superuser"])
@pytest.mark.parametrize("table", LOG)
@pytest.mark.parametrize("statement", ["UPDATE {} SET partition = partition", "DELETE FROM {}", "TRUNCATE {}"])
def test_the_trigger_refuses_changes_and_hints_at_a_way(
    log_database: Database, stored_log: list[Row], role: str, table: str, statement: str
) -> None:
    """Those who have the right meet the trigger, which names table and statement and hints at a correcting event."""
    name = table.removeprefix('log."').removesuffix('"')
    refused = f"{name} is append-only: {statement.split()[0]} refused"
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match=refused) as error:
        sql.execute(getattr(log_database, f"{role}_url"), [statement.format(table)])
    assert "correcting event" in str(error.value.hint)  # type: ignore[attr-defined]


def test_an_upsert_does_not_get_around_the_trigger(log_database: Database, stored_log: list[Row]) -> None:
    """INSERT … ON CONFLICT DO UPDATE is an update, and is refused."""
    conflict = "ON CONFLICT (\"offset\") DO UPDATE SET hash = sha256('x')"
    upsert = f'INSERT INTO log."genesis.events/0/0" SELECT * FROM log_records {conflict}'
    for url in (log_database.owner_url, log_database.writer_url):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            sql.execute(url, [upsert])


def test_a_log_that_is_not_there_or_not_readable_is_named(
    make_database: Callable[[], Database], stack: Services
) -> None:
    """No tables, no rights and no server are three different things, and none of them is a verdict."""
    log_database = make_database()
    with pytest.raises(DatabaseUnreachable, match="nothing listens"):
        verify_chains(NOWHERE)
    with pytest.raises(LogUnreadable, match="log_records"):
        verify_chains(urlsplit(stack.superuser_url)._replace(path="/postgres").geturl())
    sql.execute(log_database.superuser_url, ["REVOKE SELECT ON log_records FROM plant_auditor"])
    with pytest.raises(LogUnreadable, match="permission denied"):
        verify_chains(log_database.auditor_url)
