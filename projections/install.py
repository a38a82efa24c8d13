"""Creating the read models' tables and stable views; `plant db upgrade` runs it after the migrations, as the owner."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from typing import Final

from entities.vocabulary import DEFAULT_TENANT
from projections import builds, stored_builds
from projections.read_model import READ_MODELS, ReadModel
from projections.session import Session, sql_literal
from projections.statements import split_statements

VIEWS = "read_models"
"""The schema of the stable views that readers use; each points at the live build's table."""

_INDEX: Final = re.compile(
    r"CREATE (?:UNIQUE )?INDEX IF NOT EXISTS (?P<name>\w+) ON (?P<schema>\w+)\.\w+\s", re.IGNORECASE
)

PUBLISH_TRIES: Final = 50
PUBLISH_PAUSE_SECONDS: Final = 0.1

_GUARDED = """
SELECT c.relrowsecurity AND c.relforcerowsecurity AND EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid) AS guarded,
       EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attname = 'governance_agent_id') AS divided
FROM pg_class AS c WHERE c.oid = {table}::regclass
"""

# The setting is read once a statement, not once a row: a row written by an upsert would have it read up to five times.
_GUARD = """
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
ALTER TABLE {table} FORCE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS governance_boundary ON {table};
CREATE POLICY governance_boundary ON {table}
    USING (governance_agent_id = (SELECT nullif(current_setting('plant.governance_agent_id', true), '')))
    WITH CHECK (governance_agent_id = (SELECT nullif(current_setting('plant.governance_agent_id', true), '')))
"""


def install(url: str, models: Iterable[ReadModel] = READ_MODELS) -> list[ReadModel]:
    """Create what is missing: a schema for each build, its tables, their policies, their views and grants.

    Views move to a build once it has every record of the log. Until then readers stay on the one before; returns the
    models that this concerns. One that starts paused is shown by a worker, once it is fed. Running it again changes
    nothing and waits for no worker. A table that an earlier version made is given the column and the policy that it
    lacks, for which it is locked; workers of that version can't write to it afterwards. Raises BuildReshaped, and
    FoldChanged before anything is changed.
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
    session.execute(f"CREATE SCHEMA IF NOT EXISTS {model.schema}")
    for statement in split_statements(model.tables_sql):
        if not _has_index(session, statement):
            session.execute(statement)
    session.execute(f"GRANT USAGE ON SCHEMA {model.schema} TO plant_writer, plant_api, plant_auditor")
    for name in model.tables:
        table = f"{model.schema}.{name}"
        _guard(session, table)
        session.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO plant_writer")
        session.execute(f"GRANT SELECT ON {table} TO plant_api, plant_auditor")
    builds.require_same_columns(session, model, VIEWS)
    stored_builds.store(session, model)
    builds.refresh_views(session, model, VIEWS)


def _has_index(session: Session, statement: str) -> bool:
    """Return whether a statement makes an index that is there: Postgres would lock the table to find that out."""
    made = _INDEX.match(statement)
    if made is None:
        return False
    ((there,),) = session.query("SELECT to_regclass($1) IS NOT NULL AS there", (f"{made['schema']}.{made['name']}",))
    return bool(there)


def _guard(session: Session, table: str) -> None:
    """Put each row of a table into a tenant, and keep the tenants apart."""
    ((guarded, divided),) = session.query(_GUARDED.format(table=sql_literal(table)))
    if not divided:
        session.execute(
            f'ALTER TABLE {table} ADD COLUMN governance_agent_id text COLLATE "C" NOT NULL'
            f" DEFAULT {sql_literal(DEFAULT_TENANT)}"
        )
    if not guarded:
        session.script(_GUARD.format(table=table))
