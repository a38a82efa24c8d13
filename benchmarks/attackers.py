"""Peers that want ingress to answer nobody else: `python -m benchmarks.attackers KIND URL SECONDS`, run by `attacks`.

A process of its own, so that honest senders are not slowed down by the attackers' own loop. Addresses are those of
127.0.0.0/8, and honest senders come from another one. Prints a JSON object: what was sent, and what was answered.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from runtime.lifecycle import raise_fd_limit
from signing.signatures import sign

ADDRESS: Final = "127.0.0.2"
SECRET_VARIABLE: Final = "PLANT_ATTACKERS_SECRET"
PRODUCER: Final = "greedy"
BATCH: Final = "application/cloudevents-batch+json"
LINES: Final = "application/x-ndjson"
WEBHOOK: Final = "/webhook/genesis/agent-available"
EVENTS: Final = "/webhook/genesis/events"
WRONG: Final = b"v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
ANSWER_SECONDS: Final = 30.0
SLOW_SECONDS: Final = 1.0
FILES: Final = 10_000

numbers = count()
answers: Counter[str] = Counter()
"""Statuses, and `closed` for connections that ended without one."""


class Attack(NamedTuple):
    """What so many connections do, again and again."""

    what: str
    connections: int
    act: Callable[[Target], Awaitable[None]]
    addresses: int = 1
    admin: bool = False
    """Against the admin listener, in the same event loop."""


class Target(NamedTuple):
    """The service under attack, and one attacker's address and secret."""

    host: str
    port: int
    address: str
    secret: bytes

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port, local_addr=(self.address, 0))


def request(
    target: Target,
    body: bytes,
    *,
    path: str = WEBHOOK,
    kind: str = "application/json",
    signed: bool = False,
    producer: str = PRODUCER,
) -> bytes:
    """Return a request with a body; without `signed` its signature is one that no key has made."""
    message_id, timestamp = b"msg_%d_%d" % (os.getpid(), next(numbers)), b"%d" % time.time()
    signature = sign(target.secret, message_id, timestamp, body) if signed else WRONG
    named = b"plant-producer: %b\r\n" % producer.encode() if producer else b""
    return (
        b"POST %b HTTP/1.1\r\nhost: plant\r\ncontent-type: %b\r\ncontent-length: %d\r\nwebhook-id: %b\r\n"
        b"webhook-timestamp: %b\r\nwebhook-signature: %b\r\n%b\r\n%b"
        % (path.encode(), kind.encode(), len(body), message_id, timestamp, signature, named, body)
    )


async def exchange(target: Target, make: Callable[[], bytes]) -> None:
    """Send requests over one connection, the next one when the one before is answered, until it is closed."""
    reader, writer = await target.connect()
    try:
        while True:
            writer.write(make())
            await writer.drain()
            async with asyncio.timeout(ANSWER_SECONDS):
                answers[await _status(reader)] += 1
    finally:
        writer.close()


async def stall(target: Target, sent: bytes) -> None:
    """Send the beginning of a request and nothing more, until the connection is closed."""
    reader, writer = await target.connect()
    try:
        writer.write(sent)
        answers[await _status(reader)] += 1
    finally:
        writer.close()


async def trickle(target: Target) -> None:
    """Send a head byte by byte."""
    reader, writer = await target.connect()
    try:
        writer.write(b"POST / HTTP/1.1\r\n")
        for byte in b"x-slow: " + b"x" * 600:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(SLOW_SECONDS)
            if reader.at_eof():
                break
    finally:
        answers["closed"] += 1
        writer.close()


async def connect_only(target: Target) -> None:
    """Open connections that say something else than HTTP, and close them."""
    _, writer = await target.connect()
    writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    answers["closed"] += 1
    writer.close()


def available(number: int) -> dict[str, object]:
    """Return the content of a webhook that is in order."""
    data = {"agent_id": f"00000000-0000-4000-8000-{number % 10_000:012d}", "available": True}
    return {"type": "genesis.agent.available", "timestamp": datetime.now(UTC).isoformat(), "data": data}


def lines(events: int) -> bytes:
    """Return a bulk load that is in order."""
    return b"\n".join(json.dumps(cloud_event()).encode() for _ in range(events)) + b"\n"


def cloud_event() -> dict[str, object]:
    """Return a CloudEvent that is in order and new."""
    number, content = next(numbers), available(next(numbers))
    known = {"specversion": "1.0", "source": "urn:greedy", "type": content["type"], "time": content["timestamp"]}
    return {**known, "id": f"{os.getpid()}-{number}", "data": content["data"]}


MIB: Final = 1024 * 1024
LARGE: Final = b"[" + b" " * (2 * MIB - 2) + b"]"
AT_ONCE: Final = b"{" + b" " * (190 * 1024) + b"}"
"""Nearly the largest body that is hashed on the event loop."""
MIDDLE: Final = b"{" + b" " * (60 * 1024) + b"}"
NEWLINES: Final = b"\n" * (6 * MIB)
DEEP: Final = b"[" * (1 * MIB) + b"]" * (1 * MIB)
WIDE: Final = b"[" + b"{}," * (600 * 1024) + b"{}]"
WIDE_SCHEMA: Final = json.dumps(
    {
        "schema": json.dumps(
            {"type": "record", "name": "R", "fields": [{"name": f"f{n}", "type": "string"} for n in range(5_500)]}
        )
    }
).encode()

ATTACKS: Final[dict[str, Attack]] = {
    "unsigned-bodies": Attack(
        "bodies of 2 MiB whose signature is wrong",
        32,
        lambda target: exchange(target, lambda: request(target, LARGE, path=EVENTS, kind=BATCH)),
    ),
    "unsigned-bodies-many": Attack(
        "the same from 100 addresses",
        200,
        lambda target: exchange(target, lambda: request(target, LARGE, path=EVENTS, kind=BATCH)),
        100,
    ),
    "stalled-bodies": Attack(
        "bodies that never become whole",
        2_000,
        lambda target: stall(target, request(target, MIDDLE)[:-1]),
    ),
    "stalled-bodies-many": Attack(
        "the same from 200 addresses",
        2_000,
        lambda target: stall(target, request(target, MIDDLE)[:-1]),
        200,
    ),
    "slow-heads": Attack("heads of a byte a second", 2_000, trickle),
    "wrong-signatures": Attack(
        "small webhooks whose signature is wrong",
        64,
        lambda target: exchange(target, lambda: request(target, json.dumps(available(1)).encode())),
    ),
    "wrong-signatures-large": Attack(
        "bodies of 190 KiB whose signature is wrong",
        64,
        lambda target: exchange(target, lambda: request(target, AT_ONCE)),
    ),
    "wrong-signatures-large-many": Attack(
        "the same from 64 addresses",
        64,
        lambda target: exchange(target, lambda: request(target, AT_ONCE)),
        64,
    ),
    "unnamed-producers": Attack(
        "bodies of 60 KiB without a producer, 1,000 keys",
        64,
        lambda target: exchange(target, lambda: request(target, MIDDLE, producer="")),
    ),
    "unknown-routes": Attack(
        "paths that lead nowhere",
        64,
        lambda target: exchange(target, lambda: b"GET /wp-login.php HTTP/1.1\r\nhost: plant\r\n\r\n"),
    ),
    "connections": Attack("connections that open, say no HTTP and close", 64, connect_only),
    "look-ups": Attack(
        "schema look-ups of 250 KB",
        32,
        lambda target: exchange(target, lambda: look_up(WIDE_SCHEMA)),
        admin=True,
    ),
    "own-flood": Attack(
        "good webhooks of another producer, flat out",
        64,
        lambda target: exchange(
            target, lambda: request(target, json.dumps(available(next(numbers))).encode(), signed=True)
        ),
    ),
    "newlines": Attack(
        "signed loads of 6 MiB of newlines",
        4,
        lambda target: exchange(target, lambda: request(target, NEWLINES, path=EVENTS, kind=LINES, signed=True)),
    ),
    "deep-json": Attack(
        "signed batches of a million brackets",
        4,
        lambda target: exchange(target, lambda: request(target, DEEP, path=EVENTS, kind=BATCH, signed=True)),
    ),
    "wide-json": Attack(
        "signed batches of 600,000 items",
        4,
        lambda target: exchange(target, lambda: request(target, WIDE, path=EVENTS, kind=BATCH, signed=True)),
    ),
    "own-batches": Attack(
        "good batches of 500 of another producer, flat out",
        8,
        lambda target: exchange(
            target,
            lambda: request(
                target,
                json.dumps([cloud_event() for _ in range(500)]).encode(),
                path=EVENTS,
                kind=BATCH,
                signed=True,
            ),
        ),
    ),
    "own-loads": Attack(
        "good bulk loads of 5,000 events of another producer",
        8,
        lambda target: exchange(target, lambda: request(target, lines(5_000), path=EVENTS, kind=LINES, signed=True)),
    ),
}


def look_up(body: bytes) -> bytes:
    """Return a request for the id of a schema."""
    head = b"POST /subjects/genesis.events-genesis.agent.AgentRated HTTP/1.1\r\nhost: plant\r\n"
    return head + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def addresses(number: int) -> Iterator[str]:
    """Yield the attackers' addresses, again and again."""
    while True:
        yield ADDRESS if number == 1 else f"127.0.2.{1 + next(numbers) % number}"


async def attack(kind: Attack, url: str, seconds: float, secret: bytes) -> None:
    """Attack for so many seconds; a connection that ends is followed by another."""
    target = urlsplit(url)
    ending = time.monotonic() + seconds

    async def insist(address: str) -> None:
        one = Target(target.hostname or "", target.port or 80, address, secret)
        while time.monotonic() < ending:
            try:
                await kind.act(one)
            except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
                answers["closed"] += 1
            await asyncio.sleep(0)

    origins = addresses(kind.addresses)
    tasks = [asyncio.create_task(insist(next(origins))) for _ in range(kind.connections)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _status(reader: asyncio.StreamReader) -> str:
    """Read one answer to its end and return its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b"content-length:" in head:
        await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
    elif b"chunked" in head:
        await reader.readuntil(b"\r\n0\r\n\r\n")
    return head.split(b" ", 2)[1].decode()


def main() -> None:
    kind, url, seconds = sys.argv[1:]
    raise_fd_limit(FILES)
    started = time.process_time()
    asyncio.run(attack(ATTACKS[kind], url, float(seconds), bytes.fromhex(os.environ[SECRET_VARIABLE])))
    print(json.dumps({"answers": dict(answers), "cpu_seconds": round(time.process_time() - started, 2)}))


if __name__ == "__main__":
    main()
