"""How long a producer waits for its 200 where three brokers keep each event: signed webhooks at a steady rate.

The time counts from when a request was due, not from when it could be sent, so a stall is not hidden by the requests
that it held up.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import NAMESPACE_URL, uuid4, uuid5

from benchmarks.ingress import add_key, revoke_key, wait_ready
from benchmarks.latency import _request as signed_request
from benchmarks.stage import HOME, Stage, clean_database, process, running_stack, tree_cpu_seconds
from signing.hmac_secrets import new_secret
from streams import topics

CONNECTIONS = 64
AGENTS = 10_000
REPLICAS = 3
OWN_HOME = HOME.with_name("bench-brokers")


def run(home: Path = OWN_HOME, *, rate: int = 1_000, seconds: float = 20.0) -> list[dict[str, object]]:
    """Send at `rate` for `seconds`, after a warm-up of half as long: the brokers compile their code then."""
    with running_stack(home, brokers=3) as stack, clean_database(stack) as stage, TemporaryDirectory() as folder:
        steps = asyncio.run(topics.apply(stage.settings))
        kept = asyncio.run(topics.describe(stage.settings, [step.name for step in steps]))
        assert all(topic.in_sync == REPLICAS for topic in kept.values()), kept
        secret, ready = new_secret(), Path(folder) / "ready.json"
        key_id = asyncio.run(add_key(stage.settings, secret))
        try:
            with process(stage, "-m", "operations", "ingress", "--port", "0", "--ready-file", str(ready)) as ingress:
                url = wait_ready(ready)
                asyncio.run(_measure(url, secret, rate, seconds / 2))
                before, started = _cpu_seconds(stage) | {"ingress": tree_cpu_seconds(ingress.pid)}, time.monotonic()
                waits = asyncio.run(_measure(url, secret, rate, seconds))
                elapsed = time.monotonic() - started
                spent = _cpu_seconds(stage) | {"ingress": tree_cpu_seconds(ingress.pid)}
        finally:
            asyncio.run(revoke_key(stage.settings, key_id))
    return [_row(waits, rate, {part: round((spent[part] - before[part]) / elapsed, 2) for part in spent})]


def _row(waits: list[tuple[float, float]], rate: int, cores: dict[str, float]) -> dict[str, object]:
    counted = sorted(waits)
    millis = sorted(seconds * 1000 for _, seconds in counted)
    return {
        "name": "webhook to 200, three brokers",
        "what": "signature, schema, repeat window, acks=all, 3 replicas, 2 in sync at least, one event a request",
        "asked_per_second": rate,
        "events_per_second": len(counted) / (counted[-1][0] - counted[0][0]),
        "events_counted": len(counted),
        "p50_ms": statistics.median(millis),
        "p99_ms": millis[int(len(millis) * 0.99)],
        "max_ms": millis[-1],
        "cores_used": cores,
    }


def _cpu_seconds(stage: Stage) -> dict[str, float]:
    running = [broker.process for broker in stage.stack.state.brokers if broker.process is not None]
    return {"brokers": sum(tree_cpu_seconds(record.pid) for record in running)}


async def _measure(url: str, secret: bytes, rate: int, seconds: float) -> list[tuple[float, float]]:
    """Of each request: when it was due, and the seconds from then to its 200."""
    host, _, port = url.removeprefix("http://").partition(":")
    count = int(rate * seconds / CONNECTIONS)
    requests = [
        [
            signed_request(host, int(port), secret, str(uuid4()), uuid5(NAMESPACE_URL, str(number % AGENTS)))
            for number in range(connection, count * CONNECTIONS, CONNECTIONS)
        ]
        for connection in range(CONNECTIONS)
    ]
    start = time.monotonic() + 0.5
    senders = (
        _send(host, int(port), requests[connection], start + connection / rate, CONNECTIONS / rate)
        for connection in range(CONNECTIONS)
    )
    return [wait for waits in await asyncio.gather(*senders) for wait in waits]


async def _send(
    host: str, port: int, requests: list[bytes], start: float, every_seconds: float
) -> list[tuple[float, float]]:
    """One connection, one request at a time, on a timetable."""
    reader, writer = await asyncio.open_connection(host, port)
    waits = []
    for number, request in enumerate(requests):
        due = start + number * every_seconds
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
        waits.append((due, time.monotonic() - due))
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(body.decode())
    writer.close()
    return waits


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
