"""Writing entities in bulk: which rows are made of them, in which order, and by which statements."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from entities import store
from entities.agent import Agent, AgentSkill
from entities.entity import Entity
from entities.errors import EntityInvalid, KindChanged
from entities.industry import Industry
from entities.job_role import JobRole
from entities.skill import Skill
from entities.store import Written, put
from entities.team import Team

IDS = [UUID(int=number) for number in range(10)]
MOMENT = datetime(2020, 1, 2, tzinfo=UTC)


def agent(number: int, **fields: Any) -> Agent:
    return Agent(id=IDS[number], name=f"agent {number}", **fields)


def test_what_an_entity_refers_to_has_a_kind_and_its_tenant() -> None:
    """Each reference and each id in a list; not the parent, which may be of any kind."""
    tenant = {"governance_agent_id": "other"}
    references = {"job_role_id": IDS[1], "team_id": IDS[2], "industry_id": IDS[3], "parent_id": IDS[9]}
    full = agent(0, skill_ids=[IDS[4], IDS[5]], **references, **tenant)
    expected = {
        (IDS[1], "job_role", "other"), (IDS[2], "team", "other"), (IDS[3], "industry", "other"),
        (IDS[4], "skill", "other"), (IDS[5], "skill", "other"),
    }  # fmt: skip
    found = list(store._references(full))
    assert (set(found), len(found)) == (expected, 5)
    team = Team(id=IDS[0], name="t", member_ids=[IDS[6]], job_role_id=IDS[1])
    assert set(store._references(team)) == {(IDS[6], "agent", "genesis"), (IDS[1], "job_role", "genesis")}
    role = JobRole(id=IDS[0], name="r", required_skill_ids=[IDS[7]])
    assert list(store._references(role)) == [(IDS[7], "skill", "genesis")]
    for lonely in (agent(0), Skill(id=IDS[0], name="s", category="technical")):
        assert list(store._references(lonely)) == []


def test_a_row_has_the_columns_of_its_table_that_the_database_does_not_write() -> None:
    """Embeddings that are not set are left out, and a time of creation that is not set is the database's."""
    made = agent(0, skill_ids=[IDS[4]], team_id=IDS[2])
    table = store._table(Agent)
    assert store._values(made, table) == {
        "id": IDS[0], "governance_agent_id": "genesis", "name": "agent 0", "job_role_id": None, "team_id": IDS[2],
        "industry_id": None, "available": False,
    }  # fmt: skip
    base = store._values(made, store._table(Entity))
    columns = [column.name for column in store._table(Entity).columns if column.name not in store._WRITTEN_BY_DATABASE]
    assert list(base) == columns
    assert (base["created_at"], base["entity_type"], base["status"]) == (None, "agent", "active")
    assert store._values(agent(0, created_at=MOMENT), store._table(Entity))["created_at"] == MOMENT
    skill = Skill(id=IDS[0], name="s", category="technical")
    assert "embedding" not in store._values(skill, store._table(Skill))


class _Result(list[Any]):
    def scalars(self) -> list[Any]:
        return self


class Connection:
    """A connection that gives these rows, one statement after the other, and keeps what it is asked."""

    def __init__(self, *answers: Sequence[Any]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, Any]] = []

    async def execute(self, statement: Any, parameters: Any) -> Any:
        sql = " ".join(str(statement.compile(dialect=postgresql.dialect())).split())
        self.asked.append((sql, parameters))
        return _Result(self.answers.pop(0))

    @asynccontextmanager
    async def begin_nested(self) -> AsyncIterator[None]:
        self.asked.append(("SAVEPOINT", None))
        yield


def on(connection: Connection) -> AsyncConnection:
    return cast(AsyncConnection, connection)


def rows_of(entities: Sequence[Entity], kind: type[Any]) -> list[dict[str, Any]]:
    return [store._values(entity, store._table(kind)) for entity in entities]


def locked(entity: Entity, *, status: str = "active", entity_type: str = "agent") -> Any:
    return SimpleNamespace(id=entity.id, entity_type=entity_type, status=status, amendment_history=[])


@pytest.mark.parametrize("put_max", [1, 2, 3, 500])
def test_missing_rows_are_made_in_the_order_of_ids(monkeypatch: pytest.MonkeyPatch, put_max: int) -> None:
    """With stubs for what is referred to and is not among them, each once, so many in a statement."""
    monkeypatch.setattr(store, "PUT_MAX", put_max)
    one, other = agent(5, team_id=IDS[2], skill_ids=[IDS[1]]), agent(3, team_id=IDS[2])
    team = Team(id=IDS[4], name="t", member_ids=[IDS[3], IDS[5], IDS[0]])
    answers = [[IDS[number]] for number in range(6)]
    connection = Connection(*answers)
    made = asyncio.run(store._make_missing(on(connection), [one, other, team]))
    rows = [row for _, parameters in connection.asked for row in parameters]
    assert [len(parameters) for _, parameters in connection.asked] == (
        {1: [1] * 6, 2: [2] * 3, 3: [3, 3]}.get(put_max, [6])
    )
    kinds = [(0, "agent", "stub"), (1, "skill", "stub"), (2, "team", "stub"), (3, "agent", "active"),
             (4, "team", "active"), (5, "agent", "active")]  # fmt: skip
    assert [(row["id"], row["entity_type"], row["status"]) for row in rows] == [(IDS[n], *rest) for n, *rest in kinds]
    assert made == {IDS[number] for number in range(len(connection.asked))}
    sql = connection.asked[0][0]
    assert sql.startswith("INSERT INTO entities (")
    assert "coalesce(%(created_at)s" in sql
    assert sql.endswith("ON CONFLICT DO NOTHING RETURNING entities.id")


def test_rows_are_locked_by_id() -> None:
    """In their order, and without holding up checks of foreign keys."""
    found = [locked(agent(3)), locked(agent(5))]
    connection = Connection(found)
    assert asyncio.run(store._lock(on(connection), IDS[3:6])) == {IDS[3]: found[0], IDS[5]: found[1]}
    ((sql, parameters),) = connection.asked
    columns = "entities.id, entities.entity_type, entities.status, entities.amendment_history"
    assert sql == (
        f"SELECT {columns} FROM entities WHERE entities.id = ANY (%(ids)s::UUID[]) ORDER BY entities.id"
        " FOR NO KEY UPDATE"
    )
    assert parameters == {"ids": IDS[3:6]}


def test_a_row_is_written_where_it_differs() -> None:
    """Never what a row keeps for good; nothing is asked where there is none."""
    some = [agent(3), agent(5)]
    connection = Connection([IDS[5]])
    assert asyncio.run(store._upsert(on(connection), store._table(Agent), some)) == {IDS[5]}
    ((sql, parameters),) = connection.asked
    assert parameters == rows_of(some, Agent)
    names = ["name", "job_role_id", "team_id", "industry_id", "available"]
    changes = ", ".join(f"{name} = excluded.{name}" for name in names)
    differs = " OR ".join(f"agents.{name} IS DISTINCT FROM excluded.{name}" for name in names)
    assert sql.endswith(f"ON CONFLICT (id) DO UPDATE SET {changes} WHERE {differs} RETURNING agents.id")
    assert asyncio.run(store._upsert(on(Connection()), store._table(Agent), [])) == set()


def test_lists_of_ids_are_written_as_arrays() -> None:
    """Rows that are no longer in a list go, and those that are new come; both belong to what has changed."""
    some = [agent(3, skill_ids=[IDS[2], IDS[1]]), agent(5), agent(6, skill_ids=[IDS[1]], governance_agent_id="other")]
    connection = Connection([IDS[5]], [IDS[3], IDS[3]])
    assert asyncio.run(store._link(on(connection), store.LINKS["agent"], some)) == {IDS[3], IDS[5]}
    (removed, values), (added, same) = connection.asked
    assert values is same
    assert values == {
        "ids": [IDS[3], IDS[5], IDS[6]], "owners": [IDS[3], IDS[3], IDS[6]], "others": [IDS[1], IDS[2], IDS[1]],
        "tenants": ["genesis", "genesis", "other"],
    }  # fmt: skip
    assert removed.startswith("DELETE FROM agent_skills AS l WHERE l.agent_id = ANY (%(ids)s::UUID[]) AND NOT EXISTS")
    assert "w.owner = l.agent_id AND w.other = l.skill_id) RETURNING l.agent_id" in removed
    assert added.startswith("INSERT INTO agent_skills (agent_id, skill_id, governance_agent_id) SELECT * FROM unnest(")
    assert "%(tenants)s::TEXT[]" in added
    assert store.LINKS["agent"].row is AgentSkill


@pytest.mark.parametrize("kind", ["agent", "industry"])
def test_a_kind_is_written_with_its_lists(kind: str) -> None:
    """Entities with an embedding and those without have different columns, so each goes in a statement of its own."""
    some = [agent(3), agent(5)] if kind == "agent" else [Industry(id=IDS[3], name="i"), Industry(id=IDS[5], name="j")]
    connection = Connection([IDS[3]], [IDS[5]], [])
    touched = asyncio.run(store._put_kind(on(connection), kind, some))
    tables = [sql.split()[2] for sql, _ in connection.asked]
    if kind == "agent":
        assert (tables, touched) == (["agents", "agent_skills", "agent_skills"], {IDS[3], IDS[5]})
    else:
        assert (tables, touched) == (["industries"], {IDS[3]})


def test_embeddings_that_are_not_set_are_kept() -> None:
    """Skills with one are written by a statement of their own, behind the others."""
    without = Skill(id=IDS[3], name="s", category="technical")
    with_one = Skill(id=IDS[2], name="t", category="technical", embedding=[0.0])
    connection = Connection([IDS[3]], [IDS[2]])
    assert asyncio.run(store._put_kind(on(connection), "skill", [with_one, without])) == {IDS[2], IDS[3]}
    assert [[row["id"] for row in rows] for _, rows in connection.asked] == [[IDS[3]], [IDS[2]]]
    assert ["embedding = excluded.embedding" in sql for sql, _ in connection.asked] == [False, True]


def test_what_was_there_is_locked_and_judged_before_it_is_written() -> None:
    """A stub that is described counts as created; of others those that differ are changed, and the rest is not."""
    new, stub, changed, same = (agent(number) for number in (2, 3, 4, 5))
    rows = [locked(stub, status="stub"), locked(changed), locked(same)]
    connection = Connection(rows, [IDS[3]], [IDS[2], IDS[4]], [], [])
    written = asyncio.run(store._put_some(on(connection), [new, stub, changed, same], {IDS[2], IDS[9]}))
    assert written == Written(frozenset({IDS[2], IDS[3]}), frozenset({IDS[4]}), frozenset({IDS[5]}))
    assert connection.asked[0][1] == {"ids": IDS[3:6]}
    assert connection.asked[1][1] == rows_of([stub, changed, same], Entity)
    assert connection.asked[2][1] == rows_of([new, stub, changed, same], Agent)


def test_a_kind_does_not_change() -> None:
    """The error names both, and nothing is written."""
    connection = Connection([locked(agent(3), entity_type="team")])
    with pytest.raises(KindChanged) as refused:
        asyncio.run(store._put_some(on(connection), [agent(3)], set()))
    assert refused.value.why == f"{IDS[3]} is a team and can't become a agent."
    assert len(connection.asked) == 1


def test_rows_that_went_meanwhile_are_made_again() -> None:
    """They count as created; where they can't be made, another tenant has the id."""
    gone, there = agent(3), agent(5)
    connection = Connection([locked(there)], [IDS[3]], [IDS[5]], [IDS[3]], [], [])
    written = asyncio.run(store._put_some(on(connection), [gone, there], set()))
    assert written == Written(frozenset({IDS[3]}), frozenset({IDS[5]}), frozenset())
    sql, rows = connection.asked[1]
    assert rows == rows_of([gone], Entity)
    assert sql.endswith("ON CONFLICT (id) DO NOTHING RETURNING entities.id")
    assert connection.asked[2][1] == rows_of([there], Entity)
    for made in ([], [IDS[3]]):
        refused = IDS[3] if not made else IDS[4]
        with pytest.raises(store.RowRefused) as caught:
            asyncio.run(store._make_again(on(Connection(made)), [agent(3), agent(4)]))
        assert caught.value.why == f"{refused} is not of this tenant."
        assert caught.value.next_step == "choose another id for it"


@pytest.mark.parametrize("put_max", [1, 2, 500])
def test_entities_are_written_in_the_order_of_ids(monkeypatch: pytest.MonkeyPatch, put_max: int) -> None:
    """Behind one savepoint, so many at a time, and what is written is all of it."""
    monkeypatch.setattr(store, "PUT_MAX", put_max)
    done: list[Any] = []

    async def make_missing(_: object, entities: Sequence[Entity]) -> set[UUID]:
        done.append([entity.id for entity in entities])
        return {IDS[9]}

    async def put_some(_: object, entities: Sequence[Entity], made: set[UUID]) -> Written:
        assert made == {IDS[9]}
        done.append([entity.id for entity in entities])
        return Written(frozenset(done[-1]))

    monkeypatch.setattr(store, "_make_missing", make_missing)
    monkeypatch.setattr(store, "_put_some", put_some)
    connection = Connection()
    ids = frozenset(IDS[2:5])
    assert asyncio.run(put(on(connection), [agent(4), agent(2), agent(3)])) == Written(ids)
    ordered = IDS[2:5]
    batches = [ordered[start : start + put_max] for start in range(0, 3, put_max)]
    assert (connection.asked, done) == ([("SAVEPOINT", None)], [ordered, *batches])


@pytest.mark.parametrize(
    ("entities", "why"),
    [
        ([agent(3), agent(3)], "An id occurs twice."),
        ([agent(3), Entity(id=IDS[4], entity_type="agent")], "Stubs are made for what other entities refer to."),
    ],
)
def test_what_can_not_be_written_is_refused_first(entities: list[Entity], why: str) -> None:
    """Before anything is asked."""
    connection = Connection()
    with pytest.raises(EntityInvalid) as refused:
        asyncio.run(put(on(connection), entities))
    assert (refused.value.why, connection.asked) == (why, [])


def test_what_was_written_adds_up() -> None:
    """Each kind of result with its own."""
    first = Written(frozenset(IDS[:1]), frozenset(IDS[1:2]), frozenset(IDS[2:3]))
    second = Written(frozenset(IDS[3:4]), frozenset(IDS[4:5]), frozenset(IDS[5:6]))
    assert first | second == Written(
        frozenset({IDS[0], IDS[3]}), frozenset({IDS[1], IDS[4]}), frozenset({IDS[2], IDS[5]})
    )
