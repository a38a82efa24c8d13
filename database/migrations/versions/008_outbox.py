"""The outbox: a change of an entity that did not come from an event waits here until `plant relay` has published it.

A row is written by the transaction that makes the change, from the version that it adds. So the outbox has what the
versions have, less what workers write while they project events, and less stubs.

Since entities of every boundary come to the log by it, plant_api can no longer read there what events say.
"""

from database.migrations.script import run_script

revision = "008"
down_revision = "007"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE TABLE outbox (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id     uuid NOT NULL DEFAULT gen_random_uuid(),
    event_type   text COLLATE "C" NOT NULL CHECK (event_type IN ('genesis.entity.amended', 'genesis.entity.retired')),
    entity_id    uuid NOT NULL,
    entity_type  text COLLATE "C" NOT NULL,
    version      bigint NOT NULL,
    occurred_at  timestamptz NOT NULL,
    state        jsonb NOT NULL,
    sent_at      timestamptz,
    -- Why no event can be made of it. Such a row waits for an operator, and so do the later ones of its entity.
    problem      text,
    UNIQUE (entity_id, version)
) WITH (autovacuum_vacuum_scale_factor = 0.02, fillfactor = 80);
-- The relay goes round by entity: see relay/outbox.py.
CREATE INDEX outbox_unsent ON outbox (entity_id, id) WHERE sent_at IS NULL;

-- Only who may project can call a change its own: the setting is anybody's to make, and from others it means nothing.
-- session_user, since this function runs as the tables' owner.
CREATE FUNCTION add_to_outbox() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
DECLARE
    state jsonb := NEW.state::jsonb;
BEGIN
    IF (state ->> 'status' = 'stub' AND NOT state ? 'name')
       OR (current_setting('plant.projecting', true) = 'on' AND pg_has_role(session_user, 'plant_writer', 'MEMBER')
           -- A superuser is a member of every role, and projects nothing.
           AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = session_user)) THEN
        RETURN NULL;
    END IF;
    INSERT INTO outbox (event_type, entity_id, entity_type, version, occurred_at, state) VALUES (
        CASE WHEN NEW.operation = 'deleted' OR state ->> 'deleted_at' IS NOT NULL
             THEN 'genesis.entity.retired' ELSE 'genesis.entity.amended' END,
        NEW.entity_id, NEW.entity_type, NEW.version, NEW.recorded_at, state);
    PERFORM pg_notify('plant_outbox', '');
    RETURN NULL;
END
$$;
REVOKE EXECUTE ON FUNCTION add_to_outbox() FROM PUBLIC;
CREATE TRIGGER add_to_outbox AFTER INSERT ON entity_versions FOR EACH ROW EXECUTE FUNCTION add_to_outbox();

-- The relay's alone: rows of every boundary are in here. It works in none, and who works in one sees no row. Not
-- forced: add_to_outbox runs as the owner.
GRANT SELECT, UPDATE (sent_at, problem), DELETE ON outbox TO plant_writer;
ALTER TABLE outbox ENABLE ROW LEVEL SECURITY;
CREATE POLICY outside_boundaries ON outbox
    USING ((SELECT coalesce(current_setting('plant.governance_agent_id', true), '')) = '');

-- What events say stands in no boundary, so who reads in boundaries reads where the records are, and not what they say.
REVOKE SELECT ON event_stream, audit_log FROM plant_api;
GRANT SELECT (topic, partition, "offset", created_at, disposition, event_id) ON event_stream TO plant_api;
GRANT SELECT (topic, partition, "offset", created_at, event_type, previous_hash, hash) ON audit_log TO plant_api;
"""

DOWNGRADE = """
REVOKE SELECT ON event_stream, audit_log FROM plant_api;
GRANT SELECT ON event_stream, audit_log TO plant_api;
DROP TRIGGER add_to_outbox ON entity_versions;
DROP FUNCTION add_to_outbox();
DROP TABLE outbox;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
