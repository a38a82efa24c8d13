"""Rebuilds as the database keeps them: which there are of a read model, and who holds one now.

A rebuild is a build under a name of its own, `agents_b3`, with a row in `rebuilds` beside that in `read_model_builds`.
All of this runs as the owner, in one session. While an operator fills a rebuild, that session holds an advisory lock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from projections import build_tables
from projections.read_model import READ_MODELS, ReadModel
from projections.rebuild.errors import RebuildRefused, RebuildRunning
from projections.session import Session
from projections.stored_builds import StoredBuild

_LOCK = "SELECT pg_try_advisory_lock(hashtextextended('plant.rebuild.' || $1, 0)) AS held"

_BUILDS = """
SELECT b.projection, b.version, b.tables_sql, b.apply_sql, b.sha256, b.phase, b.live, b.view_suffix, r.begun_by,
       to_char(r.begun_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS begun_at, r.verified_with, r.replaced,
       to_char(r.as_of AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS as_of
FROM read_model_builds AS b LEFT JOIN rebuilds AS r USING (projection, version)
WHERE b.read_model = $1 AND b.sha256 IS NOT NULL
  AND (b.phase <> 'retired' OR to_regnamespace(b.projection || '_v' || b.version) IS NOT NULL)
ORDER BY r.number NULLS FIRST, b.version
"""

_READ_MODELS = """
SELECT DISTINCT read_model FROM read_model_builds WHERE sha256 IS NOT NULL AND phase <> 'retired' ORDER BY 1
"""

_NUMBER = "SELECT nextval(pg_get_serial_sequence('rebuilds', 'number')) AS number"

_STORE_BUILD = """
INSERT INTO read_model_builds (projection, version, tables, tables_sql, apply_sql, sha256, phase, view_suffix)
SELECT $1, $2::int, string_to_array($3, ','), $4, $5, $6, 'filling', view_suffix
FROM read_model_builds WHERE projection = $7 AND version = $2::int
"""

# A version that readers never saw is not filled twice: its own build is left to the rebuild.
_LEAVE_TO_REBUILD = """
UPDATE read_model_builds AS b SET paused = true
WHERE b.projection = $1 AND b.version = $2 AND b.phase = 'released' AND NOT b.live AND NOT b.paused
  AND NOT EXISTS (SELECT FROM read_model_builds AS o WHERE o.read_model = b.read_model AND o.version >= b.version
                  AND o.live)
"""

_STORE_REBUILD = """
INSERT INTO rebuilds (number, projection, version, begun_by, reason, as_of)
VALUES ($1, $2, $3, $4, $5, nullif($6, '')::timestamptz)
"""

# Locks the checkpoints first: no chunk of a former run is under way then.
_LOCK_CHECKPOINTS = """
SELECT topic FROM model_checkpoints WHERE projection = $1 AND version = $2 ORDER BY topic, partition FOR UPDATE
"""
_KEEP = """
UPDATE read_model_builds AS b
SET phase = CASE WHEN EXISTS (SELECT FROM rebuilds AS r WHERE (r.projection, r.version) = (b.projection, b.version)
                              AND r.as_of IS NOT NULL) THEN 'released' ELSE 'kept' END
WHERE b.projection = $1 AND b.version = $2 AND b.phase = 'filling'
"""
_NOTE_FILLED = "UPDATE rebuilds SET filled_at = clock_timestamp() WHERE projection = $1 AND version = $2"

_NOTE_READ = """
UPDATE rebuilds SET read_events = read_events + $3, fill_seconds = fill_seconds + $4::float8
WHERE projection = $1 AND version = $2
"""

# Workers have it once no partition goes on without it.
_MISSING = """
SELECT count(*) FILTER (WHERE NOT $1 = ANY (c.read_models)) AS apart,
       count(*) FILTER (WHERE c.next_offset <> coalesce(m.next_offset, 0)) AS behind,
       coalesce(sum(c.next_offset - coalesce(m.next_offset, 0)), 0)::bigint AS lag,
       count(*) FILTER (WHERE EXISTS (
           SELECT FROM partition_owners AS o JOIN pg_stat_activity AS a ON a.pid = o.backend_pid
           WHERE o.consumer = 'projector' AND o.topic = c.topic AND o.partition = c.partition
             AND a.datname = current_database()
             AND coalesce(a.backend_start, o.backend_started_at) = o.backend_started_at
       )) AS owned
FROM checkpoints AS c
LEFT JOIN projection_checkpoints AS m
    ON m.projection || '/' || m.version = $1 AND (m.topic, m.partition) = (c.topic, c.partition)
WHERE c.consumer = 'projector'
"""


_APART = frozenset(model.name for model in READ_MODELS if model.starts_paused)
"""Read models that fold into tables of their own, which others write to."""


class KnownBuild(NamedTuple):
    """A build of a read model that has tables; the last five are those of a rebuild."""

    model: StoredBuild
    phase: str
    live: bool
    view_suffix: str = ""
    begun_by: str | None = None
    begun_at: str | None = None
    verified_with: str | None = None
    replaced: str | None = None
    as_of: str | None = None
    """The time up to which it has the log; it follows the log where there is none."""

    @property
    def key(self) -> str:
        """Its name in the checkpoints."""
        return self.model.key

    @property
    def is_past(self) -> bool:
        """Whether it is the log up to a time, and whole: nobody feeds it."""
        return self.as_of is not None and self.phase == "released"

    @property
    def is_rebuild(self) -> bool:
        """Whether an operator has begun it."""
        return self.begun_by is not None


class Following(NamedTuple):
    """In how many partitions a build is apart from the log, or behind it, and how many of them have an owner."""

    apart: int
    behind: int
    lag: int
    owned: int


def builds_of(session: Session, read_model: str) -> list[KnownBuild]:
    """Return the builds of a read model that have tables, rebuilds last. Raises RebuildRefused where none has."""
    rows = session.query(_BUILDS, (read_model,))
    if not rows:
        raise RebuildRefused(
            f"There is no read model {read_model}.", why="The database keeps no build of it.",
            next_step="plant projections list",
        )  # fmt: skip
    return [KnownBuild(_stored(*row[:5]), *row[5:]) for row in rows]


def rebuildable(session: Session) -> list[str]:
    """Return the names of the read models that can be rebuilt."""
    return [name for (name,) in session.query(_READ_MODELS) if name not in _APART]


def _stored(name: str, version: int, tables_text: str, apply_text: str, sha256: str) -> StoredBuild:
    """Return a build; what its release says of it beside its SQL holds for that SQL alone."""
    build = StoredBuild(name, version, tables_text, apply_text, stored_sha256=sha256)
    last_of = next((model.last_of for model in READ_MODELS if model.sha256 == build.sha256), {})
    return dataclasses.replace(build, last_of=last_of)


def source_of(builds: Sequence[KnownBuild], read_model: str, version: int | None) -> StoredBuild:
    """Return the build whose SQL a rebuild has: of this version, or of the one that readers see.

    Raises RebuildRefused where there is none, or its fold writes to tables that a rebuild does not have.
    """
    if version is None:
        version = next((each.model.version for each in builds if each.live), builds[0].model.version)
    source = next((each.model for each in builds if each.model.version == version), None)
    if source is None:
        raise RebuildRefused(
            f"There is no version {version} of {read_model}.", why="The database keeps no build of it.",
            next_step="plant projections list",
        )  # fmt: skip
    require_own_tables(read_model)
    return source


def has_tables_apart(read_model: str) -> bool:
    """Return whether a read model folds into tables of which there is one set."""
    return read_model in _APART


def require_own_tables(read_model: str) -> None:
    """Raise RebuildRefused for a read model that folds into tables of which there is one set."""
    if has_tables_apart(read_model):
        raise RebuildRefused(
            f"The read model {read_model} can't be rebuilt beside itself.",
            why="It folds into tables of their own, which others write to: a second build would fold into the same.",
            next_step="see docs/explanation/rebuilds.md",
        )


def hold(session: Session, read_model: str, builds: Sequence[KnownBuild]) -> None:
    """Keep other operators from rebuilding a read model until the session ends. Raises RebuildRunning with a name."""
    if session.query(_LOCK, (read_model,)) == [(True,)]:
        return
    running = next((each for each in builds if each.phase == "filling"), None)
    who = f"{running.begun_by} has begun {running.key} at {running.begun_at}" if running else "It has just begun"
    raise RebuildRunning(
        f"The read model {read_model} is being rebuilt.", why=f"{who}, and it still runs.",
        next_step="plant projections list",
    )  # fmt: skip


def begin(session: Session, source: StoredBuild, actor: str, reason: str, as_of: datetime | None = None) -> StoredBuild:
    """Make the empty tables of a rebuild, and write down that it has begun; returns it.

    Where readers have not seen its version yet, workers leave the build of that version alone from now on, unless the
    rebuild is one of the log up to a time.
    """
    session.begin()
    ((number,),) = session.query(_NUMBER)
    model = dataclasses.replace(source, name=f"{source.name_of_model}_b{number}")
    if as_of is None:
        session.execute(_LEAVE_TO_REBUILD, (source.name_of_model, source.version))
    build_tables.make_empty(session, model)
    texts = (model.tables_text, model.apply_text, model.sha256)
    session.execute(_STORE_BUILD, (model.name, model.version, ",".join(model.tables), *texts, source.name))
    session.execute(
        _STORE_REBUILD, (number, model.name, model.version, actor, reason, as_of.isoformat() if as_of else "")
    )
    session.commit()
    return model


def finish(session: Session, model: ReadModel) -> None:
    """Give a rebuild that is filled its indexes, policies and grants, and hand it to the workers.

    They leave one of the log up to a time as it is.
    """
    key = (model.name, model.version)
    session.begin()
    session.query(_LOCK_CHECKPOINTS, key)
    build_tables.complete(session, model)
    session.later(model.refresh_sql)
    for statement in (_KEEP, _NOTE_FILLED):
        session.execute(statement, key)
    session.commit()


def note_read(session: Session, model: ReadModel, events: int, seconds: float) -> None:
    """Add to what filling a rebuild has taken."""
    session.execute(_NOTE_READ, (model.name, model.version, events, seconds))


def following(session: Session, model: ReadModel) -> Following:
    """Return how a build follows the log."""
    return Following(*session.query(_MISSING, (model.key,))[0])
