"""`plant status` of an existing cluster, which settings alone name."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer

from devstack import sql
from operations import partition_status
from operations.cli.main import run
from projections.checkpoints import KNOWN_REVISION
from projections.engine import PartitionProjector
from projections.read_model import READ_MODELS
from runtime.settings import Settings
from streams.topics import describe
from streams.watermarks import Leadership
from tests.conftest import Database
from tests.support.batches import WATERMARKS
from tests.support.command_line import environ_with
from tests.support.waiting import wait_until_async

NOWHERE = "127.0.0.1:1"
NO_DATABASE = f"postgresql://plant_operator:top-secret-word@{NOWHERE}/plant"

Status = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def status(
    settings: Settings, topic: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Status:
    """Runs the command in this process; returns its exit code and rows. Workers read this test's topic alone."""
    monkeypatch.setattr(partition_status, "TOPICS", (topic,))
    for name in [name for name in os.environ if name.startswith("PLANT_")]:
        monkeypatch.delenv(name)
    for name, value in environ_with(settings).items():
        monkeypatch.setenv(name, value)

    def ask(**environ: str) -> tuple[int, list[dict[str, Any]]]:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        code = run(["status", "--output", "json"])
        return code, json.loads(capsys.readouterr().out)

    return ask


@pytest_asyncio.fixture
async def projector(database: Database, settings: Settings, topic: str) -> AsyncIterator[PartitionProjector]:
    """The owner of the topic's partition 1."""
    topic_id = (await describe(settings, [topic]))[topic].topic_id
    made = PartitionProjector(database.writer_url, topic, 1, READ_MODELS)
    watermarks = WATERMARKS._replace(leadership=Leadership(topic_id, 0))
    await asyncio.to_thread(made.acquire, watermarks)
    yield made
    made.close()


def only(rows: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["kind"] == kind]


def shown(row: Mapping[str, Any], *names: str) -> list[Any]:
    return [row[name] for name in names]


async def test_partitions_with_owners_and_without(status: Status, topic: str, projector: PartitionProjector) -> None:
    """Every partition is there with checkpoint, end, lag and owner; one without a worker is no fault."""
    code, rows = await asyncio.to_thread(status)
    assert (code, {row["kind"] for row in rows}) == (0, {"partition"})
    assert [shown(row, "topic", "partition", "state") for row in rows] == [
        [topic, number, "owned" if number == 1 else "unowned"] for number in range(4)
    ]
    assert shown(rows[1], "checkpoint", "log_end", "lag", "token") == [0, 0, 0, 2]
    assert rows[1]["owner"]
    assert rows[1]["owned_since"]
    projector.close()

    async def is_left() -> bool:
        code, rows = await asyncio.to_thread(status)
        return (code, shown(rows[1], "state", "owner_connected")) == (0, ["unowned", False])

    await wait_until_async(is_left, "the server has ended the session of the one that closed it")


async def test_what_is_stopped_says_why(
    status: Status, topic: str, database: Database, projector: PartitionProjector, capsys: pytest.CaptureFixture[str]
) -> None:
    """A partition and a read model that are stopped: exit 3, and the reasons in the table as well."""
    sql.execute(
        database.superuser_url,
        [
            f"UPDATE partition_owners SET stop_reason = 'SchemaNewer: wait' WHERE topic = '{topic}' AND partition = 1",
            f"INSERT INTO checkpoints VALUES ('projector', '{topic}', 2, 9), ('dead_letters', '{topic}', 2, 0)",
            f"INSERT INTO model_checkpoints VALUES ('agents', 1, '{topic}', 2, 4, 'its rows are refused')",
        ],
    )
    code, rows = await asyncio.to_thread(status)
    assert code == 3
    partitions = only(rows, "partition")
    assert shown(partitions[1], "state", "stop_reason") == ["stopped", "SchemaNewer: wait"]
    assert shown(partitions[2], "state", "checkpoint", "log_end") == ["out of log", 9, 0]
    (model,) = only(rows, "read_model")
    assert shown(model, "read_model", "partition", "state", "checkpoint", "log_checkpoint", "stop_reason") == [
        "agents/1", 2, "stopped", 4, 9, "its rows are refused",
    ]  # fmt: skip
    assert await asyncio.to_thread(run, ["status"]) == 3
    table = capsys.readouterr().out
    assert f"{topic}/1 is stopped: SchemaNewer: wait" in table
    assert f"agents/1 on {topic}/2 is stopped: its rows are refused" in table


async def test_parts_of_deliveries_say_what_waits(
    status: Status, topic: str, database: Database, projector: PartitionProjector
) -> None:
    """A dispatcher's lag is against the log; a deliverer's is what its topics hold, beside what waits in Postgres."""
    reason = "TopicRecreated: gone"
    waits = (
        "INSERT INTO delivery_waits VALUES (gen_random_uuid(), 2, gen_random_uuid(), 1, {due}, {record}, NULL, 0, 0, 0)"
    )
    sql.execute(
        database.superuser_url,
        [
            f"SELECT add_partition_owners('dispatcher', '{topic}', 4, NULL, {KNOWN_REVISION})",
            "UPDATE partition_owners SET worker = 'there:1' WHERE consumer = 'dispatcher' AND partition = 3",
            f"INSERT INTO checkpoints VALUES ('projector', '{topic}', 3, 0), ('dispatcher', '{topic}', 3, 0)",
            f"INSERT INTO delivery_owners VALUES ('deliverer', 2, 1, 'there:2', 1, now(), now(), '{reason}')",
            "INSERT INTO delivery_checkpoints (consumer, topic, partition, partitions)"
            f" VALUES ('deliverer', '{topic}', 2, 4)",
            waits.format(due="now() - interval '1 hour'", record="''"),
            waits.format(due="now() + interval '1 hour'", record="''"),
            waits.format(due="'infinity'", record="NULL"),
        ],
    )
    code, rows = await asyncio.to_thread(status)
    assert code == 3
    dispatcher, deliverer = only(rows, "delivery")
    assert shown(dispatcher, "part", "topic", "partition", "state", "lag", "waiting", "owner") == [
        "dispatcher", topic, 3, "unowned", 0, None, "there:1",
    ]  # fmt: skip
    assert shown(deliverer, "part", "partition", "state", "lag", "waiting", "due", "blocking", "stop_reason") == [
        "deliverer", 2, "stopped", 0, 3, 1, 1, reason,
    ]  # fmt: skip
    assert len(only(rows, "partition")) == 4


async def test_other_consumers_of_a_partition_are_not_taken_for_its_owner(
    status: Status, topic: str, database: Database, projector: PartitionProjector
) -> None:
    """Their owners, reasons and checkpoints give no partition a second row, and stop none."""
    sql.execute(
        database.superuser_url,
        [
            f"SELECT add_partition_owners('deliveries', '{topic}', 4, NULL, {KNOWN_REVISION})",
            "UPDATE partition_owners SET stop_reason = 'theirs', worker = 'other' WHERE consumer = 'deliveries'",
            f"INSERT INTO checkpoints SELECT 'deliveries', '{topic}', n, 7 FROM generate_series(0, 3) AS n",
        ],
    )
    code, rows = await asyncio.to_thread(status)
    assert (code, [shown(row, "partition", "state", "checkpoint") for row in rows]) == (
        0,
        [[0, "unowned", None], [1, "owned", 0], [2, "unowned", None], [3, "unowned", None]],
    )


async def test_while_kafka_is_away_postgres_is_shown(status: Status, topic: str, projector: PartitionProjector) -> None:
    """Exit 4 with a problem that names Kafka; owner and checkpoint are there, the lag is not known."""
    code, rows = await asyncio.to_thread(lambda: status(PLANT_KAFKA_BOOTSTRAP_SERVERS=NOWHERE))
    (problem,) = only(rows, "problem")
    assert (code, problem["what"], NOWHERE in problem["why"]) == (4, "Kafka does not answer.", True)
    assert problem["next_step"] == "plant doctor"
    owned = only(rows, "partition")[1]
    assert shown(owned, "topic", "state", "checkpoint", "log_end", "lag") == [topic, "owned", 0, None, None]


async def test_while_postgres_is_away_kafka_is_shown(status: Status, topic: str) -> None:
    """Exit 4 with a problem that names Postgres and no secret; ends are there, states are not known."""
    code, rows = await asyncio.to_thread(lambda: status(PLANT_DATABASE_OPERATOR_URL=NO_DATABASE))
    (problem,) = only(rows, "problem")
    assert (code, NOWHERE in problem["why"], problem["next_step"]) == (4, True, "plant doctor")
    assert "top-secret-word" not in json.dumps(rows)
    assert [shown(row, "topic", "state", "log_end", "lag") for row in only(rows, "partition")] == [
        [topic, "unknown", 0, None]
    ] * 4


async def test_nothing_is_good_where_nothing_was_looked_at(
    status: Status, monkeypatch: pytest.MonkeyPatch, database: Database
) -> None:
    """Both away, a topic that nobody made, no address for one of them, and tables that are absent: none is exit 0."""
    code, rows = await asyncio.to_thread(
        lambda: status(PLANT_KAFKA_BOOTSTRAP_SERVERS=NOWHERE, PLANT_DATABASE_OPERATOR_URL=NO_DATABASE)
    )
    assert (code, [row["kind"] for row in rows]) == (4, ["problem", "problem"])
    monkeypatch.setattr(partition_status, "TOPICS", ("genesis.events-nobody-made",))
    code, rows = await asyncio.to_thread(lambda: status(PLANT_KAFKA_BOOTSTRAP_SERVERS=""))
    assert (code, len(only(rows, "problem"))) == (4, 2)


async def test_a_topic_that_nobody_made_is_named(status: Status, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a problem, with the command that makes it."""
    monkeypatch.setattr(partition_status, "TOPICS", ("genesis.events-nobody-made",))
    code, rows = await asyncio.to_thread(status)
    assert (code, [shown(row, "kind", "next_step") for row in rows]) == (2, [["problem", "plant topics apply"]])


async def test_a_database_without_tables_is_a_problem(status: Status, database: Database) -> None:
    """It is exit 3, with the command that mends it, and Kafka is shown."""
    sql.execute(database.superuser_url, ["DROP TABLE partition_owners"])
    code, rows = await asyncio.to_thread(status)
    (problem,) = only(rows, "problem")
    assert (code, problem["next_step"], len(only(rows, "partition"))) == (3, "plant db upgrade", 4)


async def test_lag_is_what_no_worker_has_logged(status: Status, topic: str, settings: Settings) -> None:
    """Records that are in Kafka count, with an owner and without one."""
    async with AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap_servers) as producer:
        for _ in range(3):
            await producer.send_and_wait(topic, b"x", partition=1)
    code, rows = await asyncio.to_thread(status)
    assert (code, [row["lag"] for row in rows]) == (0, [0, 3, 0, 0])
