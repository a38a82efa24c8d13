"""The rows of `master_keys`: which master key encrypts stored secrets, and the change to another one.

A row holds a check value (`signing/master_key.py`), never a master key. At most one row is not retired: new secrets are
encrypted under that master key, so that no process is given a secret under a master key that it does not have. The
secrets themselves are in tables of other packages, each with a `SecretTable`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from sqlalchemy import RowMapping, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from database.connector import Database
from signing.errors import OtherMasterKey, SecretUnreadable
from signing.master_key import MasterKey, MasterKeys, fingerprint

_CURRENT: Final = text("SELECT check_value FROM master_keys WHERE retired_at IS NULL")
_CURRENT_HELD: Final = text("SELECT hold_master_key()")
_CURRENT_LOCKED: Final = text("SELECT check_value FROM master_keys WHERE retired_at IS NULL FOR UPDATE")
_REMEMBER: Final = text("INSERT INTO master_keys (check_value) VALUES (:check_value) ON CONFLICT DO NOTHING")
_RETIRE: Final = text("UPDATE master_keys SET retired_at = now() WHERE retired_at IS NULL")
_MAKE_CURRENT: Final = text("""
    INSERT INTO master_keys (check_value) VALUES (:check_value)
    ON CONFLICT (check_value) DO UPDATE SET retired_at = NULL
""")


class SecretTable(msgspec.Struct, frozen=True, kw_only=True):
    """A table whose rows hold secrets: how they are read, bound to their rows, and written again."""

    usable: TextClause
    """Returns `id`, `nonce`, `ciphertext` and what the two functions read, of secrets that may still be opened."""
    replace: TextClause
    """Takes `id`, `nonce` and `ciphertext`."""
    associated_data: Callable[[RowMapping], bytes]
    """Returns the name of a row, which its ciphertext is bound to."""
    label: Callable[[RowMapping], str]
    """Returns what people call a row's secret."""

    @property
    def usable_locked(self) -> TextClause:
        """The same rows, locked until the transaction ends."""
        return text(f"{self.usable.text} FOR UPDATE")


class MasterKeyChange(msgspec.Struct, frozen=True, kw_only=True):
    """A change of the master key: fingerprints, and how many secrets to encrypt again. `old` None: there was none."""

    old: str | None
    new: str
    secret_count: int

    @property
    def needed(self) -> bool:
        """Whether anything is still to be done."""
        return self.old != self.new or self.secret_count > 0


async def current_check_value(connection: AsyncConnection) -> bytes | None:
    """Return the check value of the master key that encrypts new secrets, None before the first one."""
    value: bytes | None = (await connection.execute(_CURRENT)).scalar_one_or_none()
    return value


async def encrypting_key(
    connection: AsyncConnection, master_keys: MasterKeys, secrets: SecretTable, *, remember: bool = True
) -> MasterKey:
    """Return the master key that new secrets are encrypted under; the first one is remembered, unless it may not be.

    It stays the current one until the transaction ends. Raises OtherMasterKey where none of the accepted ones is it,
    or, in a database of before check values, where it opens none of the table's secrets.
    """
    current = (await connection.execute(_CURRENT_HELD)).scalar_one_or_none()
    if current is None:
        await _refuse_other(connection, master_keys.newest, secrets)
        if not remember:
            return master_keys.newest
        await connection.execute(_REMEMBER, {"check_value": master_keys.newest.check_value})
        current = (await connection.execute(_CURRENT_HELD)).scalar_one()  # another session's, if it was first
    key = master_keys.of(current)
    if key is None:
        raise differs(current, master_keys)
    return key


async def change_master_key(
    database: Database, master_keys: MasterKeys, tables: Sequence[SecretTable], *, execute: bool
) -> MasterKeyChange:
    """Encrypt every usable secret under the newest master key and make that the current one, in one transaction.

    Without `execute` nothing is changed. Revoked and expired secrets stay as they are: nothing opens them again. Raises
    OtherMasterKey where a secret opens under neither master key; then nothing is changed either.
    """
    async with database.transaction() as connection:
        current = (await connection.execute(_CURRENT_LOCKED if execute else _CURRENT)).scalar_one_or_none()
        replacements: list[tuple[TextClause, dict[str, object]]] = []
        unreadable: list[str] = []
        for table in tables:
            rows = await connection.execute(table.usable_locked if execute else table.usable)
            for row in rows.mappings().all():
                try:
                    again = _encrypted_again(row, table, master_keys)
                except SecretUnreadable:
                    unreadable.append(table.label(row))
                    continue
                if again is not None:
                    replacements.append((table.replace, again))
        if unreadable:
            raise OtherMasterKey(
                f"{len(unreadable)} secrets open under neither master key, {unreadable[0]} among them.",
                why="PLANT_MASTER_KEY_PREVIOUS has to be the master key that they were encrypted under.",
                next_step="export PLANT_MASTER_KEY_PREVIOUS=…    # the master key before this one",
            )
        if execute:
            for statement, values in replacements:
                await connection.execute(statement, values)
            if current != master_keys.newest.check_value:
                await connection.execute(_RETIRE)
                await connection.execute(_MAKE_CURRENT, {"check_value": master_keys.newest.check_value})
    old = None if current is None else fingerprint(current)
    return MasterKeyChange(old=old, new=fingerprint(master_keys.newest.check_value), secret_count=len(replacements))


def differs(current: bytes, master_keys: MasterKeys) -> OtherMasterKey:
    """Return the error of a process whose master keys are not the one that secrets are encrypted under."""
    own = " and ".join(fingerprint(key.check_value) for key in master_keys.accepted())
    return OtherMasterKey(
        why=f"The stored secrets are encrypted under the master key {fingerprint(current)}; PLANT_MASTER_KEY is {own}.",
        next_step="plant settings    # shows where PLANT_MASTER_KEY comes from",
    )


async def _refuse_other(connection: AsyncConnection, key: MasterKey, secrets: SecretTable) -> None:
    """Raise OtherMasterKey where there are secrets and this master key opens none of them."""
    rows = (await connection.execute(secrets.usable)).mappings().all()
    if rows and not any(_opens(key, row, secrets) for row in rows):
        raise OtherMasterKey(
            why=f"PLANT_MASTER_KEY, {fingerprint(key.check_value)}, opens none of the {len(rows)} usable secrets.",
            next_step="plant settings    # shows where PLANT_MASTER_KEY comes from",
        )


def _encrypted_again(row: RowMapping, table: SecretTable, master_keys: MasterKeys) -> dict[str, object] | None:
    """Return a row's secret under the newest master key, None where it is already. Raises SecretUnreadable."""
    if _opens(master_keys.newest, row, table):
        return None
    name = table.associated_data(row)
    nonce, ciphertext = master_keys.newest.encrypt(master_keys.decrypt(row["nonce"], row["ciphertext"], name), name)
    return {"id": row["id"], "nonce": nonce, "ciphertext": ciphertext}


def _opens(key: MasterKey, row: RowMapping, table: SecretTable) -> bool:
    try:
        key.decrypt(row["nonce"], row["ciphertext"], table.associated_data(row))
    except SecretUnreadable:
        return False
    return True
