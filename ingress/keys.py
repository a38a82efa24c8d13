"""The keys that sign webhooks, in `webhook_signatures`; and those of them that can be used, in memory.

The secret of a `v1` key is stored as AES-256-GCM ciphertext under PLANT_MASTER_KEY; key id and producer are its
associated data, so a ciphertext moved to another row does not decrypt. Of a `v1a` key only the public half is stored.
"""

from __future__ import annotations

import asyncio
import binascii
import os
import re
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import CursorResult, RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from database.connector import Database
from ingress import key_rows
from ingress.errors import (
    BadProducerName,
    KeyUnreadable,
    MasterKeyUnusable,
    PublicKeyKnown,
    TooManyKeys,
    UnknownKey,
)
from ingress.key_rows import StoredKey
from ingress.producers import ProducerPolicy, default_policy, read_policies
from runtime import metrics
from runtime.clock import Clock
from runtime.logging import get_logger
from runtime.settings import Settings
from signing.signatures import Ed25519Key, HmacKey, Key, Scheme, SignatureRejected, Verified, verify_signature

log = get_logger(__name__)

REFRESH_SECONDS: Final = 1.0
REFRESH_TIMEOUT_SECONDS: Final = 5.0
SECRET_BYTES: Final = 32
NONCE_BYTES: Final = 12
V1A_KEYS_MAX: Final = 8
"""Most usable v1a keys of one producer: with four signatures, as many pairs as a request is checked for."""
PRODUCER_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class MasterKey:
    """Encrypts and decrypts the producers' secrets."""

    def __init__(self, settings: Settings) -> None:
        try:
            key = binascii.a2b_base64(settings.master_key, strict_mode=True)
        except ValueError:
            key = b""
        if len(key) != 32:
            raise MasterKeyUnusable(
                why="PLANT_MASTER_KEY must hold 32 random bytes in base64.",
                next_step="export PLANT_MASTER_KEY=$(head -c 32 /dev/urandom | base64)",
            )
        self._cipher = AESGCM(key)

    def encrypt(self, secret: bytes, key_id: UUID, producer: str) -> tuple[bytes, bytes]:
        """A fresh nonce and the ciphertext."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce, self._cipher.encrypt(nonce, secret, _bound_to(key_id, producer))

    def decrypt(self, nonce: bytes, ciphertext: bytes, key_id: UUID, producer: str) -> bytes:
        """The secret. Raises KeyUnreadable."""
        try:
            return self._cipher.decrypt(nonce, ciphertext, _bound_to(key_id, producer))
        except InvalidTag:
            raise KeyUnreadable(
                f"The key {key_id} of {producer} can't be decrypted.",
                why="It was written under another PLANT_MASTER_KEY, or changed since.",
                next_step=f"plant keys revoke {key_id} --execute",
            ) from None


class KeyStore:
    """The table `webhook_signatures`, as plant_api."""

    def __init__(self, database: Database, master_key: MasterKey) -> None:
        self._database = database
        self._master_key = master_key
        self._unreadable: set[UUID] = set()

    async def add(
        self,
        key_id: UUID,
        producer: str,
        key: bytes,
        expires_at: datetime | None,
        *,
        scheme: Scheme = "v1",
        not_before: datetime | None = None,
    ) -> None:
        """Store a new key, usable at once unless told. `key` is the secret (v1) or the public key (v1a).

        Raises PublicKeyKnown, TooManyKeys.
        """
        async with self._database.transaction() as connection:
            await self._insert(connection, key_id, producer, key, expires_at, scheme, not_before)

    async def rotate(
        self,
        key_id: UUID,
        producer: str,
        key: bytes,
        expires_at: datetime | None,
        *,
        scheme: Scheme,
        overlap: timedelta,
    ) -> list[StoredKey]:
        """Store a new key and let the producer's other active ones of the scheme expire after `overlap`, together.

        Returns those others as they are now; one that ends earlier anyway is left as it is. Raises as `add`.
        """
        async with self._database.transaction() as connection:
            await self._insert(connection, key_id, producer, key, expires_at, scheme, None)
            values = {"id": key_id, "producer": producer, "scheme": scheme, "overlap": overlap}
            return _stored(await connection.execute(key_rows.EXPIRE_OTHERS, values))

    async def refuse_unfit(self, producer: str, key: bytes, scheme: Scheme) -> None:
        """Raise what `add` would raise."""
        async with self._database.transaction() as connection:
            await _refuse_unfit(connection, producer, key, scheme)

    async def revoke(self, key_id: UUID) -> None:
        """Take a key back for ever; ingress stops accepting it within about a second. Again changes nothing."""
        async with self._database.transaction() as connection:
            await connection.execute(key_rows.REVOKE, {"id": key_id})

    async def find(self, key_id: UUID) -> StoredKey:
        """One key; raises UnknownKey."""
        async with self._database.transaction() as connection:
            found = _stored(await connection.execute(key_rows.FIND, {"id": key_id}))
        if not found:
            raise UnknownKey(f"There is no key {key_id}.", next_step="plant keys list")
        return found[0]

    async def all(self) -> list[StoredKey]:
        """Every key there ever was, by producer, oldest first."""
        async with self._database.transaction() as connection:
            return _stored(await connection.execute(key_rows.ALL))

    async def load(self, default: ProducerPolicy) -> tuple[list[Key], dict[str, ProducerPolicy]]:
        """The keys neither revoked nor expired, newest first, and the policies that have a row; of one moment.

        Keys that can't be decrypted are left out, and logged once each.
        """
        async with self._database.transaction(isolation="REPEATABLE READ", read_only=True) as connection:
            rows = list((await connection.execute(key_rows.USABLE)).mappings())
            policies = await read_policies(connection, default)
        return [key for row in rows if (key := self._key(row)) is not None], policies

    async def _insert(
        self,
        connection: AsyncConnection,
        key_id: UUID,
        producer: str,
        key: bytes,
        expires_at: datetime | None,
        scheme: Scheme,
        not_before: datetime | None,
    ) -> None:
        await _refuse_unfit(connection, producer, key, scheme)
        nonce, ciphertext = self._master_key.encrypt(key, key_id, producer) if scheme == "v1" else (None, None)
        values = {
            "id": key_id,
            "producer": producer,
            "scheme": scheme,
            "nonce": nonce,
            "ciphertext": ciphertext,
            "public_key": key if scheme == "v1a" else None,
            "not_before": not_before,
            "expires_at": expires_at,
        }
        await connection.execute(key_rows.INSERT, values)

    def _key(self, row: RowMapping) -> Key | None:
        said = {
            "id": str(row["id"]),
            "producer": row["producer"],
            # A key that was not told to begin later begins before this process's clock may say it does.
            "not_before": row["not_before"].timestamp() if row["not_before"] > row["created_at"] else 0.0,
            "expires_at": None if row["expires_at"] is None else row["expires_at"].timestamp(),
        }
        if row["scheme"] == "v1a":
            return Ed25519Key(public_key=row["public_key"], **said)
        try:
            secret = self._master_key.decrypt(row["nonce"], row["ciphertext"], row["id"], row["producer"])
        except KeyUnreadable as error:
            if row["id"] not in self._unreadable:
                self._unreadable.add(row["id"])
                log.error("key.unreadable", key=str(row["id"]), producer=row["producer"], why=error.why)
            return None
        return HmacKey(secret=secret, **said)


class Keyring:
    """The usable keys and the policies in memory. When the database is away the last known ones stay: expiry holds."""

    def __init__(self, store: KeyStore, clock: Clock, default: ProducerPolicy | None = None) -> None:
        self._store = store
        self._clock = clock
        self._default = default or default_policy(Settings())
        self._policies: dict[str, ProducerPolicy] = {}
        self._task: asyncio.Task[None] | None = None
        self.keys: Sequence[Key] = ()
        self.loaded = False

    def verify(
        self, message_id: bytes, timestamp: bytes, signatures: bytes, body: bytes, producer: str | None = None
    ) -> Verified | SignatureRejected:
        """Which key signed the message, if one did, by the clock. Never raises.

        With `producer` (unverified) only that producer's keys are tried. The key that matched is tried first next time:
        each HMAC key that is tried costs a hash of the body, each ed25519 key about 0.1 ms.
        """
        known = self.keys
        keys = known if producer is None else [key for key in known if key.producer == producer]
        verdict = verify_signature(keys, message_id, timestamp, signatures, body, self._clock.now().timestamp())
        # Large bodies are verified in a thread: what was read from the database meanwhile is not undone.
        if isinstance(verdict, Verified) and verdict.key is not known[0] and self.keys is known:
            self.keys = [verdict.key, *(key for key in known if key is not verdict.key)]
        return verdict

    def policy(self, producer: str) -> ProducerPolicy:
        """What a producer may send; the defaults for one of which nothing is said."""
        return self._policies.get(producer) or msgspec.structs.replace(self._default, name=producer)

    async def refresh(self) -> None:
        """Read keys and policies now."""
        async with asyncio.timeout(REFRESH_TIMEOUT_SECONDS):  # a silent network would keep revoked keys in use
            keys, self._policies = await self._store.load(self._default)
        places = {key.id: place for place, key in enumerate(self.keys)}
        self.keys = sorted(keys, key=lambda key: places.get(key.id, -1))
        self.loaded = True
        metrics.INGRESS_KEYS_LOADED.set(len(self.keys))
        metrics.INGRESS_KEYS_LOADED_AT.set(self._clock.now().timestamp())

    def start(self) -> None:
        """Keep reading, every second."""
        self._task = asyncio.create_task(self._keep_fresh(), name="keyring")

    async def stop(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _keep_fresh(self) -> None:
        failing = False
        while True:
            try:
                await self.refresh()
                failing = False
            except Exception as error:  # the database is away or not migrated: try again, with the keys we have
                if not failing:
                    log.warning("keys.not_read", error=type(error).__name__, why=str(error), keys=len(self.keys))
                failing = True
            await asyncio.sleep(REFRESH_SECONDS)


def new_secret() -> bytes:
    """Random key bytes."""
    return secrets.token_bytes(SECRET_BYTES)


def new_key_id() -> UUID:
    """A random id."""
    return uuid4()


def check_producer_name(name: str) -> str:
    """The name, if it can be a producer's; raises BadProducerName."""
    if not PRODUCER_NAME.fullmatch(name):
        raise BadProducerName(f"{name!r} can't be a producer's name.", why=BadProducerName.__doc__ or "")
    return name


async def _refuse_unfit(connection: AsyncConnection, producer: str, key: bytes, scheme: Scheme) -> None:
    if scheme == "v1":
        return
    values = {"public_key": key, "producer": producer}
    known, usable = (await connection.execute(key_rows.V1A_KEYS, values)).one()
    if known:
        raise PublicKeyKnown(why=PublicKeyKnown.__doc__ or "", next_step="plant keys list --output json")
    if usable >= V1A_KEYS_MAX:
        raise TooManyKeys(
            f"{producer} has {usable} v1a keys.",
            why=f"Each costs time with every request, so a producer has at most {V1A_KEYS_MAX} at a time.",
            next_step=f"plant keys list --producer {producer}",
        )


def _stored(result: CursorResult[Any]) -> list[StoredKey]:
    return [StoredKey(**row) for row in result.mappings()]


def _bound_to(key_id: UUID, producer: str) -> bytes:
    return f"plant.webhook_signatures.v1\n{key_id}\n{producer}".encode()
