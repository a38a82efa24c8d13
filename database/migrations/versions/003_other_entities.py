"""Industries, job roles, teams and agents, what they refer to, and the triggers that write every entity's versions.

References between entities are not enforced: the tables are written from events, whose partitions are not ordered
against each other. `plant entities check` reports what dangles.
"""

from database.script import run_script

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

-- An entity in full, as its versions and events hold it; NULL where there is none. Left out are what never changes,
-- what the version itself sets, and embeddings, which are computed from the rest. The text of a jsonb has one form.
CREATE FUNCTION entity_state(entity uuid) RETURNS text LANGUAGE sql STABLE SET timezone = 'UTC' AS $$
    SELECT (jsonb_build_object(
        'external_id', e.external_id, 'deleted_at', e.deleted_at, 'status', e.status,
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

-- Runs as a transaction commits, once for each row that changed; the first time for an entity writes its version, the
-- others find nothing new. It works in the row's own boundary, whatever the session has set since.
CREATE FUNCTION record_entity_version() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
DECLARE
    boundary_before text := current_setting('plant.governance_agent_id', true);
    changed record;
    entity uuid;
    kind text;
    last entity_versions;
    next entity_versions;
BEGIN
    IF TG_OP = 'DELETE' THEN
        changed := OLD;
    ELSE
        changed := NEW;
    END IF;
    IF TG_TABLE_NAME = 'agent_skills' THEN
        entity := changed.agent_id;
    ELSIF TG_TABLE_NAME = 'job_role_skills' THEN
        entity := changed.job_role_id;
    ELSIF TG_TABLE_NAME = 'team_members' THEN
        entity := changed.team_id;
    ELSE
        entity := changed.id;
    END IF;
    PERFORM set_config('plant.governance_agent_id', changed.governance_agent_id, true);

    -- Changes of one entity wait for each other here, so versions and outbox rows are in the order of the commits.
    SELECT e.entity_type INTO kind FROM entities AS e WHERE e.id = entity FOR UPDATE;
    SELECT * INTO last FROM entity_versions AS v WHERE v.entity_id = entity ORDER BY v.version DESC LIMIT 1;
    next.state := entity_state(entity);
    IF next.state IS NULL THEN
        next.operation := 'deleted';
        next.state := last.state;
        next.entity_type := last.entity_type;
    ELSE
        next.operation := CASE WHEN coalesce(last.operation, 'deleted') = 'deleted' THEN 'created' ELSE 'changed' END;
        next.entity_type := kind;
    END IF;
    IF last.version IS NOT NULL AND next.state = last.state
       AND (next.operation = 'deleted') = (last.operation = 'deleted') THEN
        PERFORM set_config('plant.governance_agent_id', coalesce(boundary_before, ''), true);
        RETURN NULL;
    END IF;
    IF next.state IS NOT NULL THEN
        next.entity_id := entity;
        next.version := coalesce(last.version, 0) + 1;
        next.governance_agent_id := changed.governance_agent_id;
        next.recorded_at := clock_timestamp();
        next.recorded_by := session_user;
        next.version_hash := sha256(convert_to(next.state, 'UTF8'));
        next.previous_hash := coalesce(last.hash, decode(repeat('00', 32), 'hex'));
        next.hash := entity_version_hash(next.previous_hash, entity, next.version, next.operation, next.recorded_at,
                                         next.recorded_by, next.governance_agent_id, next.state);
        INSERT INTO entity_versions SELECT next.*;
        UPDATE entities SET version_hash = next.version_hash, hash_chain_sha256 = next.hash WHERE id = entity;
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
CREATE CONSTRAINT TRIGGER record_version AFTER INSERT OR UPDATE OR DELETE ON skills DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION record_entity_version();
CREATE CONSTRAINT TRIGGER record_version AFTER INSERT OR UPDATE OR DELETE ON industries DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION record_entity_version();
CREATE CONSTRAINT TRIGGER record_version AFTER INSERT OR UPDATE OR DELETE ON job_roles DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION record_entity_version();
CREATE CONSTRAINT TRIGGER record_version AFTER INSERT OR UPDATE OR DELETE ON teams DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION record_entity_version();
CREATE CONSTRAINT TRIGGER record_version AFTER INSERT OR UPDATE OR DELETE ON agents DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION record_entity_version();
CREATE CONSTRAINT TRIGGER record_version AFTER INSERT OR UPDATE OR DELETE ON job_role_skills
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION record_entity_version();
CREATE CONSTRAINT TRIGGER record_version AFTER INSERT OR UPDATE OR DELETE ON team_members
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION record_entity_version();
CREATE CONSTRAINT TRIGGER record_version AFTER INSERT OR UPDATE OR DELETE ON agent_skills
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION record_entity_version();

-- TRUNCATE would pass by the triggers of rows.
CREATE FUNCTION refuse_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% can not be truncated: every deletion is a version', TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege', HINT = 'Delete the rows.';
END
$$;
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON entities
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_truncate();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON skills
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_truncate();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON industries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_truncate();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON job_roles
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_truncate();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON teams
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_truncate();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON agents
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_truncate();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON job_role_skills
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_truncate();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON team_members
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_truncate();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON agent_skills
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_truncate();
"""

DOWNGRADE = """
DROP TRIGGER record_version ON entities;
DROP TRIGGER record_changed_version ON entities;
DROP TRIGGER record_version ON skills;
DROP TRIGGER refuse_truncate ON entities;
DROP TRIGGER refuse_truncate ON skills;
DROP TABLE agent_skills, team_members, job_role_skills, agents, teams, job_roles, industries;
DROP FUNCTION refuse_truncate();
DROP FUNCTION record_entity_version();
DROP FUNCTION entity_state(uuid);
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
