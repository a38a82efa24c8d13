"""No step of the event loop is long, whatever is asked: every bad request of the catalogue, and the heaviest others."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest_asyncio

from database.connector import connect
from ingress.keys import KeyStore, new_key_id
from runtime.settings import Settings
from signing.hmac_secrets import new_secret
from signing.master_key import MasterKeys
from tests.support.bad_requests import cases
from tests.support.heavy_requests import heavy_lookups, heavy_requests
from tests.support.ingress_process import Running, answer_to, ended, request_head, started
from tests.support.loop_steps import OWN_STEP, STEP_MAX_SECONDS
from tests.support.waiting import DEADLINE_SECONDS
from tests.support.webhooks import Sender

KEYS = 1_000


ANSWERS = {
    "a batch: 1,000 events": 200,
    "a batch: 1,000 events of 2 KB": 200,
    "a batch: 1,000 events of a wrong field": 207,
    "a bulk load: newlines": 200,
    "a bulk load: 10,000 events": 200,
    "a compressed load: 60 MiB of newlines": 200,
    "a compressed load: 5,000 events": 200,
    "261144 bytes, 16 signatures": 401,
    "a look-up: an array of []": 422,
    "a look-up: an array of 0": 404,
    "GET /metrics": 200,
    "a body in chunks of a byte": 431,
}
"""Of requests that must have been worked on, for the test to have tried them."""


class Sent(NamedTuple):
    """A request, and when it was sent and answered."""

    what: str
    status: int
    began: float
    ended: float


async def add_keys(settings: Settings) -> None:
    """Keys of as many producers, so that a request that names none has all of them to try."""
    database = connect(settings, "operator")
    store = KeyStore(database, MasterKeys(settings))
    for number in range(KEYS):
        await store.add(new_key_id(), f"producer-{number}", new_secret(), None)
    await database.close()


@pytest_asyncio.fixture
async def measured(settings: Settings, tmp_path: Path) -> AsyncIterator[Running]:
    """Ingress in a loop whose steps are timed, without a rate that would refuse heavy requests unread."""
    fast = msgspec.structs.replace(settings, ingress_producer_rate_per_second=1e9, ingress_producer_burst=10**9)
    program = (sys.executable, "-m", "tests.support.loop_steps", str(tmp_path / "steps.json"))
    async with started(fast, tmp_path, program=program) as running:
        await add_keys(settings)
        yield running


async def report_of(running: Running, folder: Path) -> dict[str, Any]:
    """What the process has measured, once it has taken a long step of its own and ended."""
    os.kill(running.process.pid, signal.SIGUSR1)
    await asyncio.sleep(0)
    await ended(running.process)
    report: dict[str, Any] = json.loads((folder / "steps.json").read_text())
    return report


async def test_no_step_of_the_loop_is_long(measured: Running, tmp_path: Path) -> None:
    """Every request is answered, and the one long step is that which the process takes to show that it is found."""
    ready = time.monotonic()
    sent = await send_all(measured)
    report = await report_of(measured, tmp_path)
    assert report["count"] > 2 * len(sent) > 300
    assert {what: status for what, status, *_ in sent if what in ANSWERS} == ANSWERS, "the work was not done"
    steps = [step for step in report["noted"] if step["at"] > ready]
    long = [step for step in steps if step["seconds"] >= STEP_MAX_SECONDS]
    assert [step["callback"] for step in long if OWN_STEP in step["callback"]], "a long step is not found"
    others = [(step, during(step, sent)) for step in long if OWN_STEP not in step["callback"]]
    assert others == []


def during(step: dict[str, Any], sent: list[Sent]) -> list[str]:
    """The requests that were under way."""
    return [each.what for each in sent if each.began <= step["at"] <= each.ended + 0.1]


async def send_all(running: Running) -> list[Sent]:
    sent: list[Sent] = []
    async with httpx.AsyncClient(timeout=DEADLINE_SECONDS) as client:
        for what, request in every_request(running):
            began = time.monotonic()
            answer = await client.send(client.build_request(**request))
            sent.append(Sent(what, answer.status_code, began, time.monotonic()))
            assert answer.status_code != 500, what
    for what, head in heavy_heads(running.sender):
        began = time.monotonic()
        answered = await asyncio.to_thread(answer_to, running, head)
        sent.append(Sent(what, int(answered[9:12] or 0), began, time.monotonic()))
    return sent


def every_request(running: Running) -> Iterator[tuple[str, dict[str, Any]]]:
    for case in cases():
        yield (
            case.what,
            {
                "method": case.method,
                "url": running.url + case.path,
                "content": case.body,
                "headers": case.headers(running.sender),
            },
        )
    for what, path, body, headers in heavy_requests(running.sender):
        yield what, {"method": "POST", "url": running.url + path, "content": body, "headers": headers}
    for what, method, path, body in heavy_lookups():
        yield what, {"method": method, "url": running.admin_url + path, "content": body}


def heavy_heads(sender: Sender) -> Iterator[tuple[str, bytes]]:
    """What is read before a body, and the framing of one."""
    yield "a head of many fields", b"GET /livez HTTP/1.1\r\n" + b"a:b\r\n" * 100_000
    yield "a long path", b"GET /" + b"%2F" * 9_000 + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    yield "a long query", b"GET /livez?" + b"a=b&" * 7_000 + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    chunked = request_head(sender, 0).replace(b"content-length: 0", b"transfer-encoding: chunked")
    yield "a body in chunks of a byte", chunked + b"1\r\nx\r\n" * 100_000
    yield "requests ahead of their answers", b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n" * 10_000
