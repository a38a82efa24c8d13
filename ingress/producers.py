"""The policies of producers: event types, events a second, and whether a producer may send at all.

A policy is a row of `producers`; a producer without one, and every column that is null, has the settings' defaults.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from database.connector import Database
from ingress.errors import ProducerInUse, UnknownProducer
from runtime.settings import Settings

_POLICIES: Final = text("SELECT name, event_types, rate_per_second, burst, disabled_at, binary_mode FROM producers")
_LIST: Final = text("""
    SELECT name, p.event_types, p.rate_per_second, p.burst, p.created_at, p.disabled_at,
           coalesce(p.binary_mode, false) AS binary_mode,
           coalesce(k.active_keys, 0) AS active_keys, coalesce(k.pending_keys, 0) AS pending_keys
    FROM producers AS p FULL JOIN (
        SELECT producer AS name, count(*) FILTER (
            WHERE revoked_at IS NULL AND not_before <= now() AND (expires_at IS NULL OR expires_at > now())
        ) AS active_keys, count(*) FILTER (
            WHERE revoked_at IS NULL AND not_before > now() AND (expires_at IS NULL OR expires_at > now())
        ) AS pending_keys FROM webhook_signatures GROUP BY producer
    ) AS k USING (name)
    ORDER BY name
""")
_SET: Final = text("""
    INSERT INTO producers AS p (name, event_types, rate_per_second, burst, binary_mode)
    VALUES (:name, CAST(:event_types AS text[]), :rate_per_second, :burst, coalesce(:binary_mode, false))
    ON CONFLICT (name) DO UPDATE SET
        event_types = CASE WHEN :sets_event_types THEN EXCLUDED.event_types ELSE p.event_types END,
        rate_per_second = CASE WHEN :sets_rate_per_second THEN EXCLUDED.rate_per_second ELSE p.rate_per_second END,
        burst = CASE WHEN :sets_burst THEN EXCLUDED.burst ELSE p.burst END,
        binary_mode = CASE WHEN :sets_binary_mode THEN EXCLUDED.binary_mode ELSE p.binary_mode END
""")
_DISABLE: Final = text("""
    INSERT INTO producers AS p (name, disabled_at) VALUES (:name, now())
    ON CONFLICT (name) DO UPDATE SET disabled_at = coalesce(p.disabled_at, EXCLUDED.disabled_at)
""")
_DELETE: Final = text("""
    DELETE FROM producers AS p WHERE name = :name AND NOT EXISTS (
        SELECT FROM webhook_signatures AS k
        WHERE k.producer = p.name AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
    )
""")
_ENABLE: Final = text("UPDATE producers SET disabled_at = NULL WHERE name = :name")


class ProducerPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What a producer may send. `event_types` None: every type; the rate and the burst count events, each process.

    `binary_mode` allows binary CloudEvents, whose type, source and time no signature covers.
    """

    name: str
    event_types: frozenset[str] | None
    rate_per_second: float
    burst: int
    disabled: bool
    binary_mode: bool = False
    key_id: str | None = None
    """The key that signed the request that the policy is applied to; None: no request."""


class PolicyChanges(msgspec.Struct, kw_only=True):
    """What to change of a policy; None: back to the default."""

    event_types: frozenset[str] | UnsetType | None = UNSET
    rate_per_second: float | UnsetType | None = UNSET
    burst: int | UnsetType | None = UNSET
    binary_mode: bool | UnsetType = UNSET


class StoredProducer(msgspec.Struct, frozen=True, kw_only=True):
    """A producer as it is listed. None: the default; without `created_at` it has keys and no policy of its own."""

    name: str
    event_types: tuple[str, ...] | None
    rate_per_second: float | None
    burst: int | None
    binary_mode: bool
    created_at: datetime | None
    disabled_at: datetime | None
    active_keys: int
    pending_keys: int
    """Keys that will be active: neither revoked nor expired, and not yet to be used."""


class ProducerStore:
    """The table `producers`, as plant_ingress, which reads it, or plant_operator."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[StoredProducer]:
        """Return every producer that has a policy or ever had a key, by name."""
        async with self._database.transaction() as connection:
            rows = [dict(row) for row in (await connection.execute(_LIST)).mappings()]
        return [msgspec.convert(row, StoredProducer) for row in rows]

    async def find(self, name: str) -> StoredProducer:
        """Return one of them. Raises UnknownProducer."""
        for producer in await self.all():
            if producer.name == name:
                return producer
        raise UnknownProducer(
            f"There is no producer {name}.",
            why="It has neither a key nor a policy.",
            next_step="plant producers list",
        )

    async def set(self, name: str, changes: PolicyChanges) -> None:
        """Change a policy, or make one; fields of `changes` that are not set stay as they are."""
        values: dict[str, object] = {"name": name}
        for field in changes.__struct_fields__:
            value = getattr(changes, field)
            values[f"sets_{field}"] = value is not UNSET
            values[field] = None if value is UNSET else sorted(value) if isinstance(value, frozenset) else value
        async with self._database.transaction() as connection:
            await connection.execute(_SET, values)

    async def disable(self, name: str) -> None:
        """Disable a producer, whatever its keys. Again changes nothing."""
        async with self._database.transaction() as connection:
            await connection.execute(_DISABLE, {"name": name})

    async def delete(self, name: str) -> None:
        """Delete a policy; a producer's keys are kept permanently. Again changes nothing.

        Raises ProducerInUse where one of them is active or will be, which would have the default policy then.
        """
        refuse_with_keys(await self.find(name))
        async with self._database.transaction() as connection:
            deleted = (await connection.execute(_DELETE, {"name": name})).rowcount
        if not deleted:
            refuse_with_keys(await self.find(name))

    async def enable(self, name: str) -> None:
        """Enable a producer. Again changes nothing."""
        async with self._database.transaction() as connection:
            await connection.execute(_ENABLE, {"name": name})


def refuse_with_keys(producer: StoredProducer) -> None:
    """Raise ProducerInUse where a producer has keys that are neither revoked nor expired."""
    if producer.active_keys or producer.pending_keys:
        raise ProducerInUse(
            f"{producer.name} has {producer.active_keys} active and {producer.pending_keys} pending keys.",
            why="Without its policy they could send every event type, at the default rate. Revoke them first.",
            next_step=f"plant keys list --producer {producer.name}",
        )


def default_policy(settings: Settings) -> ProducerPolicy:
    """Return the policy of a producer that has no row; its name is empty."""
    return ProducerPolicy(
        name="",
        event_types=None,
        rate_per_second=settings.ingress_producer_rate_per_second,
        burst=settings.ingress_producer_burst,
        disabled=False,
    )


async def read_policies(connection: AsyncConnection, default: ProducerPolicy) -> dict[str, ProducerPolicy]:
    """Return the policies that have a row, by name."""
    return {row["name"]: _policy(row, default) for row in (await connection.execute(_POLICIES)).mappings()}


def _policy(row: RowMapping, default: ProducerPolicy) -> ProducerPolicy:
    return ProducerPolicy(
        name=row["name"],
        event_types=None if row["event_types"] is None else frozenset(row["event_types"]),
        rate_per_second=default.rate_per_second if row["rate_per_second"] is None else row["rate_per_second"],
        burst=default.burst if row["burst"] is None else row["burst"],
        disabled=row["disabled_at"] is not None,
        binary_mode=row["binary_mode"],
    )
