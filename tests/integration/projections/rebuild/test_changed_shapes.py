"""A version of another shape goes live beside the former one, while workers of both releases run and readers read."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from projections.install import install
from projections.read_model import READ_MODELS
from projections.rebuild import choice, rebuilds, retirement, swap
from projections.rebuild.errors import RebuildRefused
from projections.session import NameUnknown, Session
from tests.conftest import Database
from tests.support.made_models import AGENTS, reshaped_agents
from tests.support.model_tables import model_tables
from tests.support.read_model_folds import FOLDS
from tests.support.rebuilding import ProjectedLog, begun, fill, known, session_of
from tests.support.waiting import DEADLINE_SECONDS, wait_until

RESHAPED = reshaped_agents()
RELEASE = (RESHAPED, *(model for model in READ_MODELS if model.name != "agents"))
ROWS = "SELECT count({}) AS n, coalesce(max(greatest(profile_offset, availability_offset)), 0) AS m FROM {}"
LIVE = "SELECT projection, version FROM read_model_builds WHERE live AND read_model = 'agents' ORDER BY view_suffix"


class Readers:
    """Readers of the former and of the new view, who read all the time and never find less than before."""

    def __init__(self, database: Database, least: tuple[int, int]) -> None:
        self._url = database.api_url
        self._least = least
        self._done = threading.Event()
        self.reads = {"read_models.agents": 0, "read_models.agents_v2": 0}
        self._threads = ThreadPoolExecutor(2)
        self._reading = [
            self._threads.submit(self._read, column, view)
            for column, view in (("status", "read_models.agents"), ("stage", "read_models.agents_v2"))
        ]

    def _read(self, column: str, view: str) -> None:
        last = self._least
        with session_of(self._url) as session:
            while not self._done.is_set():
                try:
                    (row,) = session.query(ROWS.format(column, view))
                except NameUnknown:
                    assert view == "read_models.agents_v2"
                    assert self.reads[view] == 0
                    continue
                assert (row[0], row[1]) >= last
                last = row
                self.reads[view] += 1

    def close(self) -> None:
        """Read no more; raises what a reader has met."""
        self._done.set()
        for each in self._reading:
            each.result()
        self._threads.shutdown()


def test_a_changed_shape_goes_live_beside_the_former_one(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session
) -> None:
    """Deployed, rebuilt and swapped while workers of both releases project: no read fails, and none finds a model that
    is empty or half filled. The former one is fed until it is retired, and its views go with it.
    """
    superuser.script("SET timezone = 'UTC'")
    least = tuple(superuser.query(ROWS.format("status", "read_models.agents"))[0])
    assert install(database.owner_url, RELEASE) == [RESHAPED]
    projected_log.releases = [READ_MODELS, RELEASE]
    readers = Readers(database, least)
    try:
        made = begun(owner, "agents", 2)
        projected_log.acquire()
        projected_log.project(10)
        fill(database, owner, made)
        projected_log.project(10)
        projected_log.look()
        assert superuser.query(LIVE) == [("agents", 1)]
        with pytest.raises(RebuildRefused, match="There is no build of agents to retire"):
            choice.retirable(rebuilds.builds_of(owner, "agents"), "agents/1")
        swap.move(owner, known(owner, made.key), None, wait_seconds=DEADLINE_SECONDS)
        assert superuser.query(LIVE) == [("agents", 1), (made.name, 2)]
        for _ in range(3):
            projected_log.project(10)
        wait_until(lambda: all(readers.reads.values()), "both views were read")
    finally:
        readers.close()
    former, latest = model_tables(superuser, AGENTS), model_tables(superuser, made)
    assert former == FOLDS["agents"](projected_log.applied)
    assert latest == {
        "agents": [
            {{"status": "stage"}.get(name, name): each for name, each in row.items()} for row in former["agents"]
        ]
    }

    left = choice.retirable(rebuilds.builds_of(owner, "agents"), "agents/1")
    retirement.retire(owner, left, wait_seconds=0)
    projected_log.look()
    assert retirement.retire(owner, left, wait_seconds=DEADLINE_SECONDS)
    projected_log.project(10)
    assert superuser.query("SELECT to_regclass('read_models.agents') IS NULL AS gone") == [(True,)]
    assert superuser.query(LIVE) == [(made.name, 2)]
    assert model_tables(superuser, made).keys() == {"agents"}


def test_workers_show_a_changed_shape_that_nobody_rebuilds(
    database: Database, projected_log: ProjectedLog, superuser: Session
) -> None:
    """As any new version, once it has the whole log; both are live then, and an upgrade changes nothing."""
    install(database.owner_url, RELEASE)
    projected_log.releases = [RELEASE, RELEASE]
    projected_log.acquire()
    projected_log.look()
    projected_log.project(10)
    assert superuser.query(LIVE) == [("agents", 1), ("agents", 2)]
    assert install(database.owner_url, RELEASE) == []
    superuser.script("SET timezone = 'UTC'")
    assert model_tables(superuser, AGENTS) == FOLDS["agents"](projected_log.applied)
    count = "SELECT count(*) AS n FROM read_models.agents"
    assert superuser.query(count) == superuser.query(f"{count}_v2")
