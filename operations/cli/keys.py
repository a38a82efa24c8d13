"""`plant keys`: what producers sign their webhooks with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal
from uuid import UUID

import click

from operations.cli.groups import CommandGroup
from operations.cli.key_listing import key_fields, show_keys
from operations.cli.listing import Output, output_option
from operations.cli.master_key import rekey
from operations.cli.moments import read_moment, read_span
from operations.operator_actions import OperatorAction, actor_option, reason_option, record, with_facts
from runtime.errors import NothingListed

if TYPE_CHECKING:
    from ingress.key_rows import StoredKey
    from ingress.keys import KeyStore
    from operations.cli.new_keys import NewKey
    from runtime.settings import Settings
    from signing.signatures import Scheme

OVERLAP_MAX = timedelta(days=366)

public_key_option = click.option(
    "--public-key", metavar="whpk_…", help="The producer's own public key; the private one stays with the producer."
)
secret_option = click.option(
    "--output",
    type=click.Choice(["secret", "json"]),
    default="secret",
    show_default=True,
    help="The secret alone, or one object with all about the key.",
)


@click.group(name="keys", cls=CommandGroup)
def command() -> None:
    """Manage the keys that sign webhooks."""


command.add_command(rekey)


@command.command()
@click.argument("producer")
@click.option(
    "--scheme",
    type=click.Choice(["v1", "v1a"]),
    help="v1: a shared secret, HMAC-SHA256. v1a: a key pair, ed25519.  [default: v1; v1a with --public-key]",
)
@public_key_option
@click.option(
    "--not-before", metavar="WHEN", help="From when on: a time or duration, as with --expires.  [default: now]"
)
@click.option("--expires", metavar="WHEN", help="Until when: a time (2027-01-31T00:00Z) or a duration (90d, 12h).")
@secret_option
@actor_option
@reason_option("A producer needs a key.")
def add(
    producer: str,
    scheme: Scheme | None,
    public_key: str | None,
    not_before: str | None,
    expires: str | None,
    output: Literal["secret", "json"],
    actor: str,
    reason: str,
) -> None:
    """Make a key for PRODUCER and print its secret, this once.

    \b
    Examples:
      plant keys add genesis --expires 90d
      plant keys add genesis --scheme v1a
      plant keys add genesis --public-key \\
        whpk_O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik=
    """
    from ingress.keys import check_producer_name
    from runtime.settings import load_settings

    settings, now = load_settings(), datetime.now(UTC)
    check_producer_name(producer)
    expires_at, begins_at = read_moment("--expires", expires, now), read_moment("--not-before", not_before, now)
    if begins_at is not None and expires_at is not None and expires_at <= begins_at:
        raise click.BadParameter("it would expire before it begins", param_hint="--expires")
    new = _new_key(producer, scheme, public_key)

    async def act() -> None:
        async with _store(settings) as store:
            await store.refuse_unfit(producer, new.stored, new.scheme)  # the database must answer before the record
            why = with_facts(reason, new.facts())
            await record(settings, OperatorAction(action="keys.add", target=new.target, reason=why, actor=actor))
            await store.add(new.id, producer, new.stored, expires_at, scheme=new.scheme, not_before=begins_at)

    asyncio.run(act())
    new.show(output, expires_at=expires_at)


@command.command()
@click.argument("producer")
@click.option("--overlap", default="24h", show_default=True, metavar="SPAN", help="How long the old keys still work.")
@click.option(
    "--scheme",
    type=click.Choice(["v1", "v1a"]),
    help="Which of the producer's keys to change.  [default: that of its active keys, if they have one]",
)
@public_key_option
@click.option("--expires", metavar="WHEN", help="Until when the new key works, as with `plant keys add`.")
@click.option("--execute", is_flag=True, help="Do it; without this the plan is printed.")
@secret_option
@actor_option
@reason_option("Keys are rotated regularly.")
def rotate(
    producer: str,
    overlap: str,
    scheme: Scheme | None,
    public_key: str | None,
    expires: str | None,
    execute: bool,
    output: Literal["secret", "json"],
    actor: str,
    reason: str,
) -> None:
    """Make PRODUCER a new key, print its secret once, and let the old ones expire after an overlap.

    \b
    Examples:
      plant keys rotate genesis
      plant keys rotate genesis --overlap 2h --execute
      plant keys rotate genesis --scheme v1a --overlap 7d --execute --output json
    """
    from ingress.keys import check_producer_name
    from runtime.settings import load_settings

    settings, now = load_settings(), datetime.now(UTC)
    check_producer_name(producer)
    window, expires_at = read_span("--overlap", overlap), read_moment("--expires", expires, now)
    if window > OVERLAP_MAX:
        raise click.BadParameter(f"at most {OVERLAP_MAX.days}d", param_hint="--overlap")
    if public_key is not None:
        if scheme == "v1":
            raise click.UsageError("A public key is of scheme v1a.")
        scheme = "v1a"

    async def act() -> None:
        async with _store(settings) as store:
            old = await _active(store, producer, scheme)
            new = _new_key(producer, old[0].scheme, public_key)
            await store.refuse_unfit(producer, new.stored, new.scheme)
            ends = ", ".join(str(key.id) for key in old)
            if not execute:
                plan = f"would make {producer} a new {new.scheme} key, and let these expire in {overlap} at the latest:"
                click.echo(f"{plan} {ends}; add --execute to do it", err=True)
                return
            why = with_facts(reason, [*new.facts(), f"overlap {overlap}", f"ends {ends}"])
            await record(settings, OperatorAction(action="keys.rotate", target=new.target, reason=why, actor=actor))
            ended = await store.rotate(new.id, producer, new.stored, expires_at, scheme=new.scheme, overlap=window)
            for key in ended:
                click.echo(f"key {key.id} of {producer} expires at {key.expires_at:%Y-%m-%dT%H:%M:%SZ}", err=True)
            new.show(output, expires_at=expires_at, expiring=[key_fields(key, now) for key in ended])

    asyncio.run(act())


@command.command(name="list")
@click.option("--producer", help="Only this producer's keys.")
@output_option
def list_keys(producer: str | None, output: Output) -> None:
    """List every key there ever was, without its secret.

    Exit 3 where a producer is named that has none. A table has the time that the key's state ends, or began; JSON has
    all of its times.
    """
    from runtime.settings import load_settings

    listed = read_keys(load_settings(), producer)
    show_keys(listed, output, datetime.now(UTC))
    if producer is not None and not listed:
        raise NothingListed(why=f"No key is {producer}'s.", next_step="plant keys list")
    if not listed:
        click.echo("There are no keys.", err=True)


@command.command()
@click.argument("key_id", metavar="ID", type=click.UUID)
@click.option("--execute", is_flag=True, help="Do it; without this the plan is printed.")
@actor_option
@reason_option("The key is no longer wanted.")
def revoke(key_id: UUID, execute: bool, actor: str, reason: str) -> None:
    """Revoke key ID permanently: ingress refuses it within about a second.

    \b
    Examples:
      plant keys revoke 18fc4262-74cb-426e-acee-7c95908b01c1
      plant keys revoke 18fc4262-74cb-426e-acee-7c95908b01c1 --execute \\
        --reason "it got out"
    """
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
            await record(settings, OperatorAction(action="keys.revoke", target=target, reason=reason, actor=actor))
            await store.revoke(key_id)
            return f"revoked key {key_id} of {key.producer}"

    click.echo(asyncio.run(act()), err=True)


@asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[KeyStore]:
    from database.connector import connect
    from ingress.keys import KeyStore
    from signing.master_key import MasterKeys

    database = connect(settings, "operator")
    try:
        yield KeyStore(database, MasterKeys(settings))
    finally:
        await database.close()


def _new_key(producer: str, scheme: Scheme | None, public_key: str | None) -> NewKey:
    from operations.cli.new_keys import new_key

    try:
        return new_key(producer, scheme, public_key)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--public-key") from None


async def _active(store: KeyStore, producer: str, scheme: Scheme | None) -> list[StoredKey]:
    """Return the keys that a new one replaces: all of one scheme. Raises NoKeyToRotate."""
    from ingress.errors import NoKeyToRotate

    now = datetime.now(UTC)
    active = [key for key in await store.all() if key.producer == producer and key.state(now) == "active"]
    if scheme is None and len({key.scheme for key in active}) > 1:
        raise click.UsageError(f"{producer} has active keys of both schemes; say which with --scheme.")
    replaced = [key for key in active if scheme in (None, key.scheme)]
    if not replaced:
        raise NoKeyToRotate(
            f"{producer} has no active {f'{scheme} ' if scheme else ''}key.",
            why=NoKeyToRotate.__doc__ or "",
            next_step=f"plant keys add {producer}{f' --scheme {scheme}' if scheme else ''}",
        )
    return replaced


def read_keys(settings: Settings, producer: str | None = None) -> list[StoredKey]:
    """Return all keys, or one producer's, by producer, oldest first."""

    async def read() -> list[StoredKey]:
        async with _store(settings) as store:
            return await store.all()

    return [key for key in asyncio.run(read()) if producer in (None, key.producer)]
