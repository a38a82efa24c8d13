"""Tokens: asked for once, replaced in time, never shown; endpoints that fail cost a bounded time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from runtime.clock import FixedClock
from streams.errors import KafkaUnavailable
from streams.kafka import oauth
from streams.kafka.oauth import TokenCache, TokenEndpoint, TokenProvider

SECRET = "client-s3cret"
START = datetime(2026, 1, 1, tzinfo=UTC)
Answer = Callable[[], tuple[int, bytes]]


@asynccontextmanager
async def answering(answer: Answer | None) -> AsyncIterator[tuple[str, list[bytes]]]:
    """An endpoint on a loopback port, and the requests that it has had; without an answer it keeps quiet."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        requests.append(head + await reader.readexactly(length))
        if answer is None:
            await reader.read()
        else:
            status, body = answer()
            writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\nlocation: /x\r\n\r\n%b" % (status, len(body), body))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/token", requests
    finally:
        server.close()
        await server.wait_closed()


def provider(url: str, clock: FixedClock, cache: TokenCache | None = None, scope: str = "") -> TokenProvider:
    return TokenProvider(TokenEndpoint(url, "plant", SECRET, scope, ""), {}, cache or TokenCache(), clock)


def granting(tokens: list[str], **more: object) -> Answer:
    def answer() -> tuple[int, bytes]:
        tokens.append(f"token-{len(tokens)}")
        return 200, json.dumps({"access_token": tokens[-1], "token_type": "Bearer", **more}).encode()

    return answer


async def test_a_token_is_shared_and_replaced_before_it_ends() -> None:
    """Connections that open at once ask once; at four fifths of its life a token is replaced."""
    clock, cache, tokens = FixedClock(START), TokenCache(), list[str]()
    async with answering(granting(tokens, expires_in=100)) as (url, requests):
        source, second = provider(url, clock, cache, "kafka"), provider(url, clock, cache)
        assert set(await asyncio.gather(*(source.token() for _ in range(5)))) == {"token-0"}
        assert await second.token() == "token-0"
        clock.set(START + timedelta(seconds=79))
        assert await source.token() == "token-0"
        clock.set(START + timedelta(seconds=81))
        assert await source.token() == "token-1"
    assert len(requests) == 2
    assert b"grant_type=client_credentials&scope=kafka" in requests[0]
    assert b"authorization: basic " in requests[0].lower()
    assert "token-1" not in repr(cache.token)


async def test_a_token_that_is_still_valid_is_used_while_the_endpoint_is_away() -> None:
    """Then it is an error, which names the endpoint."""
    clock, cache = FixedClock(START), TokenCache()
    async with answering(granting([], expires_in=100)) as (url, _):
        source = provider(url, clock, cache)
        await source.token()
    clock.set(START + timedelta(seconds=90))
    assert await source.token() == "token-0"
    clock.set(START + timedelta(seconds=101))
    with pytest.raises(KafkaUnavailable, match=r"/token: ConnectError"):
        await source.token()


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (401, b'{"error": "no_client", "error_description": "%b"}' % SECRET.encode(), "answered 401 no_client."),
        (400, b'{"error": "\\u001b[31m"}', "answered 400."),
        (302, b"", "answered 302."),
        (200, b"<html>", "no bearer token"),
        (200, b'{"access_token": "a\\u0001b"}', "no bearer token"),
        (200, b'{"access_token": "a", "token_type": "mac"}', "no bearer token"),
        (200, b'{"access_token": "a", "expires_in": -1}', "good for no time"),
        (200, b'{"access_token": "a", "expires_in": NaN}', "no bearer token"),
        (200, b'{"access_token": "' + b"a" * 300_000 + b'"}', "too long"),
    ],
)  # fmt: skip
async def test_answers_that_hold_no_token_are_named(status: int, body: bytes, why: str) -> None:
    """Neither the secret nor control characters come into the message; many connections ask once a second."""
    clock = FixedClock(START)
    async with answering(lambda: (status, body)) as (url, requests):
        source = provider(url, clock)
        for _ in range(2):
            with pytest.raises(KafkaUnavailable) as caught:
                await source.token()
        assert why in caught.value.why
        assert SECRET not in str(caught.value)
        assert "\x1b" not in str(caught.value)
        assert len(requests) == 1
        clock.set(START + timedelta(seconds=2))
        with pytest.raises(KafkaUnavailable):
            await source.token()
        assert len(requests) == 2


async def test_an_endpoint_that_keeps_quiet_costs_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named as one that did not answer."""
    monkeypatch.setattr(oauth, "TOKEN_TIMEOUT_SECONDS", 0.05)
    async with answering(None) as (url, _):
        with pytest.raises(KafkaUnavailable, match="did not answer within"):
            await provider(url, FixedClock(START)).token()


async def test_a_token_without_a_life_is_kept_for_a_minute() -> None:
    """`expires_in` is recommended and not required."""
    clock = FixedClock(START)
    async with answering(granting([])) as (url, _):
        source = provider(url, clock)
        await source.token()
        clock.set(START + timedelta(seconds=61))
        assert await source.token() == "token-1"


def test_neither_endpoint_nor_its_repr_shows_a_secret() -> None:
    """Its address may hold one as well."""
    endpoint = TokenEndpoint("https://u:p4ss@issuer/token?key=k3y", "plant", SECRET, "", "")
    for secret in (SECRET, "p4ss", "k3y"):
        assert secret not in f"{endpoint!r}{endpoint.shown}"
