"""The limits on requests: bodies, requests under way, refused peers, log lines."""

from __future__ import annotations

import asyncio
import doctest

import pytest

from ingress import limits
from ingress.limits import Admission, BodyReader, PeerGone, drain
from ingress.problems import Problem, retry_after
from tests.support.asgi_peers import peer

DEADLINE_SECONDS = 120


async def test_bodies_are_read_whole() -> None:
    """In one piece or several."""
    reader = BodyReader(10, Admission(1))
    assert await reader.read(peer(b"0123456789"), b"10") == b"0123456789"
    assert await reader.read(peer(b"012", b"345", b"6789"), None) == b"0123456789"


@pytest.mark.parametrize("pieces", [(b"0123456789a",), (b"01234", b"56789", b"a"), (b"0123456789a", b"b")])
async def test_too_much_is_refused_as_soon_as_it_is(pieces: tuple[bytes, ...]) -> None:
    """413 comes with the first byte too many, or with the declared length."""
    with pytest.raises(Problem) as raised:
        await BodyReader(10, Admission(1)).read(peer(*pieces), None)
    assert raised.value.status == 413
    with pytest.raises(Problem) as raised:
        await BodyReader(10, Admission(1)).read(peer(b"x", gone=True), b"11")
    assert raised.value.status == 413


async def test_bodies_share_one_bound() -> None:
    """Many large bodies at once are 503, and the room is free again when one has gone or was answered."""
    admission = Admission(10, bytes_max=100)
    reader = BodyReader(100, admission)
    slow = asyncio.create_task(reader.read(peer(b"x" * 60, endless=True), None))
    await asyncio.sleep(0)
    with pytest.raises(Problem) as raised:
        await reader.read(peer(b"y" * 30, b"y" * 30), None)
    assert (raised.value.status, retry_after(1) in raised.value.headers) == (503, True)
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)
    for _ in range(3):
        admission.enter()
        assert await reader.read(peer(b"y" * 30, b"y" * 30), None) == b"y" * 60
        with pytest.raises(Problem):
            await reader.read(peer(b"y" * 60), None)
        admission.leave(60)


def test_requests_share_one_bound() -> None:
    """One more than allowed is 503; a request that was answered makes room."""
    admission = Admission(2)
    admission.enter()
    admission.enter()
    with pytest.raises(Problem) as raised:
        admission.enter()
    assert raised.value.status == 503
    admission.leave(0)
    admission.enter()


async def test_a_peer_that_leaves_is_noticed() -> None:
    """A connection closed halfway ends the request without an answer."""
    with pytest.raises(PeerGone):
        await BodyReader(10, Admission(1)).read(peer(b"01", gone=True), None)


async def test_a_closed_or_refused_body_releases_what_it_reserved() -> None:
    """A thousand bodies that end halfway, or grow too large, leave room for one of the full size."""
    admission = Admission(1, bytes_max=10)
    reader = BodyReader(8, admission)
    for _ in range(1_000):
        with pytest.raises(PeerGone):
            await reader.read(peer(b"01234", gone=True), None)
        with pytest.raises(Problem) as raised:
            await reader.read(peer(b"01234", b"5678", gone=True), None)
        assert raised.value.status == 413
    assert await reader.read(peer(b"01234", b"567"), None) == b"01234567"


async def test_a_refused_peer_is_read_for_a_while() -> None:
    """The rest of its body is dropped, up to a size and a timeout, whether the peer ends, closes, stalls or floods."""
    dropped = 0

    async def flood() -> dict[str, object]:
        nonlocal dropped
        dropped += 1024
        return {"type": "http.request", "body": bytes(1024), "more_body": True}

    async with asyncio.timeout(DEADLINE_SECONDS):
        await drain(peer(b"x", b"y"))
        await drain(peer(b"x", gone=True))
        await drain(peer(b"x", endless=True))
        await drain(flood)  # type: ignore[arg-type]  # a part of a message
    assert 0 < dropped <= limits.DRAIN_MAX_BYTES


def test_the_docstrings_are_right() -> None:
    """The examples in the module hold."""
    assert doctest.testmod(limits).failed == 0
