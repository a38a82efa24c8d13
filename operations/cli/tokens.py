"""`plant tokens`: what readers show to the API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

import click

from operations.cli.groups import CommandGroup
from operations.cli.listing import Output, output_option, show
from operations.cli.moments import read_moment
from operations.operator_actions import OperatorAction, actor_option, reason_option, record, with_facts
from runtime.errors import NothingListed

if TYPE_CHECKING:
    from api.access_tokens import AccessToken
    from api.token_store import TokenStore
    from runtime.settings import Settings

COLUMNS = ("prefix", "name", "state", "scopes", "tenant", "expires_at")


@click.group(name="tokens", cls=CommandGroup)
def command() -> None:
    """Manage the tokens that readers of the API have."""


@command.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    default=["read"],
    show_default=True,
    metavar="SCOPE",
    help="`read`, or `read:` and a resource, such as read:agents; or `endpoints`; repeat for several.",
)
@click.option("--tenant", default="genesis", show_default=True, help="Whose rows the token reads.")
@click.option("--expires", metavar="WHEN", help="Until when: a time (2027-01-31T00:00Z) or a duration (90d, 12h).")
@click.option(
    "--output",
    type=click.Choice(["token", "json"]),
    default="token",
    show_default=True,
    help="The token alone, or one object with all about it.",
)
@actor_option
@reason_option("A reader needs a token.")
def add(
    name: str,
    scopes: tuple[str, ...],
    tenant: str,
    expires: str | None,
    output: Literal["token", "json"],
    actor: str,
    reason: str,
) -> None:
    """Make a token for the reader NAME and print it, this once: only a hash of it is kept.

    \b
    Examples:
      plant tokens add dashboard --expires 90d
      plant tokens add matching --scope read:agents --scope read:skills
      plant tokens add webhooks --scope endpoints
    """
    from api.access_tokens import NAME, check_scopes, check_tenant, new_token
    from api.resources import RESOURCES
    from runtime.settings import load_settings

    settings = load_settings()
    if not NAME.fullmatch(name):
        raise click.BadParameter(
            "1 to 63 of a-z, 0-9, dot, underscore and dash, beginning with a letter or digit", param_hint="NAME"
        )
    checked, tenant = check_scopes(scopes, list(RESOURCES)), check_tenant(tenant)
    expires_at = read_moment("--expires", expires, datetime.now(UTC))
    token, token_id = new_token(), uuid4()

    async def act() -> None:
        async with _store(settings) as store:
            await store.all()  # the database must answer before the record
            facts = [f"scopes {' '.join(checked)}", f"tenant {tenant}"]
            if expires_at is not None:
                facts.append(f"expires {expires_at:%Y-%m-%dT%H:%M:%SZ}")
            target = f"{name}/{token.prefix}"
            why = with_facts(reason, facts)
            await record(settings, OperatorAction(action="tokens.add", target=target, reason=why, actor=actor))
            await store.add(token_id, token, name=name, scopes=checked, tenant=tenant, expires_at=expires_at)

    asyncio.run(act())
    if output == "json":
        import msgspec

        document = {
            "id": str(token_id), "prefix": token.prefix, "name": name, "token": token.text, "scopes": checked,
            "tenant": tenant, "expires_at": expires_at,
        }  # fmt: skip
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return
    click.echo(f"token {token.prefix} of {name}; it is shown only now:", err=True)
    click.echo(token.text)


@command.command(name="list")
@click.option("--name", help="Only this reader's tokens.")
@output_option
def list_tokens(name: str | None, output: Output) -> None:
    """List every token there ever was, by the prefix that its text has behind `plant_`.

    Exit 3 where a reader is named that has none.
    """
    from runtime.settings import load_settings

    settings, now = load_settings(), datetime.now(UTC)

    async def read() -> list[AccessToken]:
        async with _store(settings) as store:
            return await store.all()

    tokens = [token for token in asyncio.run(read()) if name in (None, token.name)]
    show([_fields(token, now, output) for token in tokens], output, columns=COLUMNS)
    if name is not None and not tokens:
        raise NothingListed(why=f"No token is {name}'s.", next_step="plant tokens list")
    if not tokens:
        click.echo("There are no tokens.", err=True)


@command.command()
@click.argument("prefix")
@click.option("--execute", is_flag=True, help="Do it; without this the plan is printed.")
@actor_option
@reason_option("The token is no longer wanted.")
def revoke(prefix: str, execute: bool, actor: str, reason: str) -> None:
    """Revoke the token with PREFIX permanently: the API refuses it within two seconds.

    \b
    Examples:
      plant tokens revoke 3f9a0c51d2e8
      plant tokens revoke 3f9a0c51d2e8 --execute --reason "it got out"
    """
    from runtime.settings import load_settings

    settings = load_settings()

    async def act() -> str:
        async with _store(settings) as store:
            token = await store.find(_prefix_alone(prefix))
            if token.revoked_at is not None:
                return (
                    f"token {token.prefix} of {token.name} was revoked at {token.revoked_at.isoformat()}; nothing to do"
                )
            if not execute:
                return f"would revoke token {token.prefix} of {token.name}; add --execute to do it"
            target = f"{token.name}/{token.prefix}"
            await record(settings, OperatorAction(action="tokens.revoke", target=target, reason=reason, actor=actor))
            await store.revoke(token.id)
            return f"revoked token {token.prefix} of {token.name}"

    click.echo(asyncio.run(act()), err=True)


def _prefix_alone(text: str) -> str:
    """Return the prefix, also of `plant_` and a prefix. Refuses a whole token: other users can read a command line.

    >>> _prefix_alone("plant_3f9a0c51d2e8")
    '3f9a0c51d2e8'
    """
    prefix, separator, _ = text.removeprefix("plant_").partition("_")
    if separator:
        raise click.BadParameter(
            f"give the prefix alone, {prefix}: a whole token stays in the shell's history", param_hint="PREFIX"
        )
    return prefix


def _fields(token: AccessToken, now: datetime, output: Output) -> dict[str, object]:
    return {
        "id": str(token.id),
        "prefix": token.prefix,
        "name": token.name,
        "state": token.state(now),
        "scopes": " ".join(token.scopes) if output == "table" else token.scopes,
        "tenant": token.tenant,
        "created_at": token.created_at,
        "expires_at": token.expires_at,
        "revoked_at": token.revoked_at,
    }


@asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[TokenStore]:
    from api.token_store import TokenStore
    from database.connector import connect

    database = connect(settings, "operator")
    try:
        yield TokenStore(database)
    finally:
        await database.close()
