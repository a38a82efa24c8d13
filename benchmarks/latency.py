"""From HTTP 200 to a visible row, at a steady rate: signed webhooks through one ingress and one worker.

An event is visible when the read model's checkpoint has passed it, since rows and checkpoint commit together; the
checkpoints are polled every few milliseconds, which is part of the figure.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID, uuid5

import asyncpg

from benchmarks.ingress import add_key, revoke_key, wait_ready
from benchmarks.stage import clean_database, process, tree_cpu_seconds
from devstack.stack import Stack
from ingress.keys import new_secret
from ingress.verification import sign
from streams import topics

NAMESPACE = UUID("1c1f9b8e-93c7-4a2c-8d86-5c5f6f2e4d10")
CONNECTIONS = 32
POLL_SECONDS = 0.002
PATH = "/webhook/genesis/agent-available"

Answered = tuple[int, int, float]
"""Partition, offset, and when the 200 arrived."""


def run(stack: Stack, *, rate: int = 1_000, seconds: float = 20.0) -> dict[str, object]:
    """Send at `rate` for `seconds`; the first fifth is warm-up and does not count."""
    with clean_database(stack) as stage, TemporaryDirectory() as folder:
        asyncio.run(topics.apply(stage.settings))
        secret, ready = new_secret(), Path(folder) / "ready.json"
        key_id = asyncio.run(add_key(stage.settings, secret))
        try:
            with (
                process(stage, "-m", "benchmarks.variant", "plant") as worker,
                process(stage, "-m", "operations", "ingress", "--port", "0", "--ready-file", str(ready)) as ingress,
            ):
                url = wait_ready(ready)

                def cpu() -> dict[str, float]:
                    processes = {"worker": worker.pid, "ingress": ingress.pid}
                    return stage.cpu_seconds() | {name: tree_cpu_seconds(pid) for name, pid in processes.items()}

                before, started = cpu(), time.monotonic()
                answered, visible = asyncio.run(_measure(url, secret, stage.settings.database_api_url, rate, seconds))
                elapsed = time.monotonic() - started
                cores = {part: round((spent - before[part]) / elapsed, 2) for part, spent in cpu().items()}
        finally:
            asyncio.run(revoke_key(stage.settings, key_id))
    counted = sorted(answered, key=lambda one: one[2])[len(answered) // 5 :]
    delays = sorted((visible[(partition, offset)] - at) * 1000 for partition, offset, at in counted)
    first, last = counted[0][2], counted[-1][2]
    return {
        "name": "HTTP 200 to visible row",
        "what": "signature, acks=all, log, chain, repeat check, agents model, fsync on",
        "events_per_second": len(counted) / (last - first),
        "events_counted": len(counted),
        "p50_ms": statistics.median(delays),
        "p99_ms": delays[int(len(delays) * 0.99)],
        "max_ms": delays[-1],
        "cores_used": cores,
    }


async def _measure(
    url: str, secret: bytes, database: str, rate: int, seconds: float
) -> tuple[list[Answered], dict[tuple[int, int], float]]:
    host, _, port = url.removeprefix("http://").partition(":")
    answered: list[Answered] = []
    seen: dict[tuple[int, int], float] = {}
    done = asyncio.Event()
    watcher = asyncio.create_task(_watch(database, answered, seen, done))
    # The worker may have a full topic to get through first: one event that becomes visible shows that it has.
    await _send(host, int(port), secret, CONNECTIONS, 1_000.0, time.monotonic() + 0.1, answered)
    while not seen:
        await asyncio.sleep(0.1)
    started = time.monotonic()
    await asyncio.gather(
        *(
            _send(host, int(port), secret, number, rate / CONNECTIONS, started + seconds, answered)
            for number in range(CONNECTIONS)
        )
    )
    done.set()
    await asyncio.wait_for(watcher, 60)
    return answered, seen


async def _send(
    host: str, port: int, secret: bytes, sender: int, rate: float, until: float, answered: list[Answered]
) -> None:
    """One connection, one request at a time, on a fixed timetable."""
    reader, writer = await asyncio.open_connection(host, port)
    await asyncio.sleep(sender / rate / CONNECTIONS)
    due, number = time.monotonic(), 0
    while due < until:
        writer.write(
            _request(host, port, secret, f"{until}-{sender}-{number}", uuid5(NAMESPACE, f"{sender}{number % 300}"))
        )
        head = await reader.readuntil(b"\r\n\r\n")
        lowered = head.lower()
        length = int(lowered.split(b"content-length:")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        at = time.monotonic()
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(body.decode())
        place = json.loads(body)
        answered.append((place["partition"], place["offset"], at))
        number += 1
        due += 1 / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    writer.close()


def _request(host: str, port: int, secret: bytes, message_id: str, agent_id: UUID) -> bytes:
    body = json.dumps(
        {"timestamp": datetime.now(UTC).isoformat(), "data": {"agent_id": str(agent_id), "available": True}}
    ).encode()
    timestamp = str(int(time.time()))
    signature = sign(secret, message_id.encode(), timestamp.encode(), body).decode()
    return (
        f"POST {PATH} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nwebhook-id: {message_id}\r\nwebhook-timestamp: {timestamp}\r\n"
        f"webhook-signature: {signature}\r\n\r\n"
    ).encode() + body


async def _watch(
    database: str, answered: list[Answered], seen: dict[tuple[int, int], float], done: asyncio.Event
) -> None:
    """Note when each answered event was first behind the read model's checkpoint."""
    connection = await asyncpg.connect(database)
    statement = await connection.prepare(
        "SELECT partition, next_offset FROM checkpoints WHERE projection = 'agents' AND topic = 'genesis.events'"
    )
    waiting: set[tuple[int, int]] = set()
    taken = 0
    try:
        while True:
            rows = await statement.fetch()
            at = time.monotonic()
            waiting.update((partition, offset) for partition, offset, _ in answered[taken:])
            taken = len(answered)
            reached = {row["partition"]: row["next_offset"] for row in rows}
            passed = {place for place in waiting if reached.get(place[0], 0) > place[1]}
            seen.update(dict.fromkeys(passed, at))
            waiting -= passed
            if done.is_set() and not waiting and taken == len(answered):
                return
            await asyncio.sleep(POLL_SECONDS)
    finally:
        await connection.close()
