"""`plant endpoints test`: one signed example, and what comes back."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import click

from operations.cli.endpoint_actions import endpoint_argument
from operations.cli.listing import Output, output_option, show

if TYPE_CHECKING:
    from deliveries.attempts import Attempt
    from deliveries.endpoints import Endpoint
    from runtime.settings import Settings

SHOWN_MAX_BYTES = 4096
COLUMNS = ("status", "outcome", "error", "seconds", "answer")


@click.command(name="test")
@endpoint_argument
@click.option("--event-type", metavar="TYPE", help="The example's type.  [default: the first one that it gets]")
@output_option
def test(endpoint_id: UUID, event_type: str | None, output: Output) -> None:
    """Send the endpoint ID one signed example and show what came back; exit 3 unless it was accepted.

    The example is a made-up event whose `webhook-id` begins with `test_`. It is sent once, whatever the endpoint's
    state, and is kept nowhere.

    \b
    Examples:
      plant endpoints test 0b6d7f0e-6f39-4c0e-9d53-1f6f3a1f0a77
      plant endpoints test 0b6d7f0e-6f39-4c0e-9d53-1f6f3a1f0a77 \\
        --event-type genesis.agent.rated --output json
    """
    from deliveries.errors import ExampleNotAccepted
    from deliveries.outcomes import classify
    from runtime.settings import load_settings

    made = asyncio.run(_send(load_settings(), endpoint_id, event_type))
    outcome = classify(made.outcome)
    text = made.answer[:SHOWN_MAX_BYTES].decode(errors="replace")
    row = {
        "status": made.outcome.status_code,
        "outcome": outcome,
        "error": made.outcome.error_class,
        "why": made.why,
        "seconds": round(made.duration_seconds, 3),
        "answer": text if output != "table" else text[:80],
        "truncated": made.truncated or len(made.answer) > SHOWN_MAX_BYTES,
    }
    show([row], output, columns=COLUMNS)
    if outcome != "delivered":
        status = f"It answered {made.outcome.status_code}." if made.outcome.status_code is not None else ""
        raise ExampleNotAccepted(why=status or made.why, next_step=f"plant endpoints show {endpoint_id}")


async def _send(settings: Settings, endpoint_id: UUID, event_type: str | None) -> Attempt:
    from deliveries.attempts import send_attempt
    from deliveries.connections import DeliveryClient
    from deliveries.endpoint_store import open_endpoint_store
    from deliveries.signed_request import outgoing_event, sign_attempt
    from schemas.examples import examples

    async with open_endpoint_store(settings) as store:
        endpoint = await store.find(endpoint_id)
        _refuse_removed(endpoint)
        secrets = await store.secrets(endpoint_id)
    example = examples()[_example_type(endpoint, event_type)]
    now = datetime.now(UTC)
    request = sign_attempt(
        outgoing_event(example, source="plant/endpoints"),
        endpoint.configuration.payload_form,
        secrets.keys,
        delivery_id=f"test_{uuid4().hex}",
        now=now,
        custom_headers=secrets.custom_headers,
    )
    client = DeliveryClient(settings)
    try:
        return await send_attempt(
            client, endpoint.configuration.url, request, timeout_seconds=endpoint.configuration.timeout_seconds, now=now
        )
    finally:
        await client.close()


def _example_type(endpoint: Endpoint, asked: str | None) -> str:
    """Return the type of the example. Raises click's BadParameter for one that there is not."""
    from deliveries.event_filters import parse_event_types
    from schemas.examples import examples

    known = [name for name in examples() if name.startswith("genesis.")]
    if asked is not None:
        if asked not in known:
            raise click.BadParameter(f"one of {', '.join(known)}", param_hint="--event-type")
        return asked
    chosen = parse_event_types(endpoint.configuration.event_types)
    return next((name for name in known if chosen.include(name)), known[0])


def _refuse_removed(endpoint: Endpoint) -> None:
    from deliveries.errors import EndpointStateRefused

    if endpoint.state == "removed":
        raise EndpointStateRefused(f"The endpoint {endpoint.id} is removed.", next_step="plant endpoints list")
