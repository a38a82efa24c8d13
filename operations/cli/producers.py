"""`plant producers`: what each producer may send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from operations.cli.groups import CommandGroup
from operations.cli.listing import Output, output_option, show
from operations.cli.policy_options import BURST, DEFAULT, RATE, EventTypes
from operations.operator_actions import OperatorAction, actor_option, reason_option, record, with_facts

if TYPE_CHECKING:
    from ingress.producers import PolicyChanges, ProducerStore, StoredProducer
    from runtime.settings import Settings


@click.group(name="producers", cls=CommandGroup)
def command() -> None:
    """Say what each producer may send."""


@command.command(name="list")
@output_option
def list_producers(output: Output) -> None:
    """List every producer that has a key or a policy.

    \b
    Examples:
      plant producers list
      plant producers list --output json
    """
    from runtime.settings import load_settings

    settings = load_settings()

    async def read() -> list[StoredProducer]:
        async with _store(settings) as store:
            return await store.all()

    producers = asyncio.run(read())
    columns = ["name", "state", "event_types", "rate", "burst", "binary_mode", "active_keys"]
    rows = [_for_people(each) if output == "table" else _shown(each) for each in producers]
    show(rows, output, columns=columns)
    if not rows:
        click.echo("There are no producers: none has a key or a policy.", err=True)


@command.command(name="show")
@click.argument("name")
@output_option
def show_producer(name: str, output: Output) -> None:
    """Show what producer NAME may send, and its keys without their secrets.

    \b
    Examples:
      plant producers show genesis
      plant producers show genesis --output json
    """
    from operations.cli.key_listing import key_fields, show_keys
    from operations.cli.keys import read_keys
    from runtime.settings import load_settings

    settings = load_settings()

    async def read() -> StoredProducer:
        async with _store(settings) as store:
            return await store.find(name)

    producer = asyncio.run(read())
    keys, now = read_keys(settings, name), datetime.now(UTC)
    if output != "table":
        show([{**_shown(producer), "keys": [key_fields(key, now) for key in keys]}], output)
        return
    fields = _for_people(producer).items()
    show([{"field": field.replace("_", " "), "value": value} for field, value in fields], output)
    if keys:
        click.echo()
    show_keys(keys, output, now)


@command.command(name="set")
@click.argument("name")
@click.option("--event-types", type=EventTypes(), metavar="TYPE,…|all", help="The only event types it may send.")
@click.option("--rate", type=RATE, metavar="N|default", help="Events a second, each process.")
@click.option("--burst", type=BURST, metavar="N|default", help="Events at once, before the rate.")
@click.option(
    "--binary-mode/--no-binary-mode",
    default=None,
    help="Whether it may send binary CloudEvents, whose type and time are not signed.",
)
@actor_option
@reason_option("A producer's limits are changed.")
def set_policy(
    name: str,
    event_types: frozenset[str] | None,
    rate: float | str | None,
    burst: int | str | None,
    binary_mode: bool | None,
    actor: str,
    reason: str,
) -> None:
    """Change what producer NAME may send; what is not named stays. Ingress applies it within about a second.

    \b
    Examples:
      plant producers set genesis \\
        --event-types genesis.agent.rated,genesis.agent.available
      plant producers set genesis --rate 500 --burst 2000
      plant producers set genesis --event-types all --rate default
      plant producers set genesis --binary-mode
    """
    from ingress.keys import check_producer_name
    from ingress.producers import PolicyChanges
    from runtime.settings import load_settings

    settings = load_settings()
    check_producer_name(name)
    changes, facts = PolicyChanges(), []
    if event_types is not None:
        changes.event_types = event_types or None
        facts.append(f"event types {','.join(sorted(event_types)) or 'all'}")
    if rate is not None:
        changes.rate_per_second = None if isinstance(rate, str) else rate
        facts.append(f"rate {rate}")
    if burst is not None:
        changes.burst = None if isinstance(burst, str) else burst
        facts.append(f"burst {burst}")
    if binary_mode is not None:
        changes.binary_mode = binary_mode
        facts.append(f"binary mode {'on' if binary_mode else 'off'}")
    if not facts:
        raise click.UsageError("Say what to change: --event-types, --rate, --burst or --binary-mode.")
    asyncio.run(_set(settings, name, changes, with_facts(reason, facts), actor))
    click.echo(f"{name}: {'; '.join(facts)}", err=True)


@command.command()
@click.argument("name")
@click.option("--execute", is_flag=True, help="Do it; without this the plan is printed.")
@actor_option
@reason_option("The producer is to send nothing for now.")
def disable(name: str, execute: bool, actor: str, reason: str) -> None:
    """Let producer NAME send nothing, whatever its keys, until it is enabled.

    \b
    Examples:
      plant producers disable genesis
      plant producers disable genesis --execute --reason "it sends nonsense"
    """
    from runtime.settings import load_settings

    click.echo(asyncio.run(_switch(load_settings(), name, False, execute, actor, reason)), err=True)


@command.command()
@click.argument("name")
@actor_option
@reason_option("The producer may send again.")
def enable(name: str, actor: str, reason: str) -> None:
    """Let producer NAME send again.

    \b
    Examples:
      plant producers enable genesis
    """
    from runtime.settings import load_settings

    click.echo(asyncio.run(_switch(load_settings(), name, True, True, actor, reason)), err=True)


@command.command()
@click.argument("name")
@click.option("--execute", is_flag=True, help="Do it; without this the plan is printed.")
@actor_option
@reason_option("The producer is no longer needed.")
def delete(name: str, execute: bool, actor: str, reason: str) -> None:
    """Delete the policy of producer NAME. Refused while a key of it is active, or will be; keys are kept permanently.

    \b
    Examples:
      plant producers delete genesis
      plant producers delete genesis --execute --reason "it was replaced"
    """
    from runtime.settings import load_settings

    click.echo(asyncio.run(_delete(load_settings(), name, execute, actor, reason)), err=True)


async def _set(settings: Settings, name: str, changes: PolicyChanges, reason: str, actor: str) -> None:
    async with _store(settings) as store:
        await store.all()  # the database must answer before the action is recorded
        await record(settings, OperatorAction(action="producers.set", target=name, reason=reason, actor=actor))
        await store.set(name, changes)


async def _switch(settings: Settings, name: str, on: bool, execute: bool, actor: str, reason: str) -> str:
    verb = "enable" if on else "disable"
    async with _store(settings) as store:
        producer = await store.find(name)
        if on == (producer.disabled_at is None):
            return f"{name} is {verb}d; nothing to do"
        if not execute:
            return f"would {verb} {name}, which has {producer.active_keys} active keys; add --execute to do it"
        await record(settings, OperatorAction(action=f"producers.{verb}", target=name, reason=reason, actor=actor))
        await (store.enable(name) if on else store.disable(name))
        return f"{verb}d {name}"


async def _delete(settings: Settings, name: str, execute: bool, actor: str, reason: str) -> str:
    from ingress.producers import refuse_with_keys

    async with _store(settings) as store:
        producer = await store.find(name)
        refuse_with_keys(producer)
        if producer.created_at is None:
            return f"{name} has no policy, and its keys are kept permanently; nothing to do"
        policy = _for_people(producer)
        names = ("state", "event_types", "rate", "burst", "binary_mode")
        facts = [f"{field.replace('_', ' ')} {policy[field]}" for field in names]
        if not execute:
            return f"would delete {name} ({'; '.join(facts)}); a key that it gets later has the defaults; add --execute"
        why = with_facts(reason, facts)
        await record(settings, OperatorAction(action="producers.delete", target=name, reason=why, actor=actor))
        await store.delete(name)
        return f"deleted {name}"


@asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[ProducerStore]:
    from database.connector import connect
    from ingress.producers import ProducerStore

    database = connect(settings, "operator")
    try:
        yield ProducerStore(database)
    finally:
        await database.close()


def _shown(producer: StoredProducer) -> dict[str, object]:
    return {
        "name": producer.name,
        "state": "enabled" if producer.disabled_at is None else "disabled",
        "event_types": producer.event_types,
        "rate_per_second": producer.rate_per_second,
        "burst": producer.burst,
        "binary_mode": producer.binary_mode,
        "active_keys": producer.active_keys,
        "pending_keys": producer.pending_keys,
        "created_at": producer.created_at,
        "disabled_at": producer.disabled_at,
    }


def _for_people(producer: StoredProducer) -> dict[str, object]:
    """Return the same with a word where a policy leaves something to the default."""
    row, types = _shown(producer), producer.event_types
    row["event_types"] = "all" if types is None else ",".join(types)
    row["rate"] = row.pop("rate_per_second")
    return row | {column: DEFAULT for column in ("rate", "burst") if row[column] is None}
