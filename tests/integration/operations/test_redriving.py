"""Dead letters from end to end: a worker that parks, an operator that repairs, and the events that take effect."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import pytest
import pytest_asyncio

from operations.services.worker import build_worker
from projections.errors import TooManyParkedEntities
from projections.session import Session
from runtime.settings import Settings
from schemas import codec
from schemas.events import AgentAvailable, AgentOnboarded
from streams import ownership
from streams.agents import Worker
from streams.errors import SchemaNewer
from streams.partitioning import partition_of
from streams.topics import OPERATIONS_TOPIC, apply
from tests.conftest import Database
from tests.support.command_line import plant
from tests.support.poison_records import redrive_to_newer, unreadable
from tests.support.raw_records import RawRecord, append_raw
from tests.support.waiting import wait_until_async

AGENT, OTHER = UUID(int=1), UUID(int=2)
KEY = str(AGENT).encode()
PARTITION = partition_of(KEY, 4)
TIME = datetime(2026, 11, 27, 7, tzinfo=UTC)


@pytest_asyncio.fixture
async def worker(settings: Settings, topic: str) -> AsyncIterator[Worker]:
    """A worker of the test's topic, and of operators' actions."""
    await apply(settings)
    running = build_worker(settings, [topic, OPERATIONS_TOPIC])
    await running.start()
    yield running
    await running.stop()


def onboarded(agent_id: UUID, name: str) -> AgentOnboarded:
    return AgentOnboarded(event_id=uuid4(), agent_id=agent_id, occurred_at=TIME, name=name, skill_ids=())


def available(agent_id: UUID, available: bool) -> AgentAvailable:
    return AgentAvailable(event_id=uuid4(), agent_id=agent_id, occurred_at=TIME, available=available)


def raw(event: AgentOnboarded | AgentAvailable) -> RawRecord:
    return RawRecord(codec.key(event), codec.encode(event))


def logged(database: Database, topic: str) -> list[tuple[int, str]]:
    """Offsets and dispositions of the entity's partition."""
    session = Session(database.auditor_url)
    try:
        query = f"""SELECT "offset", disposition::text AS d FROM log_records WHERE topic = '{topic}'
            AND partition = {PARTITION} ORDER BY "offset\""""
        return [tuple(row) for row in session.query(query)]  # type: ignore[misc]
    finally:
        session.close()


def agents(database: Database) -> dict[str, bool | None]:
    """Names of the agents that readers see, and whether they are available."""
    session = Session(database.superuser_url)
    try:
        return dict(session.query("SELECT name, available FROM agents_v1.agents ORDER BY name"))
    finally:
        session.close()


async def dead_letters(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(plant, settings, "dead-letters", *arguments)


async def logs(database: Database, topic: str, count: int) -> None:
    await wait_until_async(lambda: len(logged(database, topic)) == count, f"{count} records are logged")


async def test_a_repaired_event_takes_effect_with_those_behind_it(
    settings: Settings, database: Database, topic: str, worker: Worker, tmp_path: Path
) -> None:
    """Found, shown, repaired and redriven; who did it is shown then, and doing it again changes nothing."""
    cut = codec.encode(onboarded(AGENT, "first"))[:-1]
    behind = [raw(available(AGENT, True)), raw(onboarded(OTHER, "other")), raw(available(AGENT, False))]
    await append_raw(settings, topic, PARTITION, [RawRecord(KEY, cut), *behind])
    await logs(database, topic, 4)
    listed = await dead_letters(settings, "list", "--topic", topic, "--output", "jsonl")
    (line,) = map(json.loads, listed.stdout.splitlines())
    assert (line["offset"], line["parked"], line["entity"]) == (0, 2, str(AGENT))
    data = {"agent_id": str(AGENT), "name": "mended", "skill_ids": []}
    line["event"] |= {"type": "genesis.agent.onboarded", "data": data}
    file = tmp_path / "repaired.jsonl"
    file.write_text(json.dumps(line))
    done = await dead_letters(
        settings, "redrive", "--repaired", str(file), "--execute", "--wait", "--timeout", "300", "--actor", "ops"
    )
    assert (done.returncode, "1 of 1 control records took effect" in done.stderr) == (0, True), done.stderr
    await wait_until_async(lambda: agents(database).get("mended") is False, "the parked events took effect in order")
    assert logged(database, topic) == [(0, "poison"), (1, "parked"), (2, "applied"), (3, "parked"), (4, "control")]

    async def resolution() -> dict[str, object]:
        shown = await dead_letters(settings, "show", f"{topic}/{PARTITION}/0", "--output", "json")
        found: dict[str, object] = json.loads(shown.stdout)[0]["resolution"]
        return found

    async def known() -> bool:
        return (await resolution())["actor"] == "ops"

    await wait_until_async(known, "the operator action is logged")
    assert (await resolution())["type"] == "plant.record.redriven"
    again = await dead_letters(settings, "redrive", "--repaired", str(file), "--execute")
    assert (again.returncode, "0 control records published" in again.stderr) == (0, True)
    assert "0 dead letters" in (await dead_letters(settings, "list", "--topic", topic)).stderr


async def test_a_repair_without_effect_is_named(
    settings: Settings, database: Database, topic: str, worker: Worker, tmp_path: Path
) -> None:
    """Its id was applied before for another event: exit code 3, and the dead letter still waits."""
    applied = onboarded(AGENT, "first")
    await append_raw(settings, topic, PARTITION, [raw(applied), RawRecord(KEY, b"junk")])
    await logs(database, topic, 2)
    data = {"agent_id": str(AGENT), "name": "second", "skill_ids": []}
    event = {"type": "genesis.agent.onboarded", "id": str(applied.event_id), "data": data}
    file = tmp_path / "repaired.jsonl"
    file.write_text(json.dumps({"topic": topic, "partition": PARTITION, "offset": 1, "event": event}))
    arguments = ("redrive", "--repaired", str(file), "--execute", "--wait", "--timeout", "300")
    refused = await dead_letters(settings, *arguments)
    assert refused.returncode == 3, refused.stderr
    assert "0 of 1 control records took effect" in refused.stderr
    assert f"plant dead-letters show {topic}/{PARTITION}/1" in refused.stderr
    assert "1 dead letters" in (await dead_letters(settings, "list", "--topic", topic)).stderr
    assert agents(database) == {"first": None}


async def test_a_skip_lets_the_events_behind_it_take_effect(
    settings: Settings, database: Database, topic: str, worker: Worker
) -> None:
    """On a foreign partition and without a key too, where nothing waits."""
    foreign = (PARTITION + 1) % 4
    await append_raw(settings, topic, PARTITION, [RawRecord(KEY, b"junk"), raw(onboarded(AGENT, "waited"))])
    await append_raw(settings, topic, foreign, [RawRecord(KEY, b"junk"), RawRecord(None, b"junk")])
    await logs(database, topic, 2)
    assert "waited" not in agents(database)

    async def all_listed() -> bool:
        return "3 dead letters" in (await dead_letters(settings, "list", "--topic", topic)).stderr

    await wait_until_async(all_listed, "three dead letters")
    skip = ("skip", "--topic", topic, "--execute", "--wait", "--timeout", "300", "--reason", "junk")
    done = await dead_letters(settings, *skip)
    assert (done.returncode, "3 of 3 control records took effect" in done.stderr) == (0, True), done.stderr
    await wait_until_async(lambda: "waited" in agents(database), "the parked event took effect")
    rest = await dead_letters(settings, *skip)
    assert "0 control records published" in rest.stderr


async def test_a_record_that_its_partition_waits_at_can_be_skipped(
    settings: Settings, database: Database, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its position; the owner reads ahead for the skip, logs the record as poison, and goes on."""
    monkeypatch.setattr(ownership, "STOPPED_DELAYS_SECONDS", (300.0,))
    monkeypatch.setattr(ownership, "LOOK_AHEAD_SECONDS", 0.1)
    await apply(settings)
    newer = codec.WIRE_PREFIX.pack(0, 99) + b"what no release wrote"
    records = [raw(onboarded(AGENT, "before")), RawRecord(KEY, newer), raw(onboarded(AGENT, "after"))]
    await append_raw(settings, topic, PARTITION, records)
    running = build_worker(settings, [topic])
    await running.start()
    try:
        await wait_until_async(running.stopped_partitions, "the partition waits")
        position = f"{topic}/{PARTITION}"

        async def is_shown() -> bool:
            shown = await dead_letters(settings, "show", f"{position}/1", "--output", "json")
            return shown.returncode == 0 and json.loads(shown.stdout)[0]["key"] == KEY.decode()

        await wait_until_async(is_shown, "the record is shown, once the reason of the stop is written down")
        behind = await dead_letters(settings, "skip", f"{position}/2", "--execute")
        assert (behind.returncode, "have not come to it" in behind.stderr) == (3, True)
        assert logged(database, topic) == [(0, "applied")]
        skip = ("skip", f"{position}/1", "--execute", "--wait", "--timeout", "300", "--reason", "nobody wrote it")
        done = await dead_letters(settings, *skip)
        assert (done.returncode, "1 of 1 control records took effect" in done.stderr) == (0, True), done.stderr
        await wait_until_async(lambda: "after" in agents(database), "the event behind it takes effect")
        assert logged(database, topic) == [(0, "applied"), (1, "poison"), (2, "parked"), (3, "control")]
        assert not running.stopped_partitions()
    finally:
        await running.stop()
    (shown,) = json.loads((await dead_letters(settings, "show", f"{position}/1", "--output", "json")).stdout)
    assert "nobody wrote it" in shown["reason"]
    assert shown["resolution"]["reason"] == "nobody wrote it"
    verified = await asyncio.to_thread(plant, settings, "audit", "verify", "--topic", topic)
    assert verified.returncode == 0, verified.stderr


async def test_a_redrive_to_a_later_release_waits_where_a_record_waits_for_it(
    settings: Settings, database: Database, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is skipped; one that names no waiting record is logged without effect."""
    monkeypatch.setattr(ownership, "STOPPED_DELAYS_SECONDS", (300.0,))
    monkeypatch.setattr(ownership, "LOOK_AHEAD_SECONDS", 0.1)
    await apply(settings)
    records = [unreadable(AGENT), redrive_to_newer(KEY, 7), redrive_to_newer(KEY, 0)]
    behind = raw(onboarded(AGENT, "behind"))
    await append_raw(settings, topic, PARTITION, [*(RawRecord(*record) for record in records), behind])
    running = build_worker(settings, [topic])
    await running.start()
    try:
        await wait_until_async(running.stopped_partitions, "the partition waits")
        assert [type(each) for each in running.stopped_partitions().values()] == [SchemaNewer]
        assert logged(database, topic) == [(0, "poison"), (1, "control")]
        position = f"{topic}/{PARTITION}"

        async def is_shown() -> bool:
            return (await dead_letters(settings, "show", f"{position}/2")).returncode == 0

        await wait_until_async(is_shown, "the record is shown, once the reason of the stop is written down")
        for offset in (2, 0):
            skip = ("skip", f"{position}/{offset}", "--execute", "--wait", "--timeout", "300", "--reason", "a mistake")
            done = await dead_letters(settings, *skip)
            assert (done.returncode, "1 of 1 control records took effect" in done.stderr) == (0, True), done.stderr
        await wait_until_async(lambda: "behind" in agents(database), "the event behind it takes effect")
        assert [what for _, what in logged(database, topic)] == [
            "poison", "control", "poison", "parked", "control", "control",
        ]  # fmt: skip
        assert not running.stopped_partitions()
    finally:
        await running.stop()
    verified = await asyncio.to_thread(plant, settings, "audit", "verify", "--topic", topic)
    assert verified.returncode == 0, verified.stderr


async def test_a_partition_that_keeps_too_much_goes_on_once_dead_letters_are_skipped(
    settings: Settings, database: Database, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound stays as it is; the owner hears of control records behind the record at which it stands."""
    monkeypatch.setattr(ownership, "STOPPED_DELAYS_SECONDS", (300.0,))
    monkeypatch.setattr(ownership, "LOOK_AHEAD_SECONDS", 0.1)
    await apply(settings)
    running = build_worker(msgspec.structs.replace(settings, worker_parked_entities_max=1), [topic])
    await running.start()
    try:
        await append_raw(settings, topic, PARTITION, [RawRecord(*unreadable(AGENT)), raw(onboarded(AGENT, "first"))])
        await logs(database, topic, 2)
        await append_raw(settings, topic, PARTITION, [RawRecord(*unreadable(OTHER)), raw(onboarded(OTHER, "second"))])
        await wait_until_async(running.stopped_partitions, "the partition stands still")
        assert [type(each) for each in running.stopped_partitions().values()] == [TooManyParkedEntities]
        for offset, name in ((0, "first"), (2, "second")):
            skip = ("skip", f"{topic}/{PARTITION}/{offset}", "--execute", "--wait", "--timeout", "300")
            done = await dead_letters(settings, *skip)
            assert (done.returncode, "1 of 1 control records took effect" in done.stderr) == (0, True), done.stderr
            await wait_until_async(lambda name=name: name in agents(database), "what waited takes effect")
        assert [what for _, what in logged(database, topic)] == [
            "poison", "parked", "poison", "parked", "control", "control",
        ]  # fmt: skip
        assert not running.stopped_partitions()
    finally:
        await running.stop()
