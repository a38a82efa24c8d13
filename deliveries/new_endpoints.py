"""What is made for a new endpoint, and by a rotation: keys of random bytes, shown once."""

from __future__ import annotations

from typing import Final, Literal, assert_never
from urllib.parse import urlsplit

import msgspec

from deliveries.endpoints import EndpointConfiguration, EndpointId, EndpointSecrets, new_endpoint_id
from deliveries.signed_request import EndpointKeys
from schemas.endpoint_events import ENDPOINT_EVENT_TYPES
from schemas.events import EVENT_TYPES
from signing.ed25519 import encode_public_key, new_private_key
from signing.hmac_secrets import encode_secret, new_secret
from signing.signatures import Scheme

SchemeChoice = Literal["v1", "v1a", "both"]

DELIVERED_TYPES: Final = (*(name for name in EVENT_TYPES if name.startswith("genesis.")), *ENDPOINT_EVENT_TYPES)


class NewEndpoint(msgspec.Struct, frozen=True):
    """An endpoint's id, and the secrets that were made for it."""

    id: EndpointId
    secrets: EndpointSecrets

    @property
    def shown_secret(self) -> str | None:
        """The secret of `v1` as its subscriber gets it."""
        return next((encode_secret(secret) for secret in self.secrets.keys.secrets), None)

    @property
    def shown_public_key(self) -> str | None:
        """The public key of `v1a` as its subscriber gets it."""
        return next((encode_public_key(key.public_key) for key in self.secrets.keys.private_keys), None)

    def facts(self, configuration: EndpointConfiguration) -> list[str]:
        """Return what is recorded permanently: the host, since a path or a query may hold a token."""
        facts = [f"host {urlsplit(configuration.url).hostname}", f"types {' '.join(configuration.event_types)}"]
        return facts + [f"public key {encode_public_key(key.public_key)}" for key in self.secrets.keys.private_keys]


class NewEndpointKey(msgspec.Struct, frozen=True):
    """A key of a rotation: what is stored, and what its subscriber gets: the secret, or the public key."""

    secret: bytes
    public_key: bytes | None

    @property
    def shown(self) -> str:
        """The text that a subscriber verifies with."""
        return encode_secret(self.secret) if self.public_key is None else encode_public_key(self.public_key)

    def __repr__(self) -> str:
        return "NewEndpointKey()" if self.public_key is None else f"NewEndpointKey({self.shown!r})"


def new_endpoint(
    scheme: SchemeChoice, headers: tuple[tuple[str, str], ...], endpoint_id: EndpointId | None = None
) -> NewEndpoint:
    """Make keys of random bytes, and an id unless there is one."""
    keys = EndpointKeys(
        secrets=() if scheme == "v1a" else (new_secret(),),
        private_keys=() if scheme == "v1" else (new_private_key(),),
    )
    return NewEndpoint(endpoint_id or new_endpoint_id(), EndpointSecrets(keys, headers))


def new_endpoint_key(scheme: Scheme) -> NewEndpointKey:
    """Make a key of random bytes."""
    match scheme:
        case "v1":
            return NewEndpointKey(new_secret(), None)
        case "v1a":
            pair = new_private_key()
            return NewEndpointKey(pair.seed, pair.public_key)
        case _:
            assert_never(scheme)
