"""Ranges of the log made under a lock that only the writer can hold, and open ones that are analysed once.

Functions alone: running workers go on, and notice nothing.
"""

from database.migrations.script import run_script

revision = "022"
down_revision = "021"
branch_labels = None
depends_on = None

UPGRADE = """
-- As in 017, but for the lock. Any role can hold an advisory lock, and one that held this one kept a partition from its
-- next range. The owner's row can be locked by those alone who may write it.
CREATE OR REPLACE FUNCTION make_log_range(topic text, partition integer, first_offset bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    known text;
    last record;
    filled boolean := true;
BEGIN
    PERFORM FROM partition_owners AS o
    WHERE o.consumer = 'projector' AND o.topic = $1 AND o.partition = $2 FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION '%/% has no owner, so its log has no ranges', topic, partition
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    SELECT r.table_name INTO known FROM log_ranges AS r
    WHERE r.topic = $1 AND r.partition = $2 AND r.first_offset = $3;
    IF known IS NOT NULL THEN
        RETURN known;
    ELSIF first_offset IS NULL OR first_offset < 0 OR first_offset % log_range_offsets() <> 0 THEN
        RAISE EXCEPTION 'no range begins at offset %', first_offset USING ERRCODE = 'insufficient_privilege';
    END IF;
    FOR last IN SELECT r.first_offset, r.table_name, row_number() OVER (ORDER BY r.first_offset DESC) AS rank
        FROM log_ranges AS r WHERE r.topic = $1 AND r.partition = $2 ORDER BY r.first_offset DESC LIMIT 2
    LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM log.%I)', last.table_name) INTO filled;
        EXIT WHEN filled OR last.first_offset > first_offset;
    END LOOP;
    IF last.first_offset > first_offset OR NOT filled AND last.rank = 2 THEN
        RAISE EXCEPTION 'the range of %/% from % on is not the next one', topic, partition, first_offset
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN add_log_range(topic, partition, first_offset);
END
$$;

-- Let look-ups by event id pass over what was added to a range since last time. Until a range is analysed, Postgres
-- reads it as a whole for an event id: so it is analysed once, by a small sample, before autovacuum comes there.
-- Null: a vacuum has the range's lock. It is not waited for, since then it would be ended, and the worker held up.
CREATE OR REPLACE FUNCTION summarize_log_range(topic text, partition integer, first_offset bigint) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '100ms'
SET default_statistics_target = 1 AS $$
DECLARE
    range_table regclass;
    blocks regclass;
    summarized integer;
BEGIN
    SELECT format('log.%I', r.table_name)::regclass, format('log.%I', 'id_blocks_' || md5(r.table_name))::regclass
    INTO range_table, blocks FROM log_ranges AS r
    WHERE r.topic = $1 AND r.partition = $2 AND r.first_offset = $3;
    IF blocks IS NULL THEN
        RETURN NULL;
    END IF;
    summarized := brin_summarize_new_values(blocks);
    IF (SELECT c.reltuples <= 0 FROM pg_class AS c WHERE c.oid = range_table) THEN
        EXECUTE format('ANALYZE %s (event_id)', range_table);
    END IF;
    RETURN summarized;
EXCEPTION WHEN lock_not_available THEN
    RETURN NULL;
END
$$;
"""

DOWNGRADE = """
CREATE OR REPLACE FUNCTION make_log_range(topic text, partition integer, first_offset bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    known text;
    last record;
    filled boolean := true;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('plant.log_ranges.' || topic, partition));
    SELECT r.table_name INTO known FROM log_ranges AS r
    WHERE r.topic = $1 AND r.partition = $2 AND r.first_offset = $3;
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    IF NOT EXISTS (SELECT FROM partition_owners AS o WHERE o.topic = $1 AND o.partition = $2) THEN
        RAISE EXCEPTION '%/% has no owner, so its log has no ranges', topic, partition
            USING ERRCODE = 'insufficient_privilege';
    ELSIF first_offset IS NULL OR first_offset < 0 OR first_offset % log_range_offsets() <> 0 THEN
        RAISE EXCEPTION 'no range begins at offset %', first_offset USING ERRCODE = 'insufficient_privilege';
    END IF;
    FOR last IN SELECT r.first_offset, r.table_name, row_number() OVER (ORDER BY r.first_offset DESC) AS rank
        FROM log_ranges AS r WHERE r.topic = $1 AND r.partition = $2 ORDER BY r.first_offset DESC LIMIT 2
    LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM log.%I)', last.table_name) INTO filled;
        EXIT WHEN filled OR last.first_offset > first_offset;
    END LOOP;
    IF last.first_offset > first_offset OR NOT filled AND last.rank = 2 THEN
        RAISE EXCEPTION 'the range of %/% from % on is not the next one', topic, partition, first_offset
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN add_log_range(topic, partition, first_offset);
END
$$;
CREATE OR REPLACE FUNCTION summarize_log_range(topic text, partition integer, first_offset bigint) RETURNS integer
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT brin_summarize_new_values(format('log.%I', 'id_blocks_' || md5(r.table_name))::regclass) FROM log_ranges AS r
    WHERE r.topic = $1 AND r.partition = $2 AND r.first_offset = $3
$$;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
