"""`plant endpoints test`: one signed example, and what comes back."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

import click

from operations.cli.endpoint_actions import endpoint_argument
from operations.cli.listing import Output, output_option, show

if TYPE_CHECKING:
    from deliveries.attempts import Attempt
    from runtime.settings import Settings

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
    from deliveries.endpoint_examples import example_fields
    from deliveries.errors import ExampleNotAccepted
    from runtime.settings import load_settings

    made = asyncio.run(_send(load_settings(), endpoint_id, event_type))
    row = example_fields(made)
    row["answer"] = row["answer"] if output != "table" else row["answer"][:80]
    show([row], output, columns=COLUMNS)
    if row["outcome"] != "delivered":
        status = f"It answered {made.outcome.status_code}." if made.outcome.status_code is not None else ""
        raise ExampleNotAccepted(why=status or made.why, next_step=f"plant endpoints show {endpoint_id}")


async def _send(settings: Settings, endpoint_id: UUID, event_type: str | None) -> Attempt:
    from deliveries.endpoint_examples import send_example
    from deliveries.endpoint_store import open_endpoint_store
    from deliveries.guard.connections import DeliveryClient

    async with open_endpoint_store(settings) as store:
        endpoint = await store.find(endpoint_id)
        client = DeliveryClient(settings)
        try:
            return await send_example(store, client, endpoint, event_type, datetime.now(UTC))
        finally:
            await client.close()
