"""`plant recover`: a database that was lost whole is made again from Kafka's topics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from textwrap import dedent
from uuid import UUID

import msgspec
import pytest

from audit.verifier.chains import read_heads
from audit.verifier.heads import Head, dump
from operations.recovered_tables import FILLED_LATER, LOG_AND_MODELS, LOST, LOST_COLUMNS, backup_command
from operations.recovery import DatabaseRecovery, RecoveredTopics
from operations.services.dispatcher import running_dispatcher
from operations.services.relay import build_relay
from operations.services.worker import build_worker
from projections.session import Session
from runtime.settings import Settings
from streams.topics import EVENTS_TOPIC, apply
from tests.conftest import Database, SettingsFor
from tests.support import ROOT
from tests.support.command_line import operations, plant
from tests.support.delivering import LOCAL, add_endpoint, delivering, delivery_topics
from tests.support.direct_changes import changing, insert, made
from tests.support.faults.published_streams import PublishedStreams
from tests.support.load import events, fill
from tests.support.made_attempts import attempted
from tests.support.poison_records import unreadable
from tests.support.raw_records import read_records
from tests.support.rebuilding import session_of
from tests.support.receivers import receiver
from tests.support.recorded_attempts import record
from tests.support.recovering import PARTITIONS, publish_records, raise_chain, recovered, rows_of, run_shell, tables_of
from tests.support.waiting import wait_until_async

RECORDS = 70
EVENTS = 30
COMPARED = ("log_records", "log_ranges", "read_model_builds", "model_checkpoints", "alembic_version")
"""Tables that come out as they were, next to those of read models."""

CHECKPOINTS = """
SELECT topic, partition, next_offset, (SELECT string_agg(m, ',' ORDER BY m) FROM unnest(read_models) AS m) AS models
FROM checkpoints WHERE consumer = 'projector' ORDER BY topic, partition
"""

DELIVERED_TO = (
    "SELECT sum(next_offset)::bigint AS n FROM delivery_checkpoints WHERE consumer = 'deliverer' AND topic = $1"
)


async def project(
    settings: Settings, topics: RecoveredTopics, session: Session, records: int = PARTITIONS * RECORDS
) -> None:
    """Let a worker project all that is on the topics."""
    worker = build_worker(settings, [topics.events, topics.operations])
    try:
        await worker.start()

        def done() -> bool:
            at = worker.positions()
            return len(at) == PARTITIONS + 1 and all(mine >= end for mine, end in at.values()) and ended()

        def ended() -> bool:
            rows = session.query("SELECT count(*) AS n FROM log_records")
            return bool(rows[0][0] >= records)

        await wait_until_async(done, "all is projected")
    finally:
        await worker.stop()


def model_tables(session: Session) -> list[str]:
    """The tables of read models, in schemas of their own."""
    return [table for table in tables_of(session) if "." in table and not table.startswith("log.")]


async def test_a_lost_database_is_recovered_with_equal_tables_and_heads(
    settings: Settings, settings_for: SettingsFor, database: Database, make_database: Callable[[], Database],
    recovered_topics: RecoveredTopics,
) -> None:  # fmt: skip
    """Events, repeats, poison, parked events, redrives and a chain of v2: log, chain and read models come out alike."""
    streams = PublishedStreams(settings, recovered_topics.events, PARTITIONS, seed=3, entities=6)
    for number in range(PARTITIONS):
        streams.publish(number, RECORDS)
    await raise_chain(settings, recovered_topics.events, PARTITIONS)
    fill(settings, recovered_topics.events, events(40, agents=5))
    with session_of(database.superuser_url) as lost:
        await project(settings, recovered_topics, lost)
        other = make_database()
        left, _ = await recovered(settings_for(other), recovered_topics)
        assert left == PARTITIONS * (RECORDS + 1) + 40
        with session_of(other.superuser_url) as found:
            heads = [await asyncio.to_thread(read_heads, each.auditor_url) for each in (database, other)]
            assert heads[0] == heads[1]
            assert len(heads[0]) == PARTITIONS
            dispositions = {row["disposition"] for row in rows_of(found, "log_records")}
            assert dispositions == {"applied", "repeat", "poison", "parked", "control"}
            for table in (*COMPARED, *model_tables(lost)):
                assert rows_of(found, table) == rows_of(lost, table), table
            assert found.query(CHECKPOINTS) == lost.query(CHECKPOINTS)
            assert found.query("SELECT count(*) AS n FROM checkpoints WHERE consumer = 'recovery'") == [(0,)]


async def test_each_table_is_recovered_or_named_as_lost(superuser: Session) -> None:
    """None is forgotten: a new table has to be put into one of the lists."""
    named = [*LOG_AND_MODELS, *FILLED_LATER, *(each.table for each in LOST)]
    assert len(named) == len(set(named))
    assert {table for table in tables_of(superuser) if "." not in table} == set(named)
    assert LOST_COLUMNS.keys() <= set(named)


async def test_nothing_that_was_delivered_is_sent_again(
    settings: Settings, settings_for: SettingsFor, database: Database, make_database: Callable[[], Database],
    recovered_topics: RecoveredTopics, tmp_path: Path,
) -> None:  # fmt: skip
    """Endpoints are restored after the recovery: each event that came before is delivered once, and later ones too."""
    async with contextlib.AsyncExitStack() as stack:
        local = msgspec.structs.replace(settings, **LOCAL)
        deliveries = await stack.enter_async_context(delivery_topics(local, PARTITIONS))
        topics = msgspec.structs.replace(recovered_topics, deliveries=deliveries)
        taken = await stack.enter_async_context(receiver())
        await add_endpoint(local, f"http://127.0.0.1:{taken.port}/")
        fill(local, topics.events, events(EVENTS // 2, agents=5))
        with session_of(database.superuser_url) as lost:
            async with serving_deliveries(local, topics):
                await wait_until_async(lambda: recorded(lost) == EVENTS // 2, "those from before are delivered")
                fill(local, topics.events, events(EVENTS - EVENTS // 2, agents=5, seed=3))
                await wait_until_async(lambda: recorded(lost) == EVENTS, "all are delivered and recorded")
            run_shell(database, tmp_path, backup_command())
            other = make_database()
            again = msgspec.structs.replace(settings_for(other), master_key=settings.master_key, **LOCAL)
            _, positions = await recovered(again, topics)
            assert [each.known for each in positions] == [True] * PARTITIONS
            with session_of(other.superuser_url) as found:
                run_shell(other, tmp_path, block("pg_restore"))
                assert rows_of(found, "endpoints") == rows_of(lost, "endpoints")
                assert found.query(DELIVERED_TO, (deliveries.deliveries,)) == [(EVENTS,)]
                fill(local, topics.events, events(5, agents=5, seed=2))
                async with serving_deliveries(again, topics):
                    await wait_until_async(lambda: recorded(found) == EVENTS + 5, "later ones are delivered")
                assert len(taken.requests) == EVENTS + 5
                assert len({headers["webhook-id"] for _, _, headers, _ in taken.requests}) == EVENTS + 5
                for table in ("webhook_deliveries", "webhook_attempts"):
                    before = rows_of(lost, table)
                    assert [row for row in rows_of(found, table) if row in before] == before


async def test_direct_changes_come_back_and_dead_letters_are_not_published_again(
    settings: Settings, settings_for: SettingsFor, database: Database, make_database: Callable[[], Database],
    recovered_topics: RecoveredTopics,
) -> None:  # fmt: skip
    """With `registry` resumed entities are what events say of them, version by version; no dead letter comes twice."""
    skill = await made(database.writer_url, names=["second", "third"])
    async with changing(database.writer_url) as connection:
        await insert(connection, "agent", links=[skill])
    await build_relay(settings, recovered_topics.events, recovered_topics.dead_letters).once()
    keyed = [unreadable(UUID(int=number)) for number in range(5)]
    await publish_records(settings, recovered_topics.events, keyed)
    other = make_database()
    with session_of(database.superuser_url) as lost, session_of(other.superuser_url) as found:
        for session in (lost, found):
            session.script("UPDATE read_model_builds SET paused = false WHERE projection = 'registry'")
        await project(settings, recovered_topics, lost, records=9)
        await build_relay(settings, recovered_topics.events, recovered_topics.dead_letters).once()
        assert len(await read_records(settings, recovered_topics.dead_letters, 1)) == 5

        again = settings_for(other)
        await recovered(again, recovered_topics)
        await build_relay(again, recovered_topics.events, recovered_topics.dead_letters).once()
        assert len(await read_records(settings, recovered_topics.dead_letters, 1)) == 5
        for table in ("entities", "skills", "agents", "agent_skills", "entity_versions"):
            assert rows_of(found, table) == rows_of(lost, table), table
        assert found.query("SELECT name FROM skills") == [("third",)]


async def test_the_command_is_interrupted_goes_on_compares_heads_and_ends(
    settings: Settings, superuser: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ctrl-C exits with 130, a head that differs with 3; it can be ended as it is, and is refused afterwards."""
    await apply(settings)
    fill(settings, EVENTS_TOPIC, events(20, agents=5))
    run = DatabaseRecovery.run

    async def interrupted(*_: object) -> None:
        monkeypatch.setattr(DatabaseRecovery, "run", run)
        raise KeyboardInterrupt

    monkeypatch.setattr(DatabaseRecovery, "run", interrupted)
    stopped = plant(settings, "recover", "--reason", "a lost disk")
    assert stopped.returncode == 130, stopped.stderr
    assert "plant recover    # goes on from there" in stopped.stderr

    kept = Head(topic=EVENTS_TOPIC, partition=0, offset=0, hash="0" * 64)
    (tmp_path / "heads.json").write_text(dump([kept]))
    differs = plant(settings, "recover", "--heads", str(tmp_path / "heads.json"))
    assert differs.returncode == 3, differs.stderr
    assert f"{EVENTS_TOPIC}/0@0: another hash. Records differ" in differs.stderr
    ended = plant(settings, "recover", "--output", "json")
    assert ended.returncode == 0, ended.stderr
    (row,) = json.loads(ended.stdout)
    assert row["heads"] == 0
    assert "dispatch goes on at the log's end" in ended.stderr
    assert json.loads(ended.stderr.splitlines()[0])["progress"] == "recovering"
    ((logged,),) = superuser.query("SELECT count(*) AS n FROM event_stream")
    assert logged - row["records"] >= 20, "what was recovered is not read again; other tests may have published more"
    assert "The database holds a log already." in plant(settings, "recover").stderr
    recorded = [each for each in await operations(settings, EVENTS_TOPIC) if each.action == "recover"]
    assert [each.reason for each in recorded if each.target == EVENTS_TOPIC] == ["a lost disk"]


def test_deliveries_that_waited_are_given_up_so_that_they_can_be_ordered(
    database: Database, superuser: Session
) -> None:
    """The page's statement takes those that wait nowhere, from before the loss, and no other."""
    waiting = {"outcome": "failed", "state": "waiting", "status_code": 500}
    lost_at = datetime(2026, 11, 29, 1, tzinfo=UTC)
    waits = attempted(4, **waiting)
    record(database, attempted(1), attempted(2, **waiting), attempted(3, **waiting, attempted_at=lost_at), waits)
    columns = "delivery_id, partition, endpoint_id, hop, due_at, source_partition, source_offset, source_rank"
    row = f"('{waits.delivery_id}', 1, '{waits.endpoint_id}', 1, now(), 1, 1, 0)"
    superuser.script(f"INSERT INTO delivery_waits ({columns}) VALUES {row}")
    superuser.script(block("SET state = 'cancelled'").rstrip().rstrip(";"))
    states = superuser.query("SELECT state::text AS state FROM webhook_deliveries ORDER BY source_offset")
    assert [state for (state,) in states] == ["delivered", "cancelled", "waiting", "waiting"]


async def test_what_no_topic_holds_is_listed_with_a_way_to_keep_it(settings: Settings) -> None:
    """Every lost table, and the command that copies them all."""
    listed = plant(settings, "recover", "--list", "--output", "json")
    assert [row["table"] for row in json.loads(listed.stdout)] == [each.table for each in LOST]
    assert backup_command() in listed.stderr
    assert block("pg_dump").replace("\\\n", " ").split() == backup_command().split()


@contextlib.asynccontextmanager
async def serving_deliveries(settings: Settings, topics: RecoveredTopics) -> AsyncIterator[None]:
    """Run a worker, a dispatcher and a deliverer."""
    worker = build_worker(settings, [topics.events])
    await worker.start()
    try:
        async with (
            running_dispatcher(settings, topics.events, topics.deliveries.deliveries),
            delivering(settings, topics.deliveries),
        ):
            yield
    finally:
        await worker.stop()


def recorded(session: Session) -> int:
    """How many deliveries are recorded as delivered."""
    return int(session.query("SELECT count(*) AS n FROM webhook_deliveries WHERE state = 'delivered'")[0][0])


def block(part: str) -> str:
    """The fenced block of the runbook that has a text in it."""
    page = (ROOT / "docs" / "runbooks" / "recovery.md").read_text("utf-8")
    (text,) = [
        each for each in re.findall(r"^ *```(?:sh|sql)\n(.*?)^ *```", page, re.MULTILINE | re.DOTALL) if part in each
    ]
    return dedent(text)
