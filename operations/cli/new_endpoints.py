"""A new endpoint: its secrets, what is recorded of it, and what is shown once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec

from deliveries.endpoints import EndpointConfiguration
from deliveries.errors import CustomHeadersRefused
from deliveries.guard.custom_headers import HEADERS_MAX_BYTES, check_custom_headers
from signing.ed25519 import encode_public_key
from streams.start import parse_start

if TYPE_CHECKING:
    from deliveries.new_endpoints import NewEndpoint
    from deliveries.stored_secrets import StoredEndpointKey


def show_new(new: NewEndpoint, output: Literal["secret", "json"], configuration: EndpointConfiguration) -> None:
    """Print what the subscriber needs to verify requests: the secret, the public key, or both."""
    if output == "json":
        document = {
            "id": str(new.id),
            "secret": new.shown_secret,
            "public_key": new.shown_public_key,
            **msgspec.structs.asdict(configuration),
        }
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return
    shown = " its secret is shown only now:" if new.shown_secret else " its requests verify with the public key:"
    click.echo(f"endpoint {new.id};{shown}", err=True)
    for text in (new.shown_secret, new.shown_public_key):
        if text is not None:
            click.echo(text)


def read_headers(file: str | None) -> tuple[tuple[str, str], ...]:
    """Return the headers of a file, a line each; `-` is stdin. Raises CustomHeadersRefused, which shows no value."""
    if file is None:
        return ()
    with click.open_file(file, "rb") as opened:
        text = opened.read(HEADERS_MAX_BYTES + 1)
    if len(text) > HEADERS_MAX_BYTES:
        raise CustomHeadersRefused(why=f"The file has more than {HEADERS_MAX_BYTES} bytes.")
    headers = []
    for number, line in enumerate(text.decode("latin-1").splitlines(), start=1):
        name, colon, value = line.partition(":")
        if not colon and line.strip():
            raise CustomHeadersRefused(why=f"Line {number} of the file is no header: write Name: value.")
        if colon:
            headers.append((name, value.strip(" \t")))
    return check_custom_headers(headers)


def read_filter(text: str) -> dict[str, Any]:
    """Return the object of a filter's JSON. Raises click's BadParameter."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        why = 'it is no JSON object, such as {"rating": [4, 5]}'
        raise click.BadParameter(why, param_hint="--filter") from error


def read_start_time(text: str | None, now: datetime) -> datetime | None:
    """Return the time from which events are wanted, None for now. Raises click's BadParameter, UnknownStart."""
    if text is None:
        return None
    start = parse_start(text, now)
    if start == "earliest":
        return datetime(1970, 1, 1, tzinfo=UTC)
    if not isinstance(start, datetime) or start > now:
        raise click.BadParameter("give a time in the past, or a span such as 24h", param_hint="--from")
    return start


def key_text(key: StoredEndpointKey) -> str:
    """Return a key as it is listed: its scheme, the public half where there is one, and until when it signs."""
    public = f" {encode_public_key(key.public_key)}" if key.public_key is not None else ""
    until = f" until {key.expires_at:%Y-%m-%dT%H:%M:%SZ}" if key.expires_at is not None else ""
    return f"{key.kind}{public}{until}"
