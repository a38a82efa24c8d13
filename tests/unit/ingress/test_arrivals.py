"""Bodies that nobody has signed yet: read up to a size, counted from the first byte, refused for newer ones."""

from __future__ import annotations

import asyncio

import pytest

from ingress.arrivals import ADDRESS_SHARE, REQUEST_BYTES, Arrivals, BodyReader
from server.bodies import PeerGone
from server.problems import Problem, retry_after
from tests.support.asgi_peers import peer

KB = 1024
BODY_MAX_BYTES = 60 * KB
BYTES_MAX = ADDRESS_SHARE * (BODY_MAX_BYTES + REQUEST_BYTES)
"""Four bodies of the largest size."""


async def read(arrivals: Arrivals, *pieces: bytes, address: str | None = None, stalls: bool = False) -> bytes:
    """Read one body, which arrives in these pieces and then, maybe, no further."""
    arrival = arrivals.begin(address)
    try:
        return await BodyReader(BODY_MAX_BYTES, arrivals).read(peer(*pieces, endless=stalls), arrival)
    finally:
        arrivals.end(arrival)


async def stalled(arrivals: Arrivals, size_bytes: int, address: str | None = None) -> asyncio.Task[bytes]:
    task = asyncio.create_task(read(arrivals, bytes(size_bytes), address=address, stalls=True))
    await asyncio.sleep(0)
    return task


async def refusals(*tasks: asyncio.Task[bytes]) -> list[bool]:
    """Which of these bodies were refused with 503, in order; the others are given up."""
    for _ in range(3):
        await asyncio.sleep(0)
    done = [task.done() for task in tasks]
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for ended, outcome in zip(done, outcomes, strict=True):
        if ended:
            assert isinstance(outcome, Problem)
            assert (outcome.status, retry_after(1) in outcome.headers) == (503, True)
    return done


def arrivals_of_four() -> Arrivals:
    return Arrivals(BODY_MAX_BYTES, BYTES_MAX)


async def test_bodies_are_read_whole() -> None:
    """In one piece or several; nothing stays counted."""
    arrivals = arrivals_of_four()
    assert await read(arrivals, b"0123456789") == b"0123456789"
    assert await read(arrivals, b"012", b"345", b"6789") == b"0123456789"
    assert (len(arrivals), arrivals.size_bytes, arrivals.body_bytes) == (0, 0, 0)


@pytest.mark.parametrize("sizes", [(BODY_MAX_BYTES + 1,), (40 * KB, 20 * KB, 1), (BODY_MAX_BYTES, 1)])
async def test_too_much_is_refused_as_soon_as_it_is(sizes: tuple[int, ...]) -> None:
    """413 comes with the first byte too many, or with the declared length."""
    with pytest.raises(Problem) as raised:
        await read(arrivals_of_four(), *map(bytes, sizes), stalls=True)
    assert raised.value.status == 413
    with pytest.raises(Problem) as raised:
        BodyReader(10, arrivals_of_four()).require_length(b"11")
    assert raised.value.status == 413
    BodyReader(10, arrivals_of_four()).require_length(b"10")


async def test_a_closed_or_refused_body_releases_what_it_held() -> None:
    """A thousand bodies that end halfway, or grow too large, leave nothing counted."""
    arrivals = arrivals_of_four()
    for _ in range(1_000):
        arrival = arrivals.begin("192.0.2.1")
        with pytest.raises(PeerGone):
            await BodyReader(BODY_MAX_BYTES, arrivals).read(peer(b"01234", gone=True), arrival)
        arrivals.end(arrival)
        with pytest.raises(Problem) as raised:
            await read(arrivals, bytes(BODY_MAX_BYTES), b"x")
        assert raised.value.status == 413
    assert (len(arrivals), arrivals.size_bytes) == (0, 0)


async def test_an_idle_request_is_counted_before_its_first_byte() -> None:
    """What it holds besides its body counts, so that many requests without a body are bounded too."""
    arrivals = arrivals_of_four()
    idle = [await stalled(arrivals, 0) for _ in range(200)]
    assert arrivals.size_bytes <= BYTES_MAX
    assert 0 < sum(await refusals(*idle)) < 200
    assert arrivals.size_bytes == 0


async def test_the_oldest_body_makes_room_for_the_newest() -> None:
    """Where the memory is full, who holds it longest is refused with 503, and the newest body is read at once."""
    arrivals = arrivals_of_four()
    old = [await stalled(arrivals, 50 * KB) for _ in range(4)]
    assert await read(arrivals, bytes(30 * KB), bytes(30 * KB)) == bytes(60 * KB)
    assert await refusals(*old) == [True, True, False, False]


async def test_an_address_that_holds_most_gives_way_first() -> None:
    """Two old bodies of other addresses stay, and the address over its share loses its own oldest ones."""
    arrivals = arrivals_of_four()
    quiet = [await stalled(arrivals, 30 * KB, f"192.0.2.{number}") for number in range(2)]
    greedy = [await stalled(arrivals, 20 * KB, "198.51.100.1") for _ in range(10)]
    assert len(arrivals) == 2 + 2, "a share holds two of these bodies"
    unknown = [await stalled(arrivals, 30 * KB) for _ in range(6)]
    assert await read(arrivals, bytes(60 * KB), address="192.0.2.9") == bytes(60 * KB)
    assert not any(await refusals(*quiet))
    assert sum(await refusals(*greedy)) >= 8
    assert any(await refusals(*unknown))


async def test_a_body_whose_signature_is_being_checked_is_not_refused_for_others() -> None:
    """It is whole; what can't make room for the next one is answered with 503, and the next one is refused instead."""
    arrivals = arrivals_of_four()
    whole = [arrivals.begin(None) for _ in range(4)]
    for arrival in whole:
        await BodyReader(BODY_MAX_BYTES, arrivals).read(peer(bytes(BODY_MAX_BYTES)), arrival)
    with pytest.raises(Problem) as raised:
        await read(arrivals, b"x")
    assert raised.value.status == 503
    arrivals.end(whole[0])
    assert await read(arrivals, b"x") == b"x"


async def test_a_refused_body_leaves_its_request_an_answer_to_send() -> None:
    """Being refused for others cancels the reading alone: the request's task goes on."""
    arrivals = arrivals_of_four()

    async def answered() -> str:
        try:
            await read(arrivals, bytes(50 * KB), stalls=True)
        except Problem:
            await asyncio.sleep(0)
        return "answered"

    tasks = [asyncio.create_task(answered()) for _ in range(5)]
    assert await tasks[0] == "answered"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert tasks[-1].cancelled()
