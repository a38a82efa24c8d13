"""`plant endpoints rotate-key`: a new key, while the one before it still signs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal
from uuid import UUID

import click

from operations.cli.endpoint_actions import endpoint_argument, endpoint_secret_option
from operations.cli.moments import read_span
from operations.operator_actions import OperatorAction, actor_option, reason_option, record, with_facts

if TYPE_CHECKING:
    from signing.signatures import Scheme

OVERLAP_MAX_DAYS = 30


@click.command(name="rotate-key")
@endpoint_argument
@click.option("--scheme", type=click.Choice(["v1", "v1a"]), default="v1", show_default=True, help="Of which kind.")
@click.option("--overlap", default="24h", show_default=True, metavar="SPAN", help="How long the old key signs too.")
@click.option("--execute", is_flag=True, help="Do it; without this the plan is printed.")
@endpoint_secret_option
@actor_option
@reason_option("Keys are rotated regularly.")
def rotate_key(
    endpoint_id: UUID,
    scheme: Scheme,
    overlap: str,
    execute: bool,
    output: Literal["secret", "json"],
    actor: str,
    reason: str,
) -> None:
    """Give the endpoint ID a new key and print it once; requests carry signatures of both until the overlap is over.

    An endpoint without a key of the scheme gets its first one.

    \b
    Examples:
      plant endpoints rotate-key 0b6d7f0e-6f39-4c0e-9d53-1f6f3a1f0a77
      plant endpoints rotate-key 0b6d7f0e-6f39-4c0e-9d53-1f6f3a1f0a77 \\
        --scheme v1a --overlap 7d --execute
    """
    from datetime import timedelta

    import msgspec

    from deliveries.endpoint_refusals import refuse_rotation
    from deliveries.endpoint_store import open_endpoint_store
    from deliveries.new_endpoints import new_endpoint_key
    from runtime.settings import load_settings

    settings, window = load_settings(), read_span("--overlap", overlap)
    if window > timedelta(days=OVERLAP_MAX_DAYS):
        raise click.BadParameter(f"at most {OVERLAP_MAX_DAYS}d", param_hint="--overlap")
    new = new_endpoint_key(scheme)
    shown, public_key = new.shown, new.public_key

    async def act() -> bool:
        async with open_endpoint_store(settings) as store:
            endpoint = await store.find(endpoint_id)
            refuse_rotation(endpoint.id, endpoint.state, await store.keys([endpoint.id]), scheme)
            await store.refuse_unfit()
            if not execute:
                plan = f"would give endpoint {endpoint_id} a new {scheme} key, the old one signing for {overlap} more"
                click.echo(f"{plan}; add --execute to do it", err=True)
                return False
            facts = [f"scheme {scheme}", f"overlap {overlap}"]
            facts += [f"public key {shown}"] if public_key is not None else []
            why = with_facts(reason, facts)
            target = str(endpoint_id)
            await record(
                settings, OperatorAction(action="endpoints.rotate_key", target=target, reason=why, actor=actor)
            )
            await store.rotate(endpoint_id, scheme, new.secret, new.public_key, window)
            return True

    if not asyncio.run(act()):
        return
    if output == "json":
        document = {"id": str(endpoint_id), "scheme": scheme, "secret": shown if public_key is None else None,
                    "public_key": shown if public_key is not None else None}  # fmt: skip
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return
    click.echo(f"endpoint {endpoint_id} has a new {scheme} key; it is shown only now:", err=True)
    click.echo(shown)
