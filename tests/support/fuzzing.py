"""Broken requests, through all that reads a request before its event is published.

Each is a good request that was changed in a few places: bytes flipped, cut, doubled or put in, numbers, strings and
structure exchanged for worse ones, headers lost, doubled or corrupted. A request has to be read, or refused with a
problem that is the sender's; anything else that is raised ends the run, with the seed that makes it happen again.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Final

from ingress.batches import read_items
from ingress.bulk_load import BodyLines
from ingress.headers import RequestHeaders, read_request_headers, require_one_reading
from ingress.payloads import read_binary, read_cloud_event, read_webhook
from schemas import codec
from schemas.errors import Unencodable
from server.problems import Problem
from signing.ed25519 import PrivateKey
from signing.signatures import Ed25519Key, HmacKey, SignatureRejected, sign, verify_signature

SECRET: Final = bytes(range(32))
PRIVATE_KEY: Final = PrivateKey(SECRET)
KEYS: Final = (
    HmacKey(id="k", owner="genesis", secret=SECRET),
    Ed25519Key(id="e", owner="genesis", public_key=PRIVATE_KEY.public_key),
)
LINE_MAX_BYTES: Final = 256 * 1024
NOW: Final = 1_763_884_800
RATED: Final = "genesis.agent.rated"
AGENT: Final = "72d76358-5032-530d-b5a7-ee89ea19f5a4"
DATA: Final = {"agent_id": AGENT, "rater_id": AGENT, "rating": 4}
EVENT: Final = {
    "specversion": "1.0", "id": "e1", "source": "urn:x", "type": RATED, "time": "2026-11-23T08:00:00Z", "data": DATA,
}  # fmt: skip
WORSE: Final = (
    b"", b"null", b"true", b"{}", b"[]", b'""', b"-1", b"1e400", b"1" * 40, b"NaN", b"\x00", b"\xff\xfe", b"\\ud800",
    b"\\u0000", b"[" * 200, b'{"a":' * 200, b'"' + b"x" * 300 + b'"', b"2026-02-30T08:00:00Z", b"\xef\xbb\xbf", b"\r\n",
)  # fmt: skip

Header = tuple[bytes, bytes]


def fuzz(count: int, seed: int) -> Counter[str]:
    """Return outcomes by name. Raises AssertionError for an outcome that no request may have."""
    outcomes: Counter[str] = Counter()
    for number in range(count):
        chance = random.Random(seed * 1_000_003 + number)
        try:
            outcomes[_outcome(chance)] += 1
        except Exception as error:
            raise AssertionError(f"request {number} of seed {seed}: {error!r}") from error
    return outcomes


def _outcome(chance: random.Random) -> str:
    mode, headers, body = _request(chance)
    try:
        read = read_request_headers(headers, cloud_event=mode != "webhook")
        require_one_reading(body)
        verdict = verify_signature(KEYS, read.message_id, read.timestamp, read.signatures, body, NOW)
        if isinstance(verdict, SignatureRejected) and chance.random() < 0.5:
            return "401"
        for event in _READ[read.mode](read, body):
            codec.encode_checked(event)
    except Problem as problem:
        if not 400 <= problem.status < 500:
            raise AssertionError(problem.status) from problem
        json.loads(problem.body())
        return str(problem.status)
    except Unencodable:
        return "422"
    return "read"


def _webhook(_: RequestHeaders, body: bytes) -> list[object]:
    return [read_webhook(body, RATED, "genesis", "m", "urn:x").event]


def _structured(_: RequestHeaders, body: bytes) -> list[object]:
    return [read_cloud_event(body, "genesis").event]


def _binary(read: RequestHeaders, body: bytes) -> list[object]:
    assert read.attributes is not None
    return [read_binary(body, read.attributes, "genesis").event]


def _batch(_: RequestHeaders, body: bytes) -> list[object]:
    return [read_cloud_event(bytes(item), "genesis").event for item in read_items(body)]


def _lines(_: RequestHeaders, body: bytes) -> list[object]:
    lines, events = BodyLines(body, LINE_MAX_BYTES), []
    while not lines.at_end():
        events += [read_cloud_event(line.content, "genesis").event for line in lines.take(2)]
    return events


_READ: Final[dict[str, Callable[[RequestHeaders, bytes], list[object]]]] = {
    "webhook": _webhook, "structured": _structured, "binary": _binary, "batch": _batch, "lines": _lines,
}  # fmt: skip
_KINDS: Final = {
    "webhook": (b"application/json", {"timestamp": "2026-11-23T08:00:00Z", "data": DATA}),
    "structured": (b"application/cloudevents+json", EVENT),
    "binary": (b"application/json", DATA),
    "batch": (b"application/cloudevents-batch+json", [EVENT, EVENT]),
    "lines": (b"application/x-ndjson", EVENT),
}


def _request(chance: random.Random) -> tuple[str, list[Header], bytes]:
    mode = chance.choice(list(_KINDS))
    kind, document = _KINDS[mode]
    body = json.dumps(document).encode()
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        body = _corrupted(body, chance)
    stamp = b"%d" % NOW
    headers = [
        (b"content-type", kind),
        (b"webhook-id", b"e1"),
        (b"webhook-timestamp", stamp),
        (b"webhook-signature", _signature(stamp, body, chance)),
    ]
    if mode == "binary":
        headers += [(b"ce-" + name.encode(), str(value).encode()) for name, value in EVENT.items() if name != "data"]
    if chance.random() < 0.4:
        headers = _corrupted_headers(headers, chance)
    return mode, headers, body


def _signature(stamp: bytes, body: bytes, chance: random.Random) -> bytes:
    """By `v1`, by `v1a`, or both."""
    v1 = sign(SECRET, b"e1", stamp, body)
    match chance.randrange(8):
        case 0:
            return PRIVATE_KEY.sign(b"e1", stamp, body)
        case 1:
            return b"%b %b" % (PRIVATE_KEY.sign(b"e1", stamp, body), v1)
        case _:
            return v1


def _corrupted(data: bytes, chance: random.Random) -> bytes:
    index = chance.randrange(len(data) + 1)
    end = min(len(data), index + chance.randrange(1, 40))
    match chance.randrange(5):
        case 0:
            return data[:index] + bytes([chance.randrange(256)]) + data[index + 1 :]
        case 1:
            return data[:index] + data[end:]
        case 2:
            return data[:end] + data[index:]
        case 3:
            return data[:index] + chance.choice(WORSE) + data[index:]
        case _:
            return data[:index] + chance.choice(WORSE) + data[end:]


def _corrupted_headers(headers: list[Header], chance: random.Random) -> list[Header]:
    index = chance.randrange(len(headers))
    name, value = headers[index]
    match chance.randrange(3):
        case 0:
            return headers[:index] + headers[index + 1 :]
        case 1:
            return [*headers, headers[index]]
        case _:
            return [*headers[:index], (name, _corrupted(value, chance)), *headers[index + 1 :]]
