"""The keys that sign webhooks: encrypted in `webhook_signatures`, decrypted in memory, read again every second.

A secret is stored as AES-256-GCM ciphertext under PLANT_MASTER_KEY; key id and producer are its associated data, so
a ciphertext moved to another row does not decrypt.
"""

from __future__ import annotations

import asyncio
import binascii
import os
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID, uuid4

import msgspec
import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import text

from database.connector import Database
from ingress.errors import BadProducerName, KeyUnreadable, MasterKeyUnusable, UnknownKey
from ingress.verification import Key
from runtime import metrics
from runtime.clock import Clock
from runtime.settings import Settings

log = structlog.get_logger(__name__)

REFRESH_SECONDS: Final = 1.0
REFRESH_TIMEOUT_SECONDS: Final = 5.0
SECRET_BYTES: Final = 32
NONCE_BYTES: Final = 12
PRODUCER_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

_USABLE: Final = text("""
    SELECT id, producer, nonce, ciphertext, not_before, expires_at FROM webhook_signatures
    WHERE scheme = 'v1' AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
    ORDER BY created_at DESC, id
""")
_ALL: Final = text("""
    SELECT id, producer, created_at, not_before, expires_at, revoked_at FROM webhook_signatures
    ORDER BY producer, created_at, id
""")
_INSERT: Final = text("""
    INSERT INTO webhook_signatures (id, producer, scheme, nonce, ciphertext, expires_at)
    VALUES (:id, :producer, 'v1', :nonce, :ciphertext, :expires_at)
""")
_REVOKE: Final = text("""
    UPDATE webhook_signatures SET revoked_at = now() WHERE id = :id AND revoked_at IS NULL RETURNING producer
""")
_FIND: Final = text("""
    SELECT id, producer, created_at, not_before, expires_at, revoked_at FROM webhook_signatures WHERE id = :id
""")


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is listed: everything but its secret."""

    id: UUID
    producer: str
    created_at: datetime
    not_before: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    def state(self, now: datetime) -> str:
        """active, pending, expired or revoked."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "expired"
        return "pending" if self.not_before > now else "active"


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

    async def add(self, key_id: UUID, producer: str, secret: bytes, expires_at: datetime | None) -> None:
        """Store a new key, usable at once."""
        nonce, ciphertext = self._master_key.encrypt(secret, key_id, producer)
        values = {
            "id": key_id,
            "producer": producer,
            "nonce": nonce,
            "ciphertext": ciphertext,
            "expires_at": expires_at,
        }
        async with self._database.transaction() as connection:
            await connection.execute(_INSERT, values)

    async def revoke(self, key_id: UUID) -> None:
        """Take a key back for ever; ingress stops accepting it within about a second. Again changes nothing."""
        async with self._database.transaction() as connection:
            await connection.execute(_REVOKE, {"id": key_id})

    async def find(self, key_id: UUID) -> StoredKey:
        """One key; raises UnknownKey."""
        async with self._database.transaction() as connection:
            row = (await connection.execute(_FIND, {"id": key_id})).mappings().one_or_none()
        if row is None:
            raise UnknownKey(f"There is no key {key_id}.", next_step="plant keys list")
        return StoredKey(**row)

    async def all(self) -> list[StoredKey]:
        """Every key there ever was, by producer, oldest first."""
        async with self._database.transaction() as connection:
            return [StoredKey(**row) for row in (await connection.execute(_ALL)).mappings()]

    async def usable(self) -> list[Key]:
        """The keys neither revoked nor expired, decrypted, newest first; without unreadable ones, logged once each."""
        async with self._database.transaction() as connection:
            rows = list((await connection.execute(_USABLE)).mappings())
        keys = []
        for row in rows:
            try:
                secret = self._master_key.decrypt(row["nonce"], row["ciphertext"], row["id"], row["producer"])
            except KeyUnreadable as error:
                if row["id"] not in self._unreadable:
                    self._unreadable.add(row["id"])
                    log.error("key.unreadable", key=str(row["id"]), producer=row["producer"], why=error.why)
                continue
            expires_at: datetime | None = row["expires_at"]
            keys.append(
                Key(
                    str(row["id"]),
                    row["producer"],
                    secret,
                    row["not_before"].timestamp(),
                    None if expires_at is None else expires_at.timestamp(),
                )
            )
        return keys


class Keyring:
    """The usable keys in memory. When the database is away the last known keys stay in use: expiry still holds."""

    def __init__(self, store: KeyStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self.keys: Sequence[Key] = ()
        self.loaded = False

    async def refresh(self) -> None:
        """Read the keys now."""
        async with asyncio.timeout(REFRESH_TIMEOUT_SECONDS):  # a silent network would keep revoked keys in use
            self.keys = await self._store.usable()
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


def _bound_to(key_id: UUID, producer: str) -> bytes:
    return f"plant.webhook_signatures.v1\n{key_id}\n{producer}".encode()
