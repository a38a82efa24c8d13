"""Secrets of endpoints as they are stored: encrypted, each bound to its row by its id, its endpoint's and its kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal
from uuid import UUID, uuid4

import msgspec
from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from deliveries import endpoint_rows
from deliveries.endpoint_rows import name_of, secret_row_name
from deliveries.endpoints import EndpointSecrets
from deliveries.signed_request import KEYS_MAX, EndpointKeys
from signing.ed25519 import PrivateKey
from signing.errors import MasterKeyUnusable, SecretUnreadable
from signing.master_key import MasterKey, MasterKeys
from signing.signatures import Scheme

SecretKind = Literal["v1", "v1a", "headers"]


class StoredEndpointKey(msgspec.Struct, frozen=True, kw_only=True):
    """A signing key as it is listed; the public key is of `v1a` keys only."""

    id: UUID
    endpoint_id: UUID
    kind: Scheme
    public_key: bytes | None
    created_at: datetime
    expires_at: datetime | None


async def add_secret(
    connection: AsyncConnection,
    master_key: MasterKey,
    endpoint_id: UUID,
    kind: SecretKind,
    secret: bytes,
    public_key: bytes | None = None,
    secret_id: UUID | None = None,
) -> UUID:
    """Store a secret under an id, a new one where none is given, and return the id."""
    secret_id = secret_id or uuid4()
    nonce, ciphertext = master_key.encrypt(secret, secret_row_name(secret_id, endpoint_id, kind))
    values = {
        "id": secret_id,
        "endpoint_id": endpoint_id,
        "kind": kind,
        "nonce": nonce,
        "ciphertext": ciphertext,
        "public_key": public_key,
    }
    await connection.execute(endpoint_rows.INSERT_SECRET, values)
    return secret_id


async def add_headers(
    connection: AsyncConnection, master_key: MasterKey, endpoint_id: UUID, headers: Sequence[tuple[str, str]]
) -> None:
    """Store the headers of an endpoint that has none."""
    if headers:
        await add_secret(connection, master_key, endpoint_id, "headers", msgspec.json.encode(headers))


def open_secrets(rows: Iterable[RowMapping], master_keys: MasterKeys) -> EndpointSecrets:
    """Return the secrets of an endpoint's rows, the newest first. Raises SecretUnreadable, ValueError for no key."""
    opened = [(row["kind"], master_keys.decrypt(row["nonce"], row["ciphertext"], name_of(row))) for row in rows]
    keys = EndpointKeys(
        secrets=tuple(secret for kind, secret in opened if kind == "v1")[:KEYS_MAX],
        private_keys=tuple(PrivateKey(secret) for kind, secret in opened if kind == "v1a")[:KEYS_MAX],
    )
    headers = [secret for kind, secret in opened if kind == "headers"]
    if not headers:
        return EndpointSecrets(keys)
    return EndpointSecrets(keys, msgspec.json.decode(headers[0], type=tuple[tuple[str, str], ...]))


def try_open_secrets(rows: Sequence[RowMapping], master_keys: MasterKeys) -> EndpointSecrets | None:
    """Return the same; None where there is no key, or one that can't be opened."""
    try:
        return open_secrets(rows, master_keys)
    except (SecretUnreadable, MasterKeyUnusable, ValueError):
        return None
