"""A read model that is fed from the log while its worker is told to end, or Postgres is killed and started again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devstack import sql
from devstack.stack import Stack
from projections.session import Session
from schemas import codec
from schemas.events import AgentRated
from streams.partitioning import partition_of
from tests.support.faults.evidence import assert_chains_whole, dispositions
from tests.support.faults.scene import Process, Scene, private_scene
from tests.support.load import events, fill
from tests.support.made_models import RATINGS
from tests.support.model_tables import model_tables
from tests.support.read_model_folds import FOLDS, Applied
from tests.support.waiting import wait_until

PARTITIONS = 4
RECORDS = 60_000
"""Some 15,000 a partition: more than an owner folds while its partition waits, so they are fed apart, in two slices."""
SLOW = [
    """CREATE FUNCTION public.take_time() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM pg_sleep(2); RETURN NULL; END $$""",
    "CREATE TRIGGER slow BEFORE INSERT ON ratings_v1.ratings FOR EACH STATEMENT EXECUTE FUNCTION public.take_time()",
]
QUICK = "DROP TRIGGER slow ON ratings_v1.ratings"
PAUSE = "UPDATE read_model_builds SET paused = {} WHERE projection = 'ratings'"
FEEDING = """
SELECT count(*) AS n FROM pg_stat_activity
WHERE datname = current_database() AND state = 'active' AND wait_event = 'PgSleep'
"""
RATED = "SELECT coalesce(sum(ratings), 0)::bigint AS n FROM ratings_v1.ratings"
COVERED = """
SELECT count(*) AS n FROM model_checkpoints AS c JOIN log_records AS r USING (topic, partition)
WHERE c.projection = 'ratings' AND r."offset" < c.next_offset AND r.event_type = 'genesis.agent.rated'
"""
BEHIND = "SELECT count(*) AS n FROM model_checkpoints WHERE projection = 'ratings'"
LOGGED = "SELECT count(*) AS n FROM log_records"


@pytest.fixture(scope="module")
def scene(private_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with private_scene(private_stack, tmp_path_factory.mktemp("lagging")) as made:
        yield made


def number(scene: Scene, query: str) -> int:
    """What a query counts."""
    ((found,),) = scene.query(query)
    return int(str(found))


def feed_slowly(scene: Scene, worker: Process) -> None:
    """Resume `ratings`, and return once a slice is committed and a statement of the next one runs."""
    sql.execute(scene.environ["PLANT_DATABASE_SUPERUSER_URL"], [PAUSE.format("false")])
    wait_until(lambda: number(scene, RATED) > 0 and number(scene, FEEDING) > 0, "a slice is under way behind another")
    assert worker.alive
    assert number(scene, BEHIND) > 0


def assert_as_covered(scene: Scene) -> int:
    """The table has the ratings below the model's checkpoints, those and no others; returns how many."""
    session = Session(scene.environ["PLANT_DATABASE_SUPERUSER_URL"])
    try:
        session.script("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        ((rated,),), ((covered,),) = session.query(RATED), session.query(COVERED)
    finally:
        session.close()
    assert rated == covered
    return int(rated)


def test_a_model_that_is_fed_survives_sigterm_and_a_restart_of_postgres(scene: Scene, private_stack: Stack) -> None:
    """The worker ends in order within a slice, Postgres is killed within another one: what is committed stays, is
    counted once, and in the end the tables are the oracle's.
    """
    owner_url = scene.environ["PLANT_DATABASE_OWNER_URL"]
    made = list(events(RECORDS))
    sql.execute(scene.environ["PLANT_DATABASE_SUPERUSER_URL"], [PAUSE.format("true"), *SLOW])
    fill(scene.settings, scene.topic, iter(made))
    worker = scene.worker()
    wait_until(lambda: number(scene, LOGGED) == RECORDS, "the log has all records")

    feed_slowly(scene, worker)
    assert worker.stop() == 0
    before = assert_as_covered(scene)
    assert before > 0

    worker = scene.worker()
    wait_until(lambda: number(scene, FEEDING) > 0, "another worker feeds it")
    private_stack.kill_postgres()
    private_stack.start_postgres()
    after = assert_as_covered(scene)
    assert before <= after < sum(isinstance(event, AgentRated) for event in made)

    sql.execute(owner_url, [QUICK])
    wait_until(lambda: number(scene, BEHIND) == 0, "the model follows the log again")
    applied = [Applied(partition_of(codec.key(event), PARTITIONS), 0, event) for event in made]
    session = Session(scene.environ["PLANT_DATABASE_SUPERUSER_URL"])
    try:
        session.script("SET timezone = 'UTC'")
        assert model_tables(session, RATINGS) == FOLDS["ratings"](applied)
    finally:
        session.close()
    assert worker.alive, "the worker has outlived Postgres"
    assert dispositions(scene) == {"applied": RECORDS}
    assert_chains_whole(scene, RECORDS)
