"""`plant endpoints handshake`: whether the receiver at an endpoint's URL agrees to deliveries."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

import click

from operations.cli.endpoint_actions import endpoint_argument
from operations.operator_actions import OperatorAction, actor_option, reason_option, record

if TYPE_CHECKING:
    from deliveries.endpoints import EndpointConfiguration, ReceiverAgreement
    from runtime.settings import Settings


@click.command()
@endpoint_argument
@actor_option
@reason_option("Its receiver may allow another rate now.")
def handshake(endpoint_id: UUID, actor: str, reason: str) -> None:
    """Ask the receiver of the endpoint ID again whether it agrees, and at what rate.

    For endpoints that were added with --handshake. What it answers holds from then on; where it no longer agrees,
    nothing is changed: disable the endpoint.
    """
    from deliveries.endpoint_store import open_endpoint_store
    from deliveries.endpoints import refuse_handshake
    from runtime.settings import load_settings

    settings = load_settings()

    async def act() -> ReceiverAgreement:
        async with open_endpoint_store(settings) as store:
            endpoint = await store.find(endpoint_id)
            refuse_handshake(endpoint)
            agreement = await agreement_of(settings, endpoint.configuration)
            acted = OperatorAction(action="endpoints.handshake", target=str(endpoint_id), reason=reason, actor=actor)
            await record(settings, acted)
            await store.agree(endpoint, agreement)
            return agreement

    rate = asyncio.run(act()).rate_per_minute
    allowed = "any number of deliveries" if rate is None else f"{rate} deliveries a minute"
    click.echo(f"the receiver of endpoint {endpoint_id} allows {allowed}", err=True)


async def agreement_of(settings: Settings, configuration: EndpointConfiguration) -> ReceiverAgreement:
    """Return what the receiver at a URL agrees to. Raises HandshakeRefused, EndpointRefused."""
    from deliveries.guard.connections import DeliveryClient
    from deliveries.handshake import ask_receiver, request_origin

    origin = request_origin(settings)
    client = DeliveryClient(settings)
    try:
        return await ask_receiver(client, configuration, origin, datetime.now(UTC))
    finally:
        await client.close()
