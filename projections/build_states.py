"""The builds of read models as operators see them: which one readers have, how far each is, and why one is stopped."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, Final, Literal, NamedTuple

import msgspec
from sqlalchemy import text

from database.connector import Database
from runtime.errors import ConfigurationError

State = Literal["live", "filling", "standby", "stopped", "paused", "left", "past", "retired"]

# A model that stands neither among those that share the log's checkpoint nor apart holds nothing of a partition.
_BUILDS: Final = text("""
    SELECT b.projection, b.version, b.read_model, b.phase, b.live, b.paused, log.topic, log.partition,
           log.next_offset AS log_next_offset,
           coalesce(m.next_offset, 0) AS next_offset, m.stop_reason,
           CASE WHEN coalesce(m.next_offset, 0) < log.next_offset
                THEN record_age_seconds(log.topic, log.partition, coalesce(m.next_offset, 0)) END AS lag_seconds,
           EXISTS (SELECT FROM read_model_builds AS later
                   WHERE later.read_model = b.read_model AND later.live AND later.version > b.version
                     AND b.phase = 'released' AND NOT b.live) AS left_behind,
           r.begun_by, r.begun_at, r.reason, r.as_of, r.read_events, r.fill_seconds, r.filled_at, r.verified_at,
           r.verified_with, r.verified_rows, r.swapped_at, r.replaced
    FROM read_model_builds AS b
    LEFT JOIN rebuilds AS r USING (projection, version)
    LEFT JOIN checkpoints AS log ON log.consumer = 'projector' AND b.phase <> 'retired'
    LEFT JOIN projection_checkpoints AS m
        ON m.projection = b.projection AND m.version = b.version AND m.topic = log.topic AND m.partition = log.partition
    ORDER BY b.read_model, b.version, r.number NULLS FIRST, log.topic, log.partition
""")


_SET_PAUSED: Final = text("""
    UPDATE read_model_builds SET paused = :paused
    WHERE (projection = :name OR read_model = :name) AND version = coalesce(CAST(:version AS integer), version)
      AND paused <> :paused AND phase <> 'retired'
""")


class PartitionOfBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A partition that a build is made of.

    `lag` counts the records that the log has and the build lacks; `lag_seconds` is the age of the first of them, 0
    where there is none.
    """

    topic: str
    partition: int
    next_offset: int
    lag: int
    lag_seconds: float
    last_error: str | None


class RebuildRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is written down of a rebuild: who began it and why, what filling took, and what became of it."""

    begun_by: str
    begun_at: datetime
    reason: str
    as_of: datetime | None
    read_events: int
    fill_seconds: float
    filled_at: datetime | None
    verified_at: datetime | None
    verified_with: str | None
    verified_rows: int | None
    swapped_at: datetime | None
    replaced: str | None


class BuildState(msgspec.Struct, frozen=True, kw_only=True):
    """A build, of all partitions together; `name` is that of the read model, or of a rebuild of it."""

    name: str
    read_model: str
    version: int
    state: State
    paused: bool
    partitions: Sequence[PartitionOfBuild]
    rebuild: RebuildRecord | None = None

    @property
    def lag(self) -> int:
        """Records of the log that it lacks."""
        return sum(each.lag for each in self.partitions)

    @property
    def lag_seconds(self) -> float:
        """The age of the oldest record that it lacks; 0 where it lacks none."""
        return max((each.lag_seconds for each in self.partitions), default=0.0)

    @property
    def last_error(self) -> str | None:
        """Why it is stopped on the first partition where it is."""
        return next((each.last_error for each in self.partitions if each.last_error), None)


class UnknownBuild(ConfigurationError):
    """There is no such build of a read model."""

    def __init__(self, build: str) -> None:
        super().__init__(
            f"There is no build {build}.",
            why="The database keeps none of this name and version.",
            next_step="plant projections list",
        )


class BuildName(NamedTuple):
    """What an operator names: a read model, and one of its versions or all of them."""

    name: str
    version: int | None

    @classmethod
    def parse(cls, text: str) -> BuildName:
        """Return the name in `agents`, `agents/2` or, of a rebuild, `agents_b3`. Raises UnknownBuild.

        >>> BuildName.parse("agents/2")
        BuildName(name='agents', version=2)
        """
        name, slash, version = text.partition("/")
        if slash and not (version.isascii() and version.isdigit()):
            raise UnknownBuild(text)
        return cls(name, int(version) if slash else None)

    def of(self, state: BuildState) -> bool:
        """Return whether a build is meant."""
        return self.name in (state.name, state.read_model) and self.version in (None, state.version)


async def set_paused(database: Database, name: BuildName, paused: bool) -> None:
    """Let workers feed builds no more, or again; they notice it within two seconds or so."""
    async with database.transaction() as connection:
        await connection.execute(_SET_PAUSED, {"name": name.name, "version": name.version, "paused": paused})


async def build_states(database: Database) -> list[BuildState]:
    """Return every build that was ever made, as of one moment, by name and version."""
    async with database.transaction(read_only=True) as connection:
        rows = (await connection.execute(_BUILDS)).all()
    return [_state(list(group)) for _, group in groupby(rows, key=lambda row: (row.projection, row.version))]


def _state(rows: Sequence[Any]) -> BuildState:
    first = rows[0]
    partitions = [
        PartitionOfBuild(
            topic=row.topic, partition=row.partition, next_offset=row.next_offset,
            lag=row.log_next_offset - row.next_offset, lag_seconds=round(row.lag_seconds or 0.0, 3),
            last_error=row.stop_reason,
        )
        for row in rows
        if row.topic is not None
    ]  # fmt: skip
    state: State = "live" if first.live else "standby" if first.phase == "kept" else "filling"
    if first.phase == "retired":
        state = "retired"
    elif first.as_of and first.phase == "released":
        state = "past"
    elif first.left_behind:
        state = "left"
    elif first.paused:
        state = "paused"
    elif any(each.last_error for each in partitions):
        state = "stopped"
    rebuild = first.begun_by and RebuildRecord(
        **{name: getattr(first, name) for name in RebuildRecord.__struct_fields__}
    )
    return BuildState(
        name=first.projection, read_model=first.read_model, version=first.version, state=state, paused=first.paused,
        partitions=partitions, rebuild=rebuild or None,
    )  # fmt: skip
