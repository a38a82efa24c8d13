"""`plant entities check` and `plant seed`, by the command line: what is found, what is counted, and how they end."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any, NamedTuple
from uuid import UUID

import pytest

from database.connector import connect
from devstack import sql
from entities.agent import Agent
from entities.entity import Entity
from entities.industry import Industry
from entities.job_role import JobRole
from entities.skill import Skill
from entities.store import Written, put
from entities.team import Team
from operations.cli import main as command_line
from operations.seed import BATCH, esco, seed
from tests.conftest import Database as MigratedDatabase
from tests.conftest import SettingsFor
from tests.support.connectors import connected
from tests.support.version_chains import findings

A, B, C = (UUID(int=number) for number in (0xA, 0xB, 0xC))


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.out)
        return found


Plant = Callable[..., Ended]


@pytest.fixture
def plant(database: MigratedDatabase, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plant:
    """Runs a command of `plant` on this test's database."""
    monkeypatch.setenv("PLANT_HOME", "/nonexistent")
    monkeypatch.setenv("PLANT_DATABASE_WRITER_URL", database.writer_url)
    monkeypatch.setenv("PLANT_DATABASE_API_URL", database.api_url)

    def run(*arguments: str) -> Ended:
        code = command_line.run(list(arguments))
        return Ended(code, *capsys.readouterr())

    return run


def write(database: MigratedDatabase, *entities: Entity) -> None:
    """Write entities in their tenant, from plain code."""

    async def work() -> None:
        async with connected(database.writer_url) as connector:
            tenant = entities[0].governance_agent_id
            async with connector.transaction(tenant) as connection:
                await put(connection, entities)

    asyncio.run(work())


def csv_rows(name: str) -> list[dict[str, str]]:
    content = (files("operations.demo") / "data" / name).read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(content)))


def test_nothing_to_find_is_success(plant: Plant, database: MigratedDatabase) -> None:
    """Exit 0, nothing on stdout but an empty list where JSON is asked for, and a line for people."""
    write(database, Agent(id=A, name="one"))
    assert plant("entities", "check") == Ended(0, "", "all entities of genesis fit together: 1 were checked\n")
    found = plant("entities", "check", "--tenant", "genesis", "--output", "json")
    assert (found.code, found.rows, found.err) == (0, [], "all entities of genesis fit together: 1 were checked\n")


@pytest.mark.parametrize("tenant", ["nope", "acme", "Genesis", "genesis "])
def test_a_tenant_that_is_named_and_has_no_entities_is_not_good(
    plant: Plant, database: MigratedDatabase, tenant: str
) -> None:
    """Exit 3: nothing was checked. Nothing on stdout but an empty list."""
    write(database, Agent(id=A, name="one"))
    found = plant("entities", "check", "--tenant", tenant, "--output", "json")
    assert (found.code, found.rows) == (3, [])
    assert "Nothing was checked" in found.err
    assert repr(tenant) in found.err


def test_a_tenant_without_a_name_is_a_usage_error(plant: Plant) -> None:
    """It would mean no tenant."""
    assert plant("entities", "check", "--tenant", "").code == 2


def test_an_empty_database_is_not_said_to_fit_together(plant: Plant) -> None:
    """Where nothing is named, that is no error, but it is not called good."""
    assert plant("entities", "check") == Ended(0, "", "the tenant genesis has no entities: nothing was checked\n")
    assert plant("entities", "check", "--tenant", "genesis").code == 3


def test_entities_that_are_all_deleted_were_checked(plant: Plant, database: MigratedDatabase) -> None:
    """Their versions are left, and their chains are looked at."""
    write(database, Agent(id=A, name="one"))
    sql.execute(database.superuser_url, [f"DELETE FROM entities WHERE id = '{A}'"])
    assert plant("entities", "check", "--tenant", "genesis").code == 0


FINDINGS: dict[str, tuple[list[Entity], list[str], list[dict[str, str]]]] = {
    "a reference to what was never described": (
        [Agent(id=A, name="one", skill_ids={B})],
        [],
        [{"finding": "stub", "entity_type": "agent", "entity_id": str(A), "detail": f"refers to skill {B}"}],
    ),
    "a reference to what is gone": (
        [Agent(id=A, name="one", team_id=B), Team(id=B, name="it", description="x")],
        [f"DELETE FROM entities WHERE id = '{B}'"],
        [{"finding": "missing", "entity_type": "agent", "entity_id": str(A), "detail": f"refers to team {B}"}],
    ),
    "a reference to what is retired": (
        [
            JobRole(id=A, name="one", description="x", industry_id=B),
            Industry(id=B, name="it", description="x"),
        ],
        [f"UPDATE entities SET deleted_at = now(), status = 'retired' WHERE id = '{B}'"],
        [{"finding": "retired", "entity_type": "job_role", "entity_id": str(A), "detail": f"refers to industry {B}"}],
    ),
    "a reference to another kind": (
        [Team(id=A, name="one", description="x", member_ids={B}), Industry(id=B, name="it", description="x")],
        [],
        [{"finding": "wrong kind", "entity_type": "team", "entity_id": str(A), "detail": f"refers to agent {B}"}],
    ),
    "a parent that is not there": (
        [Agent(id=A, name="one", parent_id=B)],
        [],
        [{"finding": "missing", "entity_type": "agent", "entity_id": str(A), "detail": f"refers to parent {B}"}],
    ),
    "a name that several have": (
        [Agent(id=A, name="Same"), Agent(id=B, name="same"), Industry(id=C, name="Same", description="x")],
        [],
        [{"finding": "name clash", "entity_type": "agent", "entity_id": str(A), "detail": "2 are called 'Same'"}],
    ),
    "an entity without a row of its kind": (
        [Agent(id=A, name="one")],
        [f"DELETE FROM agents WHERE id = '{A}'"],
        [{"finding": "wrong row", "entity_type": "agent", "entity_id": str(A), "detail": "has no row as agent"}],
    ),
    "an entity with a row of another kind": (
        [Agent(id=A, name="one")],
        [f"INSERT INTO teams (id, name) VALUES ('{A}', 'one')"],
        [{"finding": "wrong row", "entity_type": "agent", "entity_id": str(A), "detail": "has a row as team"}],
    ),
    "a described entity that passes as a stub": (
        [Agent(id=A, name="one")],
        ["UPDATE entities SET status = 'stub'"],
        [
            {
                "finding": "wrong row",
                "entity_type": "agent",
                "entity_id": str(A),
                "detail": "is described, and its status is stub",
            }
        ],
    ),
    "an e-mail address, written with SQL": (
        [Skill(id=A, name="one", description="x", category="technical")],
        ["UPDATE skills SET description = 'ask ada@example.org'"],
        [
            {
                "finding": "rule broken",
                "entity_type": "skill",
                "entity_id": str(A),
                "detail": "L0-05: it holds an e-mail address",
            }
        ],
    ),
    "a row behind the triggers": (
        [Agent(id=A, name="one")],
        ["SET session_replication_role = replica", "UPDATE agents SET available = true"],
        [
            {
                "finding": "tampered",
                "entity_type": "agent",
                "entity_id": str(A),
                "detail": "is not what its newest version says",
            }
        ],
    ),
    "a version behind the triggers": (
        [Agent(id=A, name="one")],
        ["SET session_replication_role = replica", "UPDATE entity_versions SET recorded_by = 'nobody'"],
        [
            {
                "finding": "broken chain",
                "entity_type": "agent",
                "entity_id": str(A),
                "detail": "version 1: its hash is not that of its contents",
            }
        ],
    ),
}


@pytest.mark.parametrize("what", FINDINGS)
def test_each_kind_of_finding_is_told(plant: Plant, database: MigratedDatabase, what: str) -> None:
    """Exit 3, the finding as JSON on stdout, and what to do next on stderr; in another tenant there is none."""
    entities, statements, expected = FINDINGS[what]
    write(database, *entities)
    if statements:
        sql.execute(database.superuser_url, statements)
    found = plant("entities", "check", "--output", "json")
    assert (found.code, found.rows) == (3, expected)
    assert "1 findings of the tenant genesis." in found.err
    assert "plant entities check --output json" in found.err
    elsewhere = plant("entities", "check", "--governance", "acme", "--output", "json")
    assert (elsewhere.code, elsewhere.rows) == (3, [])
    assert "Nothing was checked" in elsewhere.err


def test_findings_are_a_table_for_people(plant: Plant, database: MigratedDatabase) -> None:
    """A line each, under a heading."""
    write(database, Agent(id=A, name="one", skill_ids={B, C}))
    lines = plant("entities", "check").out.splitlines()
    assert lines[0].split() == ["finding", "entity", "type", "entity", "id", "detail"]
    assert [line.split()[0] for line in lines[1:]] == ["stub", "stub"]


def test_what_is_retired_may_refer_to_anything(plant: Plant, database: MigratedDatabase) -> None:
    """Its references are not looked at, nor is its name."""
    write(database, Agent(id=A, name="one", team_id=B), Agent(id=C, name="one"))
    sql.execute(
        database.superuser_url, [f"UPDATE entities SET deleted_at = now(), status = 'retired' WHERE id = '{A}'"]
    )
    assert plant("entities", "check").code == 0


def test_a_check_with_too_many_rights_is_refused(
    plant: Plant, database: MigratedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who passes by the policies would see all tenants as one: exit 2."""
    monkeypatch.setenv("PLANT_DATABASE_API_URL", database.superuser_url)
    assert plant("entities", "check").code == 2


def test_a_check_without_a_database_is_unreachable(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 4, and no finding."""
    monkeypatch.setenv("PLANT_DATABASE_API_URL", "postgresql://plant_api@127.0.0.1:1/plant")
    assert plant("entities", "check", "--output", "json")[:2] == (4, "")


def test_seeding_twice_changes_nothing(plant: Plant, database: MigratedDatabase) -> None:
    """As many as ESCO's files have, with their texts and links; the second time all are unchanged, and all fits."""
    skills, occupations = csv_rows("skills.csv"), csv_rows("occupations.csv")
    total = len(skills) + len(occupations)
    first = plant("seed", "--output", "json")
    assert (first.code, first.rows) == (0, [{"created": total, "changed": 0, "unchanged": 0}]), first.err
    counts = "SELECT (SELECT count(*) FROM skills) || ' ' || (SELECT count(*) FROM job_roles)"
    assert sql.value(database.superuser_url, counts) == f"{len(skills)} {len(occupations)}"
    labels = {row["label"] for row in skills}
    links = sum(len(labels & set(row["skill_labels"].split("|"))) for row in occupations)
    assert sql.value(database.superuser_url, "SELECT count(*) FROM job_role_skills") == links
    described = "SELECT s.description FROM skills s JOIN entities USING (id) WHERE external_id = "
    assert sql.value(database.superuser_url, f"{described} '{skills[7]['uri']}'") == skills[7]["description"]
    rows = "SELECT md5(string_agg(e::text, '' ORDER BY id)) FROM entities e"
    before = sql.value(database.superuser_url, rows)
    second = plant("seed", "--output", "json")
    assert (second.code, second.rows) == (0, [{"created": 0, "changed": 0, "unchanged": total}])
    assert sql.value(database.superuser_url, rows) == before
    assert plant("entities", "check").code == 0
    elsewhere = plant("seed", "--tenant", "acme")
    assert elsewhere.code == 1
    assert "not of this tenant" in elsewhere.err


async def test_an_interrupted_seeding_goes_on(database: MigratedDatabase, settings_for: SettingsFor) -> None:
    """What was committed before it stopped is unchanged the next time, and the rest is created; no stub is left."""
    entities = esco("acme")
    connector = connect(settings_for(database), "writer")
    done: list[int] = []

    def stop(more: int) -> None:
        done.append(more)
        if len(done) == 3:
            raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            await seed(connector, entities, stop)
        written = await seed(connector, esco("acme"), lambda _: None)
    finally:
        await connector.close()
    assert done == [BATCH] * 3
    assert [len(ids) for ids in written] == [len(entities) - 3 * BATCH, 0, 3 * BATCH]
    assert await findings(database.api_url, "acme") == []


async def test_seeding_nothing(database: MigratedDatabase) -> None:
    """No entities: nothing is written, and that is no error."""
    async with connected(database.writer_url) as connector:
        assert await seed(connector, [], lambda _: None) == Written()
