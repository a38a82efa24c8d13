"""How many signed webhooks, or events in batches, ingress takes a second: `python -m benchmarks.ingress`.

Starts `plant ingress` and `wrk`, nothing else: Kafka and Postgres are those of the settings. Guarantees that are on:
signature check, schema check, repeat window, idempotent producer, acks=all. Each request is distinct and signed with a
key made for the run and revoked after it. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from uuid import UUID, uuid5

import psutil

from database.connector import connect
from devstack.stack import Stack
from ingress.keys import KeyStore, new_key_id
from runtime.settings import Settings, load_settings
from signing.hmac_secrets import new_secret
from signing.master_key import MasterKeys
from signing.signatures import sign

CONNECTIONS = 64
"""For each ingress process."""
BATCH_CONNECTIONS = 8
"""Batches of 500 on more would be refused: 20,000 records may wait for Kafka."""
READY_SECONDS = 60
AGENTS = 10_000
NAMESPACE = UUID("7a1b6c1e-6f0a-4b57-9a53-0d5f6f0c9a11")
RATED = "genesis.agent.rated"
STARTED = time.time_ns()
PRODUCER = "benchmark"
SCRIPT = Path(__file__).with_name("ingress.lua")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=int, default=10)
    options.add_argument("--requests", type=int, default=150_000, help="distinct requests to sign beforehand")
    options.add_argument("--warm-up-seconds", type=int, default=2)
    options.add_argument("--batch", type=int, default=1, help="events in a request; 1: a webhook each")
    options.add_argument("--processes", type=int, default=1, help="ingress processes")
    given = options.parse_args()
    settings = load_settings()
    secret = new_secret()
    key_id = asyncio.run(add_key(settings, secret))
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = _measure(Path(folder), secret, given)
    finally:
        asyncio.run(revoke_key(settings, key_id))
    print(json.dumps(result, indent=2))


def _measure(folder: Path, secret: bytes, given: argparse.Namespace) -> dict[str, object]:
    ready_file = folder / "ready.json"
    program = [str(Path(sys.executable).with_name("plant")), "ingress", "--port", "0"]
    ingress = subprocess.Popen(
        [*program, "--ready-file", str(ready_file), "--processes", str(given.processes)],
        env={**os.environ, "PLANT_LOG_LEVEL": "error", "PLANT_INGRESS_PRODUCER_RATE_PER_SECOND": "10000000"},
    )
    try:
        url = wait_ready(ready_file)
        warm_up, measured = folder / "warm-up", folder / "requests"
        write = _write_webhooks if given.batch == 1 else partial(_write_batches, given.batch)
        write(warm_up, url, secret, max(CONNECTIONS, given.requests // 5), run="warm-up")
        write(measured, url, secret, given.requests, run="measured")
        connections = given.processes * (CONNECTIONS if given.batch == 1 else BATCH_CONNECTIONS)
        _play(url, warm_up, given.warm_up_seconds, connections)
        broker = Stack(Path(load_settings().home)).state.kafka
        watched = {"ingress": psutil.Process(ingress.pid)}
        if broker is not None:
            watched["broker"] = psutil.Process(broker.pid)
        before, started = {name: _cpu_seconds(process) for name, process in watched.items()}, time.monotonic()
        counts, wrk_seconds = _play(url, measured, given.seconds, connections)
        elapsed = time.monotonic() - started
        cores = {name: round((_cpu_seconds(process) - before[name]) / elapsed, 2) for name, process in watched.items()}
        memory = sum(member.memory_info().rss for member in _with_children(watched["ingress"]))
    finally:
        ingress.terminate()
        ingress.wait(30)
    # Of batches only those count whose every event was taken: wrk tells of a refused request, and not of its events.
    rate = (counts["requests"] - counts["refused"]) / (counts["duration_us"] / 1e6)
    return {
        "what": f"signed {'webhooks' if given.batch == 1 else f'batches of {given.batch}'}, acks=all",
        "processes": given.processes,
        "guarantees": ["signature", "schema", "repeat window", "idempotent producer", "acks=all"],
        "connections": connections,
        "requests_per_second": round(rate),
        "events_per_second": round(rate * given.batch),
        "events_per_core_second": round(rate * given.batch / cores["ingress"]),
        "latency_ms": {name: counts[f"{name}_us"] / 1000 for name in ("p50", "p90", "p99", "max")},
        "requests": counts["requests"],
        "refused": counts["refused"],
        "socket_errors": counts["socket_errors"],
        "every_request_distinct": counts["requests"] <= given.requests,
        "cores_used": {**cores, "wrk": round(wrk_seconds / elapsed, 2)},
        "cores": os.cpu_count(),
        "ingress_memory_mb": round(memory / 1e6),
    }


def _rating(number: int) -> dict[str, object]:
    return {
        "agent_id": str(uuid5(NAMESPACE, str(number % AGENTS))),
        "rater_id": str(NAMESPACE),
        "rating": number % 5 + 1,
    }


def _write_webhooks(path: Path, url: str, secret: bytes, count: int, run: str) -> None:
    occurred_at = datetime.now(UTC).isoformat()
    with path.open("wb") as file:
        for number in range(count):
            payload = {"type": RATED, "timestamp": occurred_at, "data": _rating(number)}
            request = _request("agent-rated", "application/json", url, secret, f"{run}-{number}", json.dumps(payload))
            file.write(b"%d\n%b" % (len(request), request))


def _write_batches(size: int, path: Path, url: str, secret: bytes, count: int, run: str) -> None:
    known = {"specversion": "1.0", "source": "urn:benchmark", "type": RATED, "time": datetime.now(UTC).isoformat()}
    ratings = [_rating(number) for number in range(AGENTS)]
    with path.open("wb") as file:
        for number in range(count):
            first = number * size
            events = [
                {**known, "id": f"{run}-{STARTED}-{at}", "data": ratings[at % AGENTS]}
                for at in range(first, first + size)
            ]
            kind = "application/cloudevents-batch+json"
            request = _request("events", kind, url, secret, f"{run}-{number}", json.dumps(events))
            file.write(b"%d\n%b" % (len(request), request))


def _request(route: str, kind: str, url: str, secret: bytes, name: str, text: str) -> bytes:
    """Return a signed request, head and body."""
    body, timestamp, message_id = text.encode(), str(int(time.time())), f"{name}-{STARTED}"
    signature = sign(secret, message_id.encode(), timestamp.encode(), body).decode()
    head = (
        f"POST /webhook/genesis/{route} HTTP/1.1\r\nhost: {url.removeprefix('http://')}\r\ncontent-type: {kind}\r\n"
        f"content-length: {len(body)}\r\nwebhook-id: {message_id}\r\nwebhook-timestamp: {timestamp}\r\n"
        f"plant-producer: {PRODUCER}\r\n"
        f"webhook-signature: {signature}\r\n\r\n"
    )
    return head.encode() + body


def _play(url: str, requests: Path, seconds: int, connections: int) -> tuple[dict[str, int], float]:
    """Return the counts of wrk, and the CPU seconds that it took."""
    wrk = subprocess.Popen(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(SCRIPT), url],
        env={**os.environ, "PLANT_REQUESTS": str(requests)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    before = os.times()
    _, said = wrk.communicate()
    after = os.times()
    counts: dict[str, int] = json.loads(said.decode().strip().splitlines()[-1])
    cpu_seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return counts, cpu_seconds


def _cpu_seconds(process: psutil.Process) -> float:
    times = [member.cpu_times() for member in _with_children(process)]
    return float(sum(each.user + each.system for each in times))


def _with_children(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def wait_ready(ready_file: Path) -> str:
    """Return the address that an ingress process wrote to its ready file."""
    deadline = time.monotonic() + READY_SECONDS
    while not ready_file.exists():
        if time.monotonic() > deadline:
            raise SystemExit("plant ingress did not become ready")
        time.sleep(0.05)
    url: str = json.loads(ready_file.read_text())["url"]
    return url


async def add_key(settings: Settings, secret: bytes) -> UUID:
    """Store a signing key of the producer `benchmark`."""
    database, key_id = connect(settings, "operator"), new_key_id()
    try:
        await KeyStore(database, MasterKeys(settings)).add(key_id, PRODUCER, secret, None)
    finally:
        await database.close()
    return key_id


async def revoke_key(settings: Settings, key_id: UUID) -> None:
    """Revoke what add_key added."""
    database = connect(settings, "operator")
    try:
        await KeyStore(database, MasterKeys(settings)).revoke(key_id)
    finally:
        await database.close()


if __name__ == "__main__":
    main()
