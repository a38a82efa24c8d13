"""Retiring a build: workers feed it no more, and its tables are dropped."""

from __future__ import annotations

import time
from typing import Final

from projections.rebuild.errors import RebuildRefused
from projections.rebuild.rebuilds import KnownBuild, following
from projections.session import Session, TableLocked

_RETIRE = """
UPDATE read_model_builds AS b SET phase = 'retired', paused = true, live = false
WHERE b.projection = $1 AND b.version = $2 AND (NOT b.live OR EXISTS (
    SELECT FROM read_model_builds AS later WHERE later.read_model = b.read_model AND later.live
      AND later.version > b.version AND later.view_suffix <> b.view_suffix
)) RETURNING b.version
"""
_FED = """
SELECT count(*) AS fed FROM checkpoints WHERE consumer = 'projector' AND $1 = ANY (read_models)
"""
_FORGET = """
DELETE FROM model_checkpoints WHERE projection = $1 AND version = $2
"""
PAUSE_SECONDS: Final = 0.1


def retire(session: Session, build: KnownBuild, *, wait_seconds: float) -> bool:
    """Retire a build that readers do not see, or whose views a later version has left; returns whether it is dropped.

    It is not where workers still fold into it after the time, or readers hold its views: call it again then. Nothing
    waits for a partition without an owner, and readers wait no longer than 50 ms. Raises RebuildRefused where readers
    see the build.
    """
    key = (build.model.name, build.model.version)
    if not session.query(_RETIRE, key):
        raise RebuildRefused(
            f"{build.key} can't be retired.", why="Readers see it.", next_step="plant projections swap"
        )
    deadline = time.monotonic() + wait_seconds
    while session.query(_FED, (build.key,)) != [(0,)] and following(session, build.model).owned:
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE_SECONDS)
    while not _drop(session, build):
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE_SECONDS)
    return True


def _drop(session: Session, build: KnownBuild) -> bool:
    """Drop a build's schema with the views that show it; returns whether nobody was in the way."""
    session.begin()
    try:
        session.execute("SET LOCAL lock_timeout = '50ms'")
        session.execute(f"DROP SCHEMA IF EXISTS {build.model.schema} CASCADE")
        session.execute(_FORGET, (build.model.name, build.model.version))
        session.commit()
    except TableLocked:
        session.rollback()
        return False
    return True
