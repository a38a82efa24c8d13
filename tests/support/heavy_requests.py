"""Signed and unsigned requests that cost most: the largest bodies, deep or wide, and as many events as may come."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from uuid import uuid4

from tests.support.bad_requests import AGENT, BATCH, DATA, EVENT, JSON, LINES, PAYLOAD, STRUCTURED
from tests.support.webhooks import CLOUD_EVENTS, RATED, Sender

BODY_BYTES = 256 * 1024
BATCH_BYTES = 2 * 1024 * 1024
LOAD_BYTES = 6 * 1024 * 1024
SUBJECT = "genesis.events-genesis.AgentRated"
PIECES = ("[]", "{}", "0", '""', "null", "1e5", '"\\u00e9"', '{"a":1}')

Request = tuple[str, str, bytes, dict[str, str]]
"""What it is, its path, its body and its headers."""


def shapes(size_bytes: int) -> Iterator[tuple[str, bytes]]:
    """JSON values of about a size that cost most to read."""
    for piece in PIECES:
        yield f"an array of {piece}", _filled(b"[", piece.encode(), b"]", size_bytes)
    keys = b",".join(b'"%d":0' % number for number in range(size_bytes // 10))
    yield "an object of many keys", b"{%b}" % keys
    yield "arrays in each other", b"[" * 800 + b"]" * 800
    yield "objects in each other", b'{"a":' * 800 + b"0" + b"}" * 800
    yield "a long text", b'"%b"' % (b"x" * size_bytes)
    yield "a text of escapes", b'"%b"' % (b"\\u0041" * (size_bytes // 6))
    yield "a long number", b"1" * size_bytes


def _filled(opening: bytes, piece: bytes, closing: bytes, size_bytes: int) -> bytes:
    return opening + b",".join([piece] * (size_bytes // (len(piece) + 1))) + closing


def heavy_requests(sender: Sender) -> Iterator[Request]:
    """Yield requests to the routes of webhooks."""
    yield from _webhooks(sender)
    yield from _cloud_events(sender)
    yield from _batches(sender)
    yield from _loads(sender)
    yield from _compressed_loads(sender)


def _signed(
    sender: Sender, what: str, path: str, body: bytes, content_type: str, producer: str | None = "genesis"
) -> Request:
    headers = sender.headers(body, content_type=content_type)
    if producer is not None:
        headers["plant-producer"] = producer
    return what, path, body, headers


def _webhooks(sender: Sender) -> Iterator[Request]:
    inside = BODY_BYTES - 1_000
    for what, value in shapes(inside):
        yield _signed(sender, f"a webhook: {what}", RATED, b" " + value, JSON)
        yield _signed(sender, f"a webhook, unknown field: {what}", RATED, _inside(PAYLOAD, "x", value), JSON)
        yield _signed(sender, f"a webhook, data: {what}", RATED, _inside(PAYLOAD, "data", value), JSON)
        yield _signed(sender, f"a webhook, a rating: {what}", RATED, _data(value), JSON)
    data = {"agent_id": AGENT, "name": "A", "skill_ids": [AGENT] * 1_000}
    ids = json.dumps({"timestamp": EVENT["time"], "data": data}).encode()
    yield _signed(sender, "a webhook of 1,000 ids", "/webhook/genesis/agent-onboarded", ids, JSON)
    stranger = Sender(b"?" * 32)
    for size_bytes in (100, 60_000, inside):
        body = b"[" + b" " * size_bytes
        request = _signed(stranger, f"{size_bytes} bytes that nobody signed", RATED, body, JSON, None)
        yield request
        headers = {**request[3], "webhook-signature": " ".join([request[3]["webhook-signature"]] * 16)}
        yield f"{size_bytes} bytes, 16 signatures", RATED, body, headers


def _inside(document: dict[str, object], name: str, value: bytes) -> bytes:
    return json.dumps({**document, name: "?"}).encode().replace(b'"?"', value)


def _data(value: bytes) -> bytes:
    return json.dumps({**PAYLOAD, "data": {**DATA, "rating": "?"}}).encode().replace(b'"?"', value)


def _cloud_events(sender: Sender) -> Iterator[Request]:
    for what, value in shapes(BODY_BYTES - 1_000):
        for name in ("x", "data", "traceparent", "id", "datacontenttype", "data_base64"):
            body = _inside(EVENT, name, value)
            yield _signed(sender, f"a CloudEvent, {name}: {what}", CLOUD_EVENTS, body, STRUCTURED)


def _event(size_bytes: int = 0) -> dict[str, object]:
    onboarded = {"agent_id": str(uuid4()), "name": "A", "skill_ids": [AGENT] * (size_bytes // 40)}
    data = onboarded if size_bytes else {**DATA, "agent_id": str(uuid4())}
    kind = "genesis.agent.onboarded" if size_bytes else "genesis.agent.rated"
    return {**EVENT, "id": uuid4().hex, "type": kind, "data": data}


def _batches(sender: Sender) -> Iterator[Request]:
    small = [_event() for _ in range(1_000)]
    large = [_event(1_700) for _ in range(1_000)]
    for what, events in (
        ("1,000 events", small),
        ("the same 1,000 events", small),
        ("1,000 events of 2 KB", large),
        ("1,000 events of a wrong field", [{**each, "data": {**DATA, "rating": 9}} for each in small]),
        ("1,000 times nothing", [{}] * 1_000),
        ("1,000 events of many unknown fields", [{**each, "x": [[]] * 400} for each in small]),
        ("1,000 events with a trace of many", [{**each, "traceparent": [[]] * 400} for each in small]),
        ("8 events of 200 KB", [{**each, "traceparent": [[]] * 50_000} for each in small[:8]]),
    ):
        yield _signed(sender, f"a batch: {what}", CLOUD_EVENTS, _compact(events), BATCH)
    for what, value in shapes(BATCH_BYTES - 1_000):
        yield _signed(sender, f"a batch: {what}", CLOUD_EVENTS, b" " + value, BATCH)


def _loads(sender: Sender) -> Iterator[Request]:
    line = _compact(_event(100_000))
    for what, body in (
        ("newlines", b"\n" * LOAD_BYTES),
        ("spaces", b" " * LOAD_BYTES),
        ("one line", b"[" + b"x" * LOAD_BYTES),
        ("empty objects", b"{}\n" * 20_000),
        ("10,000 events", b"\n".join(_compact(_event()) for _ in range(10_000))),
        ("events of 100 KB", b"\n".join([line] * 40)),
        ("wide lines", b"\n".join([_inside(EVENT, "traceparent", b"[" + b"[]," * 60_000 + b"0]")] * 20)),
    ):
        yield _signed(sender, f"a bulk load: {what}", CLOUD_EVENTS, body, LINES)


def _compressed_loads(sender: Sender) -> Iterator[Request]:
    events = b"\n".join(_compact(_event()) for _ in range(5_000))
    for what, content in (("60 MiB of newlines", b"\n" * (60 * 1024 * 1024)), ("5,000 events", events)):
        body = gzip.compress(content)
        what, path, body, headers = _signed(sender, f"a compressed load: {what}", CLOUD_EVENTS, body, LINES)
        yield what, path, body, {**headers, "content-encoding": "gzip"}


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def heavy_lookups() -> Iterator[tuple[str, str, str, bytes]]:
    """Yield requests to the admin listener: what it is, method, path and body."""
    for path in ("/metrics", "/subjects", "/schemas/ids/1", f"/subjects/{SUBJECT}/versions/latest"):
        yield f"GET {path}", "GET", path, b""
    lookup = f"/subjects/{SUBJECT}"
    for what, value in shapes(200_000):
        schema = json.dumps({"schema": value.decode()}).encode()[:BODY_BYTES]
        yield f"a look-up: {what}", "POST", lookup, schema
        yield f"a look-up, references: {what}", "POST", lookup, b'{"schema":"1","references":%b}' % value
        yield f"a look-up, no object: {what}", "POST", f"{lookup}/versions", value
