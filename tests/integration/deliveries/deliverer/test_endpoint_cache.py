"""What a deliverer knows of endpoints: read when needed, and again once it has changed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from database.connector import connect
from database.errors import DatabaseUnreachable
from deliveries.deliverer.endpoint_cache import DISABLED_SECONDS, EndpointCache
from deliveries.endpoint_store import EndpointStore
from devstack import sql
from runtime.clock import FixedClock, SystemClock
from runtime.settings import Settings
from signing.hmac_secrets import new_secret
from signing.master_key import MasterKeys
from tests.conftest import Database
from tests.support.delivering import SECRET, add_endpoint


async def test_only_endpoints_that_have_changed_are_read_again(
    local: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand that were added together would else be read and decrypted each second for a minute.

    What could not be read is read the next time.
    """
    read: list[set[UUID]] = []
    asked: list[datetime | None] = []
    find_many, changed_since = EndpointStore.find_many, EndpointStore.changed_since
    fails = False

    async def counted(store: EndpointStore, endpoint_ids: Sequence[UUID]) -> dict[UUID, Any]:
        read.append(set(endpoint_ids))
        if fails:
            raise DatabaseUnreachable(why="a test")
        return await find_many(store, endpoint_ids)

    async def counted_changes(store: EndpointStore, since: datetime | None) -> dict[UUID, datetime]:
        asked.append(since)
        return await changed_since(store, since)

    monkeypatch.setattr(EndpointStore, "find_many", counted)
    monkeypatch.setattr(EndpointStore, "changed_since", counted_changes)
    first, second = [await add_endpoint(local, f"http://127.0.0.1:9/{number}") for number in range(2)]
    reader, operator = connect(local, "deliverer"), connect(local, "operator")
    cache = EndpointCache(reader, MasterKeys(local))
    try:
        await cache.refresh()
        await cache.load({first.bytes, second.bytes})
        await cache.refresh()
        read.clear()
        asked.clear()
        await cache.refresh()
        await cache.refresh()
        assert (read, asked) == ([], [])
        await EndpointStore(operator, MasterKeys(local)).change_state(first, "pause", "a reason")
        fails = True
        with pytest.raises(DatabaseUnreachable):
            await cache.refresh()
        fails = False
        await cache.refresh()
        assert read == [{first}, {first}]
        known = cache.get(first.bytes)
        assert known is not None
        assert known.endpoint.state == "paused"
    finally:
        await reader.close()
        await operator.close()


async def test_a_key_that_has_expired_signs_no_more(local: Settings, database: Database) -> None:
    """The end of a rotation changes no row: a process that runs has to see by its clock that a key is to go."""
    endpoint_id, new = await add_endpoint(local, "http://127.0.0.1:9/"), new_secret()
    reader, operator = connect(local, "deliverer"), connect(local, "operator")
    clock = FixedClock(SystemClock().now())
    cache = EndpointCache(reader, MasterKeys(local), clock)

    def secrets_of(endpoint: UUID) -> tuple[bytes, ...]:
        known = cache.get(endpoint.bytes)
        assert known is not None
        assert known.secrets is not None
        return known.secrets.keys.secrets

    try:
        overlap = timedelta(hours=1)
        await EndpointStore(operator, MasterKeys(local)).rotate(endpoint_id, "v1", new, None, overlap)
        await cache.refresh()
        await cache.load({endpoint_id.bytes})
        assert secrets_of(endpoint_id) == (new, SECRET)
        sql.execute(database.owner_url, ["UPDATE endpoint_secrets SET expires_at = now() WHERE expires_at > now()"])
        clock.set(clock.now() + 2 * overlap)
        await cache.refresh()
        assert secrets_of(endpoint_id) == (new,)
    finally:
        await reader.close()
        await operator.close()


async def test_an_endpoint_that_takes_nothing_is_read_again_for_its_deliveries(local: Settings) -> None:
    """Who dispatched them has heard of its resume at once. One that was found gone here is left alone for a while."""
    endpoint_id = await add_endpoint(local, "http://127.0.0.1:9/")
    reader, operator = connect(local, "deliverer"), connect(local, "operator")
    clock = FixedClock(datetime(2026, 3, 1, tzinfo=UTC))
    cache = EndpointCache(reader, MasterKeys(local), clock)
    store = EndpointStore(operator, MasterKeys(local))

    async def state_for_a_delivery() -> str:
        await cache.load([endpoint_id.bytes])
        known = cache.get(endpoint_id.bytes)
        assert known is not None
        return known.endpoint.state

    try:
        await store.change_state(endpoint_id, "pause", "a reason")
        assert await state_for_a_delivery() == "paused"
        await store.change_state(endpoint_id, "resume", None)
        assert await state_for_a_delivery() == "active"
        cache.disable(endpoint_id.bytes)
        assert await state_for_a_delivery() == "disabled", "what disables it may not be written yet"
        clock.set(clock.now() + timedelta(seconds=DISABLED_SECONDS))
        assert await state_for_a_delivery() == "active", "it was not written"
    finally:
        await reader.close()
        await operator.close()
