"""A direct change stays one next to a fold, and only a fold marks an external id as one that an event brought.

A transaction may hold direct changes that have no versions yet when it folds an event. Their versions were written with
the fold's, under its mark, and never reached the outbox. They are written before it now.
"""

from database.migrations.script import run_script

revision = "032"
down_revision = "031"
branch_labels = None
depends_on = None

# As in 029, here with the versions of earlier changes or without them.
FOLD_ENTITY = """
CREATE OR REPLACE FUNCTION fold_entity(
    tenant text, made_version bigint, kind text, entity uuid, change text, moment timestamptz, state jsonb, ids uuid[]
) RETURNS text LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    tenant_before text := current_setting('plant.governance_agent_id', true);
    projecting_before text := current_setting('plant.projecting', true);
    refusal text;
BEGIN
__earlier__
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
"""

EARLIER = """\
    -- What the transaction has changed before is no part of the fold.
    SET CONSTRAINTS record_version, record_changed_version IMMEDIATE;
"""

MARKS = """
-- Next to the trigger of 029, for external ids that are changed: the mark is the fold's to set.
CREATE TRIGGER enforce_new_external_id BEFORE INSERT ON entities FOR EACH ROW
    WHEN (NEW.external_id_from_event) EXECUTE FUNCTION enforce_external_id();
CREATE TRIGGER enforce_marked_external_id BEFORE UPDATE ON entities FOR EACH ROW
    WHEN (NEW.external_id_from_event AND NOT OLD.external_id_from_event
          AND NEW.external_id IS NOT DISTINCT FROM OLD.external_id)
    EXECUTE FUNCTION enforce_external_id();
"""

DROP_MARKS = """
DROP TRIGGER enforce_new_external_id ON entities;
DROP TRIGGER enforce_marked_external_id ON entities;
"""


def upgrade() -> None:
    run_script(FOLD_ENTITY.replace("__earlier__\n", EARLIER) + MARKS)


def downgrade() -> None:
    run_script(FOLD_ENTITY.replace("__earlier__\n", "") + DROP_MARKS)
