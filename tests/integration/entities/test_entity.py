"""The mapped classes on a real database: all five kinds there and back, their limits, and what is judged on the way."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import asyncpg
import numpy as np
import pytest
import pytest_asyncio
from sqlalchemy import select, text
from sqlalchemy.orm import undefer

from database.connector import Database
from database.errors import ConstraintRefused, RowRefused
from entities.agent import Agent, AgentSkill
from entities.entity import Entity, child_ids
from entities.errors import ConstitutionBroken, EntityInvalid
from entities.industry import Industry
from entities.job_role import JobRole
from entities.skill import Skill
from entities.store import put
from entities.structure import CHECKS
from entities.team import Team
from entities.vocabulary import ALIGNMENTS, ENTITY_TYPES, SENIORITIES, SKILL_CATEGORIES, STUB, TAGS_MAX
from tests.conftest import Database as MigratedDatabase
from tests.support import factories, log_rows
from tests.support.connectors import connected
from tests.support.direct_changes import KINDS, TABLES, changing, insert
from tests.support.factories import make_agent, make_industry, make_job_role, make_skill, make_team, seeded_embedding
from tests.support.services import Services
from tests.support.version_chains import findings, states_of

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
MAKERS = {
    Agent: make_agent,
    Skill: make_skill,
    JobRole: make_job_role,
    Industry: make_industry,
    Team: make_team,
}
EVERYTHING: dict[str, Any] = {
    "external_id": "http://data.europa.eu/esco/skill/größe",
    "evolution_markers": {"stage": 2},
    "tags": ["ü", "second"],
    "custom_attributes": {"nested": [1, 2.5, None, True, {"ключ": "значение"}]},
    "governance_notes": "Zeile 1\nZeile 2",
}


@pytest.fixture(scope="module")
def migrated(stack: Services, template_database: str) -> Iterator[MigratedDatabase]:
    """One migrated database for this module; each test looks at entities of its own."""
    with log_rows.migrated_database(stack, template_database) as made:
        yield made


@pytest_asyncio.fixture
async def database(migrated: MigratedDatabase) -> AsyncIterator[Database]:
    """A connector as the writer."""
    async with connected(migrated.writer_url) as connector:
        yield connector


def given(entity: Entity) -> dict[str, Any]:
    """Its fields, less what the database writes when a transaction commits."""
    late = {"version_hash", "hash_chain_sha256", "updated_at"}
    return {name: value for name, value in entity.fields().items() if name not in late}


async def change(database: Database, entity: Entity, fields: dict[str, Any]) -> None:
    async with database.session("genesis") as session:
        found = await session.get_one(Entity, entity.id)
        for name, value in fields.items():
            setattr(found, name, value)


@pytest.mark.parametrize("kind", MAKERS)
async def test_a_kind_goes_there_and_comes_back(database: Database, kind: type[Entity]) -> None:
    """Every field that was given, however it is asked for: as its kind, as an entity, by id; with its hashes."""
    wanted = {**EVERYTHING, "external_id": f"there and back: {kind.__name__}", "parent_id": uuid4()}
    async with database.session("genesis") as session:
        made = await MAKERS[kind](session, **wanted)
    async with database.session("genesis") as session:
        by_id = await session.get(Entity, made.id)
        as_kind = (await session.scalars(select(kind).where(kind.id == made.id))).one()
        as_entity = (await session.scalars(select(Entity).where(Entity.id == made.id))).one()
    assert by_id is as_kind is as_entity
    assert type(as_kind) is kind
    assert given(as_kind) == given(made)
    assert {name: as_kind.fields()[name] for name in wanted} == wanted
    assert [len(found or b"") for found in (as_kind.version_hash, as_kind.hash_chain_sha256)] == [32, 32]
    assert repr(as_kind) == f"{kind.__name__}({made.id})"


async def test_entities_of_all_kinds_are_loaded_as_what_they_are(database: Database) -> None:
    """One query of entities gives each in its own class, with what it is linked to."""
    async with database.session("genesis") as session:
        made = [await make(session, tags=["all kinds"]) for make in MAKERS.values()]
    async with database.session("genesis") as session:
        query = select(Entity).where(Entity.tags == ["all kinds"]).order_by(Entity.id)
        found = (await session.scalars(query)).all()
        assert [(type(each), each.id) for each in found] == sorted(
            ((type(each), each.id) for each in made), key=lambda pair: pair[1]
        )
        agent = next(each for each in found if isinstance(each, Agent))
        assert await session.run_sync(lambda _: agent.skill_ids) == set()


async def test_stubs_are_loaded_as_entities(database: Database) -> None:
    """What is only referred to has no name: it is an Entity and no Skill, and its state says so."""
    identity = uuid4()
    async with database.transaction("genesis") as connection:
        await make_job_role(connection, required_skill_ids={identity})
    async with database.session("genesis") as session:
        stub = await session.get_one(Entity, identity)
        assert (type(stub), stub.entity_type, stub.status) == (Entity, "skill", STUB)
        assert stub.is_stub
        assert await session.get(Skill, identity) is None
        own = Entity(entity_type="agent")
        session.add(own)
        stub.tags = ["awaited"]
    async with database.session("genesis") as session:
        assert (await session.get_one(Entity, identity)).tags == ["awaited"]
        assert (await session.get_one(Entity, own.id)).is_stub


async def test_changes_are_written_and_judged(database: Database, migrated: MigratedDatabase) -> None:
    """A changed object is one version, with the verdicts; `updated_at` follows, `created_at` stays."""
    async with database.session("genesis") as session:
        made = await make_skill(session, name="first", description="")
        assert made.amendment_alignment == "drifted"
        assert made.drift_detector == {"L1-03": "it has no description"}
    async with database.session("genesis") as session:
        found = await session.get_one(Skill, made.id)
        found.name, found.description = "second", "Asks for rows."
        found.amend(at=NOW, by="genesis", reason="It had no description.")
        await session.flush()
        await session.refresh(found)
        assert found.updated_at > found.created_at == made.created_at
        assert found.amendment_alignment == "aligned"
    states = await states_of(migrated.superuser_url, made.id)
    assert [state["name"] for state in states] == ["first", "second"]
    assert states[1]["amendment_history"][0]["reason"] == "It had no description."


async def test_what_may_not_be_written_is_refused_before_it_is(database: Database) -> None:
    """New and changed objects meet structure and L0 rules in the flush; nothing of them is written."""
    async with database.session("genesis") as session:
        made = await make_skill(session, amendment_history=[{"at": "now", "by": "genesis", "reason": "A test."}])
    changes: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"name": ""}, EntityInvalid, "name must have 1 to 200 characters"),
        ({"description": "ada@example.org"}, ConstitutionBroken, "L0-05"),
        ({"amendment_history": []}, ConstitutionBroken, "L0-04"),
        ({"append_only": False}, ConstitutionBroken, "L0-02"),
        ({"status": STUB}, EntityInvalid, "status must be stub"),
        ({"tags": ["x"] * (TAGS_MAX + 1)}, EntityInvalid, "tags must be at most 50"),
    ]
    for fields, error, why in changes:
        with pytest.raises(error, match=why):
            await change(database, made, fields)
        if "amendment_history" not in fields:
            with pytest.raises(error, match=why):
                async with database.session("genesis") as session:
                    await make_skill(session, **fields)
    async with database.session("genesis") as session:
        assert given(await session.get_one(Skill, made.id)) == given(made)


@pytest.mark.parametrize(
    ("kind", "field", "limit"),
    [(Agent, "skill_ids", 1000), (JobRole, "required_skill_ids", 1000), (Team, "member_ids", 1000)],
)
async def test_lists_of_ids_are_sets(database: Database, kind: type[Entity], field: str, limit: int) -> None:
    """Ids are added and taken away as from any set, in the entity's tenant, and one too many is refused."""
    first, second, third = (uuid4() for _ in range(3))
    async with database.session("acme") as session:
        made = await MAKERS[kind](session, governance_agent_id="acme", **{field: [first, second, first]})
        assert getattr(made, field) == {first, second}
    async with database.session("acme") as session:
        ids = getattr(await session.get_one(kind, made.id), field)
        ids.add(third)
        ids.discard(first)
    async with database.session("acme") as session:
        found = await session.get_one(kind, made.id)
        assert getattr(found, field) == {second, third}
        links = getattr(found, kind.id_lists[field])
        assert {link.governance_agent_id for link in links} == {"acme"}
    with pytest.raises(EntityInvalid, match=f"{field} must have at most {limit} ids"):
        async with database.session("acme") as session:
            getattr(await session.get_one(kind, made.id), field).update(uuid4() for _ in range(limit))


async def test_a_deleted_entity_takes_its_rows_with_it(database: Database, migrated: MigratedDatabase) -> None:
    """Its row of its kind and its links go; those that it was linked to stay, and the deletion is a version."""
    async with database.session("genesis") as session:
        made = await make_agent(session, linked=True)
        skills = set(made.skill_ids)
    async with database.session("genesis") as session:
        await session.delete(await session.get_one(Agent, made.id))
    async with database.session("genesis") as session:
        assert await session.get(Entity, made.id) is None
        assert (await session.scalars(select(AgentSkill).where(AgentSkill.agent_id == made.id))).all() == []
        assert set(await session.scalars(select(Skill.id).where(Skill.id.in_(skills)))) == skills
    assert len(await states_of(migrated.superuser_url, made.id)) == 2


async def test_children_are_those_whose_parent_it_is(database: Database) -> None:
    """Sorted, of whatever kind, retired ones included."""
    async with database.session("genesis") as session:
        parent = await make_team(session)
        children = [await make(session, parent_id=parent.id) for make in (make_agent, make_team, make_skill)]
        children[0].retire(NOW)
        await session.flush()
        assert await child_ids(session, parent) == sorted(child.id for child in children)
        assert await child_ids(session, children[0]) == []


async def test_a_retired_entity_stays(database: Database) -> None:
    """With the time and the state; it is aligned."""
    async with database.session("genesis") as session:
        made = await make_industry(session)
        made.retire(NOW)
    async with database.session("genesis") as session:
        found = await session.get_one(Industry, made.id)
        assert (found.status, found.deleted_at, found.amendment_alignment) == ("retired", NOW, "aligned")


@pytest.mark.parametrize("kind", [Skill, Industry])
async def test_embeddings_are_loaded_when_asked_for(database: Database, kind: type[Entity]) -> None:
    """384 floats of four bytes; seeded ones here, which mean nothing."""
    async with database.session("genesis") as session:
        made = await MAKERS[kind](session, embedding=seeded_embedding(7))
    async with database.session("genesis") as session:
        assert "embedding" not in (await session.get_one(kind, made.id)).fields()
        everything = undefer(kind.embedding)  # type: ignore[attr-defined]
        found = (await session.scalars(select(kind).where(kind.id == made.id).options(everything))).one()
        assert np.allclose(found.fields()["embedding"], seeded_embedding(7), atol=1e-6)
    with pytest.raises(EntityInvalid, match="embedding must have 384 dimensions"):
        async with database.session("genesis") as session:
            await MAKERS[kind](session, embedding=[1.0])


async def test_external_ids_are_unique_in_their_tenant(database: Database) -> None:
    """Across kinds; another tenant may have the same one, and any number have none."""
    async with database.session("genesis") as session:
        await make_skill(session, external_id="once")
        await make_skill(session)
    async with database.session("acme") as session:
        await make_agent(session, external_id="once", governance_agent_id="acme")
    with pytest.raises(ConstraintRefused, match="entities_external_id"):
        async with database.session("genesis") as session:
            await make_agent(session, external_id="once")


async def test_an_entity_is_written_only_in_its_tenant(database: Database) -> None:
    """A transaction of another tenant can't write it, nor see it."""
    with pytest.raises(RowRefused):
        async with database.session("genesis") as session:
            await make_skill(session, governance_agent_id="acme")
    async with database.session("acme") as session:
        made = await make_skill(session, governance_agent_id="acme")
    async with database.session("genesis") as session:
        assert await session.get(Entity, made.id) is None


JSON = ("amendment_history", "evolution_markers", "l0_compliance_status", "drift_detector", "custom_attributes")
# Table, column and values at the edge of what the classes allow; then values beyond it.
LIMITS: list[tuple[str, str, list[Any], list[Any]]] = [
    ("entities", "entity_type", [], ["stub", ""]),
    ("entities", "external_id", [None, "x", "x" * 200], ["", "x" * 201]),
    ("entities", "status", ["x", "🜚" * 200], ["", "x" * 201]),
    ("entities", "amendment_alignment", list(ALIGNMENTS), ["", "Aligned"]),
    ("entities", "amendment_history", [[], [{"by": "x"}]], [{}, 1]),
    ("entities", "evolution_markers", [{}], [[], None]),
    ("entities", "l0_compliance_status", [{}], [[]]),
    ("entities", "drift_detector", [{}], [[]]),
    ("entities", "custom_attributes", [{}], [[], "x"]),
    ("entities", "append_only", [True], [False]),
    ("entities", "tamper_proof", [True], [False]),
    ("entities", "tags", [[], ["x"] * TAGS_MAX], [["x"] * (TAGS_MAX + 1)]),
    ("entities", "governance_notes", ["", "x" * 10_000], ["x" * 10_001]),
    *[(TABLES[kind], "name", ["x", "🜚" * 200], ["", "x" * 201]) for kind in KINDS],
    *[(TABLES[kind], "description", ["", "x" * 10_000], ["x" * 10_001]) for kind in KINDS if kind != "agent"],
    ("skills", "category", list(SKILL_CATEGORIES), ["", "Technical"]),
    ("job_roles", "seniority", [None, *SENIORITIES], ["", "principal"]),
]


@pytest.mark.parametrize(("table", "column", "good", "bad"), LIMITS, ids=[f"{limit[0]}.{limit[1]}" for limit in LIMITS])
async def test_the_tables_hold_to_the_limits_of_the_classes(
    migrated: MigratedDatabase, table: str, column: str, good: list[Any], bad: list[Any]
) -> None:
    """Whoever writes with SQL meets the same limits: what the classes take is taken, what they refuse is refused."""
    kind = next((kind for kind, its in TABLES.items() if its == table), "skill")
    async with changing(migrated.owner_url) as connection:
        entity_id = await insert(connection, kind)
        for value, fits in [*((value, True) for value in good), *((value, False) for value in bad)]:
            if column in CHECKS and column not in {"append_only", "tamper_proof"}:  # Those are rules.
                assert (CHECKS[column](value) == "") is fits
            sent = json.dumps(value) if column in JSON else value
            savepoint = connection.transaction()
            await savepoint.start()
            try:
                await connection.execute(f"UPDATE {table} SET {column} = $1 WHERE id = $2", sent, entity_id)
                written = True
            except asyncpg.IntegrityConstraintViolationError:
                written = False
            await (savepoint.commit() if written else savepoint.rollback())
            assert written is fits, value


async def test_defaults_of_the_classes_are_those_of_the_tables(database: Database) -> None:
    """A row that SQL inserts with as little as it must is the same as an object of as little."""
    async with database.session("genesis") as session:
        made = await make_agent(session, name="least", available=False)
        identity = uuid4()
        await session.execute(
            text("INSERT INTO entities (id, entity_type) VALUES (:id, 'agent')").bindparams(id=identity)
        )
        await session.execute(text("INSERT INTO agents (id, name) VALUES (:id, 'least')").bindparams(id=identity))
        found = (await session.get_one(Agent, identity)).fields()
    judged = {"l0_compliance_status": {}, "amendment_alignment": "unknown", "drift_detector": {}}
    assert found == {**made.fields(), **judged, "id": identity}


async def test_every_kind_is_mapped_and_made(database: Database, migrated: MigratedDatabase) -> None:
    """The kinds that there are, the classes that map them, and the factories are the same five."""
    kinds = {mapper.polymorphic_identity for mapper in Entity.__mapper__.self_and_descendants} - {STUB}
    assert kinds == set(ENTITY_TYPES) == {kind.__mapper__.polymorphic_identity for kind in MAKERS}


async def test_factories_make_valid_entities_into_sessions_and_connections(
    database: Database, migrated: MigratedDatabase
) -> None:
    """Linked or not, in any tenant: all of what they make fits together, and names and ids are each their own."""
    made: list[Entity] = []
    async with database.session("made") as session:
        made += [await make(session, governance_agent_id="made") for make in MAKERS.values()]
        made += [await make(session, linked=True, governance_agent_id="made") for make in (make_agent, make_team)]
    async with database.transaction("made") as connection:
        made += [await make(connection, governance_agent_id="made") for make in MAKERS.values()]
        made.append(await make_job_role(connection, linked=True, governance_agent_id="made"))
    assert len({each.id for each in made}) == len({each.fields()["name"] for each in made}) == len(made)
    assert await findings(migrated.api_url, "made") == []
    agent, team, role = made[5], made[6], made[-1]
    assert isinstance(agent, Agent)
    assert len(agent.skill_ids) == 2
    assert agent.job_role_id
    assert agent.team_id
    assert isinstance(team, Team)
    assert len(team.member_ids) == 2
    assert isinstance(role, JobRole)
    assert len(role.required_skill_ids) == 2


def test_a_seed_draws_the_same_again() -> None:
    """Of one number always the same values, of another number others."""
    one, again, other = factories.Draw(3), factories.Draw(3), factories.Draw(4)
    assert (one.id(), one.name("skill"), one.description()) == (again.id(), again.name("skill"), again.description())
    assert one.id() != other.id()
    assert seeded_embedding(3) == seeded_embedding(3) != seeded_embedding(4)


async def test_a_described_entity_can_be_put_and_then_loaded(database: Database) -> None:
    """What `put` writes, links included, the classes read; a field at a time or all."""
    async with database.transaction("genesis") as connection:
        role = JobRole(name="Keeper", description="Keeps.", required_skill_ids={uuid4()}, seniority="mid")
        await put(connection, [role])
    async with database.session("genesis") as session:
        found = await session.get_one(JobRole, role.id)
        assert (found.name, found.seniority, found.required_skill_ids) == ("Keeper", "mid", role.required_skill_ids)
