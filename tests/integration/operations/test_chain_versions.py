"""`plant audit raise-version`: a control record in each partition whose chain is on v1."""

from __future__ import annotations

import asyncio
import json
import subprocess
from dataclasses import replace

from projections.engine import PartitionProjector
from projections.read_model import READ_MODELS
from runtime.settings import Settings
from schemas import codec
from schemas.control import chain_version_raised
from streams.producer import EventProducer
from streams.topics import OPERATIONS_TOPIC, apply, describe
from streams.watermarks import Leadership
from tests.conftest import Database
from tests.support.batches import WATERMARKS, batch_of
from tests.support.command_line import operations, plant
from tests.support.raw_records import read_records


async def raise_version(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(plant, settings, "audit", "raise-version", "--output", "json", *arguments)


async def log_control_record(database: Database, settings: Settings, topic: str, partition: int) -> None:
    """Log the partition's record, which is its first, as its worker does."""
    topic_id = (await describe(settings, [topic]))[topic].topic_id
    value = codec.encode(chain_version_raised(topic, partition))

    def project() -> None:
        projector = PartitionProjector(database.writer_url, topic, partition, READ_MODELS)
        try:
            token = projector.acquire(WATERMARKS._replace(leadership=Leadership(topic_id, 0))).token
            projector.project(replace(batch_of([(None, value)], token=token, partition=partition), topic=topic))
        finally:
            projector.close()

    await asyncio.to_thread(project)


async def test_without_execute_there_is_only_a_plan(settings: Settings, topic: str) -> None:
    """Every partition is named with its version, and nothing is published or recorded."""
    await apply(settings)
    shown = await raise_version(settings, "--topic", topic)
    assert shown.returncode == 0
    assert json.loads(shown.stdout) == [
        {
            "topic": topic,
            "partition": number,
            "version": 1,
            "first_v2_offset": None,
            "action": "publish",
            "published_at": None,
        }
        for number in range(4)
    ]
    assert "4 control records to publish. Nothing was done" in shown.stderr
    assert await read_records(settings, topic) == []
    assert await operations(settings, topic) == []


async def test_each_partition_gets_its_own_record(settings: Settings, topic: str) -> None:
    """It has no key, is made for its partition, and names the operator's action, which is recorded once."""
    await apply(settings)
    done = await raise_version(settings, "--topic", topic, "--execute", "--actor", "ops", "--reason", "it is time")
    assert (done.returncode, "4 control records published" in done.stderr) == (0, True)
    assert [(row["action"], row["published_at"]) for row in json.loads(done.stdout)] == [("published", 0)] * 4
    (action,) = await operations(settings, topic)
    assert (action.action, action.actor, action.reason) == (
        "audit.raise_version",
        "ops",
        "it is time [4 partitions]",
    )
    records = await read_records(settings, topic)
    assert [record.partition for record in records] == list(range(4))
    for number, record in enumerate(records):
        raised = chain_version_raised(topic, number)
        assert (record.key, record.value) == (None, codec.encode(raised))
        headers = dict(record.headers)
        assert headers["ce_type"] == b"plant.chain.version_raised"
        assert headers["ce_id"] == str(raised.event_id).encode()
        assert headers["plant_operation"].decode()


async def test_running_it_again_does_the_rest(settings: Settings, database: Database, topic: str) -> None:
    """A partition whose log has the record is kept as it is; with none left nothing is published or recorded."""
    await apply(settings)
    await log_control_record(database, settings, topic, 2)
    rest = await raise_version(settings, "--topic", topic, "--execute")
    rows = json.loads(rest.stdout)
    assert [row["action"] for row in rows] == ["published", "published", "keep", "published"]
    assert [(row["version"], row["first_v2_offset"]) for row in rows if row["action"] == "keep"] == [(2, 0)]
    assert [record.partition for record in await read_records(settings, topic)] == [0, 1, 3]
    for number in (0, 1, 3):
        await log_control_record(database, settings, topic, number)
    nothing = await raise_version(settings, "--topic", topic, "--execute")
    assert (nothing.returncode, "0 control records published" in nothing.stderr) == (0, True)
    assert {row["action"] for row in json.loads(nothing.stdout)} == {"keep"}
    assert len(await operations(settings, topic)) == 1


async def test_a_record_that_no_worker_has_logged_yet_is_waited_for(
    settings: Settings, database: Database, topic: str
) -> None:
    """It is found behind the log's end among other records, so there is no second one, whoever asks and when."""
    await apply(settings)
    await log_control_record(database, settings, topic, 3)
    other = codec.encode(chain_version_raised(topic, 1))
    async with EventProducer(settings, topics=[topic]) as producer:
        for partition, value in ((0, b"no event"), (0, None), (2, other), (3, other)):
            await producer.await_each([producer.submit_record(topic, None, value, [], partition=partition)])
    for _ in range(2):
        again = await raise_version(settings, "--topic", topic, "--execute")
        assert again.returncode == 0, again.stderr
    assert [(row["action"], row["published_at"]) for row in json.loads(again.stdout)] == [
        ("wait", 2), ("wait", 0), ("wait", 1), ("keep", None),
    ]  # fmt: skip
    assert "0 control records published" in again.stderr
    plan = await raise_version(settings, "--topic", topic)
    assert "0 control records to publish" in plan.stderr
    assert len(await read_records(settings, topic)) == 4 + 3
    assert len(await operations(settings, topic)) == 1

    await log_control_record(database, settings, topic, 1)
    rest = await raise_version(settings, "--topic", topic, "--execute")
    assert [row["action"] for row in json.loads(rest.stdout)] == ["wait", "keep", "wait", "keep"]


async def test_topics_without_a_chain_are_refused(settings: Settings) -> None:
    """A topic that no worker logs is a usage error, one that does not exist is named."""
    await apply(settings)
    for topic in ("genesis.events.dead", "genesis.deliveries"):
        refused = await raise_version(settings, "--topic", topic, "--execute")
        assert (refused.returncode, f"{topic} has no audit chain" in refused.stderr) == (2, True)
    missing = await raise_version(settings, "--topic", "genesis.events-999999", "--execute")
    assert missing.returncode != 0
    assert "genesis.events-999999 does not exist" in missing.stderr


async def test_operators_actions_are_raised_by_default(settings: Settings) -> None:
    """Without a topic the plan names the events and the operators' actions."""
    await apply(settings)
    shown = await raise_version(settings)
    assert shown.returncode == 0, shown.stderr
    rows = json.loads(shown.stdout)
    assert {row["topic"] for row in rows} == {"genesis.events", OPERATIONS_TOPIC}
