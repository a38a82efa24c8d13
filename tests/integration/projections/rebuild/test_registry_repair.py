"""The entity tables repaired by a fold of the log into a shadow of them, next to direct changes and live projection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterator
from typing import Any
from uuid import UUID

import pytest

from database.errors import DatabaseUnreachable
from entities import shadow
from projections.engine import PartitionProjector
from projections.fold import fold_slice
from projections.install import install
from projections.rebuild import registry_repair
from projections.rebuild.errors import BuildLag, RebuildRefused
from projections.rebuild.registry_repair import RegistryRepair
from projections.session import Session
from relay import outbox
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS, batch_of
from tests.support.direct_changes import changing, delete, insert, rename
from tests.support.made_models import REGISTRY
from tests.support.mixed_events import MixedEvents
from tests.support.rebuilding import ProjectedLog, session_of
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async

STATES = "SELECT id::text AS id, entity_state(id) AS state FROM entities ORDER BY 1"
OF_KIND = """
SELECT id::text AS id FROM entities
WHERE entity_type = $1 AND id NOT IN (SELECT entity_id FROM entity_versions WHERE recorded_by NOT LIKE '%/projection')
ORDER BY 1
"""
LAST = """
SELECT recorded_by FROM entity_versions WHERE entity_id = $1::text::uuid ORDER BY version DESC LIMIT 1
"""
OUTBOX = "SELECT count(*) AS n FROM outbox"
WAITING = "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
SCHEMAS = "SELECT count(*) AS n FROM pg_namespace WHERE nspname = 'registry_shadow'"
STRANGER = "ffffffff-0000-0000-0000-000000000001"


class FollowedLog:
    """One partition of events of all types, which the registry follows."""

    def __init__(self, database: Database) -> None:
        self._made = MixedEvents(3, entities=40)
        self._projector = PartitionProjector(database.writer_url, TOPIC, 0, [REGISTRY])
        self._token = self._projector.acquire(WATERMARKS).token
        self._next_offset = 0

    def project(self, count: int, without: Collection[str] = ()) -> None:
        """Project some events more, of so many those that are not about these entities."""
        events = [each for each in self._made.take(count) if str(each.entity_id) not in without]
        self._projector.project(batch_of(events, token=self._token, start=self._next_offset))
        self._next_offset += len(events)

    def close(self) -> None:
        self._projector.close()


@pytest.fixture
def followed_log(database: Database, superuser: Session) -> Iterator[FollowedLog]:
    """A log of a few hundred events."""
    install(database.owner_url, [REGISTRY])
    superuser.script("UPDATE read_model_builds SET paused = projection <> 'registry'")
    with contextlib.closing(FollowedLog(database)) as made:
        made.project(600)
        print(superuser.query("SELECT entity_type, count(*) AS n FROM entities GROUP BY 1"))
        yield made


@contextlib.contextmanager
def found(database: Database, owner: Session) -> Iterator[RegistryRepair]:
    """A repair that has found what differs; nothing is changed yet."""
    with session_of(database.writer_url) as writer:
        tenants = [tenant for (tenant,) in owner.query(outbox.TENANTS)]
        repair = RegistryRepair(owner, writer, REGISTRY, tenants)
        with repair.shadowed():
            repair.fill(lambda _: None)
            repair.find(0.0)
            yield repair


def differing(database: Database, owner: Session) -> set[tuple[str, str, str]]:
    """Return kind, id and what of each entity that differs."""
    with found(database, owner) as repair:
        return {(each.kind, each.id, each.what) for each in repair.found}


def tamper(superuser: Session, *statements: str) -> None:
    """Change entity tables past their triggers, as a disk or a superuser may."""
    superuser.script("SET session_replication_role = replica", *statements, "SET session_replication_role = origin")


async def test_entities_that_differ_are_folded_over_and_no_others(
    database: Database, followed_log: FollowedLog, owner: Session, superuser: Session
) -> None:
    """Direct changes stay, those too that no event tells of yet; the outbox gets nothing, and versions say a fold's."""
    forged, changed, deleted, *_ = (UUID(id_) for (id_,) in superuser.query(OF_KIND, ("skill",)))
    async with changing(database.writer_url) as connection:
        await rename(connection, "skill", changed, "changed directly")
        await delete(connection, deleted)
    async with changing(database.writer_url, tenant="acme") as connection:
        acme = await insert(connection, "skill")
    assert differing(database, owner) == set()

    ((lost,), (loose,), *_), outbox = superuser.query(OF_KIND, ("agent",)), superuser.query(OUTBOX)
    before = dict(superuser.query(STATES))
    tamper(
        superuser,
        f"UPDATE skills SET name = 'forged' WHERE id IN ('{forged}', '{changed}', '{acme}')",
        f"DELETE FROM entities WHERE id = '{lost}'", f"DELETE FROM agents WHERE id = '{lost}'",
        f"DELETE FROM agent_skills WHERE agent_id = '{lost}'",
        f"DELETE FROM entity_versions WHERE entity_id = '{lost}'",
        f"UPDATE agents SET available = NOT available WHERE id = '{loose}'",
        f"INSERT INTO entities (id, entity_type) VALUES ('{STRANGER}', 'industry')",
    )  # fmt: skip
    expected = {
        ("skill", str(forged), "changed"), ("skill", str(changed), "changed"), ("agent", lost, "missing"),
        ("agent", loose, "changed"), ("industry", STRANGER, "added"), ("skill", str(acme), "changed"),
    }  # fmt: skip
    assert differing(database, owner) == expected

    with found(database, owner) as repair:
        # The log goes on between finding and merging.
        followed_log.project(60, without=[each for _, each, _ in expected])
        assert repair.merge(lambda _: None, DEADLINE_SECONDS) == 5
    assert (repair.refused, superuser.query(SCHEMAS), superuser.query(OUTBOX)) == ({}, [(0,)], outbox)
    assert differing(database, owner) == {("industry", STRANGER, "added")}
    now = dict(superuser.query(STATES))
    assert "changed directly" in now[str(changed)]
    assert (now.keys() - {STRANGER}) >= before.keys()
    assert superuser.query(LAST, (lost,)) == [("plant_writer/projection",)]


def test_a_registry_that_is_paused_or_behind_is_not_compared(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session
) -> None:
    """It would be called wrong for what it has not read yet."""
    with pytest.raises(BuildLag, match="registry/1 is not at the log's end"):
        differing(database, owner)
    assert superuser.query(SCHEMAS) == [(0,)]


def test_an_interrupted_repair_leaves_no_shadow(
    database: Database, followed_log: FollowedLog, owner: Session, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes in the middle of a slice, whose transaction has locked the shadow."""

    def interrupted(*arguments: Any, **named: Any) -> int:
        fold_slice(*arguments, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(registry_repair, "fold_slice", interrupted)
    with pytest.raises(KeyboardInterrupt):
        differing(database, owner)
    assert superuser.query(SCHEMAS) == [(0,)]


def test_a_repair_whose_shadow_was_made_again_by_another_operator_ends(
    database: Database, followed_log: FollowedLog, owner: Session
) -> None:
    """Both would fold into it, and the later one would take old states for right."""
    with session_of(database.writer_url) as writer, session_of(database.owner_url) as other:
        late = RegistryRepair(owner, writer, REGISTRY)
        with late.shadowed():
            other.script(*shadow.make_shadow())
            with pytest.raises(RebuildRefused, match="is being repaired by another operator"):
                late.fill(lambda _: None)


async def test_an_entity_that_is_inserted_directly_meanwhile_stays_as_it_was_inserted(
    database: Database, followed_log: FollowedLog, owner: Session, superuser: Session
) -> None:
    """It was missing, so there was no row to lock: the fold waits for the insert, of which its snapshot has nothing."""
    ((lost,), *_) = superuser.query(OF_KIND, ("industry",))
    tamper(superuser, f"DELETE FROM entities WHERE id = '{lost}'", f"DELETE FROM industries WHERE id = '{lost}'",
           f"DELETE FROM entity_versions WHERE entity_id = '{lost}'")  # fmt: skip
    with found(database, owner) as repair:
        assert [(each.id, each.what) for each in repair.found] == [(lost, "missing")]
        async with changing(database.writer_url) as connection:
            await insert(connection, "industry", id=UUID(lost))
            merging = asyncio.create_task(asyncio.to_thread(repair.merge, lambda _: None, DEADLINE_SECONDS))
            await wait_until_async(lambda: superuser.query(WAITING) != [(0,)], "the fold waits for the insert")
        assert await merging == 0
    assert '"name": "first"' in dict(superuser.query(STATES))[lost]
    assert not superuser.query(LAST, (lost,))[0][0].endswith("/projection")


def test_nothing_is_merged_once_workers_go_on(
    database: Database, followed_log: FollowedLog, owner: Session, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session that holds them was ended, so the shadow may be behind the entities by the time of the merge."""
    ((forged,), *_) = superuser.query(OF_KIND, ("skill",))
    tamper(superuser, f"UPDATE skills SET name = 'forged' WHERE id = '{forged}'")
    merge = RegistryRepair._merge

    def unheld(repair: RegistryRepair, tenant: str, ids: str) -> dict[str, str | None]:
        superuser.query("SELECT pg_terminate_backend($1::int) AS ended", owner_backend)
        return merge(repair, tenant, ids)

    ((pid,),) = owner.query("SELECT pg_backend_pid() AS pid")
    owner_backend = (pid,)
    monkeypatch.setattr(RegistryRepair, "_merge", unheld)
    with found(database, owner) as repair, pytest.raises(DatabaseUnreachable):
        repair.merge(lambda _: None, DEADLINE_SECONDS)
    assert "forged" in dict(superuser.query(STATES))[forged]


def test_nothing_compared_is_told_from_nothing_found(database: Database, owner: Session) -> None:
    """A database without a log has no entity that could differ."""
    install(database.owner_url, [REGISTRY])
    with found(database, owner) as repair:
        assert (repair.compared, repair.found) == (0, [])
