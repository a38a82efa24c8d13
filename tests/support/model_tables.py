"""What the log and the read models hold, in the form in which the oracles give it."""

from __future__ import annotations

from uuid import UUID

import msgspec

from projections.read_model import ReadModel
from projections.session import Session, sql_literal
from tests.support.parked_streams import Row
from tests.support.read_model_folds import Tables

_PRIMARY_KEY = """
SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY array_position(i.indkey::int2[], a.attnum)) AS columns
FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey::int2[])
WHERE i.indrelid = $1::regclass AND i.indisprimary
"""
_LOGGED = """
SELECT disposition::text AS disposition, control_offset, event_id::text AS event_id FROM event_stream
WHERE topic = {topic} AND partition = {partition} ORDER BY "offset"
"""


_ENTITIES = """
SELECT json_build_object(
    'id', id, 'entity_type', entity_type, 'governance_agent_id', governance_agent_id, 'state', entity_state(id)::json,
    'versions', (SELECT count(*) FROM entity_versions AS v WHERE v.entity_id = e.id)
)::text AS entity FROM entities AS e ORDER BY id
"""
_OUTBOX = "SELECT count(*) AS waiting FROM outbox"

ENTITY_TABLES = (
    "entities", "entity_versions", "agents", "agent_skills", "industries", "job_roles", "job_role_skills", "skills",
    "team_members", "teams",
)  # fmt: skip
"""The tables that the read model `registry` fills."""


def log_rows(session: Session, topic: str, partition: int) -> list[Row]:
    """Return what the log says of each record of a partition, in the order of offsets."""
    rows = session.query(_LOGGED.format(topic=sql_literal(topic), partition=partition))
    return [Row(each, named, event_id and UUID(event_id)) for each, named, event_id in rows]


def whole_log(session: Session) -> list[dict[str, object]]:
    """Return the rows of the log, of all partitions, with their hashes."""
    query = 'SELECT to_json(r)::text AS row FROM log_records AS r ORDER BY topic, partition, "offset"'
    return [msgspec.json.decode(row) for (row,) in session.query(query)]


def model_tables(session: Session, model: ReadModel) -> Tables:
    """Return the rows of a read model's tables, by primary key. The session's time zone has to be UTC."""
    return {table: _rows(session, f"{model.schema}.{table}") for table in model.tables}


def entity_rows(session: Session) -> list[dict[str, object]]:
    """Return the entities with their states and the number of their versions, by id; none came into the outbox."""
    assert session.query(_OUTBOX) == [(0,)]
    return [msgspec.json.decode(row) for (row,) in session.query(_ENTITIES)]


def _rows(session: Session, table: str) -> list[dict[str, object]]:
    ((key,),) = session.query(_PRIMARY_KEY, (table,))
    query = f"SELECT to_json(t)::text AS row FROM {table} AS t ORDER BY {key}"
    return [msgspec.json.decode(row) for (row,) in session.query(query)]
