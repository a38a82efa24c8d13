"""Events are folded into the entity tables by a function of theirs, which the read model `registry` calls.

A version that a fold has made says so in `recorded_by`, which its hash covers. So an event that tells of a direct
change can be compared with the direct changes of its entity. An external id that came with an event is not enforced to
be unique in its tenant: events of different entities are in no order, so whoever came first would have it.
"""

from database.migrations.script import run_script

revision = "029"
down_revision = "028"
branch_labels = None
depends_on = None

# Only who may project can call a change its own: the setting is anybody's to make, and from others it means nothing.
# session_user, since it is asked by functions that run as the tables' owner. A superuser is a member of every role, and
# projects nothing.
IS_PROJECTING = """
CREATE FUNCTION is_projecting() RETURNS boolean LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(current_setting('plant.projecting', true) = 'on', false)
       AND pg_has_role(session_user, 'plant_writer', 'MEMBER')
       AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = session_user)
$$;
REVOKE EXECUTE ON FUNCTION is_projecting() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION is_projecting() TO plant_writer;
"""

# The same in a line, as 008 has it.
PROJECTING_BEFORE = (
    "(current_setting('plant.projecting', true) = 'on' AND pg_has_role(session_user, 'plant_writer', 'MEMBER')\n"
    "           -- A superuser is a member of every role, and projects nothing.\n"
    "           AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = session_user))"
)

# As in 028, here with the function or without it.
ADD_TO_OUTBOX = """
CREATE OR REPLACE FUNCTION add_to_outbox() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
DECLARE
    state jsonb := NEW.state::jsonb;
BEGIN
    IF (state ->> 'status' = 'stub' AND NOT state ? 'name')
       OR __projecting__ THEN
        RETURN NULL;
    END IF;
    INSERT INTO outbox (event_type, entity_id, entity_type, version, occurred_at, state, governance_agent_id) VALUES (
        CASE WHEN NEW.operation = 'deleted' OR state ->> 'deleted_at' IS NOT NULL
             THEN 'genesis.entity.retired' ELSE 'genesis.entity.amended' END,
        NEW.entity_id, NEW.entity_type, NEW.version, NEW.recorded_at, state, NEW.governance_agent_id);
    PERFORM pg_notify('plant_outbox', '');
    RETURN NULL;
END
$$;
"""

# As in 003, here with the mark of a fold or without it.
RECORD_VERSION = """
CREATE OR REPLACE FUNCTION record_entity_version() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
DECLARE
    boundary_before text := current_setting('plant.governance_agent_id', true);
    changed entities;
    last entity_versions;
    next entity_versions;
BEGIN
    IF TG_OP = 'DELETE' THEN
        changed := OLD;
    ELSE
        changed := NEW;
    END IF;
    PERFORM set_config('plant.governance_agent_id', changed.governance_agent_id, true);
    SELECT * INTO last FROM entity_versions AS v WHERE v.entity_id = changed.id ORDER BY v.version DESC LIMIT 1;
    SELECT e.entity_type, entity_state(e.id) INTO next.entity_type, next.state
    FROM entities AS e WHERE e.id = changed.id;
    next.operation := CASE WHEN next.state IS NULL THEN 'deleted'
                           WHEN coalesce(last.operation, 'deleted') = 'deleted' THEN 'created' ELSE 'changed' END;
    next.entity_type := coalesce(next.entity_type, last.entity_type);
    next.state := coalesce(next.state, last.state);
    -- No state: it was made and deleted in this transaction, and there has never been a version.
    IF next.state IS NOT NULL AND (next.state IS DISTINCT FROM last.state
                                   OR (next.operation = 'deleted') <> (last.operation = 'deleted')) THEN
        next.entity_id := changed.id;
        next.version := coalesce(last.version, 0) + 1;
        next.governance_agent_id := changed.governance_agent_id;
        next.recorded_at := clock_timestamp();
        next.recorded_by := session_user__mark__;
        next.version_hash := sha256(convert_to(next.state, 'UTF8'));
        next.previous_hash := coalesce(last.hash, decode(repeat('00', 32), 'hex'));
        next.hash := entity_version_hash(next.previous_hash, next.entity_id, next.version, next.entity_type,
                                         next.operation, next.recorded_at, next.recorded_by, next.governance_agent_id,
                                         next.state);
        INSERT INTO entity_versions SELECT next.*;
        UPDATE entities SET version_hash = next.version_hash, hash_chain_sha256 = next.hash WHERE id = changed.id;
    END IF;
    PERFORM set_config('plant.governance_agent_id', coalesce(boundary_before, ''), true);
    RETURN NULL;
END
$$;
"""

EXTERNAL_IDS = """
ALTER TABLE entities ADD COLUMN external_id_from_event boolean NOT NULL DEFAULT false;
DROP INDEX entities_external_id;
CREATE UNIQUE INDEX entities_external_id ON entities (governance_agent_id, external_id)
    WHERE external_id IS NOT NULL AND NOT external_id_from_event;
GRANT INSERT (external_id_from_event), UPDATE (external_id_from_event) ON entities TO plant_writer;

-- One that is changed directly is enforced again.
CREATE FUNCTION enforce_external_id() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    NEW.external_id_from_event := is_projecting();
    RETURN NEW;
END
$$;
REVOKE EXECUTE ON FUNCTION enforce_external_id() FROM PUBLIC;
CREATE TRIGGER enforce_external_id BEFORE UPDATE ON entities FOR EACH ROW
    WHEN (NEW.external_id IS DISTINCT FROM OLD.external_id) EXECUTE FUNCTION enforce_external_id();
"""

FOLD = """
-- Fold one event into its entity, in a tenant. `change` is what happened: `defined` (onboarded, registered, formed),
-- `amended`, `retired` or `available`. `state` holds the entity's fields as JSON, `ids` its list of ids. `made_version`
-- is the version of a direct change that the event tells of, null where it tells of none: the event is left out if the
-- entity has that change already, or a later one. Returns why the event can't be folded, null where nothing is wrong.
--
-- Each event makes a version of its own, at once: versions do not depend on the transactions around it, whose
-- constraints may be immediate, and what marks the versions as a fold's holds for this call alone. It runs as its
-- caller: from others than plant_writer the mark means nothing.
CREATE FUNCTION fold_entity(
    tenant text, made_version bigint, kind text, entity uuid, change text, moment timestamptz, state jsonb, ids uuid[]
) RETURNS text LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    tenant_before text := current_setting('plant.governance_agent_id', true);
    projecting_before text := current_setting('plant.projecting', true);
    refusal text;
BEGIN
    PERFORM set_config('plant.governance_agent_id', tenant, true), set_config('plant.projecting', 'on', true);
    -- Else each statement of the fold would make a version.
    SET CONSTRAINTS record_version, record_changed_version DEFERRED;
    refusal := fold_into_entity(tenant, made_version, kind, entity, change, moment, state, ids);
    SET CONSTRAINTS record_version, record_changed_version IMMEDIATE;
    SET CONSTRAINTS record_version, record_changed_version DEFERRED;
    PERFORM set_config('plant.governance_agent_id', coalesce(tenant_before, ''), true),
        set_config('plant.projecting', coalesce(projecting_before, ''), true);
    RETURN refusal;
END
$$;

-- The same within the tenant, with versions left to the triggers.
CREATE FUNCTION fold_into_entity(
    tenant text, made_version bigint, kind text, entity uuid, change text, moment timestamptz, state jsonb, ids uuid[]
) RETURNS text LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    known entities;
    has_external_id boolean := kind IN ('skill', 'job_role', 'industry');
BEGIN
    SELECT e.* INTO known FROM entities AS e WHERE e.id = entity FOR NO KEY UPDATE;
    IF made_version <= (SELECT max(v.version) FROM entity_versions AS v
                        WHERE v.entity_id = entity AND v.recorded_by NOT LIKE '%/projection') THEN
        RETURN NULL;
    END IF;
    IF known.id IS NULL AND change <> 'available' THEN
        INSERT INTO entities (id, entity_type, governance_agent_id, created_at, status)
        VALUES (entity, kind, tenant, moment, 'stub') ON CONFLICT (id) DO NOTHING;
        SELECT e.* INTO known FROM entities AS e WHERE e.id = entity FOR NO KEY UPDATE;
        IF known.id IS NULL THEN
            RETURN 'its id is that of an entity of another tenant';
        END IF;
    END IF;
    IF known.entity_type <> kind THEN
        RETURN 'its id is that of an entity of another kind';
    ELSIF change = 'available' THEN
        UPDATE agents SET available = (state ->> 'available')::boolean WHERE id = entity;
        RETURN CASE WHEN NOT FOUND THEN 'its agent was not onboarded' END;
    END IF;

    UPDATE entities SET
        status = CASE WHEN change = 'retired' THEN 'retired'
                      WHEN kind = 'agent' AND change = 'defined' THEN 'onboarded'
                      -- A stub is what nothing else is known of.
                      WHEN kind = 'agent' THEN coalesce(nullif(state ->> 'status', 'stub'), 'active')
                      WHEN known.status IN ('stub', 'retired') THEN 'active' ELSE known.status END,
        deleted_at = CASE WHEN change = 'retired' THEN moment END,
        external_id = CASE WHEN has_external_id THEN state ->> 'external_id' ELSE external_id END,
        external_id_from_event = external_id_from_event
            OR has_external_id AND external_id IS DISTINCT FROM state ->> 'external_id'
    WHERE id = entity;
    CASE kind
        WHEN 'skill' THEN
            INSERT INTO skills AS own (id, governance_agent_id, name, description, category)
            VALUES (entity, tenant, state ->> 'name', state ->> 'description', state ->> 'category')
            ON CONFLICT (id) DO UPDATE
            SET name = excluded.name, description = excluded.description, category = excluded.category,
                -- It is computed from the texts, and somebody else computes it again.
                embedding = CASE WHEN (own.name, own.description) = (excluded.name, excluded.description)
                                 THEN own.embedding END;
        WHEN 'industry' THEN
            INSERT INTO industries AS own (id, governance_agent_id, name, description)
            VALUES (entity, tenant, state ->> 'name', state ->> 'description')
            ON CONFLICT (id) DO UPDATE
            SET name = excluded.name, description = excluded.description,
                embedding = CASE WHEN (own.name, own.description) = (excluded.name, excluded.description)
                                 THEN own.embedding END;
        WHEN 'job_role' THEN
            INSERT INTO job_roles AS own (id, governance_agent_id, name, description, seniority, industry_id)
            VALUES (entity, tenant, state ->> 'name', state ->> 'description', state ->> 'seniority',
                    (state ->> 'industry_id')::uuid)
            ON CONFLICT (id) DO UPDATE
            SET name = excluded.name, description = excluded.description, seniority = excluded.seniority,
                industry_id = excluded.industry_id;
            DELETE FROM job_role_skills WHERE job_role_id = entity AND skill_id <> ALL (ids);
            INSERT INTO job_role_skills (job_role_id, skill_id, governance_agent_id)
            SELECT entity, each, tenant FROM unnest(ids) AS each ORDER BY each ON CONFLICT DO NOTHING;
        WHEN 'team' THEN
            INSERT INTO teams AS own (id, governance_agent_id, name, description, job_role_id, industry_id)
            VALUES (entity, tenant, state ->> 'name', state ->> 'description', (state ->> 'job_role_id')::uuid,
                    (state ->> 'industry_id')::uuid)
            ON CONFLICT (id) DO UPDATE
            SET name = excluded.name, description = excluded.description, job_role_id = excluded.job_role_id,
                industry_id = excluded.industry_id;
            DELETE FROM team_members WHERE team_id = entity AND agent_id <> ALL (ids);
            INSERT INTO team_members (team_id, agent_id, governance_agent_id)
            SELECT entity, each, tenant FROM unnest(ids) AS each ORDER BY each ON CONFLICT DO NOTHING;
        ELSE
            INSERT INTO agents AS own (id, governance_agent_id, name, job_role_id, team_id, industry_id, available)
            VALUES (entity, tenant, state ->> 'name', (state ->> 'job_role_id')::uuid, (state ->> 'team_id')::uuid,
                    (state ->> 'industry_id')::uuid, coalesce((state ->> 'available')::boolean, false))
            ON CONFLICT (id) DO UPDATE
            SET name = excluded.name, job_role_id = excluded.job_role_id, team_id = excluded.team_id,
                industry_id = excluded.industry_id,
                available = CASE WHEN state ? 'available' THEN excluded.available ELSE own.available END;
            DELETE FROM agent_skills WHERE agent_id = entity AND skill_id <> ALL (ids);
            INSERT INTO agent_skills (agent_id, skill_id, governance_agent_id)
            SELECT entity, each, tenant FROM unnest(ids) AS each ORDER BY each ON CONFLICT DO NOTHING;
    END CASE;
    RETURN NULL;
END
$$;
REVOKE EXECUTE ON FUNCTION fold_entity(text, bigint, text, uuid, text, timestamptz, jsonb, uuid[]),
    fold_into_entity(text, bigint, text, uuid, text, timestamptz, jsonb, uuid[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION fold_entity(text, bigint, text, uuid, text, timestamptz, jsonb, uuid[]),
    fold_into_entity(text, bigint, text, uuid, text, timestamptz, jsonb, uuid[]) TO plant_writer;
"""

MARK = " || CASE WHEN is_projecting() THEN '/projection' ELSE '' END"

UPGRADE = (
    IS_PROJECTING
    + ADD_TO_OUTBOX.replace("__projecting__", "is_projecting()")
    + RECORD_VERSION.replace("__mark__", MARK)
    + EXTERNAL_IDS
    + FOLD
)

DOWNGRADE = (
    RECORD_VERSION.replace("__mark__", "")
    + """
DROP FUNCTION fold_entity(text, bigint, text, uuid, text, timestamptz, jsonb, uuid[]);
DROP FUNCTION fold_into_entity(text, bigint, text, uuid, text, timestamptz, jsonb, uuid[]);
DROP TRIGGER enforce_external_id ON entities;
DROP FUNCTION enforce_external_id();
DROP INDEX entities_external_id;
ALTER TABLE entities DROP COLUMN external_id_from_event;
CREATE UNIQUE INDEX entities_external_id ON entities (governance_agent_id, external_id) WHERE external_id IS NOT NULL;
"""
    + ADD_TO_OUTBOX.replace("__projecting__", PROJECTING_BEFORE)
    + "DROP FUNCTION is_projecting();"
)


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
