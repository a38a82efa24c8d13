"""Retiring a build: workers feed it no more, and its tables are dropped."""

from __future__ import annotations

import time
from typing import Final

from projections.rebuild.errors import RebuildRefused
from projections.rebuild.rebuilds import KnownBuild, following
from projections.session import Session

_RETIRE = """
UPDATE read_model_builds SET phase = 'retired', paused = true
WHERE projection = $1 AND version = $2 AND NOT live RETURNING version
"""
_FED = """
SELECT count(*) AS fed FROM checkpoints WHERE consumer = 'projector' AND $1 = ANY (read_models)
"""
_FORGET = """
DELETE FROM model_checkpoints WHERE projection = $1 AND version = $2
"""
PAUSE_SECONDS: Final = 0.1


def retire(session: Session, build: KnownBuild, *, wait_seconds: float) -> bool:
    """Retire a build that readers do not see; returns whether its tables are dropped.

    They are not where workers still fold into it after the time: they leave it within seconds, so call it again then.
    Nothing waits for a partition without an owner. Raises RebuildRefused where readers see the build.
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
    session.begin()
    session.execute(f"DROP SCHEMA IF EXISTS {build.model.schema} CASCADE")
    session.execute(_FORGET, key)
    session.commit()
    return True
