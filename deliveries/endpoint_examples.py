"""An example: a made-up event, sent to an endpoint once and kept nowhere, so that its subscriber sees what comes."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from uuid import uuid4

from deliveries.attempts import Attempt, send_attempt
from deliveries.endpoint_store import EndpointStore
from deliveries.endpoints import Endpoint
from deliveries.errors import EndpointStateRefused, UnknownExample
from deliveries.event_filters import parse_event_types
from deliveries.guard.connections import DeliveryClient
from deliveries.outcomes import classify
from deliveries.signed_request import outgoing_event, sign_attempt
from schemas.events import Event
from schemas.examples import endpoint_examples, examples

EXAMPLE_SOURCE: Final = "plant/endpoints"
SHOWN_MAX_BYTES: Final = 4096
"""Of what came back."""


async def send_example(
    store: EndpointStore, client: DeliveryClient, endpoint: Endpoint, event_type: str | None, now: datetime
) -> Attempt:
    """Send a signed example to an endpoint, whatever its state, and return what came of it.

    Its `webhook-id` begins with `test_`. Without a type it is of the first one that the endpoint gets. Raises
    UnknownExample, EndpointStateRefused for a removed endpoint, SecretUnreadable.
    """
    if endpoint.state == "removed":
        raise EndpointStateRefused(f"The endpoint {endpoint.id} is removed.", next_step="plant endpoints list")
    example = _example(endpoint, event_type)
    secrets = await store.secrets(endpoint.id)
    request = sign_attempt(
        outgoing_event(example, source=EXAMPLE_SOURCE),
        endpoint.configuration.payload_form,
        secrets.keys,
        delivery_id=f"test_{uuid4().hex}",
        now=now,
        custom_headers=secrets.custom_headers,
    )
    configuration = endpoint.configuration
    return await send_attempt(
        client, configuration.url, request, timeout_seconds=configuration.timeout_seconds, now=now
    )


def example_fields(attempt: Attempt) -> dict[str, Any]:
    """Return what came of an example as it is shown."""
    return {
        "status": attempt.outcome.status_code,
        "outcome": classify(attempt.outcome),
        "error": attempt.outcome.error_class,
        "why": attempt.why,
        "seconds": round(attempt.duration_seconds, 3),
        "answer": attempt.answer[:SHOWN_MAX_BYTES].decode(errors="replace"),
        "truncated": attempt.truncated or len(attempt.answer) > SHOWN_MAX_BYTES,
    }


def _example(endpoint: Endpoint, asked: str | None) -> Event:
    genesis = {name: event for name, event in examples().items() if name.startswith("genesis.")}
    known: dict[str, Event] = {**genesis, **endpoint_examples()}
    if asked is None:
        chosen = parse_event_types(endpoint.configuration.event_types)
        asked = next((name for name in known if chosen.include(name)), next(iter(known)))
    elif asked not in known:
        raise UnknownExample(why=f"Write one of {', '.join(known)}.")
    return known[asked]
