"""From HTTP 200 to a visible row, at a steady rate: signed webhooks of four types through one ingress and one worker.

With one read model and with every one by turns, on a database of its own each: what the machine does meanwhile falls on
both. Each figure is the median of its turns. Then once with `registry` too, which is off by default, at two rates.

An event is visible when the read model's checkpoint has passed it, since rows and checkpoint commit together. The
checkpoints are polled every few milliseconds, since more would load the machine; the middle between the last poll that
did not show an event and the first that did is taken for the time.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from bisect import bisect_right
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from uuid import UUID, uuid4, uuid5

import asyncpg

from benchmarks.ingress import add_key, revoke_key, wait_ready
from benchmarks.stage import clean_database, process, tree_cpu_seconds
from devstack.stack import Stack
from signing.hmac_secrets import new_secret
from signing.signatures import sign
from streams import topics

NAMESPACE = UUID("1c1f9b8e-93c7-4a2c-8d86-5c5f6f2e4d10")
CONNECTIONS = 32
WARMING = 100
POLL_SECONDS = 0.005
SKILLS = 200
TURNS = 3
SECONDS = 12.0
VARIANTS = {"plant": "the read model agents alone", "five models": "every read model that is on by default"}
"""Variants of the worker that take turns, and what each feeds."""
REGISTRY_RATE = 200
"""Of a turn with `registry`, whose triggers and versions leave no time at the rate of the others."""
FIGURES = ("events_per_second", "p50_ms", "p99_ms", "max_ms")

Answered = tuple[bytes, float]
"""The body of a 200, and when it arrived."""

Seen = tuple[float, dict[int, int]]
"""When the checkpoints were read, and the next offset of each partition."""


class ShownEvent(NamedTuple):
    """An event: when its 200 arrived, when it was visible, and its id. Times are of the monotonic clock."""

    answered_at: float
    visible_at: float
    event_id: UUID


def run(stack: Stack, *, rate: int = 1_000) -> list[dict[str, object]]:
    """Measure one read model and every one, by turns; the second row has its ratios to the first."""
    turns: dict[str, list[dict[str, object]]] = {variant: [] for variant in VARIANTS}
    _turn(stack, next(iter(VARIANTS)), rate)  # a broker that was just started compiles its code meanwhile
    for _ in range(TURNS):
        for variant, measured in turns.items():
            measured.append(_turn(stack, variant, rate))
    rows = [_row(variant, measured) for variant, measured in turns.items()]
    for figure in ("p50_ms", "p99_ms"):
        one, every = (float(str(row[figure])) for row in rows)
        rows[1][f"{figure.removesuffix('_ms')}_times_one_model"] = round(every / one, 2)
    return [*rows, *(_row("six models", [_turn(stack, "six models", each)]) for each in (REGISTRY_RATE, rate))]


def _row(variant: str, turns: list[dict[str, object]]) -> dict[str, object]:
    """Return the median of each figure, and the turns that it is of."""
    figures = {figure: [round(float(str(turn[figure])), 1) for turn in turns] for figure in FIGURES}
    row: dict[str, object] = {
        "name": f"HTTP 200 to visible row: {VARIANTS.get(variant, 'every read model, registry too')}",
        "what": "signature, acks=all, log, chain, repeat check, read models, fsync on",
        **{figure: statistics.median(values) for figure, values in figures.items()},
    }
    row |= {f"{figure}_of_turns": figures[figure] for figure in ("p50_ms", "p99_ms")}
    return row | {"cores_used": turns[-1]["cores_used"]}


def _turn(stack: Stack, variant: str, rate: int) -> dict[str, object]:
    """Send at `rate` for some seconds; the first fifth is warm-up and does not count."""
    with clean_database(stack) as stage, TemporaryDirectory() as folder:
        asyncio.run(topics.apply(stage.settings))
        if variant == "six models":
            stage.execute("UPDATE read_model_builds SET paused = false WHERE projection = 'registry'")
        secret, ready = new_secret(), Path(folder) / "ready.json"
        key_id = asyncio.run(add_key(stage.settings, secret))
        try:
            with (
                process(stage, "-m", "benchmarks.variant", variant) as worker,
                process(stage, "-m", "operations", "ingress", "--port", "0", "--ready-file", str(ready)) as ingress,
            ):
                url = wait_ready(ready)

                def cpu() -> dict[str, float]:
                    processes = {"worker": worker.pid, "ingress": ingress.pid}
                    return stage.cpu_seconds() | {name: tree_cpu_seconds(pid) for name, pid in processes.items()}

                before, started = cpu(), time.monotonic()
                times = asyncio.run(send_and_watch(url, secret, stage.settings.database_api_url, rate))
                elapsed = time.monotonic() - started
                cores = {part: round((spent - before[part]) / elapsed, 2) for part, spent in cpu().items()}
        finally:
            asyncio.run(revoke_key(stage.settings, key_id))
    counted = without_warm_up(times)
    delays = sorted((event.visible_at - event.answered_at) * 1000 for event in counted)
    first, last = counted[0].answered_at, counted[-1].answered_at
    return {
        "events_per_second": len(counted) / (last - first),
        "p50_ms": statistics.median(delays),
        "p99_ms": delays[int(len(delays) * 0.99)],
        "max_ms": delays[-1],
        "cores_used": cores,
    }


async def send_and_watch(url: str, secret: bytes, database: str, rate: int) -> list[ShownEvent]:
    """Send webhooks at a rate for some seconds; return what came of each, in the order of their answers."""
    host, _, port = url.removeprefix("http://").partition(":")
    address = host, int(port), secret
    seen: list[Seen] = []
    watcher = asyncio.create_task(_watch(database, seen))
    # The worker may have a full topic to get through first: it has when events on every partition are visible.
    warming = list[Answered]()
    now = asyncio.Event()
    now.set()
    await _send(address, 0, WARMING, WARMING, now, warming)
    await _visible(seen, warming)
    start, answered = asyncio.Event(), list[Answered]()
    count = int(SECONDS * rate / CONNECTIONS)
    senders = [
        asyncio.create_task(_send(address, number, count, rate / CONNECTIONS, start, answered))
        for number in range(CONNECTIONS)
    ]
    await asyncio.sleep(SECONDS / 10)  # for the requests to be made; then nothing but sending is left to do
    start.set()
    await asyncio.gather(*senders)
    ends = await _visible(seen, answered)
    watcher.cancel()
    reached = {partition: [next_offsets.get(partition, 0) for _, next_offsets in seen] for partition in ends}
    places = [(json.loads(body), at) for body, at in answered]
    shown = []
    for place, at in places:
        first = bisect_right(reached[place["partition"]], place["offset"])
        visible_at = (seen[max(0, first - 1)][0] + seen[first][0]) / 2
        shown.append(ShownEvent(at, visible_at, UUID(place["event_id"])))
    return shown


def without_warm_up(events: list[ShownEvent]) -> list[ShownEvent]:
    """Return all but the first fifth."""
    return sorted(events)[len(events) // 5 :]


async def _visible(seen: list[Seen], answered: list[Answered]) -> dict[int, int]:
    """Wait until all of these are; the last offset of each partition."""
    ends: dict[int, int] = {}
    for body, _ in answered:
        place = json.loads(body)
        ends[place["partition"]] = max(ends.get(place["partition"], 0), place["offset"])
    async with asyncio.timeout(120):
        while not seen or any(seen[-1][1].get(partition, 0) <= end for partition, end in ends.items()):
            await asyncio.sleep(0.1)
    return ends


async def _send(
    address: tuple[str, int, bytes],
    sender: int,
    count: int,
    rate: float,
    start: asyncio.Event,
    answered: list[Answered],
) -> None:
    """One connection, one request at a time, on a fixed timetable from `start` on; all is signed beforehand."""
    requests = []
    for number in range(count):
        requests.append(_request(*address, f"{uuid4()}", f"{sender}-{number % 300}", number))
        await asyncio.sleep(0)
    reader, writer = await asyncio.open_connection(*address[:2])
    await start.wait()
    due = time.monotonic() + sender / rate / CONNECTIONS
    for request in requests:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
        answered.append((body, time.monotonic()))
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(body.decode())
        due += 1 / rate
    writer.close()


async def _watch(database: str, seen: list[Seen]) -> None:
    """Note the read model's checkpoints, again and again."""
    connection = await asyncpg.connect(database)
    statement = await connection.prepare(
        "SELECT partition, next_offset FROM projection_checkpoints"
        " WHERE projection = 'agents' AND topic = 'genesis.events'"
    )
    try:
        while True:
            rows = await statement.fetch()
            seen.append(
                (time.monotonic(), {row["partition"]: row["next_offset"] for row in rows if row["next_offset"]})
            )
            await asyncio.sleep(POLL_SECONDS)
    finally:
        await connection.close()


def _request(host: str, port: int, secret: bytes, message_id: str, agent: str, number: int) -> bytes:
    """Return a signed webhook; of four in a row each is of another type, so that every read model has work."""
    agent_id, skill_id = str(uuid5(NAMESPACE, agent)), str(uuid5(NAMESPACE, f"skill {number % SKILLS}"))
    path, data = (
        ("agent-available", {"agent_id": agent_id, "available": number % 8 < 4}),
        ("agent-onboarded", {"agent_id": agent_id, "name": agent, "skill_ids": [skill_id]}),
        ("agent-rated", {"agent_id": agent_id, "rater_id": agent_id, "rating": 1 + number % 5, "skill_id": skill_id}),
        ("skill-validated", {"skill_id": skill_id, "validator_id": agent_id, "score": number % 101}),
    )[number % 4]
    body = json.dumps({"timestamp": datetime.now(UTC).isoformat(), "data": data}).encode()
    timestamp = str(int(time.time()))
    signature = sign(secret, message_id.encode(), timestamp.encode(), body).decode()
    return (
        f"POST /webhook/genesis/{path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nwebhook-id: {message_id}\r\nwebhook-timestamp: {timestamp}\r\n"
        f"webhook-signature: {signature}\r\n\r\n"
    ).encode() + body
