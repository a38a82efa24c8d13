"""The rows of `webhook_signatures`: a key as it is listed, and the statements."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec
from sqlalchemy import RowMapping, text

from signing.master_key_rows import SecretTable
from signing.signatures import Scheme

USABLE: Final = text("""
    SELECT id, producer, scheme, nonce, ciphertext, public_key, created_at, not_before, expires_at
    FROM webhook_signatures
    WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
    ORDER BY created_at DESC, id
""")
ALL: Final = text("""
    SELECT id, producer, scheme, public_key, created_at, not_before, expires_at, revoked_at
    FROM webhook_signatures
    ORDER BY producer, created_at, id
""")
FIND: Final = text("""
    SELECT id, producer, scheme, public_key, created_at, not_before, expires_at, revoked_at
    FROM webhook_signatures
    WHERE id = :id
""")
COUNT: Final = text("SELECT count(*) FROM webhook_signatures WHERE producer = :producer")
INSERT: Final = text("""
    INSERT INTO webhook_signatures (id, producer, scheme, nonce, ciphertext, public_key, not_before, expires_at)
    VALUES (:id, :producer, :scheme, :nonce, :ciphertext, :public_key,
            coalesce(CAST(:not_before AS timestamptz), now()), :expires_at)
""")
EXPIRE_OTHERS: Final = text("""
    UPDATE webhook_signatures SET expires_at = least(expires_at, now() + CAST(:overlap AS interval))
    WHERE producer = :producer AND scheme = :scheme AND id <> :id AND not_before <= now()
      AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
    RETURNING id, producer, scheme, public_key, created_at, not_before, expires_at, revoked_at
""")
REVOKE: Final = text("UPDATE webhook_signatures SET revoked_at = now() WHERE id = :id AND revoked_at IS NULL")
# Through a role that it is a member of, too: `SET ROLE` needs no other right.
MAY_CHANGE: Final = text("""
    SELECT format('The role %s may change %s.', session_user, may.change)
    FROM (VALUES ('webhook_signatures', 'keys'), ('producers', 'policies'), ('master_keys', 'master keys'))
        AS may (name, change)
    WHERE EXISTS (
        SELECT FROM pg_roles AS r
        WHERE pg_has_role(session_user, r.oid, 'MEMBER')
          AND (has_any_column_privilege(r.oid, to_regclass(may.name), 'INSERT, UPDATE')
               OR has_table_privilege(r.oid, to_regclass(may.name), 'DELETE, TRUNCATE'))
    )
    LIMIT 1
""")
_USABLE_SECRETS: Final = text("""
    SELECT id, producer, nonce, ciphertext FROM webhook_signatures
    WHERE scheme = 'v1' AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
    ORDER BY created_at DESC, id
""")
_REPLACE_SECRET: Final = text("""
    UPDATE webhook_signatures SET nonce = :nonce, ciphertext = :ciphertext WHERE id = :id
""")
V1A_KEYS: Final = text("""
    SELECT count(*) FILTER (WHERE public_key = :public_key),
           count(*) FILTER (WHERE producer = :producer AND revoked_at IS NULL
                            AND (expires_at IS NULL OR expires_at > now()))
    FROM webhook_signatures
    WHERE scheme = 'v1a'
""")


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is listed: everything but its secret. `public_key` is of `v1a` keys only."""

    id: UUID
    producer: str
    scheme: Scheme = "v1"
    public_key: bytes | None = None
    created_at: datetime
    not_before: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    def state(self, now: datetime) -> str:
        """Return active, pending, expired or revoked."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "expired"
        return "pending" if self.not_before > now else "active"


def associated_data(key_id: UUID, producer: str) -> bytes:
    """Return the name of a key's row, which its ciphertext is bound to."""
    return f"plant.webhook_signatures.v1\n{key_id}\n{producer}".encode()


def _name_of(row: RowMapping) -> bytes:
    return associated_data(row["id"], row["producer"])


def _label_of(row: RowMapping) -> str:
    return f"{row['producer']}/{row['id']}"


PRODUCER_SECRETS: Final = SecretTable(
    usable=_USABLE_SECRETS, replace=_REPLACE_SECRET, associated_data=_name_of, label=_label_of
)
"""The secrets of producers' `v1` keys."""
