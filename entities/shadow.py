"""A shadow of the entity tables, which the events of the log are folded into again, and the SQL that compares both.

The shadow is a schema with tables like theirs and the functions that fold into them, as the database has them. It has
no triggers, so it makes no versions and no outbox rows, and no direct changes, so each event that tells of one is
folded.

What is compared are the fields that events bring. A change in the database may set others, and versions have those. Of
an entity that was ever changed directly the last version counts, whatever the events say: its echo may be on its way,
or another event may have come between ([0033](../docs/decisions/0033-the-registry-folds-into-the-entity-tables.md)).
Each statement runs in one tenant.
"""

from __future__ import annotations

from typing import Final

SHADOW: Final = "registry_shadow"
"""The shadow's schema."""

_TABLES: Final = (
    "entities", "entity_versions", "skills", "industries", "job_roles", "teams", "agents", "job_role_skills",
    "team_members", "agent_skills",
)  # fmt: skip

FUNCTIONS: Final = f"""
SELECT replace(replace(pg_get_functiondef(p.oid), 'FUNCTION public.', 'FUNCTION {SHADOW}.'),
               'SET search_path TO ''public''', 'SET search_path TO ''{SHADOW}'', ''public''') AS definition
FROM pg_proc AS p WHERE p.pronamespace = 'public'::regnamespace AND p.proname IN ('fold_into_entity', 'entity_state')
"""  # noqa: S608 (a name of ours)
"""Returns the definitions of the shadow's functions."""

_FOLD: Final = f"""
CREATE FUNCTION {SHADOW}.fold_entity(
    tenant text, made_version bigint, kind text, entity uuid, change text, moment timestamptz, state jsonb, ids uuid[]
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    tenant_before text := current_setting('plant.governance_agent_id', true);
    refusal text;
BEGIN
    PERFORM set_config('plant.governance_agent_id', tenant, true);
    refusal := {SHADOW}.fold_into_entity(tenant, made_version, kind, entity, change, moment, state, ids);
    PERFORM set_config('plant.governance_agent_id', coalesce(tenant_before, ''), true);
    RETURN refusal;
END
$$
"""

# `status` says something of an agent alone; of others that they are retired, as `deleted_at` does.
_COMPARED: Final = f"""
CREATE FUNCTION {SHADOW}.compared(kind text, state jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT state - ARRAY['created_at', 'deleted_at', 'status', 'external_id', 'amendment_history', 'evolution_markers',
                         'l0_compliance_status', 'amendment_alignment', 'drift_detector', 'tags', 'custom_attributes',
                         'governance_notes', 'parent_id']
        || jsonb_build_object('retired', state ->> 'deleted_at' IS NOT NULL)
        || CASE WHEN kind = 'agent' THEN jsonb_build_object('status', state -> 'status') ELSE '{{}}' END
        || CASE WHEN kind IN ('skill', 'job_role', 'industry')
                THEN jsonb_build_object('external_id', state -> 'external_id') ELSE '{{}}' END
$$
"""

_EXPECTED: Final = f"""
CREATE VIEW {SHADOW}.expected WITH (security_invoker = true) AS
WITH last AS (
    SELECT DISTINCT ON (v.entity_id) v.entity_id, v.entity_type, v.operation, v.state::jsonb AS state
    FROM public.entity_versions AS v
    WHERE EXISTS (SELECT FROM public.entity_versions AS d
                  WHERE d.entity_id = v.entity_id AND d.recorded_by NOT LIKE '%/projection')
    ORDER BY v.entity_id, v.version DESC
)
SELECT entity_id AS id, entity_type AS kind, state FROM last WHERE operation <> 'deleted'
UNION ALL
SELECT e.id, e.entity_type, {SHADOW}.entity_state(e.id)::jsonb FROM {SHADOW}.entities AS e
WHERE NOT EXISTS (SELECT FROM last WHERE last.entity_id = e.id)
"""  # noqa: S608

DIFFERENT: Final = f"""
SELECT x.kind, x.id, CASE WHEN e.id IS NULL THEN 'missing' ELSE 'changed' END AS what
FROM {SHADOW}.expected AS x LEFT JOIN public.entities AS e USING (id)
WHERE {SHADOW}.compared(x.kind, x.state) IS DISTINCT FROM {SHADOW}.compared(x.kind, public.entity_state(e.id)::jsonb)
ORDER BY x.id
"""  # noqa: S608
"""Returns kind, id and `missing` or `changed` of each entity that the tables do not have as they should."""

ADDED: Final = f"""
SELECT e.entity_type AS kind, e.id, 'added' AS what FROM public.entities AS e
WHERE NOT EXISTS (SELECT FROM {SHADOW}.expected AS x WHERE x.id = e.id) ORDER BY e.id
"""  # noqa: S608
"""Returns the entities that neither an event nor a version explains."""

MERGE: Final = f"""
SELECT x.id, public.fold_entity(
    current_setting('plant.governance_agent_id'), NULL, x.kind, x.id,
    CASE WHEN x.state ->> 'deleted_at' IS NULL THEN 'amended' ELSE 'retired' END,
    coalesce(x.state ->> 'deleted_at', x.state ->> 'created_at')::timestamptz, x.state,
    ARRAY(SELECT jsonb_array_elements_text(coalesce(
        x.state -> 'skill_ids', x.state -> 'required_skill_ids', x.state -> 'member_ids', '[]'))::uuid)
) AS refusal
FROM {SHADOW}.expected AS x LEFT JOIN public.entities AS e USING (id)
WHERE x.id = ANY (string_to_array($1, ',')::uuid[])
  AND {SHADOW}.compared(x.kind, x.state) IS DISTINCT FROM {SHADOW}.compared(x.kind, public.entity_state(e.id)::jsonb)
ORDER BY x.id
"""  # noqa: S608
"""Folds into those of the entities that still differ what they should be; returns each id, and why where it is refused.

As the projection's role this makes a version of each, marked as a fold's, and nothing for the outbox."""

LOCK: Final = """
SELECT id FROM entities WHERE id = ANY (string_to_array($1, ',')::uuid[]) ORDER BY id FOR NO KEY UPDATE
"""
"""Waits for changes of these entities that are under way; runs before MERGE, in the same transaction."""

COMPARED: Final = f"SELECT count(*) AS n FROM {SHADOW}.expected"  # noqa: S608
"""Returns how many entities there should be."""

DIRECT_CHANGES: Final = """
SELECT count(*) AS n FROM public.entity_versions
WHERE entity_id = ANY (string_to_array($1, ',')::uuid[]) AND recorded_by NOT LIKE '%/projection'
"""
"""Returns how many direct changes of these entities are committed."""

TENANTS: Final = f"SELECT DISTINCT governance_agent_id AS tenant FROM {SHADOW}.entities"  # noqa: S608
"""Returns the tenants of all entities of the shadow, to its owner."""

RUN: Final = f"SELECT id::text AS id FROM {SHADOW}.run"  # noqa: S608
"""Returns the id of the run that has made the shadow, which can't be dropped before the transaction ends."""

DROP: Final = f"DROP SCHEMA IF EXISTS {SHADOW} CASCADE"


def make_shadow(writer: str = "plant_writer") -> list[str]:
    """Return the statements that make the shadow's tables, for the owner; `writer` folds into them, by tenant."""
    statements = [
        DROP, f"CREATE SCHEMA {SHADOW}", f"GRANT USAGE ON SCHEMA {SHADOW} TO {writer}",
        f"CREATE TABLE {SHADOW}.run AS SELECT gen_random_uuid() AS id",
        f"GRANT SELECT ON {SHADOW}.run TO {writer}",
    ]  # fmt: skip
    for table in _TABLES:
        statements += [
            f"CREATE UNLOGGED TABLE {SHADOW}.{table}"
            f" (LIKE public.{table} INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING INDEXES)",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON {SHADOW}.{table} TO {writer}",
            f"ALTER TABLE {SHADOW}.{table} ENABLE ROW LEVEL SECURITY",
            f"CREATE POLICY of_tenant ON {SHADOW}.{table}"
            " USING (governance_agent_id = current_setting('plant.governance_agent_id', true))",
        ]
    return statements


def complete_shadow(writer: str = "plant_writer") -> list[str]:
    """Return the statements that make what compares, once the shadow has its FUNCTIONS."""
    return [_FOLD, _COMPARED, _EXPECTED, f"GRANT SELECT ON {SHADOW}.expected TO {writer}"]
