"""`entities.store.put`: many entities at once, in any order, again, and while others write the same ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from random import Random
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from database.connector import Database
from database.errors import ConstraintRefused, RowRefused
from entities import store
from entities.agent import Agent
from entities.entity import Entity
from entities.errors import ConstitutionBroken, EntityInvalid, EntityRefused, KindChanged
from entities.industry import Industry
from entities.job_role import JobRole
from entities.skill import Skill
from entities.store import Written, put
from entities.team import Team
from tests.conftest import Database as MigratedDatabase
from tests.support.connectors import connected
from tests.support.direct_changes import changing, delete, fetch
from tests.support.factories import seeded_embedding
from tests.support.version_chains import findings, states_of, versions_of
from tests.support.waiting import wait_until_async

TABLES = (
    "skills",
    "industries",
    "job_roles",
    "teams",
    "agents",
    "job_role_skills",
    "team_members",
    "agent_skills",
)
A, B, C = UUID(int=0xA), UUID(int=0xB), UUID(int=0xC)
MOMENT = datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)
BASE = """
    SELECT id, entity_type, external_id, deleted_at, status, amendment_history, l0_compliance_status,
           amendment_alignment, drift_detector, tags, custom_attributes, governance_notes, parent_id
    FROM entities ORDER BY id
"""


@pytest_asyncio.fixture
async def connector(database: MigratedDatabase) -> AsyncIterator[Database]:
    """A connector as the writer."""
    async with connected(database.writer_url) as made:
        yield made


def some(seed: int = 1, many: int = 6) -> list[Entity]:
    """Entities of all kinds that refer to each other, and to some that are not among them; of a seed the same."""
    random = Random(seed)
    kinds = enumerate(store.KINDS, start=1)
    ids = {kind: [UUID(int=place << 64 | number) for number in range(many)] for place, kind in kinds}

    def one(kind: str) -> UUID:
        unheard_of = UUID(int=ids[kind][0].int | 1 << 32 | random.randrange(3))
        return random.choice([*ids[kind], unheard_of])

    def many_of(kind: str) -> set[UUID]:
        return {one(kind) for _ in range(random.randrange(4))}

    described = {"description": "What it is.", "governance_agent_id": "genesis"}
    made: list[Entity] = []
    for number in range(many):
        name = f"number {number}"
        made += [
            Skill(id=ids["skill"][number], name=name, category="technical", **described),
            Industry(id=ids["industry"][number], name=name, external_id=f"industry {number}", **described),
            JobRole(
                id=ids["job_role"][number],
                name=name,
                industry_id=one("industry"),
                required_skill_ids=many_of("skill"),
                **described,
            ),
            Team(
                id=ids["team"][number], name=name, job_role_id=one("job_role"), member_ids=many_of("agent"), **described
            ),
            Agent(
                id=ids["agent"][number],
                name=name,
                team_id=one("team"),
                skill_ids=many_of("skill"),
                parent_id=ids["agent"][number - 1] if number else None,
            ),
        ]
    return made


async def contents(database: MigratedDatabase) -> list[Any]:
    """All rows of the entity tables, less times and hashes."""
    rows: list[Any] = await fetch(database.superuser_url, BASE)
    for table in TABLES:
        rows += await fetch(database.superuser_url, f"SELECT * FROM {table} ORDER BY 1, 2")
    return rows


async def write(connector: Database, entities: Sequence[Entity], governance: str = "genesis") -> Written:
    async with connector.transaction(governance) as connection:
        return await put(connection, entities)


async def wait(database: MigratedDatabase, many: int = 1) -> bool:
    """Whether that many transactions wait for others' locks."""
    waiting = "FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return await fetch(database.superuser_url, f"SELECT count(*) {waiting}") == [(many,)]


async def test_doing_it_again_changes_nothing(database: MigratedDatabase, connector: Database) -> None:
    """The first time all are created, the second unchanged: no row is written, and no version."""
    entities = some()
    ids = frozenset(entity.id for entity in entities)
    assert await write(connector, entities) == Written(created=ids)
    rows = "SELECT id, xmin::text, updated_at FROM entities ORDER BY id"
    before = await contents(database), await fetch(database.superuser_url, rows)
    assert await write(connector, some()) == Written(unchanged=ids)
    assert (await contents(database), await fetch(database.superuser_url, rows)) == before
    assert await fetch(database.superuser_url, "SELECT max(version) FROM entity_versions") == [(1,)]


@pytest.mark.parametrize(
    "change",
    [
        lambda agent: setattr(agent, "name", "another"),
        lambda agent: setattr(agent, "tags", ["another"]),
        lambda agent: setattr(agent, "custom_attributes", {"a": 1}),
        lambda agent: setattr(agent, "team_id", None),
        lambda agent: setattr(agent, "parent_id", uuid4()),
        lambda agent: agent.skill_ids.add(UUID(int=1)),
        lambda agent: agent.skill_ids.clear(),
        lambda agent: agent.amend(at=MOMENT, by="x", reason="y"),
    ],
)
async def test_what_differs_is_changed_and_the_rest_is_not(
    database: MigratedDatabase, connector: Database, change: Callable[[Agent], None]
) -> None:
    """A difference in the base row, in the row of the kind, or in a list of ids: that entity gets a version."""
    agent = Agent(name="first", team_id=uuid4(), skill_ids={uuid4()})
    other = Agent(name="other")
    await write(connector, [agent, other])
    change(agent)
    written = await write(connector, [agent, other])
    assert written == Written(changed=frozenset({agent.id}), unchanged=frozenset({other.id}))
    assert len(await versions_of(database.superuser_url, agent.id)) == 2
    assert len(await versions_of(database.superuser_url, other.id)) == 1


async def test_what_is_referred_to_is_a_stub_until_it_is_described(
    database: MigratedDatabase, connector: Database
) -> None:
    """A stub of the right kind and tenant; described, it counts as created and goes on in its chain."""
    skill = Skill(name="SQL", description="Asks for rows.", category="technical")
    agent = Agent(name="one", skill_ids={skill.id}, team_id=uuid4(), job_role_id=uuid4(), industry_id=uuid4())
    assert await write(connector, [agent]) == Written(created=frozenset({agent.id}))
    stubs = await fetch(database.superuser_url, "SELECT id, entity_type FROM entities WHERE status = 'stub'")
    assert {tuple(row) for row in stubs} == {
        (skill.id, "skill"),
        (agent.team_id, "team"),
        (agent.job_role_id, "job_role"),
        (agent.industry_id, "industry"),
    }
    assert await write(connector, [skill]) == Written(created=frozenset({skill.id}))
    states = await states_of(database.superuser_url, skill.id)
    assert [(state["status"], state.get("name")) for state in states] == [("stub", None), ("active", "SQL")]
    assert await write(connector, [agent, skill]) == Written(unchanged=frozenset({agent.id, skill.id}))


async def test_what_is_described_is_never_made_a_stub_again(database: MigratedDatabase, connector: Database) -> None:
    """A later reference leaves it as it is, even if the kind is wrong; the check reports that."""
    skill = Skill(name="SQL", description="Asks for rows.", category="technical")
    await write(connector, [skill])
    agent = Agent(name="one", team_id=skill.id)
    await write(connector, [agent])
    assert len(await versions_of(database.superuser_url, skill.id)) == 1
    found = await findings(database.api_url)
    assert [(each.finding, each.entity_id) for each in found] == [("wrong kind", agent.id)]


async def test_a_kind_never_changes(database: MigratedDatabase, connector: Database) -> None:
    """Neither of what is described nor of a stub; nothing of such a call is written, though the caller goes on."""
    agent = Agent(name="one", skill_ids={uuid4()})
    await write(connector, [agent])
    before = await contents(database)
    for identity in (agent.id, next(iter(agent.skill_ids))):
        async with connector.transaction("genesis") as connection:
            with pytest.raises(KindChanged, match=f"{identity} is a .* and can't become a team"):
                await put(connection, [Team(name="new"), Team(id=identity, name="one", description="x")])
    assert await contents(database) == before


@pytest.mark.parametrize(
    ("entities", "error", "why"),
    [
        (lambda: [Agent(name="good"), Agent(name="")], EntityInvalid, "name"),
        (lambda: [Agent(name="good", skill_ids={uuid4()}), Agent(name="ada@example.org")], ConstitutionBroken, "L0"),
        (lambda: [Agent(name="good"), Entity(entity_type="skill")], EntityInvalid, "A stub can't be written"),
        (lambda: [Agent(id=UUID(int=5), name="good"), Agent(id=UUID(int=5), name="x")], EntityInvalid, "occurs twice"),
    ],
)
async def test_one_that_is_refused_stops_them_all(
    database: MigratedDatabase,
    connector: Database,
    entities: Callable[[], list[Entity]],
    error: type[EntityRefused],
    why: str,
) -> None:
    """Invalid, unconstitutional, a stub, or an id twice: nothing is written, and the reason is given."""
    async with connector.transaction("genesis") as connection:
        with pytest.raises(error, match=why):
            await put(connection, entities())
    assert await contents(database) == []


async def test_amendments_are_only_added_to(database: MigratedDatabase, connector: Database) -> None:
    """One that is gone from what is put is refused, with those that come after it in the call; more of them is fine."""
    amendment = {"at": "now", "by": "genesis", "reason": "A test."}
    identity = uuid4()
    await write(connector, [Agent(id=identity, name="one", amendment_history=[amendment])])
    async with connector.transaction("genesis") as connection:
        with pytest.raises(ConstitutionBroken, match="L0-04"):
            await put(connection, [Agent(id=identity, name="one"), Agent(name="other", skill_ids={uuid4()})])
    assert len(await contents(database)) == 2
    await write(connector, [Agent(id=identity, name="one", amendment_history=[amendment, amendment])])
    assert len(await versions_of(database.superuser_url, identity)) == 2


async def test_embeddings_that_are_not_given_are_kept(database: MigratedDatabase, connector: Database) -> None:
    """With one and without one in the same call; a new one replaces the old."""
    made = [Skill(id=UUID(int=number), name="x", category="technical", description="x") for number in range(2)]
    made[0].embedding = seeded_embedding(1)
    vectors = "SELECT (embedding::real[])[1] FROM skills ORDER BY id"
    await write(connector, made)
    before = await fetch(database.superuser_url, vectors)
    assert [row[0] is None for row in before] == [False, True]
    again = [Skill(id=UUID(int=number), name="y", category="technical", description="x") for number in range(2)]
    again[1].embedding = seeded_embedding(2)
    await write(connector, again)
    after = await fetch(database.superuser_url, vectors)
    assert after[0] == before[0]
    assert after[1][0] is not None


async def test_more_than_one_statement_can_hold(
    database: MigratedDatabase, connector: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches it is the same as at once."""
    await write(connector, some(many=6))
    at_once = await contents(database)
    async with changing(database.owner_url) as connection:
        await connection.execute("DELETE FROM entities")
    monkeypatch.setattr(store, "PUT_MAX", 4)
    written = await write(connector, some(many=6))
    assert len(written.created) == 30
    assert await contents(database) == at_once
    assert await write(connector, some(many=6)) == Written(unchanged=written.created)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(20)), cuts=st.sets(st.integers(1, 19), max_size=6), seed=st.integers(0, 9))
async def test_any_order_and_any_cut_gives_the_same_tables(
    database: MigratedDatabase, connector: Database, order: list[int], cuts: set[int], seed: int
) -> None:
    """Events describe entities in any order: whichever it is, the tables are equal in the end."""
    tables = []
    for sequence, ends in ((range(20), [20]), (order, [*sorted(cuts), 20])):
        async with changing(database.owner_url) as connection:
            await connection.execute("DELETE FROM entities")
        entities, start = some(seed, many=4), 0
        for end in ends:
            await write(connector, [entities[place] for place in sequence[start:end]])
            start = end
        tables.append(await contents(database))
    assert tables[0] == tables[1]


async def test_concurrent_calls_that_overlap_do_not_deadlock(database: MigratedDatabase, connector: Database) -> None:
    """Eight at once write the same entities, each in its own order and with stubs of the others': all succeed."""
    expected = some(many=6)

    async def work(number: int) -> Written:
        mine = some(many=6)
        Random(number).shuffle(mine)
        return await write(connector, mine[: 10 + 2 * number] if number else mine)

    written = await asyncio.gather(*(work(number) for number in range(8)))
    assert written[0].created | written[0].unchanged == {entity.id for entity in expected}
    tables = await contents(database)
    await write(connector, expected)
    assert await contents(database) == tables
    for entity in expected:
        await versions_of(database.superuser_url, entity.id)


def agents(*ids: UUID, name: str = "one") -> list[Entity]:
    return [Agent(id=each, name=name) for each in ids]


@pytest.mark.parametrize(
    ("there", "one", "other"),
    [
        ([], lambda: agents(A, B, C), lambda: agents(C, B, A)),
        (agents(A, B, C, name="old"), lambda: agents(A, B, C), lambda: agents(C, B, A)),
        (
            [],
            lambda: [Agent(id=A, name="one", team_id=C), *agents(B)],
            lambda: [Team(id=C, name="it", description="x", member_ids={A}), *agents(B)],
        ),
    ],
    ids=["new", "there", "stubs of each other"],
)
async def test_two_in_opposite_orders_do_not_deadlock(
    database: MigratedDatabase,
    connector: Database,
    there: list[Entity],
    one: Callable[[], list[Entity]],
    other: Callable[[], list[Entity]],
) -> None:
    """Held up half-way, each with what it had taken by then, they go on one after the other."""
    await write(connector, there)
    async with connector.transaction("genesis") as first:
        await put(first, agents(B, name="in the middle"))
        tasks = []
        for number, entities in enumerate((one, other), start=1):
            tasks.append(asyncio.create_task(write(connector, entities())))
            await wait_until_async(partial(wait, database, number), "it has come to the middle, or waits for who has")
    await asyncio.gather(*tasks)
    await versions_of(database.superuser_url, A)


async def test_two_that_refer_to_each_other_are_written_at_once(
    database: MigratedDatabase, connector: Database
) -> None:
    """Each makes a stub of what the other describes: the second waits for the first, and neither is refused."""
    agent, team = Agent(name="one"), Team(name="it", description="x")
    agent.team_id, team.member_ids = team.id, {agent.id}
    async with connector.transaction("genesis") as first:
        await put(first, [agent])
        second = asyncio.create_task(write(connector, [team]))
        await wait_until_async(partial(wait, database), "the second waits for the first")
    assert await second == Written(created=frozenset({team.id}))
    assert await findings(database.api_url) == []


async def overtaken(
    database: MigratedDatabase, connector: Database, mine: Entity, theirs: Entity
) -> asyncio.Task[Written]:
    """Put `mine`, and commit `theirs` under the same id after the call has seen the row, before it has locked it."""
    async with connector.transaction("genesis") as theirs_in:
        pid = (await theirs_in.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        async with connector.transaction("genesis") as first:
            await put(first, agents(C, name="awaited"))
            call = asyncio.create_task(write(connector, [mine, *agents(C, name="awaited")]))
            await wait_until_async(partial(wait, database), "the call has seen the row, and waits for another")
            await put(theirs_in, [theirs])
        await wait_until_async(partial(waits_for, database, pid), "the call waits for who has changed the row")
    return call


async def waits_for(database: MigratedDatabase, pid: int) -> bool:
    """Whether a transaction waits for this backend's."""
    blocked = "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))"
    return await fetch(database.superuser_url, blocked, pid) == [(1,)]


async def test_a_stub_is_described_once(database: MigratedDatabase, connector: Database) -> None:
    """Of two calls that describe a stub, the later one reads what the other wrote, and counts as a change."""
    await write(connector, [Agent(id=A, name="one", team_id=B)])
    mine, theirs = (Team(id=B, name=name, description="x") for name in ("mine", "theirs"))
    call = await overtaken(database, connector, mine, theirs)
    assert B in (await call).changed
    states = await states_of(database.superuser_url, B)
    assert [state.get("name") for state in states] == [None, "theirs", "mine"]


async def test_amendments_of_a_call_that_runs_are_kept(database: MigratedDatabase, connector: Database) -> None:
    """A call is validated against the amendments that others have committed by then, not against older ones."""
    mine, theirs = ({"at": "now", "by": name, "reason": "A test."} for name in ("me", "them"))
    await write(connector, [Agent(id=A, name="one")])
    changes = (Agent(id=A, name="one", amendment_history=[amendment]) for amendment in (mine, theirs))
    call = await overtaken(database, connector, *changes)
    with pytest.raises(ConstitutionBroken, match="L0-04"):
        await call
    states = await states_of(database.superuser_url, A)
    assert [state["amendment_history"] for state in states] == [[], [theirs]]


async def test_a_call_leaves_the_keys_of_its_entities_unlocked(database: MigratedDatabase, connector: Database) -> None:
    """Its lock is the one that a foreign key's check passes; a second call's would not pass it."""
    await write(connector, agents(A))
    locked = "SELECT id FROM entities WHERE id = $1"
    async with connector.transaction("genesis") as first:
        assert await put(first, agents(A)) == Written(unchanged=frozenset({A}))
        async with changing(database.writer_url) as connection:
            assert await connection.fetchval(f"{locked} FOR KEY SHARE NOWAIT", A) == A
            with pytest.raises(asyncpg.LockNotAvailableError):
                await connection.execute(f"{locked} FOR NO KEY UPDATE NOWAIT".replace("$1", f"'{A}'"))


async def test_rows_are_locked_in_the_order_of_their_ids(database: MigratedDatabase, connector: Database) -> None:
    """Wherever they lie in the table: two calls with the same entities wait for each other, and none is a deadlock."""
    for id_ in (B, A):
        await write(connector, agents(id_))
    locked = f"SELECT FROM entities WHERE id = '{A}' FOR NO KEY UPDATE NOWAIT"
    async with connector.transaction("genesis") as mine:
        for setting in ("enable_indexscan", "enable_bitmapscan"):
            await mine.execute(text(f"SET LOCAL {setting} = off"))
        async with changing(database.writer_url) as theirs:
            await theirs.execute("SELECT FROM entities WHERE id = $1 FOR UPDATE", B)
            pid = await theirs.fetchval("SELECT pg_backend_pid()")
            call = asyncio.create_task(put(mine, agents(A, B)))
            await wait_until_async(partial(waits_for, database, pid), "the call waits for the second row")
            async with changing(database.writer_url) as third:
                with pytest.raises(asyncpg.LockNotAvailableError):
                    await third.execute(locked)
        assert (await call).unchanged == {A, B}


async def test_missing_rows_are_made_in_the_order_of_their_ids(database: MigratedDatabase, connector: Database) -> None:
    """Whatever kind they are of: a call that waits for one has made none that another call may wait for first."""
    async with connector.transaction("genesis") as mine:
        async with connector.transaction("genesis") as theirs:
            mine_pid, their_pid = [
                (await each.execute(text("SELECT pg_backend_pid()"))).scalar_one() for each in (mine, theirs)
            ]
            await put(theirs, [Team(id=A, name="theirs", description="x")])
            call = asyncio.create_task(put(mine, [Agent(id=B, name="one"), Team(id=A, name="mine", description="x")]))
            await wait_until_async(partial(waits_for, database, their_pid), "the call waits for the first row")
            later = asyncio.create_task(write(connector, [Agent(id=B, name="one")]))

            async def ended() -> bool:
                return later.done() or await waits_for(database, mine_pid)

            await wait_until_async(ended, "the second row is made, or waited for")
            assert later.done()
        assert (await call).changed == {A}


async def test_an_id_of_another_tenant_is_refused(database: MigratedDatabase, connector: Database) -> None:
    """An entity there can't be replaced from here, and no error describes it; nor can it be written from there."""
    theirs = Agent(name="theirs", governance_agent_id="acme")
    await write(connector, [theirs], "acme")
    for entity in (Agent(id=theirs.id, name="mine"), Agent(name="mine", governance_agent_id="acme")):
        with pytest.raises(RowRefused) as caught:
            await write(connector, [entity])
        assert caught.value.why
    await write(connector, [Agent(name="refers to theirs", parent_id=theirs.id)])
    assert [state["name"] for state in await states_of(database.superuser_url, theirs.id)] == ["theirs"]


async def test_an_external_id_of_another_entity_is_refused(connector: Database) -> None:
    """It is unique in its tenant: the constraint is named."""
    await write(connector, [Agent(name="one", external_id="same")])
    with pytest.raises(ConstraintRefused, match="entities_external_id"):
        await write(connector, [Agent(name="two", external_id="same")])


async def test_what_was_deleted_is_created_again(database: MigratedDatabase, connector: Database) -> None:
    """As new, in its old chain, even where it was deleted while the call waited for it."""
    agent = Agent(name="one", skill_ids={uuid4()})
    await write(connector, [agent])
    async with changing(database.writer_url) as connection:
        await delete(connection, agent.id)
        second = asyncio.create_task(write(connector, [agent]))
        await wait_until_async(partial(wait, database), "the call waits for the deletion")
    assert await second == Written(created=frozenset({agent.id}))
    rows = await versions_of(database.superuser_url, agent.id)
    assert [row["operation"] for row in rows] == ["created", "deleted", "created"]


async def test_what_is_deleted_under_its_hands_is_created_again(
    database: MigratedDatabase, connector: Database
) -> None:
    """Found to be there and deleted by others before the call has locked it: it is created as new."""
    agent, awaited = Agent(id=A, name="one"), Agent(id=B, name="two")
    await write(connector, [agent])
    async with connector.transaction("genesis") as first:
        await put(first, [awaited])
        second = asyncio.create_task(write(connector, [agent, awaited]))
        await wait_until_async(partial(wait, database), "the call has passed the one and waits for the other")
        async with changing(database.writer_url) as connection:
            await delete(connection, agent.id)
    assert await second == Written(created=frozenset({A}), unchanged=frozenset({B}))
    rows = await versions_of(database.superuser_url, agent.id)
    assert [row["operation"] for row in rows] == ["created", "deleted", "created"]


async def test_a_given_time_of_creation_is_kept(database: MigratedDatabase, connector: Database) -> None:
    """Of a new entity; of one that is there it never changes."""
    identity, moment = uuid4(), MOMENT.isoformat()
    await write(connector, [Agent(id=identity, name="one", created_at=MOMENT)])
    await write(connector, [Agent(id=identity, name="two")])
    assert [state["created_at"] for state in await states_of(database.superuser_url, identity)] == [moment, moment]


async def test_nothing_to_write_is_nothing_written(connector: Database) -> None:
    """An empty call is fine."""
    assert await write(connector, []) == Written()
