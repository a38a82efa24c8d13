"""The outbox keeps the tenant of each change, so that the event that it becomes can name it.

Rows that wait get theirs from the version that they were made of. Rows that were sent before have none.
"""

from database.migrations.script import run_script

revision = "028"
down_revision = "027"
branch_labels = None
depends_on = None

# As in 008, here with the tenant or without it.
ADD_TO_OUTBOX = """
CREATE OR REPLACE FUNCTION add_to_outbox() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
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
    INSERT INTO outbox (event_type, entity_id, entity_type, version, occurred_at, state__column__) VALUES (
        CASE WHEN NEW.operation = 'deleted' OR state ->> 'deleted_at' IS NOT NULL
             THEN 'genesis.entity.retired' ELSE 'genesis.entity.amended' END,
        NEW.entity_id, NEW.entity_type, NEW.version, NEW.recorded_at, state__value__);
    PERFORM pg_notify('plant_outbox', '');
    RETURN NULL;
END
$$;
"""


def function(column: str = "", value: str = "") -> str:
    """Return the statement that makes the trigger's function, with a further column or without one."""
    return ADD_TO_OUTBOX.replace("__column__", column).replace("__value__", value)


# Versions are visible in one tenant alone, to the owner too unless the policies are lifted for this transaction; nobody
# else sees the table meanwhile, for it is locked.
UPGRADE = """
ALTER TABLE outbox ADD COLUMN governance_agent_id text COLLATE "C";
ALTER TABLE entity_versions NO FORCE ROW LEVEL SECURITY;
UPDATE outbox AS o SET governance_agent_id = v.governance_agent_id
FROM entity_versions AS v WHERE v.entity_id = o.entity_id AND v.version = o.version AND o.sent_at IS NULL;
ALTER TABLE entity_versions FORCE ROW LEVEL SECURITY;
""" + function(", governance_agent_id", ", NEW.governance_agent_id")

DOWNGRADE = function() + "ALTER TABLE outbox DROP COLUMN governance_agent_id;"


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
