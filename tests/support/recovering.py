"""Databases that are lost and recovered: what was in them, table by table, and a recovery in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from aiokafka import AIOKafkaProducer

from devstack import sql
from devstack.postgres_binaries import bin_folder
from operations.recovered_tables import LOST_COLUMNS
from operations.recovery import DatabaseRecovery, DispatchPosition, RecoveredTopics
from projections.recovery import recovery
from projections.session import Session
from runtime.settings import Settings, load_settings
from schemas import codec
from schemas.control import chain_version_raised
from streams import log_reader
from tests.conftest import Database
from tests.support.batches import Record

PARTITIONS: Final = 2
"""Partitions of the topic of events."""

BEGUN: Final = "begun"
"""What the process prints once its recovery has begun."""

_TABLES: Final = """
SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_%'
ORDER BY 1
"""


def tables_of(session: Session) -> list[str]:
    """Return every table of the schema, those of the public one without its name; ranges are in their whole."""
    return [name.removeprefix("public.") for (name,) in session.query(_TABLES)]


def rows_of(session: Session, table: str) -> list[Mapping[str, Any]]:
    """Return a table's rows in order, without the columns that a recovery makes otherwise."""
    without = LOST_COLUMNS.get(table, ())
    rows = [json.loads(row) for (row,) in session.query(f"SELECT to_json(t)::text AS row FROM {table} AS t")]
    kept = [{name: value for name, value in row.items() if name not in without} for row in rows]
    return sorted(kept, key=lambda row: json.dumps(row, sort_keys=True))


async def recovered(
    settings: Settings, topics: RecoveredTopics, jobs: int = 2, advance: Callable[[int], None] = lambda _: None
) -> tuple[int, list[DispatchPosition]]:  # fmt: skip
    """Recover a database; returns how many offsets were left, and where dispatch goes on."""
    with DatabaseRecovery(settings, topics).held() as run:
        left = await run.begin("an operator", "a test")
        await run.run(left, jobs, advance)
        return sum(left.values()), await run.end()


async def raise_chain(settings: Settings, topic: str, partitions: int) -> None:
    """Let the audit chains of a topic go over to v2."""
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_address())
    await producer.start()
    try:
        for number in range(partitions):
            value = codec.encode(chain_version_raised(topic, number))
            await producer.send_and_wait(topic, value, partition=number)
    finally:
        await producer.stop()


async def publish_records(settings: Settings, topic: str, records: Sequence[Record]) -> None:
    """Put records on a topic, on the partitions of their keys."""
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_address())
    await producer.start()
    try:
        for key, value in records:
            await producer.send_and_wait(topic, value, key)
    finally:
        await producer.stop()


def run_shell(database: Database, folder: Path, script: str) -> None:
    """Run shell lines with the address of a database, and programs of its version."""
    major = 16 if int(sql.value(database.superuser_url, "SHOW server_version_num")) < 170_000 else 18
    environ = {
        "PATH": f"{bin_folder(major)}:{os.environ['PATH']}", "PLANT_DATABASE_SUPERUSER_URL": database.superuser_url
    }  # fmt: skip
    command = ["bash", "-eu", "-c", script]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


async def _main(arguments: Sequence[str]) -> None:
    events, operations, records_max = arguments
    topics = RecoveredTopics(events=events, operations=operations, dead_letters=f"{events}.none")
    log_reader.FETCH_RECORDS = log_reader.BATCH_RECORDS = int(records_max)  # type: ignore[misc]
    settings = load_settings()
    with DatabaseRecovery(settings, topics).held() as run:
        left = await run.begin("an operator", "a test")
        print(BEGUN, flush=True)
        await recovery.recover_partitions(settings, list(left), 2, lambda _: None)
        await run.end()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
