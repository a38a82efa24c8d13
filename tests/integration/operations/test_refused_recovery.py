"""What a recovery refuses, and what it survives: databases in use, other operators, workers, ended sessions."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiokafka.admin import RecordsToDelete
from aiokafka.structs import TopicPartition

from audit.verifier.heads import dump
from operations.recovery import RecoveredTopics
from projections import checkpoints
from projections.checkpoints import PROJECTOR
from projections.recovery.errors import RecoveryRefused, RecoveryRunning
from projections.session import Session
from runtime.settings import Settings
from streams import log_reader
from streams.topics import admin
from tests.conftest import Database
from tests.support.command_line import plant
from tests.support.load import events, fill
from tests.support.rebuilding import session_of
from tests.support.recovering import PARTITIONS, recovered

END_SESSIONS = """
SELECT count(pg_terminate_backend(pid, 5000)) AS n FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'plant-worker' AND pid <> pg_backend_pid()
"""


@pytest.mark.parametrize("where", ["log", "deliveries"])
async def test_a_database_in_use_is_refused(
    settings: Settings, superuser: Session, recovered_topics: RecoveredTopics, where: str
) -> None:
    """A log, or deliverers that have begun: nothing is written, and nothing recorded."""
    if where == "log":
        row, table = "('projector', 't', 0, 7)", "checkpoints (consumer, topic, partition, next_offset)"
    else:
        row, table = "('recorder', 't', 0, 1)", "delivery_checkpoints (consumer, topic, partition, partitions)"
    superuser.script(f"INSERT INTO {table} VALUES {row}")
    with pytest.raises(RecoveryRefused):
        await recovered(settings, recovered_topics)
    assert superuser.query("SELECT count(*) AS n FROM checkpoints WHERE consumer = 'recovery'") == [(0,)]


def test_files_without_a_head_are_refused(settings: Settings, superuser: Session, tmp_path: Path) -> None:
    """Nothing would be compared, so the recovery does not begin."""
    (tmp_path / "heads.json").write_text(dump([]))
    refused = plant(settings, "recover", "--heads", str(tmp_path / "heads.json"))
    assert (refused.returncode, "No head is in these files." in refused.stderr) == (3, True)
    assert superuser.query("SELECT count(*) AS n FROM checkpoints") == [(0,)]


async def test_one_operator_recovers_at_a_time(
    settings: Settings, superuser: Session, recovered_topics: RecoveredTopics
) -> None:
    """The second is refused while the first goes on."""
    superuser.script("SELECT pg_advisory_lock(hashtextextended('plant.recover', 0))")
    with pytest.raises(RecoveryRunning):
        await recovered(settings, recovered_topics)


async def test_a_worker_that_takes_a_partition_away_ends_the_recovery(
    settings: Settings, database: Database, superuser: Session, recovered_topics: RecoveredTopics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It says so, instead of taking it back and forth; with the worker gone the same command ends what is left."""
    monkeypatch.setattr(log_reader, "BATCH_RECORDS", 5)
    monkeypatch.setattr(log_reader, "FETCH_RECORDS", 5)
    fill(settings, recovered_topics.events, events(60, agents=9))
    with session_of(database.writer_url) as worker:

        def take_away(_: int) -> None:
            for number in range(PARTITIONS):
                checkpoints.acquire(worker, PROJECTOR, recovered_topics.events, number, PARTITIONS, None)
            superuser.script("UPDATE partition_owners SET worker = 'another:1' WHERE topic LIKE 'genesis.events%'")

        with pytest.raises(RecoveryRunning, match="Somebody else has taken"):
            await recovered(settings, recovered_topics, advance=take_away)
    left, _ = await recovered(settings, recovered_topics)
    assert 0 < left < 60
    assert superuser.query("SELECT count(*) AS n FROM log_records") == [(60,)]


async def test_a_topic_that_has_lost_its_beginning_is_refused(
    settings: Settings, recovered_topics: RecoveredTopics
) -> None:
    """What is gone can't be made again: the partition is named, and nothing is begun."""
    fill(settings, recovered_topics.events, events(40, agents=5))
    async with admin(settings) as client:
        await client.delete_records({TopicPartition(recovered_topics.events, 1): RecordsToDelete(before_offset=3)})
    with pytest.raises(RecoveryRefused, match=r"-[0-9a-f]+/1 begins at offset 3\."):
        await recovered(settings, recovered_topics)


async def test_a_session_that_is_ended_is_no_end_of_the_recovery(
    settings: Settings, superuser: Session, recovered_topics: RecoveredTopics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a restart of the database: the partition is acquired again, and each record is logged once."""
    monkeypatch.setattr(log_reader, "BATCH_RECORDS", 5)
    monkeypatch.setattr(log_reader, "FETCH_RECORDS", 5)
    fill(settings, recovered_topics.events, events(60, agents=9))
    ended: list[int] = []

    def end_sessions(_: int) -> None:
        if len(ended) < 2:
            (row,) = superuser.query(END_SESSIONS)
            ended.append(int(row[0]))

    left, _ = await recovered(settings, recovered_topics, advance=end_sessions)
    assert left == 60
    assert sum(ended) > 0
    assert superuser.query("SELECT count(*) AS n FROM log_records") == [(60,)]
