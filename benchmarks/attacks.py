"""Honest senders while others attack ingress: what share of their webhooks is answered 200, and how soon.

Each row is a kind of attack against an ingress process of its own, flat out for as long as it is measured. Honest
senders, ten addresses of them, send 100 webhooks a second together, on a fixed timetable: half over connections that
stay open, half with a new connection each, as most senders of webhooks do. Times count from the timetable, so waiting
for a turn counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain, cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from uuid import uuid4

import psutil

from benchmarks.attackers import ATTACKS, PRODUCER, SECRET_VARIABLE, WEBHOOK
from benchmarks.ingress import wait_ready
from benchmarks.stage import Stage, clean_database, process, running_stack, tree_cpu_seconds
from database.connector import connect
from devstack.stack import Stack
from ingress.keys import KeyStore, new_key_id
from runtime.settings import Settings
from signing.hmac_secrets import new_secret
from signing.master_key import MasterKeys
from signing.signatures import sign
from streams import topics

RATE: Final = 100
ADDRESSES: Final = 10
HONEST: Final = "honest"
TIMEOUT_SECONDS: Final = 5.0
WARM_UP_SECONDS: Final = 3.0
OTHER_KEYS: Final = 1_000
NOBODY: Final = "nobody"
ATTACKERS_END_SECONDS: Final = 60.0

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]

Sent = list[tuple[str, float]]
"""Each webhook's status, or why it had none, and the milliseconds to its answer."""


def run(stack: Stack, *, seconds: float = 10.0, kinds: tuple[str, ...] = (NOBODY, *ATTACKS)) -> list[dict[str, object]]:
    """Return a row a kind of attack, the first one without any."""
    return [_row(stack, kind, seconds) for kind in kinds]


def _row(stack: Stack, kind: str, seconds: float) -> dict[str, object]:
    with clean_database(stack) as stage, TemporaryDirectory() as folder:
        asyncio.run(topics.apply(stage.settings))
        honest, greedy = new_secret(), new_secret()
        producers = {HONEST: [honest], PRODUCER: [greedy]}
        if kind == "unnamed-producers":
            producers |= {f"other-{number}": [new_secret()] for number in range(OTHER_KEYS)}
        asyncio.run(_add_keys(stage.settings, producers))
        ready = Path(folder) / "ready.json"
        with process(stage, "-m", "operations", "ingress", "--port", "0", "--ready-file", str(ready)) as ingress:
            url = wait_ready(ready)
            asyncio.run(_send_all(url, honest, 1.0))  # what is made at first use is not what is measured
            attacked_url = (
                json.loads(ready.read_bytes())["admin_url"] if kind in ATTACKS and ATTACKS[kind].admin else url
            )
            with _attackers(stage, kind, attacked_url, WARM_UP_SECONDS + seconds, greedy) as outcome:
                time.sleep(WARM_UP_SECONDS)
                before, started = tree_cpu_seconds(ingress.pid), time.monotonic()
                sent = asyncio.run(_send_all(url, honest, seconds))
                cores = (tree_cpu_seconds(ingress.pid) - before) / (time.monotonic() - started)
                memory = psutil.Process(ingress.pid).memory_info().rss
                attacked = outcome()
    return _figures(kind, sent, attacked) | {"ingress_cores": round(cores, 2), "memory_mb": round(memory / 1e6)}


def _figures(kind: str, sent: Sent, attacked: Mapping[str, int]) -> dict[str, object]:
    times = sorted(milliseconds for _, milliseconds in sent)
    good = sum(status == "200" for status, _ in sent)
    return {
        "attack": ATTACKS[kind].what if kind in ATTACKS else "none",
        "honest_200_percent": round(100 * good / len(sent), 1),
        "p50_ms": times[len(times) // 2],
        "p99_ms": times[int(len(times) * 0.99)],
        "attackers_answers": ", ".join(f"{count:,} x {status}" for status, count in attacked.items()),
    }


@contextmanager
def _attackers(
    stage: Stage, kind: str, url: str, seconds: float, secret: bytes
) -> Iterator[Callable[[], Mapping[str, int]]]:
    """Attack beside the block; what is given returns what was answered, once the attack is over."""
    if kind == NOBODY:
        yield lambda: {}
        return
    environ = {**stage.environ, SECRET_VARIABLE: secret.hex()}
    command = [sys.executable, "-m", "benchmarks.attackers", kind, url, str(seconds)]
    attacking = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE)

    def outcome() -> Mapping[str, int]:
        output, _ = attacking.communicate(timeout=ATTACKERS_END_SECONDS)
        if attacking.returncode:
            raise SystemExit(f"the attack {kind} ended with {attacking.returncode}")
        answers: Mapping[str, int] = json.loads(output)["answers"]
        return answers

    try:
        yield outcome
    finally:
        if attacking.poll() is None:
            attacking.kill()
            attacking.wait()


async def _send_all(url: str, secret: bytes, seconds: float) -> Sent:
    """Send the honest webhooks for so many seconds; return when each has its answer or its time is over.

    None waits for another one: what is late for one webhook makes no other one late.
    """
    host, _, port = url.removeprefix("http://").partition(":")
    idle: dict[str, list[Connection]] = {f"127.0.1.{1 + number}": [] for number in range(ADDRESSES)}
    origins = cycle(idle)
    sent: Sent = []
    started = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(seconds * RATE)):
            due = started + number / RATE
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            origin = next(origins)
            # Every address uses both kinds of connection.
            staying = idle[origin] if number // ADDRESSES % 2 else None
            tasks.create_task(_send((host, int(port)), origin, _webhook(secret), due, staying, sent))
    for _, writer in chain.from_iterable(idle.values()):
        writer.close()
    return sent


async def _send(
    address: tuple[str, int], origin: str, request: bytes, due: float, idle: list[Connection] | None, sent: Sent
) -> None:
    """Send one webhook over an idle connection; without `idle` over one of its own."""
    connection = idle.pop() if idle else None
    stays = False
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            connection = connection or await asyncio.open_connection(*address, local_addr=(origin, 0))
            status, stays = await _exchange(*connection, request)
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        status = type(error).__name__
    sent.append((status, (time.monotonic() - due) * 1000))
    if connection is not None and stays and idle is not None:
        idle.append(connection)
    elif connection is not None:
        connection[1].close()


def _webhook(secret: bytes) -> bytes:
    data = {"agent_id": str(uuid4()), "available": True}
    body = json.dumps({"timestamp": datetime.now(UTC).isoformat(), "data": data}).encode()
    message_id, timestamp = f"msg_{uuid4().hex}".encode(), b"%d" % time.time()
    return (
        b"POST %b HTTP/1.1\r\nhost: plant\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
        b"webhook-id: %b\r\nwebhook-timestamp: %b\r\nwebhook-signature: %b\r\nplant-producer: %b\r\n\r\n%b"
        % (
            WEBHOOK.encode(),
            len(body),
            message_id,
            timestamp,
            sign(secret, message_id, timestamp, body),
            HONEST.encode(),
            body,
        )
    )


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[str, bool]:
    """Return the status of the answer, and whether the connection stays open after it."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
    return head.split(b" ", 2)[1].decode(), b"connection: close" not in head


async def _add_keys(settings: Settings, producers: Mapping[str, Sequence[bytes]]) -> None:
    database = connect(settings, "operator")
    try:
        store = KeyStore(database, MasterKeys(settings))
        for producer, secrets in producers.items():
            for secret in secrets:
                await store.add(new_key_id(), producer, secret, None)
    finally:
        await database.close()


def main() -> None:
    """Measure some kinds of attack, or all, by themselves."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("kinds", nargs="*", choices=[NOBODY, *ATTACKS, []])
    options.add_argument("--seconds", type=float, default=10.0)
    given = options.parse_args()
    with running_stack() as stack:
        for kind in given.kinds or (NOBODY, *ATTACKS):
            print(json.dumps(_row(stack, kind, given.seconds)), flush=True)


if __name__ == "__main__":
    main()
