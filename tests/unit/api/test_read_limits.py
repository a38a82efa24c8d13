"""Limits of readers: counted while a block lasts, of a token and of all."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import ExitStack

import pytest

from api.read_limits import ReadLimit, ReadLimits, query_limit
from runtime.settings import Settings
from server.problems import Problem


def test_a_token_has_its_limit_and_all_have_theirs() -> None:
    """The first is 429, the second 503; both say when to come again."""
    limit = ReadLimit("requests", of_all=3, of_a_token=2)
    with limit.one_more("a"), limit.one_more("a"):
        with pytest.raises(Problem) as of_token, limit.one_more("a"):
            pass
        with limit.one_more("b"), pytest.raises(Problem) as of_all, limit.one_more("c"):
            pass
    assert (of_token.value.status, of_all.value.status) == (429, 503)
    assert all(each.value.headers == ((b"retry-after", b"1"),) for each in (of_token, of_all))


def test_what_has_ended_counts_no_more() -> None:
    """Also where it ended with an error; and nothing is kept of a token that has nothing under way."""
    limit = ReadLimit("requests", of_all=1, of_a_token=1)
    for token in map(str, range(100)):
        with pytest.raises(ZeroDivisionError), limit.one_more(token):
            raise ZeroDivisionError
    assert limit.count == 0
    assert not limit._by_token


async def test_who_waits_for_a_turn_gets_it_when_there_is_room() -> None:
    """Never more at once than the limits say; who gets none in time is refused as anybody else is."""
    limit, under_way, most = ReadLimit("requests", of_all=3, of_a_token=2), Counter[str](), Counter[str]()

    async def take(token: str) -> None:
        async with limit.in_turn(token, 60):
            under_way[token] += 1
            most["all"] = max(most["all"], under_way.total())
            most[token] = max(most[token], under_way[token])
            await asyncio.sleep(0)
            under_way[token] -= 1

    await asyncio.gather(*(take(token) for token in "ab" * 20))
    assert most == {"all": 3, "a": 2, "b": 2}
    assert limit.count == 0
    with limit.one_more("a"), limit.one_more("a"), pytest.raises(Problem) as refused:
        async with limit.in_turn("a", 0.001):
            pass
    assert refused.value.status == 429


def test_each_limit_has_its_setting() -> None:
    """Requests and waiters are counted apart: of a token and of all, as the settings say."""
    settings = Settings(api_requests_max=5, api_requests_per_token=2, api_waiters_max=7, api_waiters_per_token=3)
    limits = ReadLimits(settings)
    for limit, of_all, of_a_token in ((limits.requests, 5, 2), (limits.waiters, 7, 3)):
        with ExitStack() as held:
            for number in range(of_all):
                held.enter_context(limit.one_more(str(number // of_a_token)))
            with pytest.raises(Problem) as of_token, limit.one_more("0"):
                pass
            with pytest.raises(Problem) as whole, limit.one_more("another"):
                pass
        assert (of_token.value.status, whole.value.status, limit.count) == (429, 503, 0)


async def test_turns_are_given_in_the_order_of_who_came() -> None:
    """To the first for whom there is room; one that has given up takes none, whenever it does so."""
    limit, order = ReadLimit("queries", of_all=2, of_a_token=1), list[str]()

    async def take(name: str) -> None:
        async with limit.in_turn(name[0], 60):
            order.append(name)
            await asyncio.sleep(0)

    with limit.one_more("a"):
        taking = {name: asyncio.create_task(take(name), name=name) for name in ("a1", "a2", "b1", "a3", "b2")}
        while "b2" not in order:
            await asyncio.sleep(0)
        taking["a1"].cancel()
    # a2 has been given its turn, and is cancelled before it knows.
    taking["a2"].cancel()
    outcomes = await asyncio.gather(*taking.values(), return_exceptions=True)
    assert [type(each) for each in outcomes[:2]] == [asyncio.CancelledError] * 2
    assert order == ["b1", "b2", "a3"]
    assert (limit.count, len(limit._waiting)) == (0, 0)
    assert not limit._by_token


@pytest.mark.parametrize(("pool", "of_all", "of_a_token"), [(1, 1, 1), (2, 1, 1), (3, 2, 1), (6, 5, 3), (10, 9, 7)])
def test_queries_leave_a_connection_to_others(pool: int, of_all: int, of_a_token: int) -> None:
    """To those who read tokens and checkpoints; and a token two to other tokens, or half of them."""
    limit = query_limit(Settings(database_pool_size=pool))
    with ExitStack() as held:
        for number in range(of_all):
            held.enter_context(limit.one_more(str(number // of_a_token)))
        with pytest.raises(Problem) as of_token, limit.one_more("0"):
            pass
        with pytest.raises(Problem) as whole, limit.one_more("another"):
            pass
    assert (of_token.value.status, whole.value.status) == (429, 503)
