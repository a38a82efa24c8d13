"""Industries, job roles, teams and agents, what they refer to, and the triggers that write every entity's versions.

References between entities are not enforced: the tables are written from events, whose partitions are not ordered
against each other. `plant entities check` reports what dangles.
"""

from database.migrations.script import run_script

revision = "003"
down_revision = "002"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE TABLE industries (
    id                   uuid PRIMARY KEY,
    governance_agent_id  text COLLATE "C" NOT NULL DEFAULT 'genesis',
    name                 text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 200),
    description          text NOT NULL DEFAULT '' CHECK (char_length(description) <= 10000),
    FOREIGN KEY (id, governance_agent_id) REFERENCES entities (id, governance_agent_id) ON DELETE CASCADE
) WITH (fillfactor = 80);
CREATE INDEX industries_name ON industries (governance_agent_id, lower(name));

CREATE TABLE job_roles (
    id                   uuid PRIMARY KEY,
    governance_agent_id  text COLLATE "C" NOT NULL DEFAULT 'genesis',
    name                 text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 200),
    description          text NOT NULL DEFAULT '' CHECK (char_length(description) <= 10000),
    seniority            text COLLATE "C" CHECK (seniority IN ('junior', 'mid', 'senior')),
    industry_id          uuid,
    FOREIGN KEY (id, governance_agent_id) REFERENCES entities (id, governance_agent_id) ON DELETE CASCADE
) WITH (fillfactor = 80);
CREATE INDEX job_roles_name ON job_roles (governance_agent_id, lower(name));
CREATE INDEX job_roles_industry ON job_roles (industry_id) WHERE industry_id IS NOT NULL;

CREATE TABLE teams (
    id                   uuid PRIMARY KEY,
    governance_agent_id  text COLLATE "C" NOT NULL DEFAULT 'genesis',
    name                 text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 200),
    description          text NOT NULL DEFAULT '' CHECK (char_length(description) <= 10000),
    job_role_id          uuid,
    industry_id          uuid,
    FOREIGN KEY (id, governance_agent_id) REFERENCES entities (id, governance_agent_id) ON DELETE CASCADE
) WITH (fillfactor = 80);
CREATE INDEX teams_name ON teams (governance_agent_id, lower(name));
CREATE INDEX teams_job_role ON teams (job_role_id) WHERE job_role_id IS NOT NULL;
CREATE INDEX teams_industry ON teams (industry_id) WHERE industry_id IS NOT NULL;

CREATE TABLE agents (
    id                   uuid PRIMARY KEY,
    governance_agent_id  text COLLATE "C" NOT NULL DEFAULT 'genesis',
    name                 text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 200),
    job_role_id          uuid,
    team_id              uuid,
    industry_id          uuid,
    available            boolean NOT NULL DEFAULT false,
    FOREIGN KEY (id, governance_agent_id) REFERENCES entities (id, governance_agent_id) ON DELETE CASCADE
) WITH (fillfactor = 80);
CREATE INDEX agents_name ON agents (governance_agent_id, lower(name));
CREATE INDEX agents_job_role ON agents (job_role_id) WHERE job_role_id IS NOT NULL;
CREATE INDEX agents_team ON agents (team_id) WHERE team_id IS NOT NULL;
CREATE INDEX agents_industry ON agents (industry_id) WHERE industry_id IS NOT NULL;

-- The row belongs to the entity whose id stands first; the other id may be of something that is not known yet.
CREATE TABLE job_role_skills (
    job_role_id          uuid NOT NULL,
    skill_id             uuid NOT NULL,
    governance_agent_id  text COLLATE "C" NOT NULL DEFAULT 'genesis',
    PRIMARY KEY (job_role_id, skill_id),
    FOREIGN KEY (job_role_id, governance_agent_id) REFERENCES entities (id, governance_agent_id) ON DELETE CASCADE
);
CREATE INDEX job_role_skills_skill ON job_role_skills (skill_id);

CREATE TABLE team_members (
    team_id              uuid NOT NULL,
    agent_id             uuid NOT NULL,
    governance_agent_id  text COLLATE "C" NOT NULL DEFAULT 'genesis',
    PRIMARY KEY (team_id, agent_id),
    FOREIGN KEY (team_id, governance_agent_id) REFERENCES entities (id, governance_agent_id) ON DELETE CASCADE
);
CREATE INDEX team_members_agent ON team_members (agent_id);

CREATE TABLE agent_skills (
    agent_id             uuid NOT NULL,
    skill_id             uuid NOT NULL,
    governance_agent_id  text COLLATE "C" NOT NULL DEFAULT 'genesis',
    PRIMARY KEY (agent_id, skill_id),
    FOREIGN KEY (agent_id, governance_agent_id) REFERENCES entities (id, governance_agent_id) ON DELETE CASCADE
);
CREATE INDEX agent_skills_skill ON agent_skills (skill_id);

-- An entity in full, as its versions hold it; NULL where there is none. Left out are what a version has columns for,
-- what writing the version sets, and embeddings, which are computed from the rest. The text of a jsonb has one form.
CREATE FUNCTION entity_state(entity uuid) RETURNS text LANGUAGE sql STABLE
SET timezone = 'UTC' SET search_path = public, pg_temp AS $$
    SELECT (jsonb_build_object(
        'external_id', e.external_id, 'created_at', e.created_at, 'deleted_at', e.deleted_at, 'status', e.status,
        'amendment_history', e.amendment_history, 'evolution_markers', e.evolution_markers,
        'l0_compliance_status', e.l0_compliance_status, 'amendment_alignment', e.amendment_alignment,
        'drift_detector', e.drift_detector, 'tags', e.tags, 'custom_attributes', e.custom_attributes,
        'governance_notes', e.governance_notes, 'parent_id', e.parent_id
    ) || coalesce(CASE e.entity_type
        WHEN 'skill' THEN (SELECT jsonb_build_object(
            'name', k.name, 'description', k.description, 'category', k.category) FROM skills AS k WHERE k.id = e.id)
        WHEN 'industry' THEN (SELECT jsonb_build_object(
            'name', i.name, 'description', i.description) FROM industries AS i WHERE i.id = e.id)
        WHEN 'job_role' THEN (SELECT jsonb_build_object(
            'name', r.name, 'description', r.description, 'seniority', r.seniority, 'industry_id', r.industry_id,
            'required_skill_ids', coalesce((SELECT jsonb_agg(s.skill_id ORDER BY s.skill_id)
                FROM job_role_skills AS s WHERE s.job_role_id = e.id), '[]')) FROM job_roles AS r WHERE r.id = e.id)
        WHEN 'team' THEN (SELECT jsonb_build_object(
            'name', t.name, 'description', t.description, 'job_role_id', t.job_role_id, 'industry_id', t.industry_id,
            'member_ids', coalesce((SELECT jsonb_agg(m.agent_id ORDER BY m.agent_id)
                FROM team_members AS m WHERE m.team_id = e.id), '[]')) FROM teams AS t WHERE t.id = e.id)
        WHEN 'agent' THEN (SELECT jsonb_build_object(
            'name', a.name, 'available', a.available, 'job_role_id', a.job_role_id, 'team_id', a.team_id,
            'industry_id', a.industry_id, 'skill_ids', coalesce((SELECT jsonb_agg(s.skill_id ORDER BY s.skill_id)
                FROM agent_skills AS s WHERE s.agent_id = e.id), '[]')) FROM agents AS a WHERE a.id = e.id)
    END, '{}'))::text
    FROM entities AS e WHERE e.id = entity
$$;

-- Runs as a transaction commits, once for each time that the entity's row was written; the first writes a version, the
-- others find nothing new. Changes of one entity wait for its row, so versions and outbox rows are in the order of the
-- commits. It works in the row's own boundary, whatever the session has set since.
CREATE FUNCTION record_entity_version() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
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
        next.recorded_by := session_user;
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

CREATE CONSTRAINT TRIGGER record_version AFTER INSERT OR DELETE ON entities DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION record_entity_version();
-- The recorder's own update of the two hashes is not a change.
CREATE CONSTRAINT TRIGGER record_changed_version AFTER UPDATE ON entities DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (OLD.hash_chain_sha256 IS NOT DISTINCT FROM NEW.hash_chain_sha256)
    EXECUTE FUNCTION record_entity_version();

-- What changes an entity's rows in other tables writes its own row too, and so its version: once a statement, however
-- many rows that was. The argument is the column with the entity's id. It works in the rows' own boundary, which the
-- statement may have left in its RETURNING.
CREATE FUNCTION touch_entities() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
DECLARE
    boundary_before text := current_setting('plant.governance_agent_id', true);
    boundary text;
    ids uuid[];
BEGIN
    FOR boundary, ids IN EXECUTE format(
        'SELECT governance_agent_id, array_agg(DISTINCT %I) FROM (%s) AS changed GROUP BY governance_agent_id',
        TG_ARGV[0],
        CASE TG_OP WHEN 'INSERT' THEN 'SELECT * FROM rows_after' WHEN 'DELETE' THEN 'SELECT * FROM rows_before'
                   ELSE 'SELECT * FROM rows_before UNION ALL SELECT * FROM rows_after' END)
    LOOP
        PERFORM set_config('plant.governance_agent_id', boundary, true);
        -- In the order of ids, as all who write many entities: else they deadlock.
        PERFORM FROM entities AS e WHERE e.id = ANY (ids) ORDER BY e.id FOR NO KEY UPDATE;
        UPDATE entities SET updated_at = now() WHERE id = ANY (ids);
    END LOOP;
    PERFORM set_config('plant.governance_agent_id', coalesce(boundary_before, ''), true);
    RETURN NULL;
END
$$;

-- The foreign keys ask for the same, but after the primary keys: those would tell, under another boundary's ids, which
-- rows it has. Here the caller's own policies decide what is there, and the refusal is the foreign key's.
CREATE FUNCTION require_entity() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    entity uuid;
BEGIN
    IF TG_ARGV[0] = 'agent_id' THEN
        entity := NEW.agent_id;
    ELSIF TG_ARGV[0] = 'job_role_id' THEN
        entity := NEW.job_role_id;
    ELSIF TG_ARGV[0] = 'team_id' THEN
        entity := NEW.team_id;
    ELSE
        entity := NEW.id;
    END IF;
    PERFORM FROM entities AS e WHERE e.id = entity AND e.governance_agent_id = NEW.governance_agent_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'a row of % belongs to an entity that is not there', TG_TABLE_NAME
            USING ERRCODE = 'foreign_key_violation', SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME,
                  CONSTRAINT = format('%s_%s_governance_agent_id_fkey', TG_TABLE_NAME, TG_ARGV[0]);
    END IF;
    RETURN NEW;
END
$$;

-- TRUNCATE would pass by the triggers of rows.
CREATE FUNCTION refuse_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% can not be truncated: every deletion is a version', TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege', HINT = 'Delete the rows.';
END
$$;
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON entities
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_truncate();
"""

TOUCHES = """
CREATE TRIGGER require_entity BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION require_entity('{owner}');
CREATE TRIGGER touch_inserted AFTER INSERT ON {table} REFERENCING NEW TABLE AS rows_after
    FOR EACH STATEMENT EXECUTE FUNCTION touch_entities('{owner}');
CREATE TRIGGER touch_updated AFTER UPDATE ON {table} REFERENCING OLD TABLE AS rows_before NEW TABLE AS rows_after
    FOR EACH STATEMENT EXECUTE FUNCTION touch_entities('{owner}');
CREATE TRIGGER touch_deleted AFTER DELETE ON {table} REFERENCING OLD TABLE AS rows_before
    FOR EACH STATEMENT EXECUTE FUNCTION touch_entities('{owner}');
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_truncate();
"""

OWNERS = {
    "skills": "id",
    "industries": "id",
    "job_roles": "id",
    "teams": "id",
    "agents": "id",
    "job_role_skills": "job_role_id",
    "team_members": "team_id",
    "agent_skills": "agent_id",
}
"""Tables whose rows are part of an entity, and the column with its id."""

DOWNGRADE = """
DROP TRIGGER record_version ON entities;
DROP TRIGGER record_changed_version ON entities;
DROP TRIGGER refuse_truncate ON entities;
DROP TRIGGER refuse_truncate ON skills;
DROP TRIGGER require_entity ON skills;
DROP TRIGGER touch_inserted ON skills;
DROP TRIGGER touch_updated ON skills;
DROP TRIGGER touch_deleted ON skills;
DROP TABLE agent_skills, team_members, job_role_skills, agents, teams, job_roles, industries;
DROP FUNCTION refuse_truncate();
DROP FUNCTION require_entity();
DROP FUNCTION touch_entities();
DROP FUNCTION record_entity_version();
DROP FUNCTION entity_state(uuid);
"""


def upgrade() -> None:
    run_script(UPGRADE + "".join(TOUCHES.format(table=table, owner=owner) for table, owner in OWNERS.items()))


def downgrade() -> None:
    run_script(DOWNGRADE)
