"""A new key: what is stored of it, what is recorded, and what is shown once."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from uuid import UUID

import click
import msgspec

from ingress.keys import new_key_id
from signing.ed25519 import decode_public_key, encode_private_key, encode_public_key, new_private_key
from signing.hmac_secrets import encode_secret, new_secret
from signing.signatures import Scheme


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """`stored` is the secret (v1) or the public key (v1a); `secret` is what the producer gets, None if it has it."""

    id: UUID
    producer: str
    scheme: Scheme
    stored: bytes
    secret: str | None

    @property
    def target(self) -> str:
        """The target of the operator action that makes the key."""
        return f"{self.producer}/{self.id}"

    @property
    def public_key(self) -> str | None:
        """The public key in its `whpk_…` form, of a v1a key only."""
        return encode_public_key(self.stored) if self.scheme == "v1a" else None

    def facts(self) -> list[str]:
        """Return the facts that are recorded next to the reason."""
        return [] if self.public_key is None else [f"public key {self.public_key}"]

    def show(self, output: Literal["secret", "json"], **more: datetime | object) -> None:
        """Print the secret to stdout, or everything as JSON."""
        if output == "json":
            document = {
                "id": str(self.id),
                "producer": self.producer,
                "scheme": self.scheme,
                "secret": self.secret,
                "public_key": self.public_key,
                **more,
            }
            click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
            return
        line = f"key {self.id} of {self.producer}"
        if self.public_key is not None:
            line += f", public key {self.public_key}"
        if self.secret is None:
            click.echo(line, err=True)
        else:
            click.echo(f"{line}; its secret is shown only now:", err=True)
            click.echo(self.secret)


def new_key(producer: str, scheme: Scheme | None, public_key: str | None) -> NewKey:
    """Make a key of random bytes, or of a producer's own public key. Raises ValueError where that is not one."""
    key_id = new_key_id()
    if public_key is not None:
        if scheme == "v1":
            raise ValueError("a public key is of scheme v1a")
        return NewKey(id=key_id, producer=producer, scheme="v1a", stored=decode_public_key(public_key), secret=None)
    if scheme == "v1a":
        pair = new_private_key()
        return NewKey(
            id=key_id, producer=producer, scheme="v1a", stored=pair.public_key, secret=encode_private_key(pair)
        )
    secret = new_secret()
    return NewKey(id=key_id, producer=producer, scheme="v1", stored=secret, secret=encode_secret(secret))
