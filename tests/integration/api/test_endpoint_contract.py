"""The API for endpoints keeps to its OpenAPI document: schemathesis makes requests from it, for a real process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from schemathesis.generation import GenerationMode

from runtime.settings import Settings
from tests.support.api_process import RunningApi, start
from tests.support.conformance import CONFORMANCE
from tests.support.endpoint_api import URL
from tests.support.ingress_process import ended
from tests.support.long_form import sized
from tests.support.reading import add_token
from tests.support.waiting import wait_until_async

EXAMPLES = sized(12, 30)
REQUEST_SECONDS = 300


@pytest_asyncio.fixture
async def running(local: Settings, tmp_path: Path) -> AsyncIterator[tuple[RunningApi, str]]:
    """A process, and a token for endpoints that it knows."""
    api = await start(local, tmp_path)
    token = (await add_token(local, "endpoints")).text
    try:
        async with httpx.AsyncClient(verify=False, timeout=REQUEST_SECONDS) as client:

            async def known() -> bool:
                answer = await client.get(f"{api.url}/endpoints", headers={"authorization": f"Bearer {token}"})
                return answer.status_code == 200

            await wait_until_async(known, "the token is known")
        yield api, token
    finally:
        await ended(api.process)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
async def test_every_answer_is_in_the_document(running: tuple[RunningApi, str], mode: GenerationMode) -> None:
    """Requests that fit the document, and ones that break it, about an endpoint that there is and others."""
    api, token = running
    bearer = {"authorization": f"Bearer {token}"}

    def sent() -> dict[tuple[str, str], set[int]]:
        made = httpx.post(
            f"{api.url}/endpoints", json={"url": URL, "event_types": ["*"]}, headers=bearer, timeout=REQUEST_SECONDS
        )
        assert made.status_code == 201, made.text
        schema = schemathesis.openapi.from_url(f"{api.url}/openapi.json")
        seen = {}
        for found in schema.get_all_operations():
            operation = found.ok()
            if operation.path.startswith(("/endpoints", "/deliveries", "/redrives", "/searches")):
                key = operation.method, operation.path
                seen[key] = statuses(operation, api.url, bearer, mode, made.json()["id"])
        return seen

    seen = await asyncio.to_thread(sent)
    assert len(seen) == 22
    wanted = {200, 422} if mode == GenerationMode.POSITIVE else {400, 422}
    assert wanted <= {status for of_one in seen.values() for status in of_one}


def statuses(operation: Any, url: str, bearer: dict[str, str], mode: GenerationMode, known: str) -> set[int]:
    """Send generated requests and check each answer; the statuses that came."""
    seen: set[int] = set()

    @hypothesis_settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def answered(case: Any) -> None:
        if len(seen) % 2 and "/endpoints/{id}" in operation.path and mode == GenerationMode.POSITIVE:
            case.path_parameters["id"] = known
        response = case.call(base_url=url, headers=bearer, timeout=REQUEST_SECONDS)
        assert response.status_code < 500, case.as_curl_command()
        case.validate_response(response, checks=CONFORMANCE, headers=bearer)
        seen.add(response.status_code)

    answered()
    return seen
