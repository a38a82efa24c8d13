"""Creating the read models' tables and stable views; `plant db upgrade` runs it after the migrations, as the owner."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

from projections import build_tables, builds, stored_builds
from projections.fold_functions import require_functions
from projections.read_model import READ_MODELS, ReadModel
from projections.session import Session

VIEWS = "read_models"
"""The schema of the stable views that readers use; each points at the live build's table."""

PUBLISH_TRIES: Final = 50
PUBLISH_PAUSE_SECONDS: Final = 0.1


def install(url: str, models: Iterable[ReadModel] = READ_MODELS) -> list[ReadModel]:
    """Create what is missing: a schema for each build, its tables, their policies, their views and grants.

    Views move to a build once it has every record of the log. Until then readers stay on the one before; returns the
    models that this concerns. One that starts paused is shown by a worker, once it is fed. Running it again changes
    nothing and waits for no worker. A table that an earlier version made is given the column and the policy that it
    lacks, for which it is locked; workers of that version can't write to it afterwards. Raises BuildReshaped where a
    former version comes back that lacks columns of the views, FoldChanged, and FunctionsChanged where migrations have
    made other functions than a model was locked with; nothing is changed then.
    """
    models = tuple(models)
    session = Session(url)
    try:
        session.begin()
        session.execute("SELECT pg_advisory_xact_lock(hashtext('plant.projections.install'))")
        session.execute(f"CREATE SCHEMA IF NOT EXISTS {VIEWS}")
        session.execute(f"GRANT USAGE ON SCHEMA {VIEWS} TO plant_api, plant_auditor, plant_embedder")
        stored_builds.require_unchanged(session, models)
        for model in models:
            require_functions(session, model)
            _install(session, model)
        session.commit()
        return _unpublished(session, [model for model in models if not model.starts_paused])
    finally:
        session.close()


def _unpublished(session: Session, models: Sequence[ReadModel]) -> list[ReadModel]:
    """Let readers see the builds that have caught up, and wait a while for those who read now; return the others."""
    states = {model.key: builds.BUSY for model in models}
    for attempt in range(PUBLISH_TRIES):
        if attempt:
            time.sleep(PUBLISH_PAUSE_SECONDS)
        for model in models:
            if states[model.key] == builds.BUSY:
                states[model.key] = builds.publish(session, model, caught_up=False)
        if builds.BUSY not in states.values():
            break
    return [model for model in models if states[model.key] != builds.LIVE]


def _install(session: Session, model: ReadModel) -> None:
    if stored_builds.is_retired(session, model):
        return
    build_tables.complete(session, model)
    builds.require_same_columns(session, model, VIEWS)
    stored_builds.store(session, model, builds.view_suffix(session, model))
    builds.refresh_views(session, model, VIEWS)
