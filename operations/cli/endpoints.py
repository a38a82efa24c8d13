"""`plant endpoints`: where subscribers get their events."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import click

from operations.cli.endpoint_actions import disable, enable, endpoint_secret_option, pause, remove, resume
from operations.cli.endpoint_examples import test
from operations.cli.endpoint_handshakes import agreement_of, handshake
from operations.cli.endpoint_keys import rotate_key
from operations.cli.groups import CommandGroup
from operations.cli.listing import Output, output_option, show
from operations.operator_actions import OperatorAction, actor_option, reason_option, record, with_facts

if TYPE_CHECKING:
    from deliveries.endpoints import Endpoint, EndpointConfiguration
    from deliveries.redrive.recovery import RecoveryOffer
    from deliveries.stored_secrets import StoredEndpointKey
    from runtime.settings import Settings

COLUMNS = ("id", "state", "event_types", "url", "description")


@click.group(name="endpoints", cls=CommandGroup)
def command() -> None:
    """Manage the endpoints that subscribers get events at."""


for each in (test, pause, resume, disable, enable, rotate_key, handshake, remove):
    command.add_command(each)


@command.command()
@click.argument("url")
@click.option(
    "--event-type",
    "event_types",
    multiple=True,
    required=True,
    metavar="TYPE",
    help="A type, or `genesis.agent.*`, or `*` for every Genesis event; `plant.endpoint.*` for those of endpoints.",
)
@click.option("--filter", "filter_text", default="{}", metavar="JSON", help="Fields of the data and their values.")
@click.option("--description", default="", help="What it is for, in one line.")
@click.option("--headers", "headers_file", metavar="FILE", help="Headers to send with each request, a line each.")
@click.option(
    "--payload",
    "payload_form",
    type=click.Choice(["standard", "cloud_event"]),
    default="standard",
    show_default=True,
    help="Standard Webhooks' body, or a CloudEvent.",
)
@click.option(
    "--ordering",
    type=click.Choice(["none", "per_entity"]),
    default="none",
    show_default=True,
    help="per_entity: while a delivery waits, later ones of its entity wait behind it.",
)
@click.option(
    "--after-dead-letter",
    type=click.Choice(["proceed", "block"]),
    default="proceed",
    show_default=True,
    help="What later events of an entity do behind a dead letter.",
)
@click.option(
    "--retries",
    "retry_schedule",
    type=click.Choice(["short", "long"]),
    default="short",
    show_default=True,
    help="short: five retries within 31 seconds. long: after these over three days.",
)
@click.option(
    "--rate", "rate_per_second", type=click.IntRange(1), help="Most deliveries a second.  [default: no limit]"
)
@click.option(
    "--timeout", "timeout_seconds", type=click.IntRange(1, 15), default=15, show_default=True, help="Seconds."
)
@click.option("--handshake", is_flag=True, help="Ask the receiver first whether it agrees (CloudEvents' webhooks).")
@click.option(
    "--scheme",
    type=click.Choice(["v1", "v1a", "both"]),
    default="v1",
    show_default=True,
    help="v1: a shared secret, HMAC-SHA256. v1a: a key pair of its own, ed25519.",
)
@click.option(
    "--from", "from_text", metavar="WHEN", help="Events from then on: a time or a span (24h).  [default: now]"
)
@click.option("--tenant", default="genesis", show_default=True, help="Whose events it gets.")
@endpoint_secret_option
@actor_option
@reason_option("A subscriber wants events.")
def add(
    url: str,
    event_types: tuple[str, ...],
    filter_text: str,
    headers_file: str | None,
    scheme: Literal["v1", "v1a", "both"],
    from_text: str | None,
    tenant: str,
    output: Literal["secret", "json"],
    actor: str,
    reason: str,
    **choices: Any,
) -> None:
    """Add an endpoint at URL and print its secret, this once.

    Its name is resolved, and its addresses are checked. It gets every event that is published after this has returned.
    A FILE of headers has lines such as `Authorization: Bearer …`, and is kept encrypted; - is stdin.

    \b
    Examples:
      plant endpoints add https://example.com/hooks \\
        --event-type 'genesis.agent.*'
      plant endpoints add https://example.com/hooks \\
        --event-type genesis.agent.rated --filter '{"rating": [4, 5]}'
      plant endpoints add https://example.com/hooks \\
        --event-type '*' --from 24h --ordering per_entity
    """
    from deliveries.endpoint_store import open_endpoint_store
    from deliveries.endpoints import check_endpoint_tenant
    from deliveries.event_filters import parse_event_filter, parse_event_types
    from deliveries.new_endpoints import DELIVERED_TYPES, new_endpoint
    from operations.cli.new_endpoints import read_filter, read_headers, read_start_time, show_new
    from runtime.settings import load_settings

    settings, now = load_settings(), datetime.now(UTC)
    check_endpoint_tenant(tenant)
    filter_fields = read_filter(filter_text)
    parse_event_types(event_types, DELIVERED_TYPES)
    parse_event_filter(filter_fields)
    configuration = {**choices, "event_types": event_types, "filter": filter_fields}
    new = new_endpoint(scheme, read_headers(headers_file))
    at = read_start_time(from_text, now)

    async def act() -> EndpointConfiguration:
        from deliveries.endpoint_starts import read_start
        from deliveries.endpoints import EndpointConfiguration

        checked = EndpointConfiguration(url=await _checked_url(settings, url), **configuration)
        agreement = await agreement_of(settings, checked) if checked.handshake else None
        async with open_endpoint_store(settings) as store:
            await store.refuse_unfit()  # the database must answer before the record
            why = with_facts(reason, new.facts(checked))
            await record(settings, OperatorAction(action="endpoints.add", target=str(new.id), reason=why, actor=actor))
            start = await read_start(settings, at)
            await store.add(new.id, checked, new.secrets, start, tenant=tenant, agreement=agreement)
        return checked

    show_new(new, output, asyncio.run(act()))


@command.command(name="list")
@click.option("--all", "removed", is_flag=True, help="Those that were removed, too.")
@output_option
def list_endpoints(removed: bool, output: Output) -> None:
    """List endpoints, oldest first, without their secrets."""
    from runtime.settings import load_settings

    endpoints, keys = asyncio.run(_read(load_settings()))
    shown = [endpoint for endpoint in endpoints if removed or endpoint.state != "removed"]
    show([fields_of(each, keys, output) for each in shown], output, columns=COLUMNS)
    if not shown:
        click.echo("There are no endpoints.", err=True)


@command.command(name="show")
@click.argument("endpoint_id", metavar="ID", type=click.UUID)
@output_option
def show_endpoint(endpoint_id: UUID, output: Output) -> None:
    """Show all about the endpoint ID but its secrets."""
    from deliveries.endpoint_store import open_endpoint_store
    from operations.cli.delivery_redrives import find_offers, tell_offers
    from operations.cli.endpoint_progress import read_progress
    from runtime.settings import load_settings

    settings = load_settings()

    async def read() -> tuple[dict[str, object], dict[UUID, RecoveryOffer]]:
        async with open_endpoint_store(settings) as store:
            endpoint = await store.find(endpoint_id)
            fields = fields_of(endpoint, await store.keys([endpoint.id]), output)
        return {**fields, **await read_progress(settings, endpoint_id, output)}, await find_offers(
            settings, [endpoint.id]
        )

    fields, offers = asyncio.run(read())
    if output == "table":
        show([{"field": name.replace("_", " "), "value": value} for name, value in fields.items()], output)
    else:
        show([fields], output)
    tell_offers(offers)


def fields_of(endpoint: Endpoint, keys: list[StoredEndpointKey], output: Output) -> dict[str, object]:
    """Return an endpoint as it is printed; a table has texts alone."""
    import msgspec

    from operations.cli.new_endpoints import key_text

    own = [key for key in keys if key.endpoint_id == endpoint.id]
    fields: dict[str, Any] = {
        "id": str(endpoint.id),
        "state": endpoint.state,
        "state_reason": endpoint.state_reason,
        "state_changed_at": endpoint.state_changed_at,
        "tenant": endpoint.tenant,
        **msgspec.structs.asdict(endpoint.configuration),
        "agreed_at": None if endpoint.agreement is None else endpoint.agreement.at,
        "agreed_rate_per_minute": None if endpoint.agreement is None else endpoint.agreement.rate_per_minute,
        "custom_header_names": endpoint.custom_header_names,
        "keys": [
            {"id": key.id, "scheme": key.kind, "expires_at": key.expires_at, "text": key_text(key)} for key in own
        ],
        "start_offsets": endpoint.start.offsets,
        "starts_at": endpoint.start.at,
        "created_at": endpoint.created_at,
    }
    if output == "table":
        fields["event_types"] = " ".join(endpoint.configuration.event_types)
        fields["filter"] = msgspec.json.encode(endpoint.configuration.filter).decode()
        fields["custom_header_names"] = " ".join(endpoint.custom_header_names)
        fields["keys"] = ", ".join(key_text(key) for key in own)
        fields["start_offsets"] = " ".join(map(str, endpoint.start.offsets))
    return fields


async def _read(settings: Settings) -> tuple[list[Endpoint], list[StoredEndpointKey]]:
    from deliveries.endpoint_store import open_endpoint_store

    async with open_endpoint_store(settings) as store:
        endpoints = await store.all()
        return endpoints, await store.keys([endpoint.id for endpoint in endpoints])


async def _checked_url(settings: Settings, url: str) -> str:
    """Return a URL normalised. Raises EndpointRefused, and EndpointUnresolved where its name has no address."""
    from deliveries.errors import EndpointUnresolved
    from deliveries.guard.connections import DeliveryClient

    client = DeliveryClient(settings)
    try:
        return str(await client.check(url))
    except (OSError, TimeoutError) as error:
        raise EndpointUnresolved(why=error.strerror if isinstance(error, OSError) and error.strerror else "") from error
    finally:
        await client.close()
