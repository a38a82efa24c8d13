"""A producer's own key, from a file or the environment: never from the command line, which other users can read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from runtime.errors import ConfigurationError
from signing.ed25519 import PRIVATE_PREFIX, PUBLIC_PREFIX, PrivateKey, decode_private_key
from signing.hmac_secrets import SECRET_PREFIX, decode_secret
from signing.signatures import Ed25519Key, HmacKey, Key, Scheme, sign

SECRET_VARIABLE: Final = "PLANT_WEBHOOK_SECRET"  # noqa: S105 (a variable's name)
FILE_MAX_BYTES: Final = 4096
PREFIXES: Final = (SECRET_PREFIX, PRIVATE_PREFIX, PUBLIC_PREFIX)


class SigningKeyUnusable(ConfigurationError):
    """There is no key to sign with, or its text is none."""


class SharedSecret(msgspec.Struct, frozen=True):
    """The secret of an HMAC key. Its repr does not show it."""

    secret: bytes

    def sign(self, message_id: bytes, timestamp: bytes, body: bytes) -> bytes:
        """Return the `v1` signature of a message, as it stands in the `webhook-signature` header."""
        return sign(self.secret, message_id, timestamp, body)

    def __repr__(self) -> str:
        return "SharedSecret()"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return []


SigningKey = SharedSecret | PrivateKey


def scheme_of(key: SigningKey) -> Scheme:
    """Return the scheme of the signatures that a key makes."""
    return "v1" if isinstance(key, SharedSecret) else "v1a"


def verifying(key: SigningKey) -> Key:
    """Return what verifies the signatures of a key."""
    if isinstance(key, SharedSecret):
        return HmacKey(id="given", owner="given", secret=key.secret)
    return Ed25519Key(id="given", owner="given", public_key=key.public_key)


def load_key_text(file: str | None, environ: Mapping[str, str]) -> str:
    """Return the text of a key, without white space around it. Raises SigningKeyUnusable, and OSError for the file."""
    if file is None:
        text = environ.get(SECRET_VARIABLE, "").strip()
        if not text:
            raise SigningKeyUnusable(
                "There is no key to sign with.",
                why=f"{SECRET_VARIABLE} is not set, and no --secret-file was given.",
                next_step=f"export {SECRET_VARIABLE}=$(plant keys add NAME)",
            )
        return text
    if file.startswith(PREFIXES):
        raise SigningKeyUnusable(
            "--secret-file takes the name of a file.",
            why="A key on the command line can be read by other users, and stays in the shell's history.",
            next_step=f"export {SECRET_VARIABLE}=$(cat FILE)",
        )
    with Path(file).open("rb") as opened:
        content = opened.read(FILE_MAX_BYTES + 1)
    try:
        if len(content) > FILE_MAX_BYTES:
            raise ValueError
        return content.decode("ascii").strip()
    except ValueError:
        raise SigningKeyUnusable(
            "The file of --secret-file holds no key.", why="A key is one line that starts with whsec_ or whsk_."
        ) from None


def read_signing_key(text: str) -> SigningKey:
    """Return the key of a `whsec_…` or `whsk_…` text. Raises SigningKeyUnusable, which does not repeat it."""
    try:
        if text.startswith(PRIVATE_PREFIX):
            return decode_private_key(text)
        if text.startswith(PUBLIC_PREFIX):
            raise ValueError("a public key can't sign; the private one starts with whsk_")
        return SharedSecret(decode_secret(text))
    except ValueError as error:
        raise SigningKeyUnusable("The key can't be used.", why=f"{error}.".capitalize()) from None
