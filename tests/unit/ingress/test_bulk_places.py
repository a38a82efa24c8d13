"""The places of bulk loads: how many arrive and are published, and that no producer holds all of them."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from ingress import bulk_places
from ingress.bulk_places import BulkPlaces
from server.problems import Problem

DEADLINE_SECONDS = 120


def refused(places: BulkPlaces, producer: str) -> bool:
    """Return whether a load of this producer is refused before it arrives."""
    try:
        with places.arriving(producer):
            return False
    except Problem:
        return True


@pytest.mark.parametrize(("places_max", "share"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
async def test_one_producer_holds_half_of_the_places(places_max: int, share: int) -> None:
    """Its next load is refused, before it arrives and after, and another producer's is published."""
    places = BulkPlaces(places_max)
    async with contextlib.AsyncExitStack() as held:
        for _ in range(share):
            await held.enter_async_context(places.publishing("greedy"))
        assert refused(places, "greedy")
        with pytest.raises(Problem):
            await held.enter_async_context(places.publishing("greedy"))
        if places_max > 1:
            assert not refused(places, "other")
            await held.enter_async_context(places.publishing("other"))
    assert not refused(places, "greedy")


async def test_a_load_waits_for_a_place_that_others_hold() -> None:
    """It is published when one of them has ended; and a waiting load counts as its producer's."""
    places = BulkPlaces(2)
    async with contextlib.AsyncExitStack() as held, asyncio.timeout(DEADLINE_SECONDS):
        first = await held.enter_async_context(contextlib.AsyncExitStack())
        await first.enter_async_context(places.publishing("a"))
        await held.enter_async_context(places.publishing("b"))
        waiting = asyncio.create_task(held.enter_async_context(places.publishing("c")))
        await asyncio.sleep(0)
        assert not waiting.done()
        with pytest.raises(Problem):
            await held.enter_async_context(places.publishing("c"))
        await first.aclose()
        await waiting


async def test_nobody_waits_for_a_place_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """503, and the producer's share is free again."""
    monkeypatch.setattr(bulk_places, "PLACE_TIMEOUT_SECONDS", 0.01)
    places = BulkPlaces(1)
    async with places.publishing("a"):
        for _ in range(3):
            with pytest.raises(Problem) as raised:
                await places.publishing("b").__aenter__()
            assert raised.value.kind == "overloaded"
    async with places.publishing("b"):
        pass


async def test_loads_that_arrive_keep_nobody_from_being_published() -> None:
    """What is not signed yet takes no place, neither of those that are published nor of the next ones to arrive."""
    places = BulkPlaces(2)
    with contextlib.ExitStack() as arriving:
        for number in range(50):
            arriving.enter_context(places.arriving(f"p{number}"))
        assert not refused(places, "another")
        async with places.publishing("a"), places.publishing("b"):
            assert refused(places, "another")
    assert not refused(places, "another")
