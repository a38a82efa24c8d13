"""The limits on requests: bodies, requests under way, refused peers, log lines."""

from __future__ import annotations

import asyncio
import contextlib
import doctest

import pytest

from ingress import limits
from ingress.limits import Admission
from server import bodies
from server.bodies import drain
from server.problems import Problem, retry_after
from tests.support.asgi_peers import peer

DEADLINE_SECONDS = 120


def refused(admission: Admission, size_bytes: int, *, batch: bool = False) -> bool:
    with contextlib.suppress(Problem):
        admission.enter(size_bytes, batch=batch)
        return False
    with pytest.raises(Problem) as raised:
        admission.enter(size_bytes, batch=batch)
    assert (raised.value.status, retry_after(1) in raised.value.headers) == (503, True)
    return True


def test_requests_share_one_bound() -> None:
    """One more than allowed is 503; a request that was answered makes room."""
    admission = Admission(2)
    assert [refused(admission, 0) for _ in range(3)] == [False, False, True]
    admission.leave(0, batch=False)
    assert not refused(admission, 0)


def test_bodies_share_one_bound() -> None:
    """Many large bodies at once are 503, and the room is free again when one was answered."""
    admission = Admission(10, bytes_max=100)
    for _ in range(3):
        assert not refused(admission, 60)
        assert refused(admission, 41)
        admission.leave(60, batch=False)


@pytest.mark.parametrize(("requests", "size_bytes"), [(3, 0), (1, 60)])
def test_webhooks_have_a_share_that_batches_cannot_take(requests: int, size_bytes: int) -> None:
    """Batches get half of the requests and of the bytes; what webhooks hold does not lessen that."""
    admission = Admission(4, bytes_max=100)
    assert [refused(admission, size_bytes, batch=True) for _ in range(requests)][-1]
    assert [refused(admission, 10) for _ in range(2)] == [False, False]


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
    assert 0 < dropped <= bodies.DRAIN_MAX_BYTES


def test_the_docstrings_are_right() -> None:
    """The examples in the module hold."""
    assert doctest.testmod(limits).failed == 0
