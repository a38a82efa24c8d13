"""Verifying the audit chain from the database: `python -m audit` on a log of one partition, in v1 and v2.

The log is written by the formula's own code, in ranges, so nothing else is measured; half of it is v1. The rate is by
the wall clock, with one process and with two; CPU time is Postgres's, and the verifier's with its processes.
"""

from __future__ import annotations

import asyncio
import json
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg

from audit.canonical import headers_bytes
from audit.chain import CHAIN_START, ChainSlice, extend_slice
from benchmarks.stage import Stage, clean_database
from devstack.stack import Stack
from schemas import codec
from schemas.control import chain_version_raised
from schemas.examples import examples

TOPIC, PARTITION = "genesis.events", 0
SLICE: Final = 20_000
STARTED: Final = datetime(2026, 1, 1, tzinfo=UTC)
COLUMNS: Final = (
    "topic", "partition", "offset", "created_at", "disposition", "event_id", "entity_id", "entity_type", "event_type",
    "hash", "key", "value", "headers",
)  # fmt: skip

Row = tuple[Any, ...]


def run(stack: Stack, count: int) -> list[dict[str, object]]:
    """The rate with one process and with two, of so many entries."""
    with clean_database(stack) as stage:
        asyncio.run(fill(stage, count))
        stage.execute("VACUUM ANALYZE log_records")
        _verified(stage, 1)  # reads the files into the machine's memory
        return [_verified(stage, jobs) for jobs in (1, 2)]


def _verified(stage: Stage, jobs: int) -> dict[str, object]:
    """Run the verifier as an auditor does: its own process, whose start counts."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    postgres = stage.cpu_seconds()["postgres"]
    command = [sys.executable, "-m", "audit", stage.settings.database_address("auditor"), "--jobs", str(jobs)]
    printed = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    postgres = stage.cpu_seconds()["postgres"] - postgres
    verifier = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    (verdict,) = map(json.loads, printed.splitlines())
    assert verdict["verdict"] == "good", verdict
    entries = verdict["entries"]
    return {
        "name": f"{jobs} process{'es' if jobs > 1 else ''}",
        "entries": entries,
        "entries_per_second": round(entries / seconds),
        "postgres_cpu_us_per_entry": round(postgres / entries * 1e6, 2),
        "verifier_cpu_us_per_entry": round(verifier / entries * 1e6, 2),
    }


async def fill(stage: Stage, count: int) -> None:
    """Write a good chain: ratings as ingress publishes them, and in the middle the record that takes it to v2."""
    connection = await asyncpg.connect(stage.superuser_url)
    owner = await asyncpg.connect(stage.environ["PLANT_DATABASE_OWNER_URL"])
    size = await owner.fetchval("SELECT log_range_offsets()")
    for first in range(0, count, size):
        await owner.execute("SELECT add_log_range($1, $2, $3)", TOPIC, PARTITION, first)
    head = CHAIN_START
    for first in range(0, count, SLICE):
        head, rows = _slice(head, range(first, min(first + SLICE, count)), count // 2)
        await connection.copy_records_to_table("log_records", records=rows, columns=COLUMNS)
    await connection.close()
    await owner.close()


def _slice(head: bytes, offsets: range, raised_at: int) -> tuple[bytes, Iterator[Row]]:
    """Return the new head and the rows of these offsets."""
    records = [_switch() if offset == raised_at else _rating(offset) for offset in offsets]
    dispositions, event_ids, entity_ids, entity_types, event_types, keys, values, headers = zip(*records, strict=True)
    times = [STARTED + timedelta(milliseconds=offset) for offset in offsets]
    timestamps_ms = [round(each.timestamp() * 1000) for each in times]
    ids = [event_id.bytes for event_id in event_ids]
    chained = ChainSlice(offsets, timestamps_ms, keys, values, headers, dispositions, ids)
    hashes = extend_slice(TOPIC, PARTITION, head, chained, max(0, raised_at - offsets.start))
    return hashes[-1], zip(
        [TOPIC] * len(offsets), [PARTITION] * len(offsets), offsets, times, dispositions, event_ids, entity_ids,
        entity_types, event_types, hashes, [None] * len(offsets), values, headers, strict=True,
    )  # fmt: skip


_RATED = examples()["genesis.agent.rated"]
_VALUE: Final = codec.encode(_RATED)
_SENDER: Final = [("plant_producer", b"genesis"), ("plant_key", b"key-1"), ("plant_message_id", b"message-0123456789")]
_HEADERS: Final = headers_bytes(codec.headers(_RATED, "plant/ingress", sender=[*_SENDER]))
_PAIR: Final = struct.Struct(">QQ").pack


def _rating(offset: int) -> Row:
    event_id, entity_id = _PAIR(1, offset), _PAIR(2, offset % 50_000)
    value = b"".join((_VALUE[:5], event_id, entity_id, _VALUE[37:]))
    entity = UUID(bytes=entity_id)
    ids = (UUID(bytes=event_id), entity)
    return ("applied", *ids, "agent", "genesis.agent.rated", str(entity).encode(), value, _HEADERS)


def _switch() -> Row:
    raised = chain_version_raised(TOPIC, PARTITION)
    return ("control", raised.event_id, None, None, raised.event_type, None, codec.encode(raised), headers_bytes([]))
