"""A read model whose version rises: readers stay on the former build until the new one has the whole log."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import pytest_asyncio
import structlog

from database import migrate
from database.connector import connect
from database.errors import DatabaseUnreachable
from devstack import sql
from projections import builds, engine, fold, log_progress
from projections.checkpoint_waiter import ReadModels
from projections.engine import PartitionProjector
from projections.errors import BuildReshaped
from projections.install import install
from projections.read_model import ReadModel
from projections.session import LogRefused, Session
from runtime.settings import Settings
from schemas.events import Event
from streams.errors import CaughtUpTooLate
from streams.record_position import RecordPosition
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS, batch_of
from tests.support.load import some_events
from tests.support.made_models import AGENTS, made_model
from tests.support.projectors import MakeProjector
from tests.support.waiting import wait_until

NEXT = dataclasses.replace(AGENTS, version=2)
SECOND = "agent_id uuid PRIMARY KEY, renamed text, governance_agent_id text COLLATE \"C\" NOT NULL DEFAULT 'genesis'"
THIRD = "agent_id uuid PRIMARY KEY, other text"
LIVE = "SELECT version FROM read_model_builds WHERE live"
SHOWN = "SELECT substring(pg_get_viewdef('read_models.agents') FROM 'agents_v[0-9]+') AS build"
ROWS = "SELECT to_json(a)::text AS row FROM {} AS a ORDER BY agent_id"


def make(make_projector: MakeProjector, models: Sequence[ReadModel], partition: int) -> PartitionProjector:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tests.support.projectors.MODELS", models)
        return make_projector(partition)


def project(projector: PartitionProjector, batch: list[Event], start: int = 0) -> None:
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of(batch, token=token, start=start, partition=projector.partition))


def shown(superuser: Session) -> str:
    """The build that the view shows, which the table names too."""
    ((version,),), ((build,),) = superuser.query(LIVE), superuser.query(SHOWN)
    assert build == f"agents_v{version}"
    return str(build)


@pytest_asyncio.fixture
async def waiter(settings: Settings) -> AsyncIterator[ReadModels]:
    made = ReadModels(settings)
    yield made
    await made.close()


@pytest.fixture
def reader(database: Database) -> Iterator[Session]:
    session = Session(database.api_url)
    session.script("SET idle_in_transaction_session_timeout = 0")  # a busy machine takes its time
    yield session
    session.close()


@pytest.fixture
def two_partitions(make_projector: MakeProjector) -> None:
    """Forty records on one partition and twenty on another, which the first version has folded."""
    project(make_projector(0), some_events(40))
    project(make_projector(1), some_events(20, seed=2))


@pytest.mark.usefixtures("two_partitions")
async def test_readers_move_when_the_new_build_has_the_whole_log(
    database: Database, make_projector: MakeProjector, superuser: Session, settings: Settings, waiter: ReadModels
) -> None:
    """Views, wait_for and progress stay with the former build until then, and workers of the new version feed it."""
    rows = superuser.query(ROWS.format("read_models.agents"))

    assert install(database.owner_url, [NEXT]) == [NEXT]
    assert superuser.query(ROWS.format("read_models.agents")) == rows
    assert len(rows) > 0

    first = make(make_projector, [NEXT], 0)
    project(first, some_events(10, seed=3), start=40)
    assert shown(superuser) == "agents_v1"
    await waiter.wait_for(RecordPosition(TOPIC, 0, 49), 0, "agents")
    with pytest.raises(CaughtUpTooLate, match="It is at offset 50"):
        await waiter.wait_for(RecordPosition(TOPIC, 0, 50), 0, "agents")
    assert await progress(settings) == {(TOPIC, 0): (50, 50), (TOPIC, 1): (20, 20)}
    assert await models_out(settings) == []

    make(make_projector, [NEXT], 1).acquire(WATERMARKS)
    assert shown(superuser) == "agents_v2"
    await waiter.wait_for(RecordPosition(TOPIC, 0, 49), 0, "agents")
    assert await progress(settings) == {(TOPIC, 0): (50, 50), (TOPIC, 1): (20, 20)}
    assert superuser.query(ROWS.format("read_models.agents")) == superuser.query(ROWS.format("agents_v2.agents"))
    assert install(database.owner_url, [NEXT]) == []
    assert await models_out(settings) == []


async def models_out(settings: Settings) -> list[tuple[str, int]]:
    database = connect(settings, "operator")
    try:
        return [(each.model, each.partition) for each in (await log_progress.progress(database))[1]]
    finally:
        await database.close()


async def progress(settings: Settings) -> dict[tuple[str, int], tuple[int, int]]:
    database = connect(settings, "auditor")
    try:
        return await log_progress.checkpoints(database)
    finally:
        await database.close()


async def test_the_log_is_waited_for_without_a_build(make_projector: MakeProjector, waiter: ReadModels) -> None:
    """It has one version, 0, and readers see it as it is."""
    project(make_projector(0), some_events(5))
    await waiter.wait_for(RecordPosition(TOPIC, 0, 4), 0, "log")
    with pytest.raises(CaughtUpTooLate):
        await waiter.wait_for(RecordPosition(TOPIC, 0, 5), 0, "log")


def test_readers_of_an_empty_log_move_at_once(database: Database, superuser: Session) -> None:
    """A build that lacks no record is as good as the one before."""
    assert install(database.owner_url, [NEXT]) == []
    assert shown(superuser) == "agents_v2"


@pytest.mark.usefixtures("two_partitions")
def test_an_upgrade_moves_readers_as_well(
    database: Database, make_projector: MakeProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no worker did, since it was ended in between, say."""
    install(database.owner_url, [NEXT])
    monkeypatch.setattr("projections.builds.publish_all", lambda *_, **__: [])
    for partition in (0, 1):
        make(make_projector, [NEXT], partition).acquire(WATERMARKS)
    assert shown(superuser) == "agents_v1"
    assert install(database.owner_url, [NEXT]) == []
    assert shown(superuser) == "agents_v2"


@pytest.mark.usefixtures("two_partitions")
def test_workers_of_the_former_version_bring_readers_back(
    database: Database, make_projector: MakeProjector, superuser: Session
) -> None:
    """Once they have caught up everywhere: the build that workers keep is the one that readers see."""
    install(database.owner_url, [NEXT])
    project(make(make_projector, [NEXT], 0), some_events(10, seed=3), start=40)
    make(make_projector, [NEXT], 1).acquire(WATERMARKS)
    assert shown(superuser) == "agents_v2"
    former = [make_projector(0), make_projector(1)]
    project(former[0], some_events(10, seed=4), start=50)
    former[1].acquire(WATERMARKS)
    assert shown(superuser) == "agents_v1"
    query = "SELECT version, next_offset FROM projection_checkpoints WHERE projection = 'agents' AND partition = 0"
    assert sorted(superuser.query(query)) == [(1, 60), (2, 60)]


@pytest.mark.usefixtures("two_partitions")
def test_readers_that_hold_the_view_delay_the_move_and_no_record(
    database: Database,
    make_projector: MakeProjector,
    superuser: Session,
    reader: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker goes on, and asks again with a later batch."""
    monkeypatch.setattr(engine, "LOOK_EVERY_SECONDS", 0.0)
    install(database.owner_url, [NEXT])
    reader.begin()
    reader.query("SELECT count(*) AS n FROM read_models.agents")
    make(make_projector, [NEXT], 1).acquire(WATERMARKS)
    projector = make(make_projector, [NEXT], 0)
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of(some_events(10, seed=3), token=token, start=40))
    assert shown(superuser) == "agents_v1"
    reader.rollback()
    projector.project(batch_of(some_events(10, seed=4), token=token, start=50))
    assert shown(superuser) == "agents_v2"


@pytest.mark.usefixtures("two_partitions")
@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
def test_a_log_without_new_records_delays_no_move(
    database: Database, make_projector: MakeProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch,
    reader: Session, isolation: str,
) -> None:  # fmt: skip
    """A worker asks again where none comes, too."""
    monkeypatch.setattr(engine, "LOOK_EVERY_SECONDS", 0.0)
    install(database.owner_url, [NEXT])
    reader.script(f"BEGIN ISOLATION LEVEL {isolation}")
    reader.query("SELECT count(*) AS n FROM read_models.agents")
    first, second = (make(make_projector, [NEXT], partition) for partition in (0, 1))
    first.acquire(WATERMARKS)
    with structlog.testing.capture_logs() as lines:
        second.acquire(WATERMARKS)
        second.idle()
        assert shown(superuser) == "agents_v1"
        reader.rollback()
        second.idle()
    assert shown(superuser) == "agents_v2"
    assert [line["event"] for line in lines if str(line["event"]).startswith("build.")] == [
        "build.waiting",
        "build.shown",
    ]


@pytest.mark.usefixtures("two_partitions")
def test_a_transaction_that_began_earlier_never_sees_half_a_build(
    database: Database,
    make_projector: MakeProjector,
    superuser: Session,
    reader: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its snapshot lacks what was folded since, and a view that moves is new to it at once: the move waits for it."""
    monkeypatch.setattr(engine, "LOOK_EVERY_SECONDS", 0.0)
    count = "SELECT count(*) AS n FROM read_models.agents"
    rows = superuser.query(count)
    install(database.owner_url, [NEXT])
    reader.script("BEGIN ISOLATION LEVEL REPEATABLE READ")
    reader.query("SELECT 1 AS snapshot")

    first, second = (make(make_projector, [NEXT], partition) for partition in (0, 1))
    first.acquire(WATERMARKS)
    second.acquire(WATERMARKS)
    assert install(database.owner_url, [NEXT]) == [NEXT]
    reader.script("SET LOCAL plant.governance_agent_id = 'genesis'")
    assert reader.query(count) == rows
    reader.rollback()
    with contextlib.closing(Session(database.api_url)) as later:
        later.script("BEGIN ISOLATION LEVEL REPEATABLE READ")
        later.query("SELECT 1 AS snapshot")
        second.idle()
        assert shown(superuser) == "agents_v2"
        later.script("SET LOCAL plant.governance_agent_id = 'genesis'")
        assert later.query(count) == rows


@pytest.mark.usefixtures("two_partitions")
def test_readers_see_every_row_while_two_workers_catch_up(
    database: Database, make_projector: MakeProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no moment a reader finds fewer agents than before, and at the end it is the new build that they read."""
    monkeypatch.setattr(engine, "LOOK_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(fold, "FOLD_RECORDS", 3)
    count = "SELECT count(*) AS n FROM {}"
    ((rows,),) = superuser.query(count.format("agents_v1.agents"))
    install(database.owner_url, [NEXT])
    done = threading.Event()
    counts: list[int] = []

    def read() -> None:
        reader = Session(database.superuser_url)
        while not done.is_set():
            counts.append(reader.query(count.format("read_models.agents"))[0][0])
        reader.close()

    def catch_up(projector: PartitionProjector) -> None:
        projector.acquire(WATERMARKS)
        while not moved.is_set():
            projector.idle()

    moved = threading.Event()
    projectors = [make(make_projector, [NEXT], partition) for partition in (0, 1)]
    with ThreadPoolExecutor(3) as threads:
        reading = threads.submit(read)
        working = [threads.submit(catch_up, projector) for projector in projectors]
        wait_until(lambda: superuser.query(LIVE) == [(2,)], "readers moved")
        moved.set()
        for each in working:
            each.result()
        done.set()
        reading.result()

    assert set(counts) == {rows}
    assert shown(superuser) == "agents_v2"


@pytest.mark.usefixtures("two_partitions")
@pytest.mark.parametrize("point", ["between two slices", "before the views"])
def test_a_worker_that_is_killed_leaves_readers_where_they_are(
    database: Database, make_projector: MakeProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """The next owner goes on from the last slice, and moves them."""
    monkeypatch.setattr(fold, "FOLD_RECORDS", 15)
    install(database.owner_url, [NEXT])
    make(make_projector, [NEXT], 1).acquire(WATERMARKS)
    killed = make(make_projector, [NEXT], 0)
    fatal = {"between two slices": (fold, "fold_slice", 2), "before the views": (builds, "publish", 1)}
    module, name, call = fatal[point]
    function, calls = getattr(module, name), itertools.count(1)

    def die(session: Session, *arguments: object, **named: object) -> object:
        if next(calls) == call:
            superuser.query("SELECT pg_terminate_backend(backend_pid, 60000) FROM partition_owners WHERE partition = 0")
        return function(session, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(module, name, die)
        with pytest.raises(DatabaseUnreachable):
            killed.acquire(WATERMARKS)
    assert shown(superuser) == "agents_v1"
    query = "SELECT next_offset FROM projection_checkpoints WHERE version = 2 AND partition = 0"
    assert superuser.query(query) == [(15 if point == "between two slices" else 40,)]

    make(make_projector, [NEXT], 0).acquire(WATERMARKS)
    assert shown(superuser) == "agents_v2"
    assert superuser.query(ROWS.format("agents_v1.agents")) == superuser.query(ROWS.format("agents_v2.agents"))


@pytest.mark.usefixtures("two_partitions")
async def test_workers_of_two_versions_side_by_side_move_nobody(
    database: Database, make_projector: MakeProjector, superuser: Session, waiter: ReadModels
) -> None:
    """Both feed the build that readers see, one of them the new one as well, which is not whole."""
    install(database.owner_url, [NEXT])
    former, new = make_projector(0), make(make_projector, [NEXT], 1)
    for seed in (3, 4):
        project(former, some_events(10, seed=seed), start=10 + 10 * seed)
        project(new, some_events(10, seed=seed + 10), start=10 * seed - 10)
        assert shown(superuser) == "agents_v1"
    await waiter.wait_for(RecordPosition(TOPIC, 0, 59), 0, "agents")
    await waiter.wait_for(RecordPosition(TOPIC, 1, 39), 0, "agents")
    query = "SELECT partition, next_offset FROM projection_checkpoints WHERE projection = 'agents' AND version = 2"
    assert superuser.query(query) == [(1, 40)]

    make(make_projector, [NEXT], 0).acquire(WATERMARKS)
    assert shown(superuser) == "agents_v2"
    await waiter.wait_for(RecordPosition(TOPIC, 1, 39), 0, "agents")
    await waiter.wait_for(RecordPosition(TOPIC, 0, 59), 0, "agents")


@pytest.mark.usefixtures("two_partitions")
def test_no_record_comes_between_the_last_look_and_the_move(
    database: Database, make_projector: MakeProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of the former version that is about to commit one makes the move wait, and be left out then."""
    monkeypatch.setattr(engine, "LOOK_EVERY_SECONDS", 0.0)
    install(database.owner_url, [NEXT])
    first, second = (make(make_projector, [NEXT], partition) for partition in (0, 1))
    first.acquire(WATERMARKS)
    with contextlib.closing(Session(database.writer_url)) as former:
        former.script(
            "BEGIN",
            "UPDATE checkpoints SET next_offset = 50, read_models = '{agents/1}' WHERE partition = 0",
            f"INSERT INTO model_checkpoints VALUES ('agents', 2, '{TOPIC}', 0, 40)",
        )
        second.acquire(WATERMARKS)
        assert shown(superuser) == "agents_v1"
        former.commit()
    second.idle()
    assert shown(superuser) == "agents_v1"


@pytest.mark.usefixtures("two_partitions")
def test_going_back_to_fewer_columns_is_refused_by_name_and_holds_up_no_record(
    database: Database, make_projector: MakeProjector, superuser: Session
) -> None:
    """A view can't lose columns: workers of the former version write the log and say why readers stay."""
    install(database.owner_url, [NEXT])
    superuser.script("ALTER TABLE agents_v2.agents ADD COLUMN more text")
    for partition in (0, 1):
        make(make_projector, [NEXT], partition).acquire(WATERMARKS)
    assert shown(superuser) == "agents_v2"
    with pytest.raises(BuildReshaped, match="lacks more text"):
        install(database.owner_url, [AGENTS])
    with structlog.testing.capture_logs() as lines:
        project(make_projector(0), some_events(10, seed=3), start=40)
    (refused,) = [line for line in lines if line["event"] == "build.refused"]
    assert "columns" in str(refused["why"])
    assert shown(superuser) == "agents_v2"
    assert superuser.query("SELECT count(*) AS n FROM event_stream") == [(70,)]


@pytest.mark.usefixtures("two_partitions")
def test_readers_never_move_to_a_build_that_is_refused(
    database: Database, make_projector: MakeProjector, superuser: Session
) -> None:
    """It lags, so the former build stays, and the log goes on."""
    install(database.owner_url, [NEXT])
    superuser.execute("REVOKE INSERT ON agents_v2.agents FROM plant_writer")
    for partition, start in ((0, 40), (1, 20)):
        project(make(make_projector, [NEXT], partition), some_events(10, seed=3 + partition), start=start)
    assert shown(superuser) == "agents_v1"
    assert superuser.query("SELECT count(*) AS n FROM event_stream") == [(80,)]


@pytest.mark.usefixtures("two_partitions")
def test_a_worker_moves_readers_to_a_whole_build_and_to_no_other(database: Database) -> None:
    """Not to one that lags or that nobody made; and it can't skip the question."""
    install(database.owner_url, [NEXT])
    worker = Session(database.writer_url)
    try:
        for name, version, expected in (("agents", 2, "behind"), ("agents", 3, "unknown"), ("agents", 1, "live")):
            query = "SELECT publish_build($1, $2::int, true) AS state"
            assert worker.query(query, (name, version)) == [(expected,)]
        for statement in ("SELECT show_build('agents', 2)", "UPDATE read_model_builds SET live = true"):
            with pytest.raises(LogRefused, match="permission denied"):
                worker.script(statement)
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("version", "columns", "suffix"), [(2, SECOND, "_v2"), (3, f"{SECOND}, more text", "_v2"), (3, THIRD, "_v3")]
)
def test_a_build_of_another_shape_has_views_of_its_own(
    database: Database, superuser: Session, version: int, columns: str, suffix: str
) -> None:
    """The former ones stay as they are; one that only adds columns to the latest shares its views."""
    second = made_model("agents", SECOND, "SELECT", version=2)
    made = made_model("agents", columns, "SELECT", version=version)
    assert install(database.owner_url, [second]) == []
    assert install(database.owner_url, [made]) == []
    live = superuser.query("SELECT view_suffix, version FROM read_model_builds WHERE live ORDER BY 1")
    assert dict(live) == {"": 1, "_v2": 2} | {suffix: version}
    assert superuser.query(SHOWN) == [("agents_v1",)]
    shows = f"SELECT substring(pg_get_viewdef('read_models.agents{suffix}') FROM 'agents_v[0-9]+') AS build"
    assert superuser.query(shows) == [(f"agents_v{version}",)]


def test_the_build_that_views_show_is_known_after_the_migration(database: Database) -> None:
    """What an older version of Plant made has no row; the migration takes it from the views."""
    url = database.owner_url
    query = (
        "SELECT json_agg(b) FROM (SELECT projection, version, tables, live, whole_since FROM read_model_builds) AS b"
    )
    before = sql.value(url, f"SELECT ({query})::text")
    migrate.downgrade(url, "015")
    migrate.upgrade(url)
    assert sql.value(url, f"SELECT ({query})::text") == before
    assert before == '[{"projection":"agents","version":1,"tables":["agents"],"live":true,"whole_since":null}]'
