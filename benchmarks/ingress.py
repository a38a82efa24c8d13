"""How many signed webhooks one ingress process takes a second: `python -m benchmarks.ingress`.

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
from pathlib import Path
from uuid import UUID, uuid5

import psutil

from database.connector import connect
from devstack.stack import Stack
from ingress.keys import KeyStore, MasterKey, new_key_id, new_secret
from ingress.verification import sign
from runtime.settings import Settings, load_settings

CONNECTIONS = 64
READY_SECONDS = 60
AGENTS = 10_000
NAMESPACE = UUID("7a1b6c1e-6f0a-4b57-9a53-0d5f6f0c9a11")
SCRIPT = Path(__file__).with_name("ingress.lua")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=int, default=10)
    options.add_argument("--requests", type=int, default=150_000, help="distinct requests to sign beforehand")
    options.add_argument("--warm-up-seconds", type=int, default=2)
    given = options.parse_args()
    settings = load_settings()
    secret = new_secret()
    key_id = asyncio.run(add_key(settings, secret))
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = _measure(Path(folder), secret, given.requests, given.seconds, given.warm_up_seconds)
    finally:
        asyncio.run(revoke_key(settings, key_id))
    print(json.dumps(result, indent=2))


def _measure(folder: Path, secret: bytes, requests: int, seconds: int, warm_up_seconds: int) -> dict[str, object]:
    ready_file = folder / "ready.json"
    ingress = subprocess.Popen(
        [str(Path(sys.executable).with_name("plant")), "ingress", "--port", "0", "--ready-file", str(ready_file)],
        env={**os.environ, "PLANT_LOG_LEVEL": "error"},
    )
    try:
        url = wait_ready(ready_file)
        warm_up, measured = folder / "warm-up", folder / "requests"
        _write_requests(warm_up, url, secret, requests // 5, run="warm-up")
        _write_requests(measured, url, secret, requests, run="measured")
        _play(url, warm_up, warm_up_seconds)
        broker = Stack(Path(load_settings().home)).state.kafka
        watched = {"ingress": psutil.Process(ingress.pid)}
        if broker is not None:
            watched["broker"] = psutil.Process(broker.pid)
        before, started = {name: _cpu_seconds(process) for name, process in watched.items()}, time.monotonic()
        found, wrk_seconds = _play(url, measured, seconds)
        elapsed = time.monotonic() - started
        cores = {name: round((_cpu_seconds(process) - before[name]) / elapsed, 2) for name, process in watched.items()}
        memory = watched["ingress"].memory_info().rss
    finally:
        ingress.terminate()
        ingress.wait(30)
    rate = found["requests"] / (found["duration_us"] / 1e6)
    return {
        "what": "ingress: signed webhooks, acks=all, one process",
        "guarantees": ["signature", "schema", "repeat window", "idempotent producer", "acks=all"],
        "connections": CONNECTIONS,
        "requests_per_second": round(rate),
        "latency_ms": {name: found[f"{name}_us"] / 1000 for name in ("p50", "p90", "p99", "max")},
        "requests": found["requests"],
        "refused": found["refused"],
        "socket_errors": found["socket_errors"],
        "every_request_distinct": found["requests"] <= requests,
        "cores_used": {**cores, "wrk": round(wrk_seconds / elapsed, 2)},
        "cores": os.cpu_count(),
        "ingress_memory_mb": round(memory / 1e6),
    }


def _write_requests(path: Path, url: str, secret: bytes, count: int, run: str) -> None:
    timestamp = str(int(time.time())).encode()
    occurred_at = datetime.now(UTC).isoformat()
    host = url.removeprefix("http://")
    with path.open("wb") as file:
        for number in range(count):
            agent_id = uuid5(NAMESPACE, str(number % AGENTS))
            message_id = f"{run}-{time.time_ns()}-{number}".encode()
            body = json.dumps(
                {
                    "type": "genesis.agent.rated",
                    "timestamp": occurred_at,
                    "data": {"agent_id": str(agent_id), "rater_id": str(NAMESPACE), "rating": number % 5 + 1},
                }
            ).encode()
            head = (
                f"POST /webhook/genesis/agent-rated HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nwebhook-id: {message_id.decode()}\r\n"
                f"webhook-timestamp: {timestamp.decode()}\r\n"
                f"webhook-signature: {sign(secret, message_id, timestamp, body).decode()}\r\n\r\n"
            ).encode()
            file.write(b"%d\n%b" % (len(head) + len(body), head + body))


def _play(url: str, requests: Path, seconds: int) -> tuple[dict[str, int], float]:
    """What wrk found, and the CPU seconds it took."""
    wrk = subprocess.Popen(
        ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(SCRIPT), url],
        env={**os.environ, "PLANT_REQUESTS": str(requests)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    before = os.times()
    _, said = wrk.communicate()
    after = os.times()
    found: dict[str, int] = json.loads(said.decode().strip().splitlines()[-1])
    cpu_seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return found, cpu_seconds


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def wait_ready(ready_file: Path) -> str:
    """The address that an ingress process wrote to its ready file."""
    deadline = time.monotonic() + READY_SECONDS
    while not ready_file.exists():
        if time.monotonic() > deadline:
            raise SystemExit("plant ingress did not become ready")
        time.sleep(0.05)
    url: str = json.loads(ready_file.read_text())["url"]
    return url


async def add_key(settings: Settings, secret: bytes) -> UUID:
    """A signing key of the producer `benchmark`."""
    database, key_id = connect(settings, "api"), new_key_id()
    try:
        await KeyStore(database, MasterKey(settings)).add(key_id, "benchmark", secret, None)
    finally:
        await database.close()
    return key_id


async def revoke_key(settings: Settings, key_id: UUID) -> None:
    """Revoke what add_key added."""
    database = connect(settings, "api")
    try:
        await KeyStore(database, MasterKey(settings)).revoke(key_id)
    finally:
        await database.close()


if __name__ == "__main__":
    main()
