"""A new endpoint: its secrets, what is recorded of it, and what is shown once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

import click
import msgspec

from deliveries.custom_headers import HEADERS_MAX_BYTES, check_custom_headers
from deliveries.endpoints import EndpointConfiguration, EndpointId, EndpointSecrets, new_endpoint_id
from deliveries.errors import CustomHeadersRefused
from deliveries.signed_request import EndpointKeys
from schemas.events import EVENT_TYPES
from signing.ed25519 import encode_public_key, new_private_key
from signing.hmac_secrets import encode_secret, new_secret
from streams.start import parse_start

if TYPE_CHECKING:
    from deliveries.endpoint_store import StoredEndpointKey


DELIVERED_TYPES: Final = tuple(name for name in EVENT_TYPES if name.startswith("genesis."))


class NewEndpoint(msgspec.Struct, frozen=True):
    """An endpoint's id, and the secrets that were made for it."""

    id: EndpointId
    secrets: EndpointSecrets

    def facts(self, configuration: EndpointConfiguration) -> list[str]:
        """Return what is recorded permanently: the host, since a path or a query may hold a token."""
        facts = [f"host {urlsplit(configuration.url).hostname}", f"types {' '.join(configuration.event_types)}"]
        return facts + [f"public key {encode_public_key(key.public_key)}" for key in self.secrets.keys.private_keys]

    def show(self, output: Literal["secret", "json"], configuration: EndpointConfiguration) -> None:
        """Print what the subscriber needs to verify requests: the secret, the public key, or both."""
        secrets = [encode_secret(secret) for secret in self.secrets.keys.secrets]
        public_keys = [encode_public_key(key.public_key) for key in self.secrets.keys.private_keys]
        if output == "json":
            document = {
                "id": str(self.id),
                "secret": next(iter(secrets), None),
                "public_key": next(iter(public_keys), None),
                **msgspec.structs.asdict(configuration),
            }
            click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
            return
        shown = " its secret is shown only now:" if secrets else " its requests verify with the public key:"
        click.echo(f"endpoint {self.id};{shown}", err=True)
        for text in (*secrets, *public_keys):
            click.echo(text)


def new_endpoint(scheme: Literal["v1", "v1a", "both"], headers: tuple[tuple[str, str], ...]) -> NewEndpoint:
    """Make an id and keys of random bytes."""
    keys = EndpointKeys(
        secrets=() if scheme == "v1a" else (new_secret(),),
        private_keys=() if scheme == "v1" else (new_private_key(),),
    )
    return NewEndpoint(new_endpoint_id(), EndpointSecrets(keys, headers))


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
