"""Moving readers to a rebuild and back: no reader fails, and none sees a model that is not whole."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from database.errors import DatabaseUnreachable
from projections.install import install
from projections.rebuild import choice, comparison, rebuilds, swap
from projections.rebuild.errors import RebuildRefused, SwapRefused
from projections.session import Session
from tests.conftest import Database
from tests.support.made_models import AGENTS
from tests.support.rebuilding import ProjectedLog, known, rebuilt, session_of
from tests.support.waiting import DEADLINE_SECONDS, wait_until

SHOWN = "SELECT substring(pg_get_viewdef('read_models.agents') FROM '\\w+_v[0-9]+') AS build"
LIVE = "SELECT projection FROM read_model_builds WHERE live AND read_model = 'agents'"
COUNT = "SELECT count(*) AS n, coalesce(max(greatest(profile_offset, availability_offset)), 0) AS m FROM {}"


def shown(superuser: Session) -> str:
    """The build that the view shows, and that is live."""
    ((schema,),), ((name,),) = superuser.query(SHOWN), superuser.query(LIVE)
    assert schema == f"{name}_v1"
    return str(name)


def move(owner: Session, target: str, former: str, wait_seconds: float = DEADLINE_SECONDS) -> None:
    """Move readers between two builds, as an operator does."""
    swap.require_alike(owner, known(owner, former).model, known(owner, target).model)
    swap.move(owner, known(owner, target), known(owner, former), wait_seconds=wait_seconds)


def test_readers_move_to_a_rebuild_and_back_after_many_events(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session
) -> None:
    """The build that they have left is fed on, so it has every event when they come back; and again the other way."""
    made = rebuilt(database, owner)
    projected_log.look()
    move(owner, made.key, "agents/1")
    assert shown(superuser) == made.name
    for _ in range(5):
        projected_log.project(40)
        projected_log.look()
    rows = superuser.query(COUNT.format("read_models.agents"))

    assert choice.replaced(rebuilds.builds_of(owner, "agents"), known(owner, made.key)).key == "agents/1"
    move(owner, "agents/1", made.key)
    assert shown(superuser) == "agents"
    assert superuser.query(COUNT.format("read_models.agents")) == rows
    assert comparison.compare(owner, AGENTS, made).same
    projected_log.project(40)
    move(owner, made.key, "agents/1")
    assert shown(superuser) == made.name
    assert comparison.compare(owner, AGENTS, made).same


def test_workers_and_upgrades_leave_readers_on_a_rebuild(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session
) -> None:
    """Both show their release's build otherwise; between builds of one version an operator chooses."""
    made = rebuilt(database, owner)
    projected_log.look()
    move(owner, made.key, "agents/1")
    projected_log.acquire()
    assert install(database.owner_url) == []
    assert shown(superuser) == made.name
    projected_log.project(10)
    assert comparison.compare(owner, AGENTS, made).same


def test_no_read_fails_and_none_finds_a_model_that_is_not_whole(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session
) -> None:
    """Through ten swaps and as many rollbacks, with prepared statements, while workers project: what readers find never
    goes back.
    """
    made = rebuilt(database, owner)
    projected_log.look()
    done = threading.Event()

    def read() -> int:
        reads, last = 0, superuser_rows
        with session_of(database.api_url) as session:
            session.script(f"PREPARE counted AS {COUNT.format('read_models.agents')}")
            while not done.is_set():
                (row,) = session.query("EXECUTE counted")
                assert row >= last
                last, reads = row, reads + 1
        return reads

    def project() -> None:
        while not done.is_set():
            projected_log.project(3)

    (superuser_rows,) = superuser.query(COUNT.format("read_models.agents"))
    with ThreadPoolExecutor(3) as threads:
        reading = [threads.submit(read) for _ in range(2)]
        projecting = threads.submit(project)
        try:
            for _ in range(10):
                move(owner, made.key, "agents/1")
                move(owner, "agents/1", made.key)
        finally:
            done.set()
        assert all(each.result() > 0 for each in reading)
        projecting.result()


def test_a_rebuild_that_lags_is_not_shown(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session
) -> None:
    """Readers stay, and the reason says so."""
    made = rebuilt(database, owner)
    projected_log.project(10)
    with pytest.raises(SwapRefused, match="Readers were not moved") as refused:
        move(owner, made.key, "agents/1", wait_seconds=0)
    assert "not at the log's end" in refused.value.why
    assert shown(superuser) == "agents"


def test_a_transaction_that_began_earlier_holds_the_swap_up_and_sees_no_half_model(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session
) -> None:
    """It would read what the rebuild was at its begin. Its process is named; readers move once it has ended."""
    with session_of(database.api_url) as reader:
        reader.script("SET idle_in_transaction_session_timeout = 0")
        reader.script("BEGIN ISOLATION LEVEL REPEATABLE READ")
        (before,) = reader.query(COUNT.format("read_models.agents"))
        made = rebuilt(database, owner)
        with pytest.raises(SwapRefused) as refused:
            move(owner, made.key, "agents/1", wait_seconds=0)
        assert "in the way: plant-worker (process" in refused.value.why
        with ThreadPoolExecutor(1) as threads:
            moving = threads.submit(move, owner, made.key, "agents/1")
            assert reader.query(COUNT.format("read_models.agents")) == [before]
            assert not moving.done()
            reader.rollback()
            moving.result()
    assert shown(superuser) == made.name


@pytest.mark.parametrize(
    ("statement", "unlike"),
    [
        ("REVOKE SELECT ON {}.agents FROM plant_api", "rights"),
        ("ALTER TABLE {}.agents NO FORCE ROW LEVEL SECURITY", "row-level security"),
        ("DROP POLICY governance_boundary ON {}.agents", "policies"),
        ("ALTER TABLE {}.agents DROP CONSTRAINT agents_pkey", "indexes"),
        ("REVOKE USAGE ON SCHEMA {} FROM plant_api", "rights on the schema"),
    ],
)
def test_a_rebuild_that_readers_may_not_read_is_refused(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session, statement: str, unlike: str
) -> None:
    """Its grants, policies and indexes are compared with those of the build that readers see."""
    made = rebuilt(database, owner)
    superuser.script(statement.format(made.schema))
    with pytest.raises(SwapRefused) as refused:
        move(owner, made.key, "agents/1")
    assert unlike in refused.value.why
    assert shown(superuser) == "agents"


def test_who_moves_readers_and_is_killed_leaves_one_build_whole(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session
) -> None:
    """Killed while it waits for a reader: readers are where they were, and the next operator moves them."""
    made = rebuilt(database, owner)
    projected_log.look()
    with session_of(database.api_url) as reader, session_of(database.owner_url) as other:
        reader.script("SET idle_in_transaction_session_timeout = 0", "BEGIN")
        reader.query(COUNT.format("read_models.agents"))
        ((process,),) = other.query("SELECT pg_backend_pid() AS pid")
        with ThreadPoolExecutor(1) as threads:
            moving = threads.submit(move, other, made.key, "agents/1")
            wait_until(
                lambda: superuser.query("SELECT whole_since IS NOT NULL AS tried FROM read_model_builds"
                                        f" WHERE projection = '{made.name}'") == [(True,)],
                "it has tried",
            )  # fmt: skip
            superuser.script(f"SELECT pg_terminate_backend({process})")
            assert moving.exception() is not None
        reader.rollback()
    assert shown(superuser) == "agents"
    move(owner, made.key, "agents/1")
    assert shown(superuser) == made.name


def test_a_database_that_ends_within_the_swap_leaves_readers_where_they_were(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The views are replaced, nothing is committed: readers see the former build, and the next try moves them."""
    made = rebuilt(database, owner)
    projected_log.look()
    with session_of(database.owner_url) as other, monkeypatch.context() as patched:
        patched.setattr(swap, "_notes", lambda *_: ["SELECT pg_terminate_backend(pg_backend_pid())"])
        with pytest.raises(DatabaseUnreachable):
            move(other, made.key, "agents/1")
    assert shown(superuser) == "agents"
    projected_log.project(10)
    move(owner, made.key, "agents/1")
    assert shown(superuser) == made.name
    assert comparison.compare(owner, AGENTS, made).same


def test_there_is_no_way_back_where_readers_never_moved(projected_log: ProjectedLog, owner: Session) -> None:
    """The build that was installed has replaced none."""
    with pytest.raises(RebuildRefused, match="no build to go back to from agents/1"):
        choice.replaced(rebuilds.builds_of(owner, "agents"), known(owner, "agents/1"))
