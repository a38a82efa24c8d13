"""A producer that sends at a steady rate, and whose keys may be changed meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import msgspec

from database.connector import connect
from ingress.keys import KeyStore, new_key_id
from runtime.settings import Settings
from signing.ed25519 import new_private_key
from signing.hmac_secrets import new_secret
from signing.master_key import MasterKeys
from signing.signatures import Scheme, sign

PATH = "/webhook/genesis/agent-available"
CONNECTIONS = 16

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
        """Number of requests that had any other answer than 200, or none."""
        return self.answers.total() - self.answers["200"]

    async def post(self, *signers: Sign) -> int:
        """Send one more request, signed like this, and return its status. It is not counted."""
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
    """Store a new key of a producer, next to its others (None) or to take over from them; return what signs by it."""
    if scheme == "v1":
        stored = secret = new_secret()

        def signed(message_id: bytes, timestamp: bytes, body: bytes) -> bytes:
            return sign(secret, message_id, timestamp, body)
    else:
        pair = new_private_key()
        stored, signed = pair.public_key, pair.sign
    database, key_id = connect(settings, "operator"), new_key_id()
    try:
        store = KeyStore(database, MasterKeys(settings))
        if overlap is None:
            await store.add(key_id, producer, stored, None, scheme=scheme)
        else:
            await store.rotate(key_id, producer, stored, None, scheme=scheme, overlap=overlap)
    finally:
        await database.close()
    return signed


async def _status(reader: asyncio.StreamReader) -> int:
    """Read one answer to its end."""
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    if b"content-length:" in lower:
        await reader.readexactly(int(lower.split(b"content-length:")[1].split(b"\r\n")[0]))
    return int(head.split(b" ", 2)[1])
