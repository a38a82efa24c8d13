"""The tokens in memory: believed for two seconds, then read again, and not believed where that fails."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import cast
from uuid import UUID

import pytest

from api.access_tokens import AccessToken, NewToken, new_token
from api.token_cache import STALE_SECONDS, AccessTokenCache
from api.token_store import TokenStore
from database.errors import DatabaseUnreachable
from runtime.clock import FixedClock
from server.problems import Problem

NOW = datetime(2026, 11, 27, tzinfo=UTC)


class Rows:
    """What the table holds now, and how often it was read."""

    def __init__(self, *tokens: NewToken, expires_at: datetime | None = None) -> None:
        self.tokens = [
            AccessToken(
                id=UUID(int=number), prefix=token.prefix, name="tests", secret_hash=token.secret_hash,
                scopes=("read",), tenant="genesis", created_at=NOW, expires_at=expires_at, revoked_at=None,
            )
            for number, token in enumerate(tokens)
        ]  # fmt: skip
        self.away = False
        self.reads = 0

    async def usable(self) -> list[AccessToken]:
        self.reads += 1
        await asyncio.sleep(0)
        if self.away:
            raise DatabaseUnreachable
        return self.tokens


def cache_of(rows: Rows, clock: FixedClock) -> AccessTokenCache:
    return AccessTokenCache(cast("TokenStore", rows), clock)


def bearer(token: NewToken) -> bytes:
    return f"Bearer {token.text}".encode()


async def status_of(cache: AccessTokenCache, token: NewToken) -> int:
    try:
        await cache.authenticate(bearer(token))
    except Problem as problem:
        return problem.status
    return 200


async def test_a_revoked_token_is_believed_for_two_seconds_at_most() -> None:
    """Though nothing has refreshed the cache meanwhile: it is read again before it is believed."""
    token, clock = new_token(), FixedClock(NOW)
    rows = Rows(token)
    cache = cache_of(rows, clock)
    assert await status_of(cache, token) == 200
    rows.tokens = []
    clock.set(NOW + timedelta(seconds=STALE_SECONDS))
    assert (await status_of(cache, token), rows.reads) == (200, 1)
    clock.set(NOW + timedelta(seconds=STALE_SECONDS + 0.1))
    assert (await status_of(cache, token), rows.reads) == (401, 2)


async def test_without_the_database_no_token_is_believed() -> None:
    """503, not 401: the token may be good. It is again once the database is back."""
    token, clock = new_token(), FixedClock(NOW)
    rows = Rows(token)
    cache = cache_of(rows, clock)
    stored = await cache.authenticate(bearer(token))
    rows.away = True
    clock.set(NOW + timedelta(seconds=STALE_SECONDS + 1))
    assert await status_of(cache, token) == 503
    with pytest.raises(Problem, match="starting"):
        await cache.require_usable(stored)
    rows.away = False
    assert await status_of(cache, token) == 200
    await cache.require_usable(stored)


async def test_many_requests_share_a_reading() -> None:
    """A thousand that come when the tokens are old cost one."""
    token, clock = new_token(), FixedClock(NOW)
    rows = Rows(token)
    cache = cache_of(rows, clock)
    assert set(await asyncio.gather(*(status_of(cache, token) for _ in range(1_000)))) == {200}
    assert rows.reads == 1


async def test_an_expired_token_is_refused_by_the_clock() -> None:
    """Also where the cache still holds it."""
    token, clock = new_token(), FixedClock(NOW)
    cache = cache_of(Rows(token, expires_at=NOW + timedelta(seconds=1)), clock)
    stored = await cache.authenticate(bearer(token))
    clock.set(NOW + timedelta(seconds=1))
    assert await status_of(cache, token) == 401
    with pytest.raises(Problem) as raised:
        await cache.require_usable(stored)
    assert raised.value.status == 401


async def test_the_secret_counts_and_not_the_prefix() -> None:
    """A known prefix with another secret is refused, as an unknown one is."""
    token, other, clock = new_token(), new_token(), FixedClock(NOW)
    cache = cache_of(Rows(token), clock)
    forged = f"plant_{token.prefix}_{other.text.split('_', 2)[2]}"
    with pytest.raises(Problem) as raised:
        await cache.authenticate(f"Bearer {forged}".encode())
    assert (raised.value.status, raised.value.reason) == (401, "unknown_token")


async def test_a_token_that_was_put_in_its_place_is_another() -> None:
    """A wait goes on for the token that it began with, not for a prefix."""
    token, clock = new_token(), FixedClock(NOW)
    rows = Rows(token)
    cache = cache_of(rows, clock)
    stored = await cache.authenticate(bearer(token))
    rows.tokens = Rows(new_token(), token).tokens
    await cache.refresh()
    assert not cache.is_usable(stored)
