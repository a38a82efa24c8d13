"""The tables of a build: made empty, and completed with indexes, policies and grants, by the owner.

A build that workers fill is completed at once. A rebuild is filled before: rows are added faster to tables without
further indexes, and COPY and policies do not go together.
"""

from __future__ import annotations

import re
from typing import Final

from entities.vocabulary import DEFAULT_TENANT
from projections.read_model import ReadModel
from projections.session import Session, sql_literal
from projections.statements import split_statements

_TABLE: Final = re.compile(r"CREATE (?:UNLOGGED )?TABLE\b", re.IGNORECASE)
_INDEX: Final = re.compile(
    r"CREATE (?:UNIQUE )?INDEX IF NOT EXISTS (?P<name>\w+) ON (?P<schema>\w+)\.\w+\s", re.IGNORECASE
)

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


def make_empty(session: Session, model: ReadModel) -> None:
    """Create a build's schema and its tables with their primary keys, and nothing else."""
    session.execute(f"CREATE SCHEMA IF NOT EXISTS {model.schema}")
    for statement in split_statements(model.tables_sql):
        if _TABLE.match(statement):
            session.execute(statement)


def complete(session: Session, model: ReadModel) -> None:
    """Create what a build lacks: schema, tables, indexes, policies and grants. Doing it again changes nothing."""
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
