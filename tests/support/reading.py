"""The API for readers in this process, on a real Postgres: fixture `reading`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID, uuid4

import httpx
import pytest_asyncio

from api.access_tokens import NewToken, new_token
from api.token_store import TokenStore
from database.connector import connect
from operations.services.api import ReaderApi, build_api
from projections.engine import PartitionProjector
from projections.read_model import READ_MODELS
from runtime.settings import Settings
from schemas.events import AgentOnboarded, Event
from tests.support.batches import TOPIC, WATERMARKS, batch_of
from tests.support.own_task import in_own_task
from tests.support.waiting import wait_until_async

NOW: Final = datetime(2026, 11, 23, 8, 30, tzinfo=UTC)
SKILL: Final = UUID(int=900)


@dataclass
class Reading:
    """A running application and a client of it, with a token for everything."""

    api: ReaderApi
    client: httpx.AsyncClient
    settings: Settings
    token: NewToken

    async def get(self, path: str, *, token: str | None = None, **headers: str) -> httpx.Response:
        """A request with the token of the fixture, or another one."""
        bearer = {"authorization": f"Bearer {self.token.text if token is None else token}"}
        return await self.client.get(path, headers={**bearer, **headers})

    async def add_token(self, *scopes: str, name: str = "tests", expires_at: datetime | None = None) -> NewToken:
        """A further token, which the application knows at once."""
        made = await add_token(self.settings, *scopes, name=name, expires_at=expires_at)
        await self.api.tokens.refresh()
        return made

    async def revoke(self, token: NewToken) -> None:
        """Revoke a token as an operator does; the application learns of it by itself."""
        await revoke(self.settings, token)

    def project(self, events: Sequence[Event], *, start: int = 0, partition: int = 0) -> None:
        """Apply events in one batch, at offsets from `start` on."""
        projector = PartitionProjector(self.settings.database_writer_url, TOPIC, partition, READ_MODELS)
        try:
            token = projector.acquire(WATERMARKS).token
            projector.project(batch_of(events, token=token, start=start, partition=partition))
        finally:
            projector.close()


async def add_token(
    settings: Settings, *scopes: str, name: str = "tests", expires_at: datetime | None = None
) -> NewToken:
    database = connect(settings, "operator")
    token = new_token()
    try:
        await TokenStore(database).add(
            uuid4(), token, name=name, scopes=scopes or ("read",), tenant="genesis", expires_at=expires_at
        )
    finally:
        await database.close()
    return token


async def revoke(settings: Settings, token: NewToken) -> None:
    database = connect(settings, "operator")
    try:
        store = TokenStore(database)
        await store.revoke((await store.find(token.prefix)).id)
    finally:
        await database.close()


def onboarded(number: int, *, skill: UUID = SKILL) -> AgentOnboarded:
    return AgentOnboarded(
        event_id=UUID(int=10_000 + number), agent_id=UUID(int=number), occurred_at=NOW, name=f"Agent {number}",
        skill_ids=(skill,),
    )  # fmt: skip


def problem(answer: httpx.Response) -> tuple[int, str]:
    """The status of a problem, and the last part of its type."""
    assert answer.headers["content-type"] == "application/problem+json"
    document: Mapping[str, object] = answer.json()
    assert document["status"] == answer.status_code
    return answer.status_code, str(document["type"]).removeprefix("urn:plant:problem:")


@contextlib.asynccontextmanager
async def reading_of(settings: Settings) -> AsyncIterator[Reading]:
    token = await add_token(settings)
    api = build_api(settings)
    transport = httpx.ASGITransport(api.app)
    async with (
        api.app.lifespan(),
        httpx.AsyncClient(transport=transport, base_url="http://api", timeout=None) as client,
    ):
        await wait_until_async(lambda: api.tokens.fresh, "the tokens are loaded")
        yield Reading(api, client, settings, token)


@pytest_asyncio.fixture
async def reading(settings: Settings) -> AsyncIterator[Reading]:
    async with in_own_task(reading_of(settings)) as made:
        yield made
