"""Endpoints and their secrets in the database, as plant_operator.

A secret is stored encrypted (`signing/master_key.py`), with its own id, its endpoint's and its kind as associated data:
moved to another row, it does not decrypt.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID, uuid4

import msgspec
from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from database.connector import Database, connect
from deliveries import endpoint_rows
from deliveries.endpoint_rows import ENDPOINT_SECRETS, endpoint_of, name_of, secret_row_name
from deliveries.endpoints import (
    TRANSITIONS,
    Endpoint,
    EndpointAction,
    EndpointConfiguration,
    EndpointId,
    EndpointSecrets,
    EndpointStart,
    EndpointState,
    check_endpoint_tenant,
)
from deliveries.errors import EndpointStateRefused, TooManyEndpointKeys, UnknownEndpoint
from deliveries.signed_request import KEYS_MAX, EndpointKeys
from runtime.settings import Settings
from signing.ed25519 import PrivateKey
from signing.errors import MasterKeyUnusable, SecretUnreadable
from signing.master_key import MasterKey, MasterKeys
from signing.master_key_rows import encrypting_key
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


class EndpointStore:
    """The tables `endpoints` and `endpoint_secrets`. Whether a URL may be connected to is checked before (`check`)."""

    def __init__(self, database: Database, master_keys: MasterKeys) -> None:
        self._database = database
        self._master_keys = master_keys

    async def refuse_unfit(self) -> None:
        """Raise what `add` would raise of the database and the master key."""
        async with self._database.transaction() as connection:
            await encrypting_key(connection, self._master_keys, ENDPOINT_SECRETS, remember=False)

    async def add(
        self,
        endpoint_id: EndpointId,
        configuration: EndpointConfiguration,
        secrets: EndpointSecrets,
        start: EndpointStart,
        *,
        tenant: str,
    ) -> None:
        """Store an endpoint, active, with its secrets: all or nothing.

        Raises EndpointTenantRefused, MasterKeyUnusable, and OtherMasterKey where the secrets could not be opened.
        """
        values = {
            **endpoint_rows.values_of(configuration),
            "id": endpoint_id,
            "tenant": check_endpoint_tenant(tenant),
            "custom_header_names": [name for name, _ in secrets.custom_headers],
            "start_offsets": list(start.offsets),
            "starts_at": start.at,
        }
        async with self._database.transaction() as connection:
            master_key = await encrypting_key(connection, self._master_keys, ENDPOINT_SECRETS)
            await connection.execute(endpoint_rows.INSERT, values)
            for secret in secrets.keys.secrets:
                await _add_secret(connection, master_key, endpoint_id, "v1", secret)
            for key in secrets.keys.private_keys:
                await _add_secret(connection, master_key, endpoint_id, "v1a", key.seed, key.public_key)
            if secrets.custom_headers:
                await _add_secret(
                    connection, master_key, endpoint_id, "headers", msgspec.json.encode(secrets.custom_headers)
                )

    async def all(self) -> list[Endpoint]:
        """Return every endpoint there ever was, oldest first; those that were removed among them."""
        async with self._database.transaction(read_only=True) as connection:
            return [endpoint_of(row) for row in (await connection.execute(endpoint_rows.ALL)).mappings()]

    async def find(self, endpoint_id: UUID) -> Endpoint:
        """Return one endpoint. Raises UnknownEndpoint."""
        async with self._database.transaction(read_only=True) as connection:
            row = (await connection.execute(endpoint_rows.FIND, {"id": endpoint_id})).mappings().one_or_none()
        if row is None:
            raise _unknown(endpoint_id)
        return endpoint_of(row)

    async def keys(self, endpoint_ids: Sequence[UUID]) -> list[StoredEndpointKey]:
        """Return the keys that endpoints' requests are signed with, the newest of an endpoint and scheme first."""
        async with self._database.transaction(read_only=True) as connection:
            rows = await connection.execute(endpoint_rows.KEYS, {"endpoint_ids": list(endpoint_ids)})
            return [StoredEndpointKey(**row) for row in rows.mappings()]

    async def changed_since(self, since: datetime | None) -> tuple[list[UUID], datetime | None]:
        """Return the endpoints that changed or got a key at a time or later, all for None, and the last such time."""
        async with self._database.transaction(read_only=True) as connection:
            rows = (await connection.execute(endpoint_rows.CHANGED, {"since": since})).all()
        return [row.id for row in rows], max((row.changed_at for row in rows), default=since)

    async def find_many(
        self, endpoint_ids: Sequence[UUID]
    ) -> dict[UUID, tuple[Endpoint, EndpointSecrets | None, datetime | None]]:
        """Return those of the endpoints that there are: each, its secrets, and when the first of its keys expires.

        Secrets are None where there is no key, or one that can't be opened.
        """
        async with self._database.transaction(read_only=True) as connection:
            found = (await connection.execute(endpoint_rows.FIND_MANY, {"ids": list(endpoint_ids)})).mappings().all()
            secrets = await connection.execute(endpoint_rows.SECRETS_OF_MANY, {"ids": list(endpoint_ids)})
            rows: dict[UUID, list[RowMapping]] = {row["id"]: [] for row in found}
            for row in secrets.mappings():
                if row["endpoint_id"] in rows:  # it may have been added in between
                    rows[row["endpoint_id"]].append(row)
        return {
            row["id"]: (
                endpoint_of(row),
                self._try_open(rows[row["id"]]),
                min((each["expires_at"] for each in rows[row["id"]] if each["expires_at"] is not None), default=None),
            )
            for row in found
        }

    async def secrets(self, endpoint_id: UUID) -> EndpointSecrets:
        """Return what an endpoint's requests are made with now. Raises UnknownEndpoint, SecretUnreadable."""
        async with self._database.transaction(read_only=True) as connection:
            rows = await connection.execute(endpoint_rows.SECRETS, {"endpoint_id": endpoint_id})
            return self._open_all(rows.mappings())

    def _try_open(self, rows: Sequence[RowMapping]) -> EndpointSecrets | None:
        try:
            return self._open_all(rows)
        except (SecretUnreadable, MasterKeyUnusable, ValueError):
            return None

    def _open_all(self, rows: Iterable[RowMapping]) -> EndpointSecrets:
        opened = [(row["kind"], row["public_key"], self._open(row)) for row in rows]
        keys = EndpointKeys(
            secrets=tuple(secret for kind, _, secret in opened if kind == "v1")[:KEYS_MAX],
            private_keys=tuple(PrivateKey(secret) for kind, _, secret in opened if kind == "v1a")[:KEYS_MAX],
        )
        headers = [secret for kind, _, secret in opened if kind == "headers"]
        if not headers:
            return EndpointSecrets(keys)
        return EndpointSecrets(keys, msgspec.json.decode(headers[0], type=tuple[tuple[str, str], ...]))

    async def change_state(self, endpoint_id: UUID, action: EndpointAction, reason: str) -> None:
        """Do an action; the secrets of an endpoint that is removed are deleted with it.

        Raises UnknownEndpoint, and EndpointStateRefused where its state does not allow the action.
        """
        states, state = TRANSITIONS[action]
        values = {"id": endpoint_id, "states": sorted(states), "state": state, "reason": reason}
        async with self._database.transaction() as connection:
            if (await connection.execute(endpoint_rows.CHANGE_STATE, values)).rowcount:
                if state == "removed":
                    await connection.execute(endpoint_rows.REMOVE_SECRETS, {"endpoint_id": endpoint_id})
                return
        refuse_action(await self.find(endpoint_id), action)
        raise EndpointStateRefused(why="Its state changed meanwhile.", next_step="plant endpoints list")

    async def rotate(
        self, endpoint_id: UUID, scheme: Scheme, secret: bytes, public_key: bytes | None, overlap: timedelta
    ) -> None:
        """Store a new key of a scheme; the endpoint's other one of it signs too until `overlap` is over.

        Raises UnknownEndpoint, EndpointStateRefused for a removed endpoint, and TooManyEndpointKeys.
        """
        async with self._database.transaction() as connection:
            state = (await connection.execute(endpoint_rows.LOCK, {"id": endpoint_id})).scalar_one_or_none()
            if state is None:
                raise _unknown(endpoint_id)
            rows = await connection.execute(endpoint_rows.KEYS, {"endpoint_ids": [endpoint_id]})
            refuse_rotation(endpoint_id, state, [StoredEndpointKey(**row) for row in rows.mappings()], scheme)
            await connection.execute(endpoint_rows.REMOVE_EXPIRED, {"endpoint_id": endpoint_id})
            master_key = await encrypting_key(connection, self._master_keys, ENDPOINT_SECRETS)
            added = await _add_secret(connection, master_key, endpoint_id, scheme, secret, public_key)
            values = {"endpoint_id": endpoint_id, "kind": scheme, "id": added, "overlap": overlap}
            await connection.execute(endpoint_rows.EXPIRE_OTHERS, values)

    def _open(self, row: RowMapping) -> bytes:
        return self._master_keys.decrypt(row["nonce"], row["ciphertext"], name_of(row))


@asynccontextmanager
async def open_endpoint_store(settings: Settings) -> AsyncIterator[EndpointStore]:
    """Open the store as plant_operator, with the master keys of the settings."""
    database = connect(settings, "operator")
    try:
        yield EndpointStore(database, MasterKeys(settings))
    finally:
        await database.close()


def refuse_action(endpoint: Endpoint, action: EndpointAction) -> None:
    """Raise EndpointStateRefused where the endpoint's state does not allow an action."""
    states, _ = TRANSITIONS[action]
    if endpoint.state not in states:
        raise EndpointStateRefused(
            f"The endpoint {endpoint.id} is {endpoint.state}.",
            why=f"{action} is for endpoints that are {' or '.join(sorted(states))}.",
            next_step=f"plant endpoints show {endpoint.id}",
        )


def refuse_rotation(endpoint_id: UUID, state: EndpointState, keys: Sequence[StoredEndpointKey], scheme: Scheme) -> None:
    """Raise EndpointStateRefused for a removed endpoint, TooManyEndpointKeys for one with two keys of a scheme."""
    if state == "removed":
        raise EndpointStateRefused(f"The endpoint {endpoint_id} is removed.", next_step="plant endpoints add --help")
    ends = [key.expires_at for key in keys if key.kind == scheme and key.expires_at is not None]
    if ends:
        raise TooManyEndpointKeys(
            why=f"The older one signs until {max(ends):%Y-%m-%dT%H:%M:%SZ}.",
            next_step=f"plant endpoints show {endpoint_id}",
        )


async def _add_secret(
    connection: AsyncConnection,
    master_key: MasterKey,
    endpoint_id: UUID,
    kind: SecretKind,
    secret: bytes,
    public_key: bytes | None = None,
) -> UUID:
    secret_id = uuid4()
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


def _unknown(endpoint_id: UUID) -> UnknownEndpoint:
    return UnknownEndpoint(f"There is no endpoint {endpoint_id}.", next_step="plant endpoints list")
