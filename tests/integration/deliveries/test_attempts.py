"""Attempts to receivers of every kind: bounded time and memory, and the right outcome."""

from __future__ import annotations

import asyncio
import base64
import json
import tracemalloc
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvloop
from aiohttp import web

from deliveries.attempts import ANSWER_MAX_BYTES, KEPT_MAX_BYTES, MASKED_TEXTS_MAX, Attempt, mask_echoes, send_attempt
from deliveries.guard.connections import DeliveryClient
from deliveries.guard.custom_headers import HEADERS_MAX, VALUE_MAX_BYTES, check_custom_headers
from deliveries.outcomes import classify
from deliveries.signed_request import AttemptRequest
from runtime.settings import Settings
from schemas.delivery_records import EXCERPT_MAX_BYTES
from tests.support.certificates import Authority
from tests.support.dns_server import dns_server
from tests.support.hostile_receivers import HANGING_TIMEOUT_SECONDS, PAGE, Receiver, page, receivers
from tests.support.raw_answers import head, sends, serving, waits
from tests.support.receivers import receiver
from tests.support.unreached_endpoints import ADDRESSES, CODES, LOCAL, Authorities, Endpoint, endpoints
from tests.support.waiting import DEADLINE_SECONDS

REQUEST = AttemptRequest({"content-type": "application/json", "webhook-id": "d1"}, b"{}")
SENDING = [each for each in receivers() if not each.hangs and not each.does.startswith("answers ")]
MEMORY_MAX_BYTES = 10 * 1024 * 1024
ENDPOINT_TIMEOUT_SECONDS = 15.0
TURNS = 1_000
"""Turns of an event loop in which all happens that has not to wait."""


@pytest_asyncio.fixture
async def client() -> AsyncIterator[DeliveryClient]:
    """A client that may connect to 127.0.0.1."""
    made = DeliveryClient(Settings(**LOCAL))  # type: ignore[arg-type]  # all of them are texts
    yield made
    await made.close()


async def attempt(
    client: DeliveryClient, url: str, timeout_seconds: float = DEADLINE_SECONDS, **options: Any
) -> Attempt:
    now = options.pop("now", datetime.now(UTC))
    return await send_attempt(client, url, REQUEST, timeout_seconds=timeout_seconds, now=now)


@pytest.mark.parametrize("there", receivers(), ids=lambda each: each.does)
async def test_an_attempt_ends_as_the_page_says(client: DeliveryClient, there: Receiver) -> None:
    """Status, error, outcome; no more is kept than the bound, and nothing is raised."""
    seconds = HANGING_TIMEOUT_SECONDS if there.hangs else DEADLINE_SECONDS
    async with serving(there.answer) as port:
        made = await attempt(client, f"http://127.0.0.1:{port}/", seconds)
    assert (made.outcome.status_code, made.outcome.error_class) == (there.status_code, there.error_class), made
    assert classify(made.outcome) == there.kind
    assert made.truncated == there.truncated
    assert len(made.answer) <= KEPT_MAX_BYTES
    assert bool(made.why) == (there.error_class is not None)


async def attempt_at(there: Endpoint, folder: Path) -> Attempt:
    authorities = Authorities(folder, Authority(folder), Authority(folder, "unknown"))
    seconds = HANGING_TIMEOUT_SECONDS if there.hangs else DEADLINE_SECONDS
    async with dns_server(ADDRESSES, CODES) as dns, there.listens(authorities) as port:
        trusting = {"deliveries_ca_file": str(authorities.trusted.file), "deliveries_dns_servers": dns.address}
        client = DeliveryClient(Settings(**LOCAL, **trusting))  # type: ignore[arg-type]  # all of them are texts
        try:
            return await attempt(client, f"{there.origin}:{port}/", seconds)
        finally:
            await client.close()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("there", endpoints(), ids=lambda each: each.does)
def test_an_attempt_that_reaches_nobody_ends_as_the_page_says(there: Endpoint, run: Any, tmp_path: Path) -> None:
    """In either event loop, whose TLS is its own; the reason names no address that a name resolved to."""
    made = run(attempt_at(there, tmp_path))
    assert (made.outcome.status_code, made.outcome.error_class) == (there.status_code, there.error_class), made
    assert classify(made.outcome) == there.kind
    assert bool(made.why) == (there.error_class is not None)
    assert not [each for each in ("127.0.0.", "10.0.0.", "::1") if each in made.why]


async def test_the_page_is_the_catalogue() -> None:
    """What the page says is what is tested."""
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.support.hostile_receivers"


@pytest.mark.parametrize("there", SENDING, ids=lambda each: each.does)
async def test_an_answer_takes_little_memory(client: DeliveryClient, there: Receiver) -> None:
    """Less than 10 MB, whatever the receiver sends; what the receiver itself allocates is taken before."""
    async with serving(there.answer) as port:
        tracemalloc.start()
        try:
            made = await attempt(client, f"http://127.0.0.1:{port}/")
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert made.outcome.status_code == there.status_code
    assert peak_bytes < MEMORY_MAX_BYTES


async def test_what_is_kept_is_the_begin_of_the_answer(client: DeliveryClient) -> None:
    """Also of a compressed one; a body as long as the bound is whole."""
    whole, longer = b"a" * ANSWER_MAX_BYTES, b"ab" * ANSWER_MAX_BYTES
    for body, truncated in ((whole, False), (longer, True), (b"", False)):
        async with serving(sends(head(200, length=len(body)) + body)) as port:
            made = await attempt(client, f"http://127.0.0.1:{port}/")
        assert (made.answer, made.truncated) == (body[:KEPT_MAX_BYTES], truncated)


async def test_retry_after_is_read(client: DeliveryClient) -> None:
    """Seconds, and dates by the time that is given; an hour at most."""
    now = datetime(1994, 11, 6, 8, 49, 30, tzinfo=UTC)
    for text, seconds in (("7", 7.0), ("Sun, 06 Nov 1994 08:49:37 GMT", 7.0), ("99999", 3600.0), ("soon", None)):
        async with serving(sends(head(503, f"Retry-After: {text}"))) as port:
            made = await attempt(client, f"http://127.0.0.1:{port}/", now=now)
        assert made.outcome.retry_after_seconds == seconds


async def test_a_redirect_is_not_followed(client: DeliveryClient) -> None:
    """Nothing arrives where it leads, an address inside the network perhaps."""
    async with receiver() as inside, serving(sends(head(302, f"Location: http://127.0.0.1:{inside.port}/"))) as port:
        made = await attempt(client, f"http://127.0.0.1:{port}/")
    assert (made.outcome.status_code, classify(made.outcome)) == (302, "failed")
    assert inside.connections == 0
    assert inside.requests == []


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("has a name that does not exist", "The name can't be resolved: Domain name not found."),
        ("refuses the connection: nothing listens", "Connection refused."),
        ("has a certificate that has expired", "TLS failed: certificate has expired."),
        ("has a certificate of another name", "certificate is not valid for 'receiver.test'."),
    ],
)
async def test_the_reason_says_what_is_wrong(does: str, words: str, tmp_path: Path) -> None:
    """In a sentence for the subscriber, who may know nothing else."""
    (there,) = (each for each in endpoints() if each.does == does)
    assert (await attempt_at(there, tmp_path)).why.endswith(words)


class SteppedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still until a test sets it."""

    seconds = 0.0

    def time(self) -> float:
        return self.seconds


def test_an_attempt_ends_when_the_endpoints_timeout_is_over() -> None:
    """Neither before nor after, by the loop's own clock."""

    async def run() -> None:
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        assert isinstance(loop, SteppedLoop)

        async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            arrived.set()
            await waits(reader, writer)

        client = DeliveryClient(Settings(**LOCAL))  # type: ignore[arg-type]  # all of them are texts
        async with serving(note) as port:
            task = asyncio.create_task(attempt(client, f"http://127.0.0.1:{port}/", ENDPOINT_TIMEOUT_SECONDS))
            await arrived.wait()
            ended = []
            for seconds in (ENDPOINT_TIMEOUT_SECONDS - 0.1, ENDPOINT_TIMEOUT_SECONDS):
                loop.seconds = seconds
                for _ in range(TURNS):
                    await asyncio.sleep(0)
                ended.append(task.done())
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await client.close()
        assert ended == [False, True]
        assert task.result().outcome.error_class == "timeout"

    with asyncio.Runner(loop_factory=SteppedLoop) as runner:
        runner.run(run())


async def test_an_attempt_can_be_cancelled(client: DeliveryClient) -> None:
    """What is under way ends when the process does, not when the receiver likes."""
    arrived = asyncio.Event()

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await waits(reader, writer)

    async with serving(note) as port:
        task = asyncio.create_task(attempt(client, f"http://127.0.0.1:{port}/"))
        await asyncio.wait_for(arrived.wait(), DEADLINE_SECONDS)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_what_is_secret_of_a_request_is_not_kept_of_its_answer(client: DeliveryClient) -> None:
    """A receiver that shows the headers that it got, as they are or as JSON, shows neither headers nor signatures."""
    secrets = {"authorization": "Bearer t/oken+of=the-subscriber", "x-key": 'with "quotes"', "x-pin": "4711"}
    signature = "v1,fGsh5/s1gn== v1a,TzGnother/s1gn=="
    headers = {"content-type": "application/json", "webhook-id": "msg_1", "webhook-signature": signature, **secrets}

    async def echo(request: web.Request) -> web.Response:
        got = dict(request.headers)
        lines = "\n".join(f"{name}: {value}" for name, value in got.items())
        as_json, token = json.dumps(got), request.headers["authorization"].split()[1]
        shown = [lines, as_json, as_json.replace("/", "\\/"), token]
        return web.Response(text="\n".join(shown))

    async with receiver() as there:
        there.replace_handler(echo)
        made = await send_attempt(
            client, f"http://127.0.0.1:{there.port}/", AttemptRequest(headers, b"{}"),
            timeout_seconds=DEADLINE_SECONDS, now=datetime.now(UTC),
        )  # fmt: skip
    for secret in (*secrets.values(), *signature.split(), "oken+of=the-subscriber", "s1gn==", "quotes"):
        assert secret.encode() not in made.answer
    assert b"msg_1" in made.answer
    assert b"application/json" in made.answer


@pytest.mark.parametrize(
    ("echo", "hidden"),
    [
        ("Cannot POST /services/T00/XXsecretXX?key=anothersecret", "secret"),
        ('{"path": "\\/services\\/T00\\/XXsecretXX"}', "secret"),
        ("token XXsecretXX", "secret"),
        (r"pass\u0026word\u003c1234", "word"),
        ("pass&amp;word&lt;1234", "word"),
        ("pass%26word%3C1234", "word"),
        ("token verysecretvalue", "secret"),
        ("user somebody, password open-sesame", "sesame"),
        ("K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=", "Z2pj9o9"),
    ],
)
def test_secrets_are_found_as_others_write_them(echo: str, hidden: str) -> None:
    """As Go, PHP and templates escape them, taken apart, or decoded; and the path of the URL, which may be a secret."""
    headers = {
        "x-password": "pass&word<1234",
        "x-token": 'Token token="verysecretvalue",id=7',
        "authorization": "Basic " + base64.b64encode(b"somebody:open-sesame").decode(),
        "webhook-signature": "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
    }
    url = "https://example.com/services/T00/XXsecretXX?key=anothersecret"
    assert hidden in echo
    masked = mask_echoes(echo.encode(), AttemptRequest(headers, b"{}"), url)
    assert hidden.encode() not in masked
    assert len(masked) == len(echo.encode())


def test_a_secret_that_holds_another_one_is_hidden_whole() -> None:
    """Whichever header comes first; and words of a path that are no tokens stay, to tell what was wrong."""
    headers = {"x-tenant": "acme-corp", "x-token": "acme-corp-s3cr3tT0ken", "accept": "application/json"}
    echo = b"no application takes acme-corp-s3cr3tT0ken, notifications are off"
    masked = mask_echoes(echo, AttemptRequest(headers, b"{}"), "https://example.com/notifications/webhooks")
    assert masked == b"no application takes " + b"*" * 21 + b", notifications are off"


def test_masks_move_nothing() -> None:
    """An answer is as long as it was; values of a few characters are no secrets, and stay."""
    request = AttemptRequest({"x-long": "secret" * 20, "x-short": "1", "traceparent": "00-public"}, b"{}")
    answer = b"1 00-public " + b"secret" * 45
    masked = mask_echoes(answer, request)
    assert masked == b"1 00-public " + b"*" * 240 + b"secret" * 5
    assert mask_echoes(b"", request) == b""


def test_what_is_searched_for_is_bounded() -> None:
    """A thousand words would be searched for in each answer, for as long as all other endpoints wait: none is kept."""
    words = [f"secret{number:04}" for number in range(40 * HEADERS_MAX)]
    many = check_custom_headers((f"x-{at}", " ".join(words[at::HEADERS_MAX])) for at in range(HEADERS_MAX))
    answer = b"There is secret0001, and nothing else."
    assert mask_echoes(answer, AttemptRequest(dict(many), b"{}")) == b"*" * len(answer)
    most = {f"x-{number}": f"value{number}" for number in range(MASKED_TEXTS_MAX)}
    assert mask_echoes(b"value7, value", AttemptRequest(most, b"{}")) == b"******, value"


@pytest.mark.parametrize("value", ["s" * VALUE_MAX_BYTES, '"' * VALUE_MAX_BYTES])
async def test_a_value_that_goes_beyond_what_is_recorded_is_found(client: DeliveryClient, value: str) -> None:
    """As it is, or as JSON, which may take twice as many bytes: no part of it is recorded."""
    written = json.dumps(value)[1:-1].encode()
    body = b"." * (EXCERPT_MAX_BYTES - 1) + written + b"." * ANSWER_MAX_BYTES
    async with serving(sends(head(200, length=len(body)) + body)) as port:
        made = await send_attempt(
            client, f"http://127.0.0.1:{port}/", AttemptRequest({"x-key": value}, b"{}"),
            timeout_seconds=DEADLINE_SECONDS, now=datetime.now(UTC),
        )  # fmt: skip
    assert made.answer[:EXCERPT_MAX_BYTES] == b"." * (EXCERPT_MAX_BYTES - 1) + b"*"
