"""Control records about poison: their types, and the ids that they bring in under a closed range's unique index.

Functions and names alone: running workers go on, and notice nothing. Ranges that have their index keep it, for they
hold no such id.
"""

from database.migrations.script import run_script

revision = "023"
down_revision = "022"
branch_labels = None
depends_on = None

# As in 017, but for the condition of the index: a control record that brings an event in has the id of an entity.
INDEX_LOG_RANGE = """
CREATE OR REPLACE FUNCTION index_log_range(topic text, partition integer, first_offset bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    range log_ranges;
    index_name text;
BEGIN
    SELECT r.* INTO range FROM log_ranges AS r
    WHERE r.topic = $1 AND r.partition = $2 AND r.first_offset = $3 FOR UPDATE;
    IF NOT EXISTS (
        SELECT FROM log_ranges AS r WHERE r.topic = $1 AND r.partition = $2 AND r.first_offset > range.first_offset
    ) THEN
        RAISE EXCEPTION 'the range of %/% from % on is not one to close', topic, partition, first_offset
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    index_name := 'event_ids_' || md5(range.table_name);
    IF to_regclass(format('log.%I', index_name)) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE UNIQUE INDEX %I ON log.%I (event_id) WITH (fillfactor = 100) '
                   '__condition__', index_name, range.table_name);
    -- Nothing is added to it any more: the next round of autovacuum freezes all of it, and none has to come again.
    EXECUTE format('ALTER TABLE log.%I SET (autovacuum_vacuum_insert_threshold = 1000, '
                   'autovacuum_vacuum_insert_scale_factor = 0, autovacuum_freeze_min_age = 0)', range.table_name);
    RETURN true;
END
$$;
"""

NARROW = "WHERE disposition IN (''applied'', ''parked'')"
WIDE = (
    "WHERE disposition IN (''applied'', ''parked'') '\n"
    "                   'OR disposition = ''control'' AND entity_id IS NOT NULL"
)

UPGRADE = """
ALTER TYPE log_event_type ADD VALUE IF NOT EXISTS 'plant.record.redriven';
ALTER TYPE log_event_type ADD VALUE IF NOT EXISTS 'plant.record.skipped';
""" + INDEX_LOG_RANGE.replace("__condition__", WIDE)

# An enum keeps its values.
DOWNGRADE = INDEX_LOG_RANGE.replace("__condition__", NARROW)


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
