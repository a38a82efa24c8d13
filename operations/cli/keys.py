"""`plant keys`: the secrets that producers sign their webhooks with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import click

from operations.cli.listing import Output, output_option, show

if TYPE_CHECKING:
    from ingress.keys import KeyStore
    from runtime.settings import Settings


@click.group(name="keys")
def command() -> None:
    """Manage the keys that sign webhooks."""


@command.command()
@click.argument("producer")
@click.option("--expires", metavar="WHEN", help="Until when: a time (2027-01-31T00:00Z) or a span (90d, 12h).")
@click.option("--actor", default="", help="Account that acts.  [default: the system user]")
@click.option("--reason", default="A producer needs a key.", show_default=True, help="Why; kept for ever.")
def add(producer: str, expires: str | None, actor: str, reason: str) -> None:
    """Make a key for PRODUCER and print its secret, this once."""
    from ingress.keys import check_producer_name, new_key_id, new_secret
    from ingress.verification import encode_secret
    from operations.acts import Act, record
    from runtime.settings import load_settings

    settings = load_settings()
    check_producer_name(producer)
    expires_at = _moment(expires, datetime.now(UTC)) if expires else None
    key_id, secret = new_key_id(), new_secret()

    async def act() -> None:
        async with _store(settings) as store:
            await store.all()  # the database must answer before the act is recorded
            await record(settings, Act(action="keys.add", target=f"{producer}/{key_id}", reason=reason, actor=actor))
            await store.add(key_id, producer, secret, expires_at)

    asyncio.run(act())
    click.echo(f"key {key_id} of {producer}; its secret is shown only now:", err=True)
    click.echo(encode_secret(secret))


@command.command(name="list")
@click.option("--producer", help="Only this producer's keys.")
@output_option
def list_keys(producer: str | None, output: Output) -> None:
    """List every key there ever was, without its secret."""
    from runtime.settings import load_settings

    settings = load_settings()

    async def read() -> list[dict[str, object]]:
        now = datetime.now(UTC)
        async with _store(settings) as store:
            return [
                {
                    "id": str(key.id),
                    "producer": key.producer,
                    "state": key.state(now),
                    "created_at": key.created_at,
                    "expires_at": key.expires_at,
                    "revoked_at": key.revoked_at,
                }
                for key in await store.all()
                if producer in (None, key.producer)
            ]

    show(asyncio.run(read()), output)


@command.command()
@click.argument("key_id", metavar="ID", type=click.UUID)
@click.option("--execute", is_flag=True, help="Do it; without this the plan is printed.")
@click.option("--actor", default="", help="Account that acts.  [default: the system user]")
@click.option("--reason", default="The key is no longer wanted.", show_default=True, help="Why; kept for ever.")
def revoke(key_id: UUID, execute: bool, actor: str, reason: str) -> None:
    """Take key ID back for ever: ingress refuses it within about a second."""
    from operations.acts import Act, record
    from runtime.settings import load_settings

    settings = load_settings()

    async def act() -> str:
        async with _store(settings) as store:
            key = await store.find(key_id)
            if key.revoked_at is not None:
                return f"key {key_id} of {key.producer} was revoked at {key.revoked_at.isoformat()}; nothing to do"
            if not execute:
                return f"would revoke key {key_id} of {key.producer}; add --execute to do it"
            target = f"{key.producer}/{key_id}"
            await record(settings, Act(action="keys.revoke", target=target, reason=reason, actor=actor))
            await store.revoke(key_id)
            return f"revoked key {key_id} of {key.producer}"

    click.echo(asyncio.run(act()), err=True)


@asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[KeyStore]:
    from database.connector import connect
    from ingress.keys import KeyStore, MasterKey

    database = connect(settings, "api")
    try:
        yield KeyStore(database, MasterKey(settings))
    finally:
        await database.close()


def _moment(given: str, now: datetime) -> datetime:
    """A point in time to come, from a time or a span."""
    spans = {"d": "days", "h": "hours", "m": "minutes"}
    try:
        if given[-1:] in spans and given[:-1].isdigit():
            moment = now + timedelta(**{spans[given[-1]]: int(given[:-1])})
        else:
            moment = datetime.fromisoformat(given)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{given!r} is neither a time nor a span", param_hint="--expires") from None
    if moment.tzinfo is None:
        raise click.BadParameter("say the time zone, such as 2027-01-31T00:00Z", param_hint="--expires")
    if moment <= now:
        raise click.BadParameter("that has passed", param_hint="--expires")
    return moment
