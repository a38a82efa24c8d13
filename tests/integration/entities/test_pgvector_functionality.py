"""Vectors in Postgres: stored as given, refused when they are none, and found again by nearest neighbours.

No model made these vectors: they are seeded (`tests/support/seeded_vectors.py`), or written out as plain directions.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg
import numpy as np
import pytest
import pytest_asyncio
from sqlalchemy import TextClause, select, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import undefer

from database.connector import Database, connect
from database.errors import ConstraintRefused, ValueRefused
from entities.agent import Agent
from entities.embedding import direction
from entities.entity import Entity
from entities.errors import EntityInvalid, SearchRefused, VectorRefused
from entities.industry import Industry
from entities.neighbours import (
    LIMIT_MAX,
    NEAREST_SKILLS,
    agents_with,
    nearest_agents,
    nearest_industries,
    nearest_skills,
)
from entities.skill import Skill
from entities.store import put
from entities.vocabulary import EMBEDDING_DIMENSIONS
from runtime.settings import Settings
from tests.conftest import Database as MigratedDatabase
from tests.support import log_rows
from tests.support.connectors import connected
from tests.support.seeded_vectors import SeededSkills, fill, seeded_skills
from tests.support.services import Services

ROWS = 20_000
AT_LEAST_RECALL = 0.95
QUERIES = 60

PARAMETERS = """SELECT current_setting('hnsw.iterative_scan', true), current_setting('hnsw.ef_search', true)"""

BY_THE_INDEX = "SET LOCAL enable_sort = off"
"""Rows in the order of their distance then come from the index, also where the planner would not use it."""


@pytest.fixture(scope="module")
def skills() -> SeededSkills:
    """20,000 skills: 2 % are of the tenant `small`, 3 % are soft skills."""
    return seeded_skills(ROWS)


@pytest_asyncio.fixture(scope="module")
async def many(stack: Services, template_database: str, skills: SeededSkills) -> AsyncIterator[MigratedDatabase]:
    """A database with these skills. Nothing writes to it."""
    with log_rows.migrated_database(stack, template_database) as made:
        await fill(made.superuser_url, skills)
        yield made


@pytest_asyncio.fixture
async def api(many: MigratedDatabase) -> AsyncIterator[Database]:
    """A connector to the 20,000 skills, as `plant_api`."""
    async with reading(many) as connector:
        yield connector


@asynccontextmanager
async def reading(database: MigratedDatabase, **settings: int) -> AsyncIterator[Database]:
    connector = connect(Settings(database_api_url=database.api_url, **settings), "api")
    try:
        yield connector
    finally:
        await connector.close()


def plain(**parts: float) -> list[float]:
    """A vector along a few axes: `plain(a=1, c=0.5)`."""
    vector = [0.0] * EMBEDDING_DIMENSIONS
    for axis, size in parts.items():
        vector["abcdefgh".index(axis)] = size
    return vector


def skill(name: str, embedding: Sequence[float] | None = None, tenant: str = "genesis") -> Skill:
    made = Skill(name=name, category="technical", description="Of a test.", governance_agent_id=tenant)
    if embedding is not None:
        made.embedding = list(embedding)
    return made


async def write(database: MigratedDatabase, *entities: Entity, tenant: str = "genesis") -> None:
    async with connected(database.writer_url) as connector, connector.transaction(tenant) as connection:
        await put(connection, entities)


async def names(connector: Database, vector: object, tenant: str | None = "genesis", limit: int = 10) -> list[str]:
    async with connector.transaction(tenant) as connection:
        return [found.name for found in await nearest_skills(connection, vector, limit=limit)]


async def recall(connector: Database, skills: SeededSkills, tenant: str, category: str = "", knob: str = "") -> float:
    """The share of the true ten nearest neighbours that searches find. `knob` is SQL that comes before each."""
    queries = skills.queries[:QUERIES]
    found = 0
    for query, true in zip(queries, skills.nearest(queries, 10, tenant, category), strict=True):
        async with connector.transaction(tenant) as connection:
            if knob:
                await connection.execute(text(knob))
            near = await nearest_skills(connection, query, category=category or None)
        assert len(near) == 10
        found += len({each.id for each in near} & set(true))
    return found / (10 * QUERIES)


async def plan(connection: AsyncConnection, statement: TextClause, vector: object, limit: int = 10) -> str:
    given = {"vector": direction(vector).tolist(), "candidates": 2 * limit, "farthest": 2.0, "limit": limit}
    explain = text(f"EXPLAIN {statement.text}")
    rows = await connection.execute(explain, {**given, "category": None, "without": []})
    return "\n".join(rows.scalars())


async def test_the_extension_can_go_on_scanning(api: Database) -> None:
    """pgvector is there, at a version that knows iterative scans, with HNSW indexes by cosine on both tables."""
    async with api.transaction() as connection:
        version = await connection.scalar(text("SELECT extversion FROM pg_extension WHERE extname = 'vector'"))
        indexes = await connection.scalars(text("SELECT indexdef FROM pg_indexes WHERE indexname LIKE '%_embedding'"))
        definitions = sorted(str(each).split(" ON ")[1] for each in indexes)
    assert tuple(map(int, str(version).split("."))) >= (0, 8)
    how = "USING hnsw (embedding vector_cosine_ops)"
    assert definitions == [f"public.industries {how}", f"public.skills {how}"]


async def test_vectors_come_back_as_they_were(database: MigratedDatabase) -> None:
    """Of both kinds, to the last bit of float32; they are loaded only when asked for, and can be missing."""
    vectors = np.random.default_rng(2).standard_normal((2, EMBEDDING_DIMENSIONS)).astype(np.float32)
    written = [skill("with", vectors[0].tolist()), Industry(name="with", description="Of a test.")]
    written[1].embedding = vectors[1].tolist()
    async with connected(database.writer_url) as connector:
        async with connector.session("genesis") as session:
            session.add_all([*written, skill("without")])
        async with connector.session("genesis") as session:
            lazy = (await session.scalars(select(Skill).where(Skill.name == "with"))).one()
            assert "embedding" not in lazy.fields()
        async with connector.session("genesis") as session:
            found = {each.name: each for each in await session.scalars(select(Skill).options(undefer(Skill.embedding)))}
            trade = (await session.scalars(select(Industry).options(undefer(Industry.embedding)))).one()
    assert np.array_equal(np.asarray(found["with"].embedding, np.float32), vectors[0])
    assert np.array_equal(np.asarray(trade.embedding, np.float32), vectors[1])
    assert found["without"].embedding is None


@pytest.mark.parametrize("size", [383, 385])
async def test_wrong_dimensions_are_refused(database: MigratedDatabase, size: int) -> None:
    """By the model before anything is sent, by the database whoever writes, and by the search."""
    wrong = [0.5] * size
    right = skill("right", plain(a=1))
    await write(database, right)
    with pytest.raises(EntityInvalid, match="embedding must have 384 dimensions"):
        await write(database, skill("wrong", wrong))
    async with connected(database.writer_url) as connector, connector.transaction("genesis") as connection:
        change = text("UPDATE skills SET embedding = CAST(CAST(:vector AS real[]) AS vector) WHERE id = :id")
        with pytest.raises((ValueRefused, ConstraintRefused)):
            async with connection.begin_nested():
                await connection.execute(change, {"vector": wrong, "id": right.id})
        with pytest.raises(VectorRefused, match="384 dimensions"):
            await nearest_skills(connection, wrong)
        assert [each.name for each in await nearest_skills(connection, plain(a=1))] == ["right"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
async def test_numbers_that_are_none_are_refused(database: MigratedDatabase, value: float) -> None:
    """NaN and infinity get neither into an entity, nor past the database, nor into a search."""
    wrong = [*plain(a=1)[:-1], value]
    right = skill("right", plain(a=1))
    await write(database, right)
    with pytest.raises(EntityInvalid, match="NaN"):
        await write(database, skill("wrong", wrong))
    async with connected(database.writer_url) as connector, connector.transaction("genesis") as connection:
        change = text("UPDATE skills SET embedding = CAST(CAST(:vector AS real[]) AS vector) WHERE id = :id")
        with pytest.raises(ValueRefused):
            async with connection.begin_nested():
                await connection.execute(change, {"vector": wrong, "id": right.id})
        with pytest.raises(VectorRefused, match="NaN"):
            await nearest_skills(connection, wrong)


async def test_searches_that_make_no_sense_are_refused(api: Database) -> None:
    """Bad limits, bounds, categories and ids are named; the transaction goes on, since nothing was sent."""
    a = plain(a=1)
    async with api.transaction("genesis") as connection:
        refused = {
            "limit": lambda: nearest_skills(connection, a, limit=0),
            f"1 to {LIMIT_MAX}": lambda: nearest_industries(connection, a, limit=LIMIT_MAX + 1),
            "whole number": lambda: nearest_skills(connection, a, limit=True),
            "among": lambda: nearest_agents(connection, a, among=0),
            "from -1 to 1, and is nan": lambda: nearest_skills(connection, a, min_similarity=float("nan")),
            "from -1 to 1, and is 1.5": lambda: nearest_agents(connection, a, min_similarity=1.5),
            "category must be one of": lambda: nearest_skills(connection, a, category="odd"),
            "without must be UUIDs": lambda: nearest_skills(connection, a, without=["x"]),  # type: ignore[list-item]
            "at most 1000 ids": lambda: nearest_skills(connection, a, without=[uuid4()] * 1_001),
            "must not be empty": lambda: agents_with(connection, []),
            "at_least": lambda: agents_with(connection, [uuid4()], at_least=2),
        }
        for message, search in refused.items():
            with pytest.raises(SearchRefused, match=message):
                await search()
        assert len(await nearest_skills(connection, a, limit=LIMIT_MAX)) == LIMIT_MAX


async def test_what_has_no_place_is_left_out(database: MigratedDatabase) -> None:
    """Skills without an embedding, retired ones, and a zero vector that somebody wrote past the model."""
    gone, zero = skill("gone", plain(a=1)), skill("zero", plain(b=1))
    gone.retire(datetime.now(UTC))
    await write(database, skill("here", plain(a=1)), skill("none"), gone, zero)
    async with connected(database.writer_url) as connector, connector.transaction("genesis") as connection:
        change = text("UPDATE skills SET embedding = array_fill(0, ARRAY[384])::vector WHERE id = :id")
        assert (await connection.execute(change, {"id": zero.id})).rowcount == 1
    async with reading(database) as connector:
        assert await names(connector, plain(a=1)) == ["here"]
        assert await names(connector, plain(a=-1)) == ["here"]


async def test_nearest_first_with_their_cosine(database: MigratedDatabase) -> None:
    """Order and similarity are the cosine's, whatever the vectors' lengths; equally near ones come by id."""
    same, twin = sorted([skill("same", plain(a=8)), skill("twin", plain(a=0.125))], key=lambda each: each.id)
    slant, across = skill("slant", plain(a=3, b=4)), skill("across", plain(c=2))
    against = skill("against", plain(a=-1))
    trade = Industry(name="trade", description="Of a test.", embedding=plain(a=1, b=1))
    await write(database, across, against, slant, twin, same, trade)
    async with reading(database) as connector, connector.transaction("genesis") as connection:
        found = await nearest_skills(connection, plain(a=1000))
        assert [each.id for each in found] == [same.id, twin.id, slant.id, across.id, against.id]
        assert [round(each.similarity, 6) for each in found] == [1, 1, 0.6, 0, -1]
        near = await nearest_skills(connection, plain(a=1), min_similarity=0.5, without=[same.id])
        assert [each.id for each in near] == [twin.id, slant.id]
        assert [each.id for each in await nearest_skills(connection, plain(a=1), limit=1)] == [same.id]
        assert await nearest_skills(connection, plain(a=1), category="soft_skill") == []
        (industry,) = await nearest_industries(connection, plain(a=1))
        assert (industry.id, round(industry.similarity, 6)) == (trade.id, round(0.5**0.5, 6))
        assert await nearest_industries(connection, plain(a=1), without=[trade.id]) == []


async def test_recall_of_the_index(api: Database, skills: SeededSkills) -> None:
    """At 20,000 rows a search finds at least 95 % of what comparing every vector finds."""
    assert await recall(api, skills, "genesis") >= AT_LEAST_RECALL


@pytest.mark.parametrize("knob", ["", BY_THE_INDEX], ids=["as planned", "by the index"])
async def test_recall_in_a_small_tenant(api: Database, skills: SeededSkills, knob: str) -> None:
    """A tenant with 2 % of the rows keeps its recall, also where the plan is to filter what the index finds."""
    assert await recall(api, skills, "small", knob=knob) >= AT_LEAST_RECALL


async def test_recall_with_a_filter(api: Database, skills: SeededSkills) -> None:
    """A category with 3 % of the rows keeps its recall."""
    assert await recall(api, skills, "genesis", "soft_skill") >= AT_LEAST_RECALL


async def test_filtered_results_are_in_order(api: Database, skills: SeededSkills) -> None:
    """The index goes on roughly in order; what comes out is sorted all the same, and by the exact distance."""
    vectors = dict(zip(skills.ids, skills.vectors.astype(np.float64), strict=True))
    for query in skills.queries[:30]:
        async with api.transaction("genesis") as connection:
            await connection.execute(text(BY_THE_INDEX))
            found = await nearest_skills(connection, query, limit=60, category="soft_skill")
        distances = [each.distance for each in found]
        assert len(found) == 60
        assert distances == sorted(distances)
        assert np.allclose(distances, [1 - vectors[each.id] @ query for each in found], atol=1e-6)


async def test_other_tenants_stay_out(api: Database, skills: SeededSkills) -> None:
    """Who searches with the very vector of another tenant's skill doesn't find it; without a tenant, nothing."""
    of = dict(zip(skills.ids, skills.tenants, strict=True))
    theirs = skills.tenants.index("genesis")
    for tenant, others in (("small", False), ("genesis", True), (None, False)):
        async with api.transaction(tenant) as connection:
            found = await nearest_skills(connection, skills.vectors[theirs])
        assert (skills.ids[theirs] in {each.id for each in found}) is others
        assert {of[each.id] for each in found} == ({tenant} if tenant else set())


async def test_the_plan_uses_the_index(api: Database, skills: SeededSkills) -> None:
    """With policies on: where most rows are the tenant's own. A sort that the index can't give reads every row."""
    vector = "CAST(CAST(:vector AS real[]) AS vector(384))"
    by_no_index = f"ORDER BY 1 - (1 - (k.embedding <=> {vector})) LIMIT"
    exact = NEAREST_SKILLS.text.replace("ORDER BY distance LIMIT", by_no_index)
    assert exact != NEAREST_SKILLS.text
    async with api.transaction("genesis") as connection:
        await nearest_skills(connection, skills.queries[1])
        searched = await plan(connection, NEAREST_SKILLS, skills.queries[0])
        compared = await plan(connection, text(exact), skills.queries[0])
    assert "Index Scan using skills_embedding on skills" in searched
    assert "plant.governance_agent_id" in searched
    assert "Seq Scan on skills" not in searched
    assert "skills_embedding" not in compared


async def test_each_tenant_has_its_own_plan(many: MigratedDatabase, skills: SeededSkills) -> None:
    """One session serves a large and a small tenant in turn, and no plan of one is kept for the other."""
    async with reading(many, database_pool_size=1) as connector:
        for query in skills.queries[:10]:
            await names(connector, query)
            await names(connector, query, "small")
        async with connector.transaction("small") as connection:
            await nearest_skills(connection, skills.queries[1])
            small = await plan(connection, NEAREST_SKILLS, skills.queries[0])
            kept = await connection.execute(
                text(
                    "SELECT sum(generic_plans), sum(custom_plans) FROM pg_prepared_statements WHERE statement LIKE :of"
                ),
                {"of": "%near AS MATERIALIZED%"},
            )
            generic, custom = kept.one()
    assert "skills_embedding" not in small, "a few hundred rows are read one by one"
    assert generic == 0
    assert custom >= 20


async def test_a_search_leaves_nothing_behind(many: MigratedDatabase) -> None:
    """How the index is searched is set for one transaction, from the session's first search on; it ends with it."""
    async with reading(many) as connector, connector.engine.connect() as connection:
        # Past the connector, which makes a session clean before each transaction.
        await connection.execute(text("SELECT set_config('plant.governance_agent_id', 'genesis', true)"))
        assert len(await nearest_skills(connection, plain(a=1), limit=150)) == 150
        during = (await connection.execute(text(PARAMETERS))).one()
        await connection.commit()
        after = (await connection.execute(text(PARAMETERS))).one()
    assert during == ("relaxed_order", "300")
    assert after == ("relaxed_order", "40")


async def test_what_a_transaction_sets_is_gone_in_the_next(database: MigratedDatabase) -> None:
    """Iterative scans that were turned off in the session are on again: searches rely on it."""
    async with reading(database, database_pool_size=1) as connector:
        async with connector.transaction("genesis") as connection:
            await connection.execute(text("SET hnsw.iterative_scan = off"))
        async with connector.transaction("genesis") as connection:
            assert (await connection.execute(text(PARAMETERS))).one()[0] == "relaxed_order"


async def test_agents_near_a_vector(database: MigratedDatabase) -> None:
    """Ranked by the nearest skill they have, then by how many; filters are of the agents, bounds of their skills."""
    sow, mow, dig = skill("sow", plain(a=1)), skill("mow", plain(a=4, b=3)), skill("dig", plain(a=3, b=4))
    both = Agent(name="both", skill_ids={sow.id, mow.id}, available=True)
    one, far = Agent(name="one", skill_ids={sow.id}), Agent(name="far", skill_ids={dig.id, uuid4()}, available=True)
    gone = Agent(name="gone", skill_ids={sow.id})
    gone.retire(datetime.now(UTC))
    await write(database, sow, mow, dig, both, one, far, gone, Agent(name="idle"))
    theirs = skill("theirs", plain(a=1), "other")
    await write(
        database, theirs, Agent(name="theirs", skill_ids={theirs.id}, governance_agent_id="other"), tenant="other"
    )

    async with reading(database) as connector, connector.transaction("genesis") as connection:
        found = await nearest_agents(connection, plain(a=1))
        assert [(each.name, each.skill_id, round(each.similarity, 6), each.skills_near) for each in found] == [
            ("both", sow.id, 1, 2),
            ("one", sow.id, 1, 1),
            ("far", dig.id, 0.6, 1),
        ]
        assert await nearest_agents(connection, plain(a=1), limit=1) == found[:1]
        near = await nearest_agents(connection, plain(a=1), min_similarity=0.7)
        assert [each.name for each in near] == ["both", "one"]
        assert [each.name for each in await nearest_agents(connection, plain(a=1), available=True)] == ["both", "far"]
        assert [each.name for each in await nearest_agents(connection, plain(a=1), without=[both.id], among=1)] == [
            "one"
        ]


async def test_agents_with_given_skills(database: MigratedDatabase) -> None:
    """All of the skills unless fewer will do; who has most of them comes first, then the lower id."""
    a, b, c = (skill(name) for name in "abc")
    first, second = sorted([Agent(name="ab", skill_ids={a.id, b.id}), Agent(name="ab", skill_ids={a.id, b.id})],
                           key=lambda each: each.id)  # fmt: skip
    every = Agent(name="abc", skill_ids={a.id, b.id, c.id}, available=True)
    gone = Agent(name="gone", skill_ids={a.id})
    gone.retire(datetime.now(UTC))
    await write(database, a, b, c, first, second, every, gone, Agent(name="c", skill_ids={c.id}))

    async def ids(*skill_ids: UUID, **filters: int) -> list[tuple[UUID, int]]:
        async with connector.transaction("genesis") as connection:
            found = await agents_with(connection, skill_ids, **filters)  # type: ignore[arg-type]
        return [(each.id, each.skills_had) for each in found]

    async with reading(database) as connector:
        assert await ids(a.id, b.id, b.id, c.id) == [(every.id, 3)]
        assert await ids(a.id, b.id, c.id, at_least=2) == [(every.id, 3), (first.id, 2), (second.id, 2)]
        assert await ids(a.id, b.id, c.id, at_least=2, limit=2) == [(every.id, 3), (first.id, 2)]
        assert await ids(a.id, available=False) == sorted([(first.id, 1), (second.id, 1)])
        assert await ids(uuid4()) == []
        async with connector.transaction("other") as connection:
            assert await agents_with(connection, [a.id]) == []


async def test_the_index_follows_changes(database: MigratedDatabase) -> None:
    """After a third of the vectors moved and a third of the skills went, searches find what is there, and only that."""
    skills = seeded_skills(900)
    await fill(database.superuser_url, skills)
    moved = seeded_skills(900, seed=2).vectors
    own = [number for number, of in enumerate(skills.tenants) if of == "genesis"]
    change = text("UPDATE skills SET embedding = CAST(CAST(:vector AS real[]) AS vector) WHERE id = :id")
    async with connected(database.writer_url) as connector, connector.transaction("genesis") as connection:
        await connection.execute(change, [{"vector": moved[n].tolist(), "id": skills.ids[n]} for n in own[::3]])
        gone = {skills.ids[n] for n in own[1::3]}
        await connection.execute(text("DELETE FROM entities WHERE id = ANY (:ids)"), {"ids": list(gone)})
    vacuum = await asyncpg.connect(database.superuser_url)
    await vacuum.execute("VACUUM skills")
    await vacuum.close()

    vectors = skills.vectors.copy()
    vectors[own[::3]] = moved[own[::3]]
    left = [number for number in own if skills.ids[number] not in gone]
    now = SeededSkills([skills.ids[n] for n in left], vectors[left], ["genesis"] * len(left), [""] * len(left), moved)
    hits = 0
    async with reading(database) as connector:
        queries = now.queries[:QUERIES]
        for query, true in zip(queries, now.nearest(queries, 10, "genesis"), strict=True):
            async with connector.transaction("genesis") as connection:
                await connection.execute(text(BY_THE_INDEX))
                assert "skills_embedding" in await plan(connection, NEAREST_SKILLS, query)
                found = {each.id for each in await nearest_skills(connection, query)}
            assert not found & gone
            hits += len(found & set(true))
    assert hits / (10 * QUERIES) >= AT_LEAST_RECALL


async def test_searches_go_on_while_skills_are_added(database: MigratedDatabase) -> None:
    """Every search during the writing finds what was there before; what was committed is found at once."""
    skills = seeded_skills(1_000)
    await fill(database.superuser_url, skills)
    known = next(number for number, of in enumerate(skills.tenants) if of == "genesis")
    done = asyncio.Event()
    searches = 0

    async def search(connector: Database) -> None:
        nonlocal searches
        while not done.is_set():
            async with connector.transaction("genesis") as connection:
                found = await nearest_skills(connection, skills.vectors[known], limit=1)
            assert [each.id for each in found] == [skills.ids[known]]
            searches += 1

    async def add() -> None:
        try:
            async with connected(database.writer_url) as writer:
                for number in range(30):
                    added = skill(f"added {number}", skills.queries[number].tolist())
                    async with writer.transaction("genesis") as connection:
                        await put(connection, [added])
                    async with connector.transaction("genesis") as connection:
                        (found,) = await nearest_skills(connection, skills.queries[number], limit=1)
                    assert found.id == added.id
        finally:
            done.set()

    async with reading(database) as connector:
        await asyncio.gather(search(connector), search(connector), add())
    assert searches >= 10
