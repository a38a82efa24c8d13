"""Who may read: tokens, scopes, expiry, revocation, tenants."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from api.access_tokens import new_token
from database.errors import TooMuchPrivilege
from devstack import sql
from operations.services.api import build_api
from runtime.settings import Settings
from tests.conftest import Database
from tests.support.reading import Reading, onboarded, problem
from tests.support.waiting import wait_until_async


async def test_without_a_token_nothing_is_read(reading: Reading) -> None:
    """No header, another scheme, no token, a made-up one, a known prefix with another secret: 401 and a challenge."""
    text = reading.token.text
    wrong = [
        None, "", "Bearer", "Bearer ", f"Basic {text}", text, f"Bearer {text}x", f"Bearer {text[:-1]}",
        f"Bearer {new_token().text}", f"Bearer {text[:19]}{new_token().text[19:]}", "Bearer " + "a" * 10_000,
        f"Bearer {text} {text}", f"Bearer {text.upper()}",
    ]  # fmt: skip
    for value in wrong:
        headers = {} if value is None else {"authorization": value}
        for path in ("/agents", "/agents?nonsense=1", "/ratings/none"):
            answer = await reading.client.get(path, headers=headers)
            assert problem(answer) == (401, "unauthorized"), value
            assert answer.headers["www-authenticate"].startswith('Bearer realm="plant"')
    for good in (f"Bearer {text}", f"bearer {text}", f"BEARER  {text} "):
        assert (await reading.client.get("/agents", headers={"authorization": good})).status_code == 200


async def test_two_tokens_at_once_are_refused(reading: Reading) -> None:
    """Which of them counts would be a guess."""
    bearer = f"Bearer {reading.token.text}"
    answer = await reading.client.get("/agents", headers=[("authorization", bearer), ("authorization", bearer)])
    assert problem(answer) == (400, "malformed-request")


async def test_a_scope_is_for_its_resource(reading: Reading) -> None:
    """A token with `read:agents` reads agents and nothing else; the challenge names the scope that is missing."""
    token = await reading.add_token("read:agents")
    assert (await reading.get("/agents", token=token.text)).status_code == 200
    answer = await reading.get("/skills", token=token.text)
    assert problem(answer) == (403, "scope")
    assert 'scope="read:skills"' in answer.headers["www-authenticate"]


async def test_a_revoked_token_is_refused_soon(reading: Reading) -> None:
    """The process learns of it by itself."""
    token = await reading.add_token()
    assert (await reading.get("/agents", token=token.text)).status_code == 200
    await reading.revoke(token)

    async def refused() -> bool:
        return (await reading.get("/agents", token=token.text)).status_code == 401

    await wait_until_async(refused, "the token is refused")


async def test_an_expired_token_is_refused(reading: Reading) -> None:
    """By the process's own clock, and it is not read from the database either."""
    token = await reading.add_token(expires_at=datetime.now(UTC) + timedelta(seconds=1))

    async def refused() -> bool:
        return (await reading.get("/agents", token=token.text)).status_code == 401

    await wait_until_async(refused, "the token has expired")


async def test_rows_of_another_tenant_are_not_read(reading: Reading, database: Database) -> None:
    """The token's tenant is the transaction's: a row that belongs to another one is not there."""
    reading.project([onboarded(1), onboarded(2)])
    change = "UPDATE agents_v1.agents SET governance_agent_id = 'acme' WHERE name = 'Agent 2'"
    sql.execute(database.superuser_url, [change])
    names = [each["name"] for each in (await reading.get("/agents")).json()["items"]]
    assert names == ["Agent 1"]


async def test_a_role_that_may_change_tokens_is_refused(settings: Settings) -> None:
    """The API does not serve with an operator's address; with its own it does."""
    operator = build_api(msgspec.structs.replace(settings, database_api_url=settings.database_operator_url))
    own = build_api(settings)
    try:
        with pytest.raises(TooMuchPrivilege, match="more rights than it may have") as raised:
            await operator.store.assert_read_only()
        assert "plant_operator may change tokens" in raised.value.why
        await own.store.assert_read_only()
    finally:
        await asyncio.gather(operator.database.close(), own.database.close())
