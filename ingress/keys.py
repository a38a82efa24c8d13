"""The keys that sign webhooks: all of them in the table `webhook_signatures`, the usable ones in memory.

The secret of a `v1` key is stored encrypted (`signing/master_key.py`), with the key's id and producer as associated
data: moved to another row, it does not decrypt. Of a `v1a` key only the public half is stored.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import msgspec
from sqlalchemy import CursorResult, RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from database.connector import Database
from database.errors import TooMuchPrivilege
from ingress import key_rows
from ingress.errors import (
    BadProducerName,
    PublicKeyKnown,
    TooManyKeys,
    UnknownKey,
)
from ingress.key_rows import PRODUCER_SECRETS, StoredKey, associated_data
from ingress.producers import ProducerPolicy, default_policy, read_policies
from runtime import metrics
from runtime.clock import Clock
from runtime.lifecycle import keep_refreshing
from runtime.logging import get_logger
from runtime.settings import Settings
from signing.errors import SecretUnreadable
from signing.master_key import MasterKeys
from signing.master_key_rows import current_check_value, differs, encrypting_key
from signing.signatures import (
    Ed25519Key,
    HmacKey,
    Key,
    Scheme,
    SignatureRejected,
    Verified,
    refuse_unread,
    verify_signature,
)

log = get_logger(__name__)

REFRESH_SECONDS: Final = 1.0
REFRESH_TIMEOUT_SECONDS: Final = 5.0
V1A_KEYS_MAX: Final = 8
"""Most usable v1a keys of one producer: with four signatures, as many pairs as a request is checked for."""
RESERVED_NAMES: Final = "plant."
"""What the names begin with that Plant gives to the sender of its own records."""
PRODUCER_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class KeyStore:
    """The table `webhook_signatures`, as plant_ingress, which reads it, or plant_operator."""

    def __init__(self, database: Database, master_keys: MasterKeys) -> None:
        self._database = database
        self._master_keys = master_keys
        self._other_master_key_logged = False
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
        """Store a new key, usable from `not_before` on, or at once. `key` is the secret (v1) or the public key (v1a).

        Raises PublicKeyKnown, TooManyKeys, MasterKeyUnusable, and OtherMasterKey where the key could not be opened.
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

        Returns those others as they are now; one that expires earlier is left as it is. Raises as `add`.
        """
        async with self._database.transaction() as connection:
            await self._insert(connection, key_id, producer, key, expires_at, scheme, None)
            values = {"id": key_id, "producer": producer, "scheme": scheme, "overlap": overlap}
            return _stored(await connection.execute(key_rows.EXPIRE_OTHERS, values))

    async def refuse_unfit(self, producer: str, key: bytes, scheme: Scheme) -> None:
        """Raise what `add` would raise."""
        async with self._database.transaction() as connection:
            await _refuse_unfit(connection, producer, key, scheme)
            if scheme == "v1":
                await encrypting_key(connection, self._master_keys, PRODUCER_SECRETS, remember=False)

    async def revoke(self, key_id: UUID) -> None:
        """Revoke a key permanently; ingress stops accepting it within about a second. Again changes nothing."""
        async with self._database.transaction() as connection:
            await connection.execute(key_rows.REVOKE, {"id": key_id})

    async def find(self, key_id: UUID) -> StoredKey:
        """Return one key. Raises UnknownKey."""
        async with self._database.transaction() as connection:
            keys = _stored(await connection.execute(key_rows.FIND, {"id": key_id}))
        if not keys:
            raise UnknownKey(f"There is no key {key_id}.", next_step="plant keys list")
        return keys[0]

    async def all(self) -> list[StoredKey]:
        """Return every key there ever was, by producer, oldest first."""
        async with self._database.transaction() as connection:
            return _stored(await connection.execute(key_rows.ALL))

    async def assert_read_only(self) -> None:
        """Raise TooMuchPrivilege where this process could change keys or policies, or could become a role that may."""
        async with self._database.transaction() as connection:
            why = (await connection.execute(key_rows.MAY_CHANGE)).scalar_one_or_none()
        if why is not None:
            raise TooMuchPrivilege(
                why=f"{why} Strangers send requests to ingress, so it may only read them.",
                next_step="export PLANT_DATABASE_INGRESS_URL=postgresql://plant_ingress:…@host/plant",
            )

    async def load(self, default: ProducerPolicy) -> tuple[list[Key], dict[str, ProducerPolicy]]:
        """Return the keys neither revoked nor expired, newest first, and the policies that have a row; of one moment.

        Keys that can't be decrypted are left out, and logged once each.
        """
        async with self._database.transaction(isolation="REPEATABLE READ", read_only=True) as connection:
            rows = list((await connection.execute(key_rows.USABLE)).mappings())
            policies = await read_policies(connection, default)
            self._log_other_master_key(await current_check_value(connection))
        return [key for row in rows if (key := self._usable_key(row)) is not None], policies

    def _log_other_master_key(self, current: bytes | None) -> None:
        """Log once that secrets are encrypted under a master key which this process does not have."""
        other = current is not None and self._master_keys.of(current) is None
        if current is not None and other and not self._other_master_key_logged:
            log.error("master_key.differs", why=differs(current, self._master_keys).why)
        self._other_master_key_logged = other

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
        nonce = ciphertext = None
        if scheme == "v1":
            master_key = await encrypting_key(connection, self._master_keys, PRODUCER_SECRETS)
            nonce, ciphertext = master_key.encrypt(key, associated_data(key_id, producer))
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

    def _usable_key(self, row: RowMapping) -> Key | None:
        """Return the key of a row of `USABLE`, or None where its secret can't be decrypted."""
        fields = {
            "id": str(row["id"]),
            "owner": row["producer"],
            # Without a later beginning the key is valid at once, also where this process's clock is behind Postgres's.
            "not_before": row["not_before"].timestamp() if row["not_before"] > row["created_at"] else 0.0,
            "expires_at": None if row["expires_at"] is None else row["expires_at"].timestamp(),
        }
        if row["scheme"] == "v1a":
            return Ed25519Key(public_key=row["public_key"], **fields)
        try:
            name = associated_data(row["id"], row["producer"])
            secret = self._master_keys.decrypt(row["nonce"], row["ciphertext"], name)
        except SecretUnreadable as error:
            if row["id"] not in self._unreadable:
                self._unreadable.add(row["id"])
                log.error("key.unreadable", key=str(row["id"]), producer=row["producer"], why=error.why)
            return None
        return HmacKey(secret=secret, **fields)


class Keyring:
    """The usable keys and the policies in memory. They stay while the database is not reachable; keys still expire."""

    def __init__(self, store: KeyStore, clock: Clock, default: ProducerPolicy | None = None) -> None:
        self._store = store
        self._clock = clock
        self._default = default or default_policy(Settings())
        self._policies: dict[str, ProducerPolicy] = {}
        self._signed: dict[str, ProducerPolicy] = {}
        """Policies with a key's id, by that id, since the last refresh."""
        self._task: asyncio.Task[None] | None = None
        self.keys: Sequence[Key] = ()
        self.loaded = False

    def refuse_unread(self, timestamp: bytes, signatures: bytes, producer: str | None) -> SignatureRejected | None:
        """Return why no body could make these headers acceptable, None where one could. Never raises."""
        now_seconds = self._clock.now().timestamp()
        rejected = refuse_unread(timestamp, signatures, now_seconds)
        if rejected is not None or producer is None:
            return rejected
        known = any(key.usable(now_seconds) for key in self.candidates(producer))
        return None if known else SignatureRejected("unknown_producer")

    def candidates(self, producer: str | None) -> Sequence[Key]:
        """Return the keys to try: those of the producer that is named (unverified), else everybody's.

        The key that matched last comes first: each HMAC key that is tried costs a hash of the body, each ed25519 key
        about 0.1 ms.
        """
        known = self.keys
        return known if producer is None else [key for key in known if key.owner == producer]

    def verify_with(
        self, keys: Sequence[Key], message_id: bytes, timestamp: bytes, signatures: bytes, body: bytes
    ) -> Verified | SignatureRejected:
        """Return which of some candidates signed the message, or why none did, by the clock. Never raises."""
        known = self.keys
        verdict = verify_signature(keys, message_id, timestamp, signatures, body, self._clock.now().timestamp())
        # Large bodies are verified in a thread: what was read from the database meanwhile is not undone.
        if isinstance(verdict, Verified) and verdict.key is not known[0] and self.keys is known:
            self.keys = [verdict.key, *(key for key in known if key is not verdict.key)]
        return verdict

    def verify(
        self, message_id: bytes, timestamp: bytes, signatures: bytes, body: bytes, producer: str | None = None
    ) -> Verified | SignatureRejected:
        """Return the key that signed the message, of all candidates, or why none is accepted. Never raises."""
        return self.verify_with(self.candidates(producer), message_id, timestamp, signatures, body)

    def knows(self, producer: str) -> bool:
        """Return whether the producer has a key that can be used."""
        return any(key.owner == producer for key in self.keys)

    def is_usable(self, key: Key) -> bool:
        """Return whether the key is neither revoked nor expired, as of the last refresh and by the clock."""
        now_seconds = self._clock.now().timestamp()
        return any(known.id == key.id and known.usable(now_seconds) for known in self.keys)

    def policy_of(self, key: Key) -> ProducerPolicy:
        """Return the policy of the producer whose key signed a request, with the key's id."""
        signed = self._signed  # a refresh in another thread begins a new one
        policy = signed.get(key.id)
        if policy is None:
            policy = signed[key.id] = msgspec.structs.replace(self.policy(key.owner), key_id=key.id)
        return policy

    def policy(self, producer: str) -> ProducerPolicy:
        """Return the policy of a producer; the default one where it has none of its own."""
        return self._policies.get(producer) or msgspec.structs.replace(self._default, name=producer)

    async def refresh(self) -> None:
        """Read keys and policies from the database now."""
        async with asyncio.timeout(REFRESH_TIMEOUT_SECONDS):  # an unresponsive network would keep revoked keys in use
            keys, self._policies = await self._store.load(self._default)
        self._signed = {}
        ranks = {key.id: rank for rank, key in enumerate(self.keys)}
        self.keys = sorted(keys, key=lambda key: ranks.get(key.id, -1))
        self.loaded = True
        metrics.INGRESS_KEYS_LOADED.set(len(self.keys))
        metrics.INGRESS_KEYS_LOADED_AT.set(self._clock.now().timestamp())

    async def assert_read_only(self) -> None:
        """Raise TooMuchPrivilege where this process could change what it reads."""
        await self._store.assert_read_only()

    def start(self) -> None:
        """Refresh every second, in a task."""
        self._task = asyncio.create_task(
            keep_refreshing(self.refresh, REFRESH_SECONDS, self._note_failure), name="keyring"
        )

    async def stop(self) -> None:
        """Stop refreshing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def _note_failure(self, error: Exception) -> None:
        log.warning("keys.not_read", error=type(error).__name__, why=str(error), keys=len(self.keys))


def new_key_id() -> UUID:
    """Return a random id."""
    return uuid4()


def check_producer_name(name: str) -> str:
    """Return the name, if it can be a producer's. Raises BadProducerName."""
    if not PRODUCER_NAME.fullmatch(name):
        raise BadProducerName(f"{name!r} can't be a producer's name.", why=BadProducerName.__doc__ or "")
    if name.startswith(RESERVED_NAMES):
        why = f"Names that begin with {RESERVED_NAMES} are Plant's own: records would look as if Plant had sent them."
        raise BadProducerName(f"{name!r} can't be a producer's name.", why=why, next_step="choose another name")
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
            next_step=f"plant keys list --producer {shlex.quote(producer)}",
        )


def _stored(result: CursorResult[Any]) -> list[StoredKey]:
    return [StoredKey(**row) for row in result.mappings()]
