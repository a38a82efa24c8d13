"""What a deliverer knows of endpoints: read when needed, and again once it has changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest

from database.connector import connect
from deliveries.deliverer.endpoint_cache import EndpointCache
from deliveries.endpoint_store import EndpointStore
from runtime.settings import Settings
from signing.master_key import MasterKeys
from tests.support.delivering import add_endpoint


async def test_only_endpoints_that_have_changed_are_read_again(
    local: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand that were added together would else be decrypted each second for a minute."""
    read: list[set[UUID]] = []
    find_many = EndpointStore.find_many

    async def counted(store: EndpointStore, endpoint_ids: Sequence[UUID]) -> dict[UUID, Any]:
        read.append(set(endpoint_ids))
        return await find_many(store, endpoint_ids)

    monkeypatch.setattr(EndpointStore, "find_many", counted)
    first, second = [await add_endpoint(local, f"http://127.0.0.1:9/{number}") for number in range(2)]
    reader, operator = connect(local, "deliverer"), connect(local, "operator")
    cache = EndpointCache(reader, MasterKeys(local))
    try:
        await cache.refresh()
        await cache.load({first.bytes, second.bytes})
        await cache.refresh()
        read.clear()
        await cache.refresh()
        await cache.refresh()
        assert read == []
        await EndpointStore(operator, MasterKeys(local)).change_state(first, "pause", "a reason")
        await cache.refresh()
        assert read == [{first}]
        known = cache.get(first.bytes)
        assert known is not None
        assert known.endpoint.state == "paused"
    finally:
        await reader.close()
        await operator.close()
