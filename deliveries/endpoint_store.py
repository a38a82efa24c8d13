"""Endpoints and their secrets in the database: as plant_operator, of all tenants, or as plant_endpoints, of one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from database.connector import Database, connect
from database.errors import TooMuchPrivilege
from deliveries import endpoint_rows
from deliveries.endpoint_refusals import is_repeated_rotation, refuse_action, refuse_rotation
from deliveries.endpoint_rows import ENDPOINT_SECRETS, endpoint_of
from deliveries.endpoints import (
    TRANSITIONS,
    Endpoint,
    EndpointAction,
    EndpointConfiguration,
    EndpointId,
    EndpointSecrets,
    EndpointStart,
    EndpointState,
    ReceiverAgreement,
    check_endpoint_tenant,
)
from deliveries.errors import EndpointStateRefused, TooManyEndpoints, UnknownEndpoint
from deliveries.stored_secrets import (
    StoredEndpointKey,
    add_headers,
    add_secret,
    open_secrets,
    try_open_secrets,
)
from runtime.settings import Settings
from signing.master_key import MasterKeys
from signing.master_key_rows import encrypting_key
from signing.signatures import Scheme


class EndpointStore:
    """The tables `endpoints` and `endpoint_secrets`. Whether a URL may be connected to is checked before (`check`)."""

    def __init__(self, database: Database, master_keys: MasterKeys, tenant: str | None = None) -> None:
        """Serve a tenant; without one, all of them, as a role that may."""
        self._database = database
        self._master_keys = master_keys
        self._tenant = tenant

    def _writing(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._database.transaction(self._tenant)

    def _reading(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._database.transaction(self._tenant, read_only=True)

    async def refuse_unfit(self) -> None:
        """Raise what `add` would raise of the database and the master key."""
        async with self._writing() as connection:
            await encrypting_key(connection, self._master_keys, ENDPOINT_SECRETS, remember=False)

    async def add(
        self,
        endpoint_id: EndpointId,
        configuration: EndpointConfiguration,
        secrets: EndpointSecrets,
        start: EndpointStart,
        *,
        tenant: str,
        agreement: ReceiverAgreement | None = None,
        creation_digest: bytes | None = None,
        endpoints_max: int | None = None,
    ) -> None:
        """Store an endpoint, active, with its secrets: all or nothing.

        Raises EndpointTenantRefused, MasterKeyUnusable, OtherMasterKey where the secrets could not be opened,
        ConstraintRefused where there is one of this id, or one with a handshake has no agreement, and TooManyEndpoints
        where the tenant has so many, however many are stored at once.
        """
        values = {
            **endpoint_rows.values_of(configuration),
            "id": endpoint_id,
            "tenant": check_endpoint_tenant(tenant),
            "custom_header_names": [name for name, _ in secrets.custom_headers],
            "start_offsets": list(start.offsets),
            "starts_at": start.at,
            "creation_digest": creation_digest,
            **endpoint_rows.agreement_values(agreement),
        }
        async with self._writing() as connection:
            if endpoints_max is not None:
                await connection.execute(endpoint_rows.ONE_BY_ONE, {"tenant": tenant})
                if (await connection.execute(endpoint_rows.COUNT)).scalar_one() >= endpoints_max:
                    raise TooManyEndpoints
            master_key = await encrypting_key(connection, self._master_keys, ENDPOINT_SECRETS)
            await connection.execute(endpoint_rows.INSERT, values)
            for secret in secrets.keys.secrets:
                await add_secret(connection, master_key, endpoint_id, "v1", secret)
            for key in secrets.keys.private_keys:
                await add_secret(connection, master_key, endpoint_id, "v1a", key.seed, key.public_key)
            await add_headers(connection, master_key, endpoint_id, secrets.custom_headers)

    async def assert_one_tenant(self) -> None:
        """Raise TooMuchPrivilege where this role sees the endpoints or deliveries of every tenant, or could."""
        async with self._reading() as connection:
            why = (await connection.execute(endpoint_rows.SEES_ALL)).scalar_one_or_none()
        if why is not None:
            raise TooMuchPrivilege(
                why=f"{why} A token of one tenant sends it requests.",
                next_step="export PLANT_DATABASE_ENDPOINTS_URL=postgresql://plant_endpoints:…@host/plant",
            )

    async def all(self) -> list[Endpoint]:
        """Return every endpoint there ever was, oldest first; those that were removed among them."""
        async with self._reading() as connection:
            return [endpoint_of(row) for row in (await connection.execute(endpoint_rows.ALL)).mappings()]

    async def page(
        self, after: tuple[datetime, UUID] | None, limit: int, states: Sequence[EndpointState] = ()
    ) -> list[Endpoint]:
        """Return the next endpoints behind one, oldest first: those of some states, or all that were not removed."""
        statement = endpoint_rows.endpoints_page(after=after is not None, states=bool(states))
        values: dict[str, object] = {"limit": limit} | ({"states": list(states)} if states else {})
        if after is not None:
            values |= {"after_time": after[0], "after_id": after[1]}
        async with self._reading() as connection:
            return [endpoint_of(row) for row in (await connection.execute(statement, values)).mappings()]

    async def count(self) -> int:
        """Return how many endpoints there are that were not removed."""
        async with self._reading() as connection:
            number: int = (await connection.execute(endpoint_rows.COUNT)).scalar_one()
        return number

    async def find(self, endpoint_id: UUID) -> Endpoint:
        """Return one endpoint. Raises UnknownEndpoint."""
        async with self._reading() as connection:
            row = (await connection.execute(endpoint_rows.FIND, {"id": endpoint_id})).mappings().one_or_none()
        if row is None:
            raise _unknown(endpoint_id)
        return endpoint_of(row)

    async def keys(self, endpoint_ids: Sequence[UUID]) -> list[StoredEndpointKey]:
        """Return the keys that endpoints' requests are signed with, the newest of an endpoint and scheme first."""
        async with self._reading() as connection:
            rows = await connection.execute(endpoint_rows.KEYS, {"endpoint_ids": list(endpoint_ids)})
            return [StoredEndpointKey(**row) for row in rows.mappings()]

    async def changed_since(self, since: datetime | None) -> dict[UUID, datetime]:
        """Return when endpoints changed or got a key last, of those where that was at a time or later; all for None."""
        async with self._reading() as connection:
            rows = (await connection.execute(endpoint_rows.CHANGED, {"since": since})).all()
        return {row.id: row.changed_at for row in rows}

    async def changes_digest(self, since: datetime | None) -> tuple[int, int | None]:
        """Return what tells whether `changed_since` would return something else than before, in one row."""
        async with self._reading() as connection:
            row = (await connection.execute(endpoint_rows.CHANGES_DIGEST, {"since": since})).one()
        return row[0], row[1]

    async def find_many(
        self, endpoint_ids: Sequence[UUID]
    ) -> dict[UUID, tuple[Endpoint, EndpointSecrets | None, datetime | None]]:
        """Return those of the endpoints that there are: each, its secrets, and when the first of its keys expires.

        Secrets are None where there is no key, or one that can't be opened.
        """
        async with self._reading() as connection:
            found = (await connection.execute(endpoint_rows.FIND_MANY, {"ids": list(endpoint_ids)})).mappings().all()
            secrets = await connection.execute(endpoint_rows.SECRETS_OF_MANY, {"ids": list(endpoint_ids)})
            rows: dict[UUID, list[RowMapping]] = {row["id"]: [] for row in found}
            for row in secrets.mappings():
                if row["endpoint_id"] in rows:  # it may have been added in between
                    rows[row["endpoint_id"]].append(row)
        return {
            row["id"]: (
                endpoint_of(row),
                try_open_secrets(rows[row["id"]], self._master_keys),
                min((each["expires_at"] for each in rows[row["id"]] if each["expires_at"] is not None), default=None),
            )
            for row in found
        }

    async def secrets(self, endpoint_id: UUID) -> EndpointSecrets:
        """Return what an endpoint's requests are made with now. Raises UnknownEndpoint, SecretUnreadable."""
        async with self._reading() as connection:
            rows = await connection.execute(endpoint_rows.SECRETS, {"endpoint_id": endpoint_id})
            return open_secrets(rows.mappings(), self._master_keys)

    async def change_state(
        self, endpoint_id: UUID, action: EndpointAction, reason: str, start: EndpointStart | None = None
    ) -> None:
        """Do an action; the secrets of an endpoint that is removed are deleted with it.

        With `start` an endpoint that is active from then on gets the events from there on, whenever dispatchers hear of
        it. Raises UnknownEndpoint, and EndpointStateRefused where its state does not allow the action.
        """
        states, state = TRANSITIONS[action]
        values = {"id": endpoint_id, "states": sorted(states), "state": state, "reason": reason}
        values |= {"resumes": int(start is not None), "offsets": [] if start is None else list(start.offsets)}
        async with self._writing() as connection:
            if (await connection.execute(endpoint_rows.CHANGE_STATE, values)).rowcount:
                if state == "removed":
                    await connection.execute(endpoint_rows.REMOVE_SECRETS, {"endpoint_id": endpoint_id})
                return
        refuse_action(await self.find(endpoint_id), action)
        raise _changed(endpoint_id)

    async def configure(
        self,
        former: Endpoint,
        configuration: EndpointConfiguration,
        agreement: ReceiverAgreement | None,
        headers: tuple[tuple[str, str], ...] | None = None,
    ) -> None:
        """Change how an endpoint's events are sent, and its headers unless they are None; types and order stay.

        Raises EndpointStateRefused where it was configured since `former` was read, or is removed; MasterKeyUnusable.
        """
        names = list(former.custom_header_names) if headers is None else [name for name, _ in headers]
        values = {
            **endpoint_rows.values_of(configuration), **endpoint_rows.agreement_values(agreement),
            "id": former.id, "seen": former.configured_at, "custom_header_names": names,
        }  # fmt: skip
        async with self._writing() as connection:
            master_key = await encrypting_key(connection, self._master_keys, ENDPOINT_SECRETS)
            if not (await connection.execute(endpoint_rows.CONFIGURE, values)).rowcount:
                raise _changed(former.id)
            if headers is not None:
                await connection.execute(endpoint_rows.REMOVE_HEADERS, {"endpoint_id": former.id})
                await add_headers(connection, master_key, former.id, headers)

    async def agree(self, former: Endpoint, agreement: ReceiverAgreement) -> None:
        """Store what a receiver has agreed to anew. Raises EndpointStateRefused as `configure` does."""
        values = {"id": former.id, "seen": former.configured_at, **endpoint_rows.agreement_values(agreement)}
        async with self._writing() as connection:
            if not (await connection.execute(endpoint_rows.AGREE, values)).rowcount:
                raise _changed(former.id)

    async def rotate(
        self,
        endpoint_id: UUID,
        scheme: Scheme,
        secret: bytes,
        public_key: bytes | None,
        overlap: timedelta,
        key_id: UUID | None = None,
    ) -> None:
        """Store a new key of a scheme; the endpoint's other one of it signs too until `overlap` is over.

        A rotation that comes again has the `key_id` of the former one: its key takes the place of the one that was
        made then, which nobody may have been shown, and the older one ends when it was to. Raises
        UnknownEndpoint, EndpointStateRefused for a removed endpoint, and TooManyEndpointKeys.
        """
        async with self._writing() as connection:
            state = (await connection.execute(endpoint_rows.LOCK, {"id": endpoint_id})).scalar_one_or_none()
            if state is None:
                raise _unknown(endpoint_id)
            rows = await connection.execute(endpoint_rows.KEYS, {"endpoint_ids": [endpoint_id]})
            keys = [StoredEndpointKey(**row) for row in rows.mappings()]
            if is_repeated_rotation(keys, key_id):
                await connection.execute(endpoint_rows.REMOVE_SECRET, {"id": key_id})
            else:
                refuse_rotation(endpoint_id, state, keys, scheme)
            await connection.execute(endpoint_rows.REMOVE_EXPIRED, {"endpoint_id": endpoint_id})
            master_key = await encrypting_key(connection, self._master_keys, ENDPOINT_SECRETS)
            added = await add_secret(connection, master_key, endpoint_id, scheme, secret, public_key, key_id)
            values = {"endpoint_id": endpoint_id, "kind": scheme, "id": added, "overlap": overlap}
            await connection.execute(endpoint_rows.EXPIRE_OTHERS, values)


@asynccontextmanager
async def open_endpoint_store(settings: Settings) -> AsyncIterator[EndpointStore]:
    """Open the store as plant_operator, with the master keys of the settings."""
    database = connect(settings, "operator")
    try:
        yield EndpointStore(database, MasterKeys(settings))
    finally:
        await database.close()


def _changed(endpoint_id: UUID) -> EndpointStateRefused:
    return EndpointStateRefused(
        f"The endpoint {endpoint_id} has changed meanwhile.", next_step=f"plant endpoints show {endpoint_id}"
    )


def _unknown(endpoint_id: UUID) -> UnknownEndpoint:
    return UnknownEndpoint(f"There is no endpoint {endpoint_id}.", next_step="plant endpoints list")
