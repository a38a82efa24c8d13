"""An entity's versions: its state after each change, each hashed together with the version before.

    version_hash = sha256(state)
    hash         = sha256(previous_hash || entry)

`entry` is the domain tag `plant.entity.version.v1`, entity id (16 bytes), version (8), entity_type, operation,
recorded_at (8: microseconds since 1970), recorded_by, governance_agent_id and state, each after its length in 4 bytes;
numbers are big-endian, texts UTF-8. The first `previous_hash` is 32 zero bytes. `state` is JSON as the database wrote
it.

The database writes versions (triggers of migrations 001 and 003) and refuses any that breaks the chain; this module
checks them without it. `entities/vectors/versions.json` has examples for other languages.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, LargeBinary, Text
from sqlalchemy.orm import Mapped, mapped_column

from entities.mapping import Moment, Row, Token, of_hash, one_of

DOMAIN: Final = b"plant.entity.version.v1"
BEFORE_FIRST: Final = bytes(32)
OPERATIONS: Final = ("created", "changed", "deleted")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class EntityVersion(Row):
    """A row of `entity_versions`: written by the database alone, and never changed."""

    __tablename__ = "entity_versions"

    entity_id: Mapped[UUID] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    """1 for the first, without gaps."""
    entity_type: Mapped[Token]
    governance_agent_id: Mapped[Token]
    operation: Mapped[Token]
    recorded_at: Mapped[Moment]
    recorded_by: Mapped[Token]
    """The role as which the change was made, with `/projection` behind it where a worker folded an event."""
    state: Mapped[str] = mapped_column(Text)
    """JSON text; of a deleted entity, its last state."""
    version_hash: Mapped[bytes] = mapped_column(LargeBinary)
    previous_hash: Mapped[bytes] = mapped_column(LargeBinary)
    hash: Mapped[bytes] = mapped_column(LargeBinary)

    __table_args__ = (
        CheckConstraint("version > 0", name="version"),
        one_of("operation", OPERATIONS),
        of_hash("version_hash"),
        of_hash("previous_hash"),
        of_hash("hash"),
    )


class ChainBreak(NamedTuple):
    """The version at which a chain breaks."""

    entity_id: UUID
    version: int
    why: str


def version_hash(state: str) -> bytes:
    """Return the SHA-256 of a state, as UTF-8.

    >>> version_hash("{}").hex()[:16]
    '44136fa355b3678a'
    """
    return hashlib.sha256(state.encode()).digest()


def chain_hash(
    previous_hash: bytes,
    *,
    entity_id: UUID,
    version: int,
    entity_type: str,
    operation: str,
    recorded_at: datetime,
    recorded_by: str,
    governance_agent_id: str,
    state: str,
) -> bytes:
    """Return the hash of one version; the formula is at the top of this file.

    >>> chain_hash(BEFORE_FIRST, entity_id=UUID(int=1), version=1, entity_type="skill", operation="created",
    ...     recorded_at=_EPOCH, recorded_by="plant_writer", governance_agent_id="genesis", state="{}").hex()[:16]
    '83d4e5b5a2ce7c7d'
    """
    parts = (
        DOMAIN,
        entity_id.bytes,
        struct.pack(">q", version),
        entity_type.encode(),
        operation.encode(),
        struct.pack(">q", (recorded_at - _EPOCH) // _MICROSECOND),
        recorded_by.encode(),
        governance_agent_id.encode(),
        state.encode(),
    )
    entry = b"".join(struct.pack(">i", len(part)) + part for part in parts)
    return hashlib.sha256(previous_hash + entry).digest()


def first_break(versions: Iterable[EntityVersion]) -> ChainBreak | None:
    """Return the first of an entity's versions, in order, that does not follow from the one before; else None."""
    previous_hash = BEFORE_FIRST
    for number, row in enumerate(versions, start=1):
        why = _flaw(row, number, previous_hash)
        if why:
            return ChainBreak(row.entity_id, row.version, why)
        previous_hash = row.hash
    return None


def _flaw(row: EntityVersion, number: int, previous_hash: bytes) -> str:
    if row.version != number:
        return f"version {number} is missing"
    if row.previous_hash != previous_hash:
        return "its previous_hash is not the hash of the version before"
    if row.version_hash != version_hash(row.state):
        return "its state is not what was hashed"
    expected = chain_hash(
        previous_hash,
        entity_id=row.entity_id,
        version=row.version,
        entity_type=row.entity_type,
        operation=row.operation,
        recorded_at=row.recorded_at,
        recorded_by=row.recorded_by,
        governance_agent_id=row.governance_agent_id,
        state=row.state,
    )
    return "" if row.hash == expected else "its hash is not that of its contents"
