"""The rows of `master_keys`: which master key encrypts the secrets of keys, and the change to another one.

A row holds a check value (`signing/master_key.py`), never a master key. At most one row is not retired: new secrets are
encrypted under that master key, so that no process is given a key under a master key that it does not have.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from database.connector import Database
from ingress.errors import OtherMasterKey
from signing.errors import SecretUnreadable
from signing.master_key import MasterKey, MasterKeys, fingerprint

_CURRENT: Final = text("SELECT check_value FROM master_keys WHERE retired_at IS NULL")
_CURRENT_HELD: Final = text("SELECT check_value FROM master_keys WHERE retired_at IS NULL FOR SHARE")
_CURRENT_LOCKED: Final = text("SELECT check_value FROM master_keys WHERE retired_at IS NULL FOR UPDATE")
_REMEMBER: Final = text("INSERT INTO master_keys (check_value) VALUES (:check_value) ON CONFLICT DO NOTHING")
_RETIRE: Final = text("UPDATE master_keys SET retired_at = now() WHERE retired_at IS NULL")
_MAKE_CURRENT: Final = text("""
    INSERT INTO master_keys (check_value) VALUES (:check_value)
    ON CONFLICT (check_value) DO UPDATE SET retired_at = NULL
""")
_SECRETS: Final = text("""
    SELECT id, producer, nonce, ciphertext FROM webhook_signatures
    WHERE scheme = 'v1' AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
    ORDER BY created_at DESC, id
""")
_SECRETS_LOCKED: Final = text(f"{_SECRETS.text} FOR UPDATE")
_REPLACE: Final = text("UPDATE webhook_signatures SET nonce = :nonce, ciphertext = :ciphertext WHERE id = :id")


class MasterKeyChange(msgspec.Struct, frozen=True, kw_only=True):
    """A change of the master key: fingerprints, and the ids of keys to encrypt again. `old` None: there was none."""

    old: str | None
    new: str
    key_ids: tuple[UUID, ...]

    @property
    def needed(self) -> bool:
        """Whether anything is still to be done."""
        return self.old != self.new or bool(self.key_ids)


def associated_data(key_id: UUID, producer: str) -> bytes:
    """Return the name of a key's row, which its ciphertext is bound to."""
    return f"plant.webhook_signatures.v1\n{key_id}\n{producer}".encode()


async def current_check_value(connection: AsyncConnection) -> bytes | None:
    """Return the check value of the master key that encrypts new secrets, None before the first one."""
    value: bytes | None = (await connection.execute(_CURRENT)).scalar_one_or_none()
    return value


async def encrypting_key(connection: AsyncConnection, master_keys: MasterKeys, *, remember: bool = True) -> MasterKey:
    """Return the master key that new secrets are encrypted under; the first one is remembered, unless it may not be.

    It stays the current one until the transaction ends. Raises OtherMasterKey where none of the accepted ones is it,
    or, in a database of before check values, where it opens none of the secrets.
    """
    current = (await connection.execute(_CURRENT_HELD)).scalar_one_or_none()
    if current is None:
        await _refuse_other(connection, master_keys.newest)
        if not remember:
            return master_keys.newest
        await connection.execute(_REMEMBER, {"check_value": master_keys.newest.check_value})
        current = (await connection.execute(_CURRENT_HELD)).scalar_one()  # another session's, if it was first
    key = master_keys.of(current)
    if key is None:
        raise differs(current, master_keys)
    return key


async def change_master_key(database: Database, master_keys: MasterKeys, *, execute: bool) -> MasterKeyChange:
    """Encrypt every usable key's secret under the newest master key and make that the current one, in one transaction.

    Without `execute` nothing is changed. Revoked and expired keys stay as they are: nothing opens them again. Raises
    OtherMasterKey where a secret opens under neither master key; then nothing is changed either.
    """
    async with database.transaction() as connection:
        locked = (_CURRENT_LOCKED, _SECRETS_LOCKED) if execute else (_CURRENT, _SECRETS)
        current = (await connection.execute(locked[0])).scalar_one_or_none()
        rows = (await connection.execute(locked[1])).mappings().all()
        again: dict[UUID, tuple[bytes, bytes]] = {}
        unreadable: list[str] = []
        for row in rows:
            name = associated_data(row["id"], row["producer"])
            if _opens(master_keys.newest, row["nonce"], row["ciphertext"], name):
                continue
            try:
                secret = master_keys.decrypt(row["nonce"], row["ciphertext"], name)
            except SecretUnreadable:
                unreadable.append(f"{row['producer']}/{row['id']}")
                continue
            again[row["id"]] = master_keys.newest.encrypt(secret, name)
        if unreadable:
            raise OtherMasterKey(
                f"{len(unreadable)} keys open under neither master key, {unreadable[0]} among them.",
                why="PLANT_MASTER_KEY_PREVIOUS has to be the master key that they were encrypted under.",
                next_step="export PLANT_MASTER_KEY_PREVIOUS=…    # the master key before this one",
            )
        if execute:
            for key_id, (nonce, ciphertext) in again.items():
                await connection.execute(_REPLACE, {"id": key_id, "nonce": nonce, "ciphertext": ciphertext})
            if current != master_keys.newest.check_value:
                await connection.execute(_RETIRE)
                await connection.execute(_MAKE_CURRENT, {"check_value": master_keys.newest.check_value})
    old = None if current is None else fingerprint(current)
    return MasterKeyChange(old=old, new=fingerprint(master_keys.newest.check_value), key_ids=tuple(again))


def differs(current: bytes, master_keys: MasterKeys) -> OtherMasterKey:
    """Return the error of a process whose master keys are not the one that keys are encrypted under."""
    own = " and ".join(fingerprint(key.check_value) for key in master_keys.accepted())
    return OtherMasterKey(
        why=f"The keys are encrypted under the master key {fingerprint(current)}; PLANT_MASTER_KEY is {own}.",
        next_step="plant settings    # shows where PLANT_MASTER_KEY comes from",
    )


async def _refuse_other(connection: AsyncConnection, key: MasterKey) -> None:
    """Raise OtherMasterKey where there are secrets and this master key opens none of them."""
    rows = (await connection.execute(_SECRETS)).mappings().all()
    if rows and not any(
        _opens(key, row["nonce"], row["ciphertext"], associated_data(row["id"], row["producer"])) for row in rows
    ):
        raise OtherMasterKey(
            why=f"PLANT_MASTER_KEY, {fingerprint(key.check_value)}, opens none of the {len(rows)} usable keys.",
            next_step="plant settings    # shows where PLANT_MASTER_KEY comes from",
        )


def _opens(key: MasterKey, nonce: bytes, ciphertext: bytes, name: bytes) -> bool:
    try:
        key.decrypt(nonce, ciphertext, name)
    except SecretUnreadable:
        return False
    return True
