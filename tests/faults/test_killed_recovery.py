"""A recovery that is killed at random points, and run again until it ends."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

from operations.recovery import RecoveredTopics
from projections.session import Session
from runtime.settings import Settings
from streams.topics import apply
from tests.conftest import Database, MakeTopic, SettingsFor
from tests.support import ROOT
from tests.support.command_line import environ_with
from tests.support.faults.published_streams import PublishedStreams
from tests.support.long_form import sized
from tests.support.rebuilding import session_of
from tests.support.recovering import raise_chain, recovered, rows_of, tables_of
from tests.support.waiting import DEADLINE_SECONDS, wait_until

PARTITIONS = 2
RECORDS = 60
BATCH = 4
KILLS = sized(3, 40)
PROGRESS = "SELECT coalesce(sum(next_offset), 0) AS n FROM checkpoints WHERE consumer = 'projector'"
UNDER_WAY = "SELECT count(*) AS n FROM checkpoints WHERE consumer = 'recovery'"


@contextlib.contextmanager
def recovering(settings: Settings, topics: RecoveredTopics) -> Iterator[subprocess.Popen[str]]:
    """Run a recovery in a process of its own, in small batches; it is killed at the end at the latest."""
    command = [sys.executable, "-m", "tests.support.recovering", topics.events, topics.operations, str(BATCH)]
    environ = {**os.environ, **environ_with(settings)}
    process = subprocess.Popen(command, cwd=ROOT, env=environ, text=True, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=DEADLINE_SECONDS)


async def test_a_killed_recovery_goes_on_where_it_was(
    settings: Settings, settings_for: SettingsFor, database: Database, make_database: Callable[[], Database],
    make_topic: MakeTopic,
) -> None:  # fmt: skip
    """Each kill leaves whole batches; in the end log, chain and read models are those of one that was left alone."""
    await apply(settings)
    topics = RecoveredTopics(
        events=await make_topic(PARTITIONS), operations=await make_topic(1, family="plant.operations"),
        dead_letters="genesis.events.dead-none",
    )  # fmt: skip
    streams = PublishedStreams(settings, topics.events, PARTITIONS, seed=5, entities=6)
    for number in range(PARTITIONS):
        streams.publish(number, RECORDS)
    await raise_chain(settings, topics.events, PARTITIONS)
    other = make_database()
    await recovered(settings_for(other), topics)
    chance = random.Random(17)
    with session_of(database.superuser_url) as killed, session_of(other.superuser_url) as alone:
        kills = 0
        while killed.query(UNDER_WAY) != [(0,)] or not kills:
            reached = progress(killed) + chance.randrange(2 * PARTITIONS * RECORDS // KILLS)
            with recovering(settings, topics) as process:
                if kills < KILLS:
                    wait_for(killed, reached, process)
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                else:
                    assert process.wait(DEADLINE_SECONDS) == 0
        assert killed.query(UNDER_WAY) == [(0,)]
        for table in ("log_records", *(each for each in tables_of(killed) if "." in each)):
            assert rows_of(killed, table) == rows_of(alone, table), table


def wait_for(session: Session, reached: int, process: subprocess.Popen[str]) -> None:
    """Wait until the log has so many offsets, or the process has ended."""
    wait_until(lambda: progress(session) > reached or process.poll() is not None, f"more than {reached} offsets")


def progress(session: Session) -> int:
    """How many offsets the log has."""
    return int(session.query(PROGRESS)[0][0])
