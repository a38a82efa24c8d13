"""The HTTP API keeps to its OpenAPI document: requests made from it by schemathesis, against a real process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from requests import PreparedRequest
from requests.auth import AuthBase
from schemathesis.generation import GenerationMode

from tests.support.conformance import CONFORMANCE
from tests.support.ingress_process import Running
from tests.support.long_form import sized
from tests.support.webhooks import Sender

POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
REQUEST_SECONDS = 300
HEADERS_SIGNED = ("webhook-id", "webhook-timestamp", "webhook-signature")


class Signs(AuthBase):
    """Signs the request as it will be sent. A binary CloudEvent is signed under its own id."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        body = request.body or b""
        assert isinstance(body, str | bytes)
        message_id = request.headers.get("ce-id") or f"msg_{uuid4().hex}"
        text = message_id if isinstance(message_id, str) else message_id.decode("latin-1")
        whole = body.encode() if isinstance(body, str) else body
        signed = self._sender.headers(whole, message_id=text if text.isascii() else None)
        request.headers.update({name: signed[name] for name in HEADERS_SIGNED})
        return request


def operations(running: Running, wanted: Callable[[Any], bool]) -> Iterator[Any]:
    """The document's operations that are wanted, as the process itself serves it."""
    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    for found in schema.get_all_operations():
        operation = found.ok()
        if wanted(operation):
            yield operation


def is_signed(operation: Any) -> bool:
    return "/webhook/" in operation.path


def address_of(operation: Any, running: Running) -> str:
    """Where the document says that the operation is served."""
    servers = operation.schema.raw_schema["paths"][operation.path].get("servers", [])
    return running.admin_url if servers else running.url


def statuses(operation: Any, running: Running, mode: GenerationMode, examples: int, auth: AuthBase | None) -> set[int]:
    """Send generated requests and check each answer; the statuses that came."""
    seen: set[int] = set()

    @hypothesis_settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def answered(case: Any) -> None:
        response = case.call(base_url=address_of(operation, running), auth=auth, timeout=REQUEST_SECONDS)
        assert response.status_code < 500 or response.status_code == 503, case.as_curl_command()
        case.validate_response(response, checks=CONFORMANCE)
        seen.add(response.status_code)

    answered()
    return seen


async def test_signed_requests_get_what_the_document_says(running: Running) -> None:
    """Requests that fit the document and are signed are stored, and every answer fits it too."""

    def sent() -> None:
        for operation in operations(running, is_signed):
            seen = statuses(operation, running, POSITIVE, sized(15, 40), Signs(running.sender))
            assert 200 in seen, (operation.path, seen)

    await asyncio.to_thread(sent)


async def test_unsigned_requests_are_refused(running: Running) -> None:
    """Requests that fit the document but for their signature are never stored."""

    def sent() -> None:
        for operation in operations(running, is_signed):
            seen = statuses(operation, running, POSITIVE, sized(10, 25), None)
            assert not seen & {200, 207}, (operation.path, seen)
            assert 401 in seen, (operation.path, seen)

    await asyncio.to_thread(sent)


async def test_wrong_requests_are_refused_as_the_document_says(running: Running) -> None:
    """Signed requests that break the document get one of its problems, never a 500."""

    def sent() -> None:
        for operation in operations(running, is_signed):
            seen = statuses(operation, running, NEGATIVE, sized(20, 50), Signs(running.sender))
            assert seen & {400, 415, 422}, (operation.path, seen)

    await asyncio.to_thread(sent)


async def test_everything_else_answers_as_the_document_says(running: Running) -> None:
    """The registry, the health routes and the document itself, asked rightly and wrongly."""

    def sent() -> None:
        for operation in operations(running, lambda operation: not is_signed(operation)):
            statuses(operation, running, POSITIVE, 6, None)
            if operation.body or "{id}" in operation.path:
                statuses(operation, running, NEGATIVE, 6, None)

    await asyncio.to_thread(sent)
