"""`plant endpoints pause|resume|disable|enable|remove`: whether an endpoint gets deliveries."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import UUID

import click

from operations.operator_actions import OperatorAction, actor_option, reason_option, record

if TYPE_CHECKING:
    from deliveries.endpoints import EndpointAction

endpoint_argument = click.argument("endpoint_id", metavar="ID", type=click.UUID)
endpoint_secret_option = click.option(
    "--output",
    type=click.Choice(["secret", "json"]),
    default="secret",
    show_default=True,
    help="The secret, or the public key, alone; or one object with all about it.",
)
DONE = {"pause": "paused", "resume": "resumed", "disable": "disabled", "enable": "enabled", "remove": "removed"}


@click.command()
@endpoint_argument
@actor_option
@reason_option("Its subscriber needs a pause.")
def pause(endpoint_id: UUID, actor: str, reason: str) -> None:
    """Stop deliveries to the endpoint ID until it is resumed."""
    _change(endpoint_id, "pause", actor, reason)


@click.command()
@endpoint_argument
@actor_option
@reason_option("Its subscriber is ready again.")
def resume(endpoint_id: UUID, actor: str, reason: str) -> None:
    """Go on with deliveries to the paused endpoint ID."""
    _change(endpoint_id, "resume", actor, reason)


@click.command()
@endpoint_argument
@actor_option
@reason_option("An operator turned it off.")
def disable(endpoint_id: UUID, actor: str, reason: str) -> None:
    """Turn the endpoint ID off until an operator enables it."""
    _change(endpoint_id, "disable", actor, reason)


@click.command()
@endpoint_argument
@actor_option
@reason_option("Its subscriber says that it works again.")
def enable(endpoint_id: UUID, actor: str, reason: str) -> None:
    """Turn the disabled endpoint ID on again."""
    _change(endpoint_id, "enable", actor, reason)


@click.command()
@endpoint_argument
@click.option("--execute", is_flag=True, help="Do it; without this the plan is printed.")
@actor_option
@reason_option("Its subscriber no longer wants events.")
def remove(endpoint_id: UUID, execute: bool, actor: str, reason: str) -> None:
    """Remove the endpoint ID permanently, and delete its secrets.

    \b
    Examples:
      plant endpoints remove 0b6d7f0e-6f39-4c0e-9d53-1f6f3a1f0a77
      plant endpoints remove 0b6d7f0e-6f39-4c0e-9d53-1f6f3a1f0a77 --execute
    """
    _change(endpoint_id, "remove", actor, reason, execute=execute)


def _change(endpoint_id: UUID, action: EndpointAction, actor: str, reason: str, *, execute: bool = True) -> None:
    from deliveries.endpoint_refusals import refuse_action
    from deliveries.endpoint_starts import read_start
    from deliveries.endpoint_store import open_endpoint_store
    from deliveries.endpoints import TRANSITIONS
    from runtime.settings import load_settings

    settings = load_settings()

    async def act() -> str:
        async with open_endpoint_store(settings) as store:
            endpoint = await store.find(endpoint_id)
            refuse_action(endpoint, action)
            if not execute:
                return f"would {action} endpoint {endpoint_id} at {endpoint.configuration.url}; add --execute to do it"
            acted = OperatorAction(action=f"endpoints.{action}", target=str(endpoint_id), reason=reason, actor=actor)
            await record(settings, acted)
            start = await read_start(settings, None) if TRANSITIONS[action][1] == "active" else None
            await store.change_state(endpoint_id, action, reason, start)
            return f"{DONE[action]} endpoint {endpoint_id}"

    click.echo(asyncio.run(act()), err=True)
