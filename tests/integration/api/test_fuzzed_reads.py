"""Requests of any bytes: each is answered with rows or with a problem, and none is a fault of ours."""

from __future__ import annotations

import random
from typing import Any
from urllib.parse import unquote_to_bytes
from uuid import UUID

from api.resources import RESOURCES
from tests.support.batches import TOPIC
from tests.support.reading import Reading, onboarded

REQUESTS = 600
NAMES = sorted(
    {"limit", "cursor", "at-least", "x"}
    | {name for each in RESOURCES.values() for name in each.extra_names}
    | {each.name for resource in RESOURCES.values() if resource.listing for each in resource.listing.filters}
)
VALUES = [
    b"", b"0", b"1", b"-1", b"500", b"99999999999999999999", b"1e308", b"nan", b"true", b"null", b"%00", b"%ff",
    b"%F0%9F%A6%80",
    b"'", b"%27%3B--", b"%25", b"%zz", b"\xff\xfe", b"+", b"name", b"rating", b"expired", b"onboarded", b"a" * 300,
    str(UUID(int=1)).encode(), b"2026-11-23T08:00:00Z", b"9999-12-31T23:59:59.999999Z", b"0001-01-01T00:00:00Z",
    b"2026-11-23T08:00:00%2B14:00", b"2026-02-30T00:00:00Z", TOPIC.encode() + b"/0/0", b"/0/0", b"a/b/c",
    b"t/2147483647/9223372036854775807", b"%ED%A0%80", b"\xe2\x80\xae", b"%E2%80%A8",
]  # fmt: skip
HEADERS = [b"", b"wait=0", b"wait", b"wait=-1", b'wait="0"', b"wait=0;x=y, wait=0", b"\xff", b"*", b'W/"a"', b'"', b","]


async def test_no_request_is_a_fault_of_ours(reading: Reading) -> None:
    """Any path, query and header, with a good token: the status is below 500, or says where the read model is."""
    reading.project([onboarded(1), onboarded(2)])
    chance = random.Random(15)
    statuses = set()
    for _ in range(REQUESTS):
        name = chance.choice([*RESOURCES, "nothing"])
        path = (
            b"/"
            + name.encode()
            + b"".join(b"/" + chance.choice(VALUES) for _ in range(chance.choice([0, 0, 0, 1, 1, 2])))
        )
        pairs = [
            chance.choice(NAMES).encode() + chance.choice([b"=", b"", b"=="]) + chance.choice(VALUES)
            for _ in range(chance.choice([0, 1, 1, 2, 3]))
        ]
        headers = [
            (b"host", b"x"),
            (b"authorization", b"Bearer " + reading.token.text.encode()),
            (b"prefer", b"wait=0"),
            (chance.choice([b"prefer", b"if-none-match", b"accept"]), chance.choice(HEADERS)),
        ]
        status = await status_of(reading, path, b"&".join(pairs), headers)
        assert status < 500 or status == 503, (path, pairs, headers)
        statuses.add(status)
    assert {200, 400, 404} <= statuses


async def status_of(reading: Reading, path: bytes, query: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    """The status of the answer to a request of these bytes, as a server hands them to an application."""
    answered: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answered.append(message["status"])

    scope = {
        "type": "http", "method": "GET", "path": unquote_to_bytes(path).decode("utf-8", "replace"), "raw_path": path,
        "query_string": query, "headers": headers, "http_version": "1.1", "scheme": "http", "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2), "root_path": "", "asgi": {"version": "3.0"},
    }  # fmt: skip
    app: Any = reading.api.app
    await app(scope, receive, send)
    return answered[0]
