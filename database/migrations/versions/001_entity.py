"""The base entity: what agents, skills, job roles, industries and teams have in common, and the versions of each.

First of the entities' branch (001-005). Versions are written by triggers that 003 makes, once every kind has its table.
"""

from database.migrations.script import run_script

revision = "001"
down_revision = None
branch_labels = ("entities",)
depends_on = None

UPGRADE = """
CREATE TABLE entities (
    -- Identity
    id                    uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    entity_type           text COLLATE "C" NOT NULL
                          CHECK (entity_type IN ('agent', 'skill', 'job_role', 'industry', 'team')),
    external_id           text COLLATE "C" CHECK (char_length(external_id) BETWEEN 1 AND 200),
    -- Lifecycle. A `stub` was referred to before anything was heard of it: it has no row of its kind yet.
    created_at            timestamptz NOT NULL DEFAULT now(),
    updated_at            timestamptz NOT NULL DEFAULT now(),
    deleted_at            timestamptz,
    status                text NOT NULL DEFAULT 'active' CHECK (char_length(status) BETWEEN 1 AND 200),
    -- Versioning
    version_hash          bytea CHECK (octet_length(version_hash) = 32),
    amendment_history     jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(amendment_history) = 'array'),
    evolution_markers     jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(evolution_markers) = 'object'),
    -- Constitutional alignment
    l0_compliance_status  jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(l0_compliance_status) = 'object'),
    amendment_alignment   text COLLATE "C" NOT NULL DEFAULT 'unknown'
                          CHECK (amendment_alignment IN ('aligned', 'drifted', 'unknown')),
    drift_detector        jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(drift_detector) = 'object'),
    -- Audit trail
    append_only           boolean NOT NULL DEFAULT true CHECK (append_only),
    hash_chain_sha256     bytea CHECK (octet_length(hash_chain_sha256) = 32),
    tamper_proof          boolean NOT NULL DEFAULT true CHECK (tamper_proof),
    -- Metadata
    tags                  text[] NOT NULL DEFAULT '{}' CHECK (cardinality(tags) <= 50),
    custom_attributes     jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(custom_attributes) = 'object'),
    governance_notes      text NOT NULL DEFAULT '' CHECK (char_length(governance_notes) <= 10000),
    -- Relationships
    parent_id             uuid CONSTRAINT entities_parent_id_check CHECK (parent_id <> id),
    governance_agent_id   text COLLATE "C" NOT NULL DEFAULT 'genesis'
                          CHECK (char_length(governance_agent_id) BETWEEN 1 AND 200),
    -- What the tables of the kinds refer to: an entity's rows are all in one governance boundary.
    UNIQUE (id, governance_agent_id)
) WITH (fillfactor = 80);
-- Once a boundary, not once for all: a clash must not tell one boundary what another one has.
CREATE UNIQUE INDEX entities_external_id ON entities (governance_agent_id, external_id) WHERE external_id IS NOT NULL;
CREATE INDEX entities_type ON entities (governance_agent_id, entity_type, id);
CREATE INDEX entities_parent ON entities (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX entities_tags ON entities USING gin (tags);

-- What an entity was after each change. `hash` chains them: see entity_version_hash and entities/versions.py.
CREATE TABLE entity_versions (
    entity_id            uuid NOT NULL,
    version              bigint NOT NULL CHECK (version > 0),
    entity_type          text COLLATE "C" NOT NULL,
    governance_agent_id  text COLLATE "C" NOT NULL,
    operation            text COLLATE "C" NOT NULL CHECK (operation IN ('created', 'changed', 'deleted')),
    recorded_at          timestamptz NOT NULL,
    recorded_by          text COLLATE "C" NOT NULL,
    state                text NOT NULL,
    version_hash         bytea NOT NULL CHECK (octet_length(version_hash) = 32),
    previous_hash        bytea NOT NULL CHECK (octet_length(previous_hash) = 32),
    hash                 bytea NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (entity_id, version)
);

CREATE FUNCTION keep_entity_identity() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.id <> OLD.id OR NEW.entity_type <> OLD.entity_type OR NEW.created_at <> OLD.created_at
       OR NEW.governance_agent_id <> OLD.governance_agent_id THEN
        RAISE EXCEPTION 'id, entity_type, created_at and governance_agent_id of an entity never change'
            USING ERRCODE = 'integrity_constraint_violation',
                  HINT = 'Retire this entity and make another one.';
    END IF;
    IF OLD.amendment_history <> '[]' AND OLD.amendment_history <> jsonb_path_query_array(
        NEW.amendment_history, '$[0 to $n]', jsonb_build_object('n', jsonb_array_length(OLD.amendment_history) - 1)
    ) THEN
        RAISE EXCEPTION 'amendments of an entity are only added to'
            USING ERRCODE = 'integrity_constraint_violation', HINT = 'Add an amendment that says what was wrong.';
    END IF;
    -- The recorder of versions is a trigger itself.
    IF pg_trigger_depth() = 1 AND (NEW.version_hash IS DISTINCT FROM OLD.version_hash
                                   OR NEW.hash_chain_sha256 IS DISTINCT FROM OLD.hash_chain_sha256) THEN
        RAISE EXCEPTION 'version_hash and hash_chain_sha256 are written by the database'
            USING ERRCODE = 'integrity_constraint_violation', HINT = 'Change the entity: that writes a new version.';
    END IF;
    NEW.updated_at := now();
    RETURN NEW;
END
$$;
CREATE TRIGGER keep_identity BEFORE UPDATE ON entities FOR EACH ROW EXECUTE FUNCTION keep_entity_identity();

-- Each part is preceded by its length in four bytes, so that no two entries have the same bytes.
CREATE FUNCTION entity_version_hash(
    previous_hash bytea, entity_id uuid, version bigint, entity_type text, operation text, recorded_at timestamptz,
    recorded_by text, governance_agent_id text, state text
) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT sha256(previous_hash || string_agg(int4send(octet_length(part)) || part, ''::bytea ORDER BY place))
    FROM unnest(ARRAY[
        convert_to('plant.entity.version.v1', 'UTF8'), uuid_send(entity_id), int8send(version),
        convert_to(entity_type, 'UTF8'), convert_to(operation, 'UTF8'),
        int8send((extract(epoch FROM recorded_at) * 1000000)::bigint),
        convert_to(recorded_by, 'UTF8'), convert_to(governance_agent_id, 'UTF8'), convert_to(state, 'UTF8')
    ]) WITH ORDINALITY AS parts (part, place)
$$;

CREATE FUNCTION extend_entity_chain() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    last record;
BEGIN
    SELECT v.version, v.hash INTO last FROM entity_versions AS v
    WHERE v.entity_id = NEW.entity_id ORDER BY v.version DESC LIMIT 1;
    IF NEW.version <> coalesce(last.version, 0) + 1
       OR NEW.previous_hash <> coalesce(last.hash, decode(repeat('00', 32), 'hex'))
       OR NEW.version_hash <> sha256(convert_to(NEW.state, 'UTF8'))
       OR NEW.hash <> entity_version_hash(NEW.previous_hash, NEW.entity_id, NEW.version, NEW.entity_type,
                                          NEW.operation, NEW.recorded_at, NEW.recorded_by, NEW.governance_agent_id,
                                          NEW.state) THEN
        RAISE EXCEPTION 'version % of entity % does not extend its chain', NEW.version, NEW.entity_id
            USING ERRCODE = 'integrity_constraint_violation',
                  HINT = 'Versions are written by the database itself: change the entity.';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER extend_chain BEFORE INSERT ON entity_versions FOR EACH ROW EXECUTE FUNCTION extend_entity_chain();

CREATE FUNCTION refuse_version_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'insufficient_privilege', HINT = 'Change the entity: that writes a new version.';
END
$$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON entity_versions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_version_change();
"""

DOWNGRADE = """
DROP TABLE entity_versions, entities;
DROP FUNCTION refuse_version_change();
DROP FUNCTION extend_entity_chain();
DROP FUNCTION entity_version_hash(bytea, uuid, bigint, text, text, timestamptz, text, text, text);
DROP FUNCTION keep_entity_identity();
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
