"""Changing keys while a producer sends: not one of its requests may be refused.

A producer sends at a steady rate through one ingress process. Its key is changed several times with a short overlap, as
`plant keys rotate` does it: v1 and v1a in turns, and in turns it signs with both keys meanwhile, or goes over to the
new one a moment after it was made.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import msgspec

from benchmarks.ingress import wait_ready
from benchmarks.stage import clean_database, process
from database.connector import connect
from devstack.stack import Stack
from ingress.keys import KeyStore, new_key_id
from runtime.settings import Settings
from signing.ed25519 import new_private_key
from signing.hmac_secrets import new_secret
from signing.master_key import MasterKey
from signing.signatures import Scheme, sign
from streams import topics

PATH = "/webhook/genesis/agent-available"
PRODUCER = "rotating"
CONNECTIONS = 16
RATE = 500
ROTATIONS = 6
OVERLAP_SECONDS = 4.0
REACHED_SECONDS = 2.0
"""A change of keys has reached every running process by then."""

Sign = Callable[[bytes, bytes, bytes], bytes]
"""Id, timestamp and body to the signature."""


class SteadyLoad:
    """Distinct signed requests at a steady rate, over a few connections; `signers` may be exchanged meanwhile.

    `answers` counts statuses, and `broken` what had no answer; `milliseconds` are the times to the answers.
    """

    def __init__(self, url: str, rate: float, *signers: Sign, connections: int = CONNECTIONS) -> None:
        self.signers = list(signers)
        self.answers: Counter[str] = Counter()
        self.milliseconds: list[float] = []
        host, _, port = url.removeprefix("http://").partition(":")
        self._address = host, int(port)
        self._pause = connections / rate
        self._connections = connections
        self._over = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send until the block ends; every request is answered afterwards."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._connections):
                tasks.create_task(self._send(number))
            try:
                yield
            finally:
                self._over.set()

    @property
    def refused(self) -> int:
        """How many requests had any other answer than 200, or none."""
        return self.answers.total() - self.answers["200"]

    async def post(self, *signers: Sign) -> int:
        """One request beside the others, signed like this; its status. It is not counted."""
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            writer.write(self._request(list(signers)))
            return await _status(reader)
        finally:
            writer.close()

    async def _send(self, number: int) -> None:
        reader, writer = await asyncio.open_connection(*self._address)
        due = time.monotonic() + self._pause * number / self._connections
        while not self._over.is_set():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = max(due + self._pause, time.monotonic())
            started = time.monotonic()
            writer.write(self._request(self.signers))
            try:
                self.answers[str(await _status(reader))] += 1
            except (OSError, asyncio.IncompleteReadError):
                self.answers["broken"] += 1
                writer.close()
                reader, writer = await asyncio.open_connection(*self._address)
            self.milliseconds.append((time.monotonic() - started) * 1000)
        writer.close()

    def _request(self, signers: list[Sign]) -> bytes:
        body = msgspec.json.encode(
            {
                "type": "genesis.agent.available",
                "timestamp": datetime.now(UTC),
                "data": {"agent_id": uuid4(), "available": True},
            }
        )
        message_id, timestamp = f"msg_{uuid4().hex}".encode(), b"%d" % time.time()
        signatures = b" ".join(sign(message_id, timestamp, body) for sign in signers)
        return (
            b"POST %b HTTP/1.1\r\nhost: plant\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"webhook-id: %b\r\nwebhook-timestamp: %b\r\nwebhook-signature: %b\r\n\r\n%b"
            % (PATH.encode(), len(body), message_id, timestamp, signatures, body)
        )


async def new_signer(settings: Settings, producer: str, scheme: Scheme, overlap: timedelta | None) -> Sign:
    """A new key of a producer in the database, beside its others (None) or to take over from them; what signs by it."""
    if scheme == "v1":
        stored = secret = new_secret()

        def signed(message_id: bytes, timestamp: bytes, body: bytes) -> bytes:
            return sign(secret, message_id, timestamp, body)
    else:
        pair = new_private_key()
        stored, signed = pair.public_key, pair.sign
    database, key_id = connect(settings, "api"), new_key_id()
    try:
        store = KeyStore(database, MasterKey(settings))
        if overlap is None:
            await store.add(key_id, producer, stored, None, scheme=scheme)
        else:
            await store.rotate(key_id, producer, stored, None, scheme=scheme, overlap=overlap)
    finally:
        await database.close()
    return signed


def run(stack: Stack, *, rate: int = RATE, rotations: int = ROTATIONS) -> list[dict[str, object]]:
    """Requests, refusals and times to the answer, at `rate` a second over `rotations` changes of key."""
    with clean_database(stack) as stage, TemporaryDirectory() as folder:
        asyncio.run(topics.apply(stage.settings))
        ready = Path(folder) / "ready.json"
        first: dict[Scheme, Sign] = {
            scheme: asyncio.run(new_signer(stage.settings, PRODUCER, scheme, None)) for scheme in ("v1", "v1a")
        }
        with process(stage, "-m", "operations", "ingress", "--port", "0", "--ready-file", str(ready)):
            return [asyncio.run(_measure(wait_ready(ready), stage.settings, first, rate, rotations))]


async def _measure(
    url: str, settings: Settings, signers: dict[Scheme, Sign], rate: int, rotations: int
) -> dict[str, object]:
    load = SteadyLoad(url, rate, signers["v1"])
    started = time.monotonic()
    async with load.running():
        await asyncio.sleep(1)
        for number in range(rotations):
            scheme: Scheme = "v1" if number % 2 == 0 else "v1a"
            old = signers[scheme]
            load.signers = [old]
            new = await new_signer(settings, PRODUCER, scheme, timedelta(seconds=OVERLAP_SECONDS))
            if number % 4 < 2:
                load.signers = [new, old]
            await asyncio.sleep(REACHED_SECONDS)
            load.signers = [new]
            signers[scheme] = new
            await asyncio.sleep(OVERLAP_SECONDS - REACHED_SECONDS + 1)  # the old key has expired by now
    seconds = time.monotonic() - started
    times = sorted(load.milliseconds)
    return {
        "name": "keys are changed under load",
        "rotations": rotations,
        "requests": load.answers.total(),
        "requests_per_second": round(load.answers.total() / seconds),
        "refused": load.refused,
        "answers": dict(load.answers),
        "p50_ms": statistics.median(times),
        "p99_ms": times[int(len(times) * 0.99)],
    }


async def _status(reader: asyncio.StreamReader) -> int:
    """Read one answer to its end."""
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    if b"content-length:" in lower:
        await reader.readexactly(int(lower.split(b"content-length:")[1].split(b"\r\n")[0]))
    return int(head.split(b" ", 2)[1])
