"""The API for endpoints in this process, on a real Postgres and Kafka: fixture `endpoint_api`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from api.access_tokens import AccessToken
from api.token_store import TokenStore
from runtime.settings import Settings
from streams.topics import apply
from tests.support.own_task import in_own_task
from tests.support.reading import Reading, reading_of

URL = "http://127.0.0.1:9/hooks?token=in-the-path"
ORIGIN = "plant.example.com"


@dataclass
class EndpointApi:
    """A running application, and a token with the scope `endpoints`."""

    reading: Reading
    settings: Settings
    token: str

    async def send(
        self, method: str, path: str, body: object = None, *, token: str | None = None, **headers: str
    ) -> httpx.Response:
        """A request with a JSON body."""
        bearer = {"authorization": f"Bearer {token or self.token}"}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.reading.client.request(method, path, json=body, headers={**bearer, **named})

    async def add(self, url: str = URL, **fields: Any) -> dict[str, Any]:
        """Add an endpoint; its document."""
        answer = await self.send("POST", "/endpoints", {"url": url, "event_types": ["*"], **fields})
        assert answer.status_code == 201, answer.text
        document: dict[str, Any] = answer.json()
        return document


def errors(answer: httpx.Response) -> dict[str, str]:
    """What a problem says of each field."""
    return {each["pointer"]: each["detail"] for each in answer.json()["errors"]}


async def token_of(endpoint_api: EndpointApi, tenant: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A token of another tenant: the database takes none, so one is made of what it gives."""
    token = await endpoint_api.reading.add_token("endpoints", name="theirs")
    usable = TokenStore.usable

    async def of_tenant(store: TokenStore) -> list[AccessToken]:
        return [
            msgspec.structs.replace(each, tenant=tenant) if each.prefix == token.prefix else each
            for each in await usable(store)
        ]

    monkeypatch.setattr(TokenStore, "usable", of_tenant)
    await endpoint_api.reading.api.tokens.refresh()
    await endpoint_api.reading.api.tokens.refresh()  # the first may have been under way
    return token.text


@pytest_asyncio.fixture
async def local(settings: Settings) -> Settings:
    """Settings of a deployment whose endpoints may be on 127.0.0.1, with its topics."""
    await apply(settings)
    return msgspec.structs.replace(
        settings, deliveries_schemes="http,https", deliveries_ports="1-65535", deliveries_allowed_networks="127.0.0.1",
        deliveries_origin=ORIGIN,
    )  # fmt: skip


@pytest_asyncio.fixture
async def endpoint_api(local: Settings) -> AsyncIterator[EndpointApi]:
    async with in_own_task(reading_of(local)) as reading:
        token = await reading.add_token("endpoints")
        yield EndpointApi(reading, local, token.text)
