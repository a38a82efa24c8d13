"""The versions of entities: one for each change, in one chain that nobody can change, and tampering that is found."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from entities.references import EntityFault
from entities.vectors.generate import vectors
from entities.versions import BEFORE_FIRST, chain_hash, version_hash
from tests.conftest import Database
from tests.support import log_rows
from tests.support.direct_changes import KINDS, changing, delete, fetch, insert, made, rename
from tests.support.services import Services
from tests.support.version_chains import findings, names_of, plain_hash, states_of, versions_of

IntegrityError = asyncpg.IntegrityConstraintViolationError
PrivilegeError = asyncpg.InsufficientPrivilegeError
TABLES = ("entities", "skills", "industries", "job_roles", "teams", "agents")
LINK_TABLES = ("job_role_skills", "team_members", "agent_skills")


@pytest.fixture(scope="module")
def shared(stack: Services, template_database: str) -> Iterator[Database]:
    """One migrated database for the tests that leave no chain broken; each looks at entities of its own."""
    with log_rows.migrated_database(stack, template_database) as made_once:
        yield made_once


def urls(database: Database) -> dict[str, str]:
    return {
        "writer": database.writer_url,
        "api": database.api_url,
        "auditor": database.auditor_url,
        "owner": database.owner_url,
        "superuser": database.superuser_url,
    }


async def refused(url: str, statement: str, *values: object) -> asyncpg.PostgresError:
    """The error of a statement in the tenant `genesis`, with constraints checked at once."""
    with pytest.raises(asyncpg.PostgresError) as caught:  # noqa: PT012
        async with changing(url) as connection:
            await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
            await connection.execute(statement, *values)
    error: asyncpg.PostgresError = caught.value
    return error


@pytest.mark.parametrize("kind", KINDS)
async def test_each_change_is_a_version_whose_hash_extends_the_chain(shared: Database, kind: str) -> None:
    """Made, changed in its own table and in the base table: the database's hash is the formula's, computed twice."""
    entity_id = await made(shared.writer_url, kind, names=["second"])
    async with changing(shared.writer_url) as connection:
        await connection.execute("UPDATE entities SET tags = '{third}' WHERE id = $1", entity_id)
    rows = await versions_of(shared.superuser_url, entity_id)
    assert [row["operation"] for row in rows] == ["created", "changed", "changed"]
    assert {(row["entity_type"], row["recorded_by"], row["governance_agent_id"]) for row in rows} == {
        (kind, "plant_writer", "genesis")
    }
    states = [json.loads(row["state"]) for row in rows]
    assert [(state["name"], state["tags"]) for state in states] == [
        ("first", []),
        ("second", []),
        ("second", ["third"]),
    ]
    assert rows[0]["recorded_at"] < rows[1]["recorded_at"] < rows[2]["recorded_at"] <= datetime.now(UTC)


async def test_the_database_and_the_vectors_agree(shared: Database) -> None:
    """`entity_version_hash` gives the hash of every vector, whatever the session's time zone and style of dates."""
    connection = await asyncpg.connect(shared.owner_url)
    try:
        await connection.execute("SET timezone = 'Asia/Kathmandu'; SET datestyle = 'German'")
        for vector in vectors()["chains"]:
            for row in vector["versions"]:
                names = ("entity_type", "operation", "recorded_by", "governance_agent_id", "state")
                entity_type, operation, recorded_by, tenant, state = (row[name] for name in names)
                previous, moment = bytes.fromhex(row["previous_hash"]), datetime.fromisoformat(row["recorded_at"])
                found = await connection.fetchval(
                    "SELECT entity_version_hash($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                    *(previous, UUID(row["entity_id"]), row["version"], entity_type, operation, moment),
                    *(recorded_by, tenant, state),
                )
                assert found.hex() == row["hash"]
    finally:
        await connection.close()


async def test_a_version_is_the_same_whatever_the_session_has_set(database: Database) -> None:
    """The state's text does not follow the writer's time zone, date style or schema path."""
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    states = []
    for setting in ("timezone TO 'UTC'", "timezone TO 'Asia/Kathmandu'", "datestyle TO 'German'", "search_path TO ''"):
        async with changing(database.writer_url) as connection:
            entity_id = await insert(connection, "skill", created_at=moment, deleted_at=moment)
            await connection.execute(f"SET LOCAL {setting}")
        states.append([row["state"] for row in await versions_of(database.superuser_url, entity_id)])
    assert states == [states[0]] * 4
    assert json.loads(states[0][0])["deleted_at"] == "2026-01-02T03:04:05+00:00"


@pytest.mark.parametrize("role", ["writer", "api", "auditor", "owner", "superuser"])
async def test_versions_can_not_be_changed_by_any_role(shared: Database, role: str) -> None:
    """UPDATE, DELETE and TRUNCATE are refused, to the owner and a superuser too, and to them by the trigger."""
    entity_id = await made(shared.writer_url)
    before = await versions_of(shared.superuser_url, entity_id)
    for statement in (
        "UPDATE entity_versions SET state = '{}'",
        "UPDATE entity_versions SET hash = hash WHERE false",
        "DELETE FROM entity_versions",
        "TRUNCATE entity_versions",
        "TRUNCATE entities, entity_versions CASCADE",
        "INSERT INTO entity_versions SELECT * FROM entity_versions ON CONFLICT (entity_id, version)"
        " DO UPDATE SET state = '{}'",
    ):
        error = await refused(urls(shared)[role], statement)
        assert isinstance(error, PrivilegeError | IntegrityError)
        if role in {"owner", "superuser"} and not statement.startswith("INSERT"):
            assert "append-only" in str(error) or "can not be truncated" in str(error)
    assert await versions_of(shared.superuser_url, entity_id) == before


@pytest.mark.parametrize("role", ["writer", "api", "auditor", "owner", "superuser"])
async def test_entities_can_not_be_truncated(database: Database, role: str) -> None:
    """TRUNCATE would leave no versions; who may delete deletes rows."""
    await made(database.writer_url)
    for table in (*TABLES, *LINK_TABLES):
        assert isinstance(await refused(urls(database)[role], f"TRUNCATE {table} CASCADE"), PrivilegeError)
    assert await fetch(database.superuser_url, "SELECT count(*) FROM skills") == [(1,)]


def extension(head: asyncpg.Record, **changes: Any) -> dict[str, Any]:
    """A version that extends the chain, in itself consistent whatever is changed, but for hashes that are given."""
    version: dict[str, Any] = {
        **head,
        "version": head["version"] + 1,
        "state": '{"name": "forged"}',
        "previous_hash": head["hash"],
    }
    version |= {name: value for name, value in changes.items() if name not in {"version_hash", "hash"}}
    version["version_hash"] = version_hash(version["state"])
    version["hash"] = plain_hash(version["previous_hash"], version)
    return version | changes


ADD_VERSION = "INSERT INTO entity_versions SELECT * FROM jsonb_populate_record(NULL::entity_versions, $1::jsonb)"


def as_json(version: dict[str, Any]) -> str:
    shown = {name: rf"\x{value.hex()}" if isinstance(value, bytes) else value for name, value in version.items()}
    return json.dumps(shown, default=str)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 4},
        {"version": 1},
        {"version": 0},
        {"previous_hash": BEFORE_FIRST},
        {"previous_hash": bytes(31) + b"\1"},
        {"version_hash": bytes(32)},
        {"hash": bytes(32)},
        {"hash": b"short"},
        {"operation": "replaced"},
        {"version": 1, "previous_hash": BEFORE_FIRST},
    ],
    ids=str,
)
async def test_a_version_that_breaks_the_chain_is_refused(shared: Database, changes: dict[str, Any]) -> None:
    """Not even the owner can add one: with a gap, a fork, an earlier place, or hashes that are not its own."""
    entity_id = await made(shared.writer_url, names=["second"])
    before = await versions_of(shared.superuser_url, entity_id)
    for url in (shared.owner_url, shared.superuser_url):
        error = await refused(url, ADD_VERSION, as_json(extension(before[-1], **changes)))
        assert isinstance(error, IntegrityError)
    assert await versions_of(shared.superuser_url, entity_id) == before


async def test_services_can_not_add_versions_and_a_forged_one_is_found(database: Database) -> None:
    """One that extends the chain is refused to services; the owner's is accepted, and the check reports it."""
    entity_id = await made(database.writer_url)
    (head,) = await versions_of(database.superuser_url, entity_id)
    forged = as_json(extension(head))
    for url in (database.writer_url, database.api_url, database.auditor_url):
        assert isinstance(await refused(url, ADD_VERSION, forged), PrivilegeError)
    assert await findings(database.api_url) == []
    async with changing(database.owner_url) as connection:
        await connection.execute(ADD_VERSION, forged)
    assert await findings(database.api_url) == [
        EntityFault("tampered", "skill", entity_id, "has hashes that are not those of its newest version")
    ]


@pytest.mark.parametrize(
    "change",
    [
        "id = gen_random_uuid()",
        "entity_type = 'agent'",
        "created_at = created_at + interval '1 microsecond'",
        "governance_agent_id = 'acme'",
        "hash_chain_sha256 = sha256('')",
        "version_hash = sha256('')",
        "version_hash = NULL",
        "amendment_history = '[]'",
        "amendment_history = '[2, 1]'",
        "amendment_history = '[1]'",
        "amendment_history = '{}'",
        "append_only = false",
        "tamper_proof = false",
    ],
)
async def test_what_never_changes_is_refused_to_every_role(shared: Database, change: str) -> None:
    """Id, kind, time of creation, tenant, hashes and earlier amendments stay as they are, for a superuser too."""
    async with changing(shared.writer_url) as connection:
        entity_id = await insert(connection, "skill", amendment_history="[1, 2]")
    before = await fetch(shared.superuser_url, "SELECT * FROM entities WHERE id = $1", entity_id)
    for role, url in urls(shared).items():
        error = await refused(url, f"UPDATE entities SET {change} WHERE id = $1", entity_id)
        named = change.split()[0]
        services = role in {"api", "auditor"} or (role == "writer" and named != "amendment_history")
        assert isinstance(error, PrivilegeError if services else IntegrityError)
    assert await fetch(shared.superuser_url, "SELECT * FROM entities WHERE id = $1", entity_id) == before
    async with changing(shared.writer_url) as connection:
        await connection.execute("UPDATE entities SET amendment_history = '[1, 2, 3]' WHERE id = $1", entity_id)
    assert [state["amendment_history"] for state in await states_of(shared.superuser_url, entity_id)] == [
        [1, 2],
        [1, 2, 3],
    ]


async def test_a_transaction_is_one_version_however_much_it_changes(database: Database) -> None:
    """What counts is what is committed; a change that changes nothing in the end is no version."""
    async with changing(database.writer_url) as connection:
        entity_id = await insert(connection, "agent", links=[uuid4(), uuid4()])
        for name in ("second", "third"):
            await rename(connection, "agent", entity_id, name)
        await connection.execute("UPDATE entities SET tags = '{x}'")
        await connection.execute("DELETE FROM agent_skills")
    async with changing(database.writer_url) as connection:
        await rename(connection, "agent", entity_id, "fourth")
        await rename(connection, "agent", entity_id, "third")
        await connection.execute("UPDATE entities SET tags = tags")
    (state,) = await states_of(database.superuser_url, entity_id)
    assert (state["name"], state["tags"], state["skill_ids"]) == ("third", ["x"], [])


async def test_what_is_rolled_back_leaves_no_version(database: Database) -> None:
    """A transaction that fails, and the part after a savepoint to which it went back, are in no version."""
    entity_id = await made(database.writer_url)
    with pytest.raises(RuntimeError, match="of the caller"):  # noqa: PT012
        async with changing(database.writer_url) as connection:
            await rename(connection, "skill", entity_id, "dropped")
            await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
            raise RuntimeError("of the caller")
    async with changing(database.writer_url) as connection:
        await rename(connection, "skill", entity_id, "second")
        for name in ("dropped", "kept"):
            await connection.execute("SAVEPOINT here")
            await rename(connection, "skill", entity_id, name)
            await connection.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
            await connection.execute(f"{'ROLLBACK TO' if name == 'dropped' else 'RELEASE'} SAVEPOINT here")
    assert await names_of(database.superuser_url, entity_id) == ["first", "kept"]


async def test_versions_can_be_had_before_the_commit(database: Database) -> None:
    """After `SET CONSTRAINTS ALL IMMEDIATE` each statement is a version, and the tenant set before still is."""
    async with changing(database.writer_url) as connection:
        entity_id = await insert(connection, "skill")
        count = "SELECT count(*) FROM entity_versions"
        assert await connection.fetchval(count) == 0
        await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        assert await connection.fetchval(count) == 1
        await rename(connection, "skill", entity_id, "second")
        await rename(connection, "skill", entity_id, "second")
        assert await connection.fetchval(count) == 2
        assert await connection.fetchval("SELECT current_setting('plant.governance_agent_id')") == "genesis"
        await connection.execute("SET CONSTRAINTS ALL DEFERRED")
        await rename(connection, "skill", entity_id, "third")
        assert await connection.fetchval(count) == 2
    assert await names_of(database.superuser_url, entity_id) == ["first", "second", "third"]


async def test_what_is_deleted_and_made_again_goes_on_in_its_chain(database: Database) -> None:
    """The deletion is a version with the last state; made again, as another kind even, it goes on in it."""
    entity_id = await made(database.writer_url, "skill")
    async with changing(database.writer_url) as connection:
        await delete(connection, entity_id)
    async with changing(database.writer_url) as connection:
        await insert(connection, "agent", id=entity_id)
    async with changing(database.writer_url) as connection:
        await delete(connection, entity_id)
        await insert(connection, "team", id=entity_id)
    rows = await versions_of(database.superuser_url, entity_id)
    assert [(row["operation"], row["entity_type"]) for row in rows] == [
        ("created", "skill"),
        ("deleted", "skill"),
        ("created", "agent"),
        ("changed", "team"),
    ]
    assert rows[1]["state"] == rows[0]["state"]
    async with changing(database.writer_url) as connection:
        await delete(connection, entity_id)
        await insert(connection, "team", id=entity_id)
        await delete(connection, entity_id)
    assert [row["operation"] for row in await versions_of(database.superuser_url, entity_id)][4:] == ["deleted"]
    assert await findings(database.api_url) == []


async def test_what_is_made_and_deleted_at_once_was_never_there(shared: Database) -> None:
    """Within one transaction: no version."""
    async with changing(shared.writer_url) as connection:
        entity_id = await insert(connection, "job_role", links=[uuid4()])
        await delete(connection, entity_id)
    assert await versions_of(shared.superuser_url, entity_id) == []


@pytest.mark.parametrize(
    ("kind", "field"), [("agent", "skill_ids"), ("job_role", "required_skill_ids"), ("team", "member_ids")]
)
async def test_what_an_entity_is_linked_to_is_part_of_it(database: Database, kind: str, field: str) -> None:
    """A row of its list added or removed is a change of the owner and not of the other; moved, of both owners."""
    other = await made(database.writer_url, "agent" if kind == "team" else "skill")
    first, second = [await made(database.writer_url, kind) for _ in range(2)]
    table = {"agent": "agent_skills", "job_role": "job_role_skills", "team": "team_members"}[kind]
    async with changing(database.writer_url) as connection:
        await connection.execute(f"INSERT INTO {table} VALUES ($1, $2)", first, other)
    async with changing(database.owner_url) as connection:
        await connection.execute(f"UPDATE {table} SET {kind}_id = $1", second)
    async with changing(database.writer_url) as connection:
        await connection.execute(f"DELETE FROM {table}")
    lists = [[state[field] for state in await states_of(database.superuser_url, each)] for each in (first, second)]
    assert lists == [[[], [str(other)], []], [[], [str(other)], []]]
    assert len(await versions_of(database.superuser_url, other)) == 1


async def test_embeddings_are_no_versions(database: Database) -> None:
    """They are computed from the rest: setting one leaves the chain as it is."""
    entity_id = await made(database.writer_url)
    async with changing(database.writer_url) as connection:
        await connection.execute("UPDATE skills SET embedding = $1::text::vector", json.dumps([0.5] * 384))
    assert await names_of(database.superuser_url, entity_id) == ["first"]


async def test_a_change_can_not_hide_from_its_version(database: Database) -> None:
    """Nor by leaving the tenant in the statement itself, nor by tables of these names that only the session sees."""
    entity_id = await made(database.writer_url)
    async with changing(database.writer_url) as connection:
        leave = "RETURNING set_config('plant.governance_agent_id', 'acme', true)"
        await connection.execute(f"UPDATE skills SET name = 'second' {leave}")
    connection = await asyncpg.connect(database.superuser_url)
    try:
        for table in ("entities", "entity_versions", "skills"):
            await connection.execute(f"CREATE TEMP TABLE {table} (LIKE public.{table} INCLUDING ALL)")
        await connection.execute("UPDATE public.skills SET name = 'third'")
    finally:
        await connection.close()
    rows = await versions_of(database.superuser_url, entity_id)
    assert await names_of(database.superuser_url, entity_id) == ["first", "second", "third"]
    assert [row["recorded_by"] for row in rows] == ["plant_writer", "plant_writer", "postgres"]
    assert {row["governance_agent_id"] for row in rows} == {"genesis"}


async def test_concurrent_writers_keep_one_unbroken_chain(database: Database) -> None:
    """Eight at once on one agent, on its skills and on its row: every change is a version, and none is lost."""
    entity_id = await made(database.writer_url, "agent")
    skills = [uuid4() for _ in range(8)]

    async def work(number: int) -> None:
        for step in range(5):
            async with changing(database.writer_url) as connection:
                if number % 2:
                    await rename(connection, "agent", entity_id, f"{number} {step}")
                elif step % 2:
                    await connection.execute("DELETE FROM agent_skills WHERE skill_id = $1", skills[number])
                else:
                    await connection.execute("INSERT INTO agent_skills VALUES ($1, $2)", entity_id, skills[number])

    await asyncio.gather(*(work(number) for number in range(8)))
    states = await states_of(database.superuser_url, entity_id)
    assert len(states) == 1 + 8 * 5
    assert all(before != after for before, after in pairwise(states)), "a version that changed nothing"
    assert set(states[-1]["skill_ids"]) == {str(skill) for skill in skills[::2]}
    assert {state["name"] for state in states} == {"first"} | {f"{n} {step}" for n in (1, 3, 5, 7) for step in range(5)}


async def test_a_writer_that_sees_an_older_moment_does_not_fork_the_chain(database: Database) -> None:
    """In REPEATABLE READ the later of two writers is refused as a conflict, also where they write other tables."""
    entity_id = await made(database.writer_url, "agent")
    connection = await asyncpg.connect(database.writer_url)
    try:
        with pytest.raises(asyncpg.SerializationError):  # noqa: PT012
            async with connection.transaction(isolation="repeatable_read"):
                await connection.execute("SELECT set_config('plant.governance_agent_id', 'genesis', true)")
                await connection.execute("SELECT count(*) FROM entities")
                async with changing(database.writer_url) as other:
                    await rename(other, "agent", entity_id, "second")
                await connection.execute("INSERT INTO agent_skills VALUES ($1, $2)", entity_id, uuid4())
    finally:
        await connection.close()
    assert await names_of(database.superuser_url, entity_id) == ["first", "second"]


async def test_a_chain_hash_in_python_can_stand_for_the_database(database: Database) -> None:
    """A version computed by entities/versions.py and added by the owner is accepted, so the two formulas are one."""
    entity_id = await made(database.writer_url)
    (head,) = await versions_of(database.superuser_url, entity_id)
    state = '{"name": "Größe 事件"}'
    contents = {
        name: head[name]
        for name in ("entity_id", "entity_type", "operation", "recorded_at", "recorded_by", "governance_agent_id")
    }
    digest = chain_hash(head["hash"], version=2, state=state, **contents)
    added = {**contents, "version": 2, "state": state, "previous_hash": head["hash"], "hash": digest}
    async with changing(database.owner_url) as connection:
        await connection.execute(ADD_VERSION, as_json(added | {"version_hash": version_hash(state)}))
