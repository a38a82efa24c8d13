"""Postgres is killed while readers are moved to a rebuild, and the broker restarts while a rebuild reads its topic.

Each ends with one build whole, and readers never see anything in between.
"""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from database.errors import DatabaseUnreachable
from devstack import processes
from devstack.stack import Stack
from projections.rebuild import swap
from projections.session import Session
from tests.support.faults.evidence import applied, wait_until_caught_up
from tests.support.faults.scene import Scene, private_scene
from tests.support.load import events, fill
from tests.support.long_form import sized
from tests.support.rebuilding import known, session_of
from tests.support.waiting import DEADLINE_SECONDS, wait_until

EVENTS = 3_000
MORE_EVENTS = 40
RATE = 200
"""Records a second: reading the topic takes many times as long as noticing that it has begun."""
KILLS = sized(4, 30)
SHOWN = "SELECT substring(pg_get_viewdef('read_models.agents') FROM '\\w+_v[0-9]+') AS build"
LIVE = "SELECT projection FROM read_model_builds WHERE live AND read_model = 'agents'"
COUNT = """
SELECT count(*) AS n, coalesce(max(greatest(profile_offset, availability_offset)), 0) AS m FROM read_models.agents
"""
FILLING = """
SELECT coalesce(sum(m.next_offset), 0)::bigint AS n FROM model_checkpoints AS m
JOIN read_model_builds AS b USING (projection, version) WHERE b.phase = 'filling'
"""
READ = "SELECT read_events FROM rebuilds ORDER BY number DESC LIMIT 1"


@pytest.fixture(scope="module")
def scene(private_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A worker that has projected a topic, with both of its services for this module alone."""
    with private_scene(private_stack, tmp_path_factory.mktemp("rebuilds")) as made:
        made.worker()
        fill(made.settings, made.topic, events(EVENTS, agents=100))
        wait_until_caught_up(made)
        yield made


def run(scene: Scene, *arguments: str) -> int:
    """Run a command on read models; returns its exit code."""
    process = scene.command("projections", *arguments)
    wait_until(lambda: not process.alive, f"plant projections {' '.join(arguments)}")
    code = process.exit_code
    assert code is not None
    return code


def shown(scene: Scene) -> str:
    """The build that the view shows, and that is live."""
    ((schema,),), ((name,),) = scene.query(SHOWN), scene.query(LIVE)
    assert schema == f"{name}_v1"
    return str(name)


def rebuilt_build(scene: Scene) -> str:
    """The build that an operator has made."""
    ((name,),) = scene.query("SELECT projection FROM read_model_builds WHERE phase = 'kept' AND projection ~ '_b'")
    return str(name)


def wait_until_equal(scene: Scene) -> None:
    """Wait until workers have both builds at the log's end, and compare them."""
    wait_until_caught_up(scene)
    assert run(scene, "verify", "agents") == 0


def test_a_broker_that_restarts_while_a_rebuild_reads_its_topic(scene: Scene, private_stack: Stack) -> None:
    """The rebuild waits, or ends by name and goes on where it was: no record is left out, and none is read twice."""
    process = scene.command("projections", "rebuild", "agents", "--source", "topic", "--max-rate", str(RATE))
    wait_until(lambda: scene.query(FILLING) > [(RATE,)], "it reads the topic")
    assert scene.query(FILLING) < [(EVENTS,)]
    broker = private_stack.state.kafka
    processes.send(broker, signal.SIGTERM)
    assert processes.wait_gone(broker, timeout_seconds=DEADLINE_SECONDS)
    assert shown(scene) == "agents"
    private_stack.start_kafka()
    wait_until(lambda: not process.alive, "the rebuild has ended")
    if process.exit_code != 0:
        assert process.exit_code == 4, process.log.read_text()
        assert run(scene, "rebuild", "agents", "--source", "topic") == 0
    assert scene.query(READ) == [(EVENTS,)]
    wait_until_equal(scene)
    assert shown(scene) == "agents"


@contextmanager
def reading(scene: Scene) -> Iterator[None]:
    """Read all the while, again after each outage: what is read never goes back."""
    done = threading.Event()

    def read() -> int:
        reads, last = 0, (0, 0)
        while not done.is_set():
            try:
                with session_of(scene.environ["PLANT_DATABASE_API_URL"]) as session:
                    while not done.is_set():
                        ((rows, offset),) = session.query(COUNT)
                        assert (rows, offset) >= last
                        reads, last = reads + 1, (rows, offset)
            except DatabaseUnreachable:
                done.wait(0.02)
        return reads

    with ThreadPoolExecutor(1) as threads:
        reader = threads.submit(read)
        try:
            yield
        finally:
            done.set()
        assert reader.result() > KILLS


def move(session: Session, target: str, former: str) -> None:
    """Move readers, as an operator does."""
    swap.move(session, known(session, f"{target}/1"), known(session, f"{former}/1"), wait_seconds=DEADLINE_SECONDS)


def moved_until_killed(scene: Scene, stack: Stack, names: tuple[str, str], after_seconds: float) -> Future[None]:
    """Begin to move readers, and kill Postgres so much later; it is there again at the end."""
    with session_of(scene.environ["PLANT_DATABASE_OWNER_URL"]) as session, ThreadPoolExecutor(1) as threads:
        moving = threads.submit(move, session, *names)
        threading.Event().wait(after_seconds)
        stack.kill_postgres()
        assert moving.exception(DEADLINE_SECONDS) is None or isinstance(moving.exception(), DatabaseUnreachable)
    stack.start_postgres()
    wait_until(lambda: applied(scene) >= 0, "Postgres answers")
    return moving


def test_postgres_that_is_killed_in_a_swap_leaves_readers_on_one_whole_build(
    scene: Scene, private_stack: Stack
) -> None:
    """At any moment of it, while events come in: the view and what is written down agree, each swap can be tried again,
    and in the end both builds are equal.
    """
    made, chance = rebuilt_build(scene), random.Random(17)
    with reading(scene):
        with session_of(scene.environ["PLANT_DATABASE_API_URL"]) as reader:
            reader.script("SET idle_in_transaction_session_timeout = 0", "BEGIN")
            reader.query(COUNT)
            held = moved_until_killed(scene, private_stack, (made, "agents"), 0.3)
        assert isinstance(held.exception(), DatabaseUnreachable)
        assert shown(scene) == "agents"
        for number in range(KILLS):
            fill(scene.settings, scene.topic, events(MORE_EVENTS, agents=100, seed=number + 2))
            former = shown(scene)
            target = "agents" if former == made else made
            cut = moved_until_killed(scene, private_stack, (target, former), chance.uniform(0.0, 0.08))
            if cut.exception() is None:
                assert shown(scene) == target
            with session_of(scene.environ["PLANT_DATABASE_OWNER_URL"]) as owner:
                if shown(scene) == made:
                    assert known(owner, f"{made}/1").replaced == "agents/1"
                else:
                    move(owner, made, "agents")
                    move(owner, "agents", made)
    wait_until_equal(scene)
    assert applied(scene) == EVENTS + KILLS * MORE_EVENTS
