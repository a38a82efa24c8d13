"""Look-ups by event id that read few records of each partition, and ranges that are made behind several empty ones.

Functions alone. Running workers go on: they call `summarize_log_range` without a block, which looks at all of them.
"""

from database.migrations.script import run_script

revision = "047"
down_revision = "046"
branch_labels = None
depends_on = None

UPGRADE = """
-- As in 022, but by whole groups of 32 pages from a block on: the caller says how far it has come, so that a call
-- costs the same however large the range is, and no row that is added pays for a group that was not full yet. Returns
-- where to go on. Null: somebody has the range's lock. It is not waited for, since then a vacuum would be ended, and
-- the worker held up.
DROP FUNCTION summarize_log_range(text, integer, bigint);
CREATE FUNCTION summarize_log_range(
    topic text, partition integer, first_offset bigint, from_block bigint DEFAULT 0
) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '10ms'
SET default_statistics_target = 1 AS $$
DECLARE
    range_table regclass;
    blocks regclass;
    until bigint;
    block bigint := greatest(from_block, 0) / 32 * 32;
BEGIN
    SELECT format('log.%I', r.table_name)::regclass, format('log.%I', 'id_blocks_' || md5(r.table_name))::regclass
    INTO range_table, blocks FROM log_ranges AS r
    WHERE r.topic = $1 AND r.partition = $2 AND r.first_offset = $3;
    IF blocks IS NULL THEN
        RETURN NULL;
    END IF;
    until := pg_relation_size(range_table) / current_setting('block_size')::bigint;
    WHILE block + 32 <= until LOOP
        PERFORM brin_summarize_range(blocks, block);
        block := block + 32;
    END LOOP;
    IF (SELECT c.reltuples <= 0 FROM pg_class AS c WHERE c.oid = range_table) THEN
        EXECUTE format('ANALYZE %s (event_id)', range_table);
    END IF;
    RETURN block;
EXCEPTION WHEN lock_not_available THEN
    RETURN NULL;
END
$$;
REVOKE EXECUTE ON FUNCTION summarize_log_range(text, integer, bigint, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION summarize_log_range(text, integer, bigint, bigint) TO plant_writer;

-- As in 046, but for four empty ranges, and a refusal of a name of its own: a worker makes the next range ahead of
-- time, and one that ends behind a gap may leave another. Each time that Kafka then loses that tail they are left, and
-- the log may come to a gap once more.
CREATE OR REPLACE FUNCTION make_log_range(topic text, partition integer, first_offset bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    known text;
    last record;
    filled boolean := false;
    empty_ranges integer := 0;
    next_first bigint := 0;
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
    FOR last IN SELECT r.first_offset, r.table_name FROM log_ranges AS r
        WHERE r.topic = $1 AND r.partition = $2 ORDER BY r.first_offset DESC
    LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM log.%I)', last.table_name) INTO filled;
        EXIT WHEN filled;
        empty_ranges := empty_ranges + 1;
    END LOOP;
    IF filled THEN
        next_first := last.first_offset + log_range_offsets();
    END IF;
    IF first_offset < next_first OR first_offset > next_first AND empty_ranges > 3 THEN
        RAISE EXCEPTION 'the range of %/% from % on is not the next one, and there are % empty ones', topic, partition,
            first_offset, empty_ranges USING ERRCODE = 'PL003';
    END IF;
    RETURN add_log_range(topic, partition, first_offset);
END
$$;
"""

DOWNGRADE = """
DROP FUNCTION summarize_log_range(text, integer, bigint, bigint);
CREATE FUNCTION summarize_log_range(topic text, partition integer, first_offset bigint) RETURNS integer
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
REVOKE EXECUTE ON FUNCTION summarize_log_range(text, integer, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION summarize_log_range(text, integer, bigint) TO plant_writer;
CREATE OR REPLACE FUNCTION make_log_range(topic text, partition integer, first_offset bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    known text;
    last record;
    filled boolean := false;
    empty_ranges integer := 0;
    next_first bigint := 0;
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
    FOR last IN SELECT r.first_offset, r.table_name FROM log_ranges AS r
        WHERE r.topic = $1 AND r.partition = $2 ORDER BY r.first_offset DESC
    LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM log.%I)', last.table_name) INTO filled;
        EXIT WHEN filled;
        empty_ranges := empty_ranges + 1;
    END LOOP;
    IF filled THEN
        next_first := last.first_offset + log_range_offsets();
    END IF;
    IF first_offset < next_first OR first_offset > next_first AND empty_ranges > 1 THEN
        RAISE EXCEPTION 'the range of %/% from % on is not the next one', topic, partition, first_offset
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN add_log_range(topic, partition, first_offset);
END
$$;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
