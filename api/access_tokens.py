"""Access tokens: who may read what. Only a hash of each is kept.

A token is `plant_`, a prefix of 12 hex digits that is stored with it, `_`, and 32 random bytes in base64url without
padding. The hash is SHA-256 of the random bytes: they have 256 bits of entropy, so nothing slower is needed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from api.errors import UnknownScope, UnreadableTenant
from entities.vocabulary import DEFAULT_TENANT

READ_ALL: Final = "read"
"""The scope of everything that can be read, also of what comes later."""
ENDPOINTS_SCOPE: Final = "endpoints"
"""The scope that changes endpoints and reads their deliveries. No other scope covers it, and it covers no other."""
SECRET_BYTES: Final = 32
PREFIX_BYTES: Final = 6
NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

_TOKEN: Final = re.compile(r"plant_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


class AccessToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token as it is stored: everything but its secret."""

    id: UUID
    prefix: str
    name: str
    secret_hash: bytes
    scopes: tuple[str, ...]
    tenant: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    def state(self, now: datetime) -> str:
        """Return active, expired or revoked."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"

    def may(self, resource: str) -> bool:
        """Return whether a scope of the token covers a resource."""
        return READ_ALL in self.scopes or f"{READ_ALL}:{resource}" in self.scopes

    def may_change_endpoints(self) -> bool:
        """Return whether the token is for endpoints and their deliveries."""
        return ENDPOINTS_SCOPE in self.scopes

    def __repr__(self) -> str:
        return f"AccessToken(prefix={self.prefix!r}, name={self.name!r})"


class NewToken(msgspec.Struct, frozen=True):
    """A token that was just made: its text is shown once, its prefix and hash are kept."""

    text: str
    prefix: str
    secret_hash: bytes

    def __repr__(self) -> str:
        return f"NewToken(prefix={self.prefix!r})"


def new_token() -> NewToken:
    """Make a token of random bytes."""
    prefix, secret = secrets.token_hex(PREFIX_BYTES), secrets.token_bytes(SECRET_BYTES)
    return NewToken(f"plant_{prefix}_{_encoded(secret)}", prefix, hash_of(secret))


def read_token(text: str) -> tuple[str, bytes] | None:
    """Return the prefix and the hash of a token's text; None where it is no token.

    >>> read_token("plant_0123456789ab_" + "A" * 43)[0]
    '0123456789ab'
    >>> read_token("plant_0123456789ab_" + "A" * 42 + "B") is None
    True
    """
    parts = _TOKEN.fullmatch(text)
    if parts is None:
        return None
    try:
        secret = base64.urlsafe_b64decode(parts[2] + "=")
    except binascii.Error:
        return None
    # The last character has two bits too many: of the texts that mean the same bytes one is a token.
    return (parts[1], hash_of(secret)) if _encoded(secret) == parts[2] else None


def hash_of(secret: bytes) -> bytes:
    """Return the hash that is kept of a token's random bytes."""
    return hashlib.sha256(secret).digest()


def is_same(left: bytes, right: bytes) -> bool:
    """Return whether two hashes are equal, in a time that does not depend on where they differ."""
    return hmac.compare_digest(left, right)


def check_scopes(given: Sequence[str], resources: Sequence[str]) -> tuple[str, ...]:
    """Return the scopes, sorted and each once. Raises UnknownScope.

    >>> check_scopes(["read:skills", "read:agents", "read:agents"], ["agents", "skills"])
    ('read:agents', 'read:skills')
    """
    known = [READ_ALL, *(f"{READ_ALL}:{name}" for name in resources), ENDPOINTS_SCOPE]
    for scope in given:
        if scope not in known:
            raise UnknownScope(
                f"There is no scope {scope!r}.",
                why=f"Known are {', '.join(known)}.",
                next_step="plant tokens add NAME --scope read",
            )
    return tuple(sorted(set(given)))


def check_tenant(tenant: str) -> str:
    """Return the tenant, if its rows can be read. Raises UnreadableTenant."""
    if tenant != DEFAULT_TENANT:
        raise UnreadableTenant(
            f"A token of the tenant {tenant!r} can't be added.",
            why=f"Events carry no tenant: all that is folded from them belongs to {DEFAULT_TENANT!r}, so this token "
            "would read nothing (docs/decisions/0030-tokens-of-the-default-tenant.md).",
            next_step=f"plant tokens add NAME --tenant {DEFAULT_TENANT}",
        )
    return tenant


def _encoded(secret: bytes) -> str:
    return base64.urlsafe_b64encode(secret).rstrip(b"=").decode("ascii")
