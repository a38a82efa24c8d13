"""Rights on the log that a worker needs, and no more: topics that are logged, the next range, the one that is open.

Functions and rights alone. Running workers go on: they leave a range open that they would have closed, and close it
after their next batch.
"""

from alembic import op

from database.migrations.script import run_script

revision = "046"
down_revision = "045"
branch_labels = None
depends_on = None

UPGRADE = """
-- The topics whose records the log holds, in any generation. Other topics have no owners here, so no tables.
CREATE OR REPLACE FUNCTION is_logged_topic(topic text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN length(topic) <= 249 AND topic ~ '^(genesis[.]events|plant[.]operations)(-[a-zA-Z0-9._-]+)?$';

-- As in 026, for topics that are logged, and for 1,024 partitions of a consumer in all: each has two tables or more in
-- the log, and Postgres plans a query on the whole log by looking at each of them. The lock lets no two sessions count
-- at once; nobody who reads or moves an owner's row waits for it.
CREATE OR REPLACE FUNCTION add_partition_owners(
    consumer text, topic text, partitions integer, topic_id uuid, known_revision integer
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM refuse_older_worker(known_revision);
    IF EXISTS (SELECT FROM partition_owners AS o WHERE o.consumer = $1 AND o.topic = $2) THEN
        RETURN;
    ELSIF is_logged_topic(topic) IS NOT TRUE THEN
        RAISE EXCEPTION '% is no topic of the log', quote_nullable(topic) USING ERRCODE = 'insufficient_privilege';
    END IF;
    LOCK TABLE partition_owners IN SHARE UPDATE EXCLUSIVE MODE;
    IF partitions > 1024 - (SELECT count(*) FROM partition_owners AS o WHERE o.consumer = $1) THEN
        RAISE EXCEPTION 'the consumer % would own more than 1,024 partitions with the % of %', consumer, partitions,
            topic USING ERRCODE = 'insufficient_privilege';
    END IF;
    INSERT INTO partition_owners (consumer, topic, partition, token, worker, backend_pid, backend_started_at, topic_id)
    SELECT $1, $2, number, 1, '', 0, '-infinity', $4 FROM generate_series(0, $3 - 1) AS number
    ON CONFLICT DO NOTHING;
END
$$;

-- Whoever could change a row's topic or partition would own what was never added.
REVOKE UPDATE ON partition_owners FROM plant_writer;
GRANT UPDATE (token, worker, backend_pid, backend_started_at, topic_id, taken_at, stop_reason, feeder_pid,
              feeder_started_at) ON partition_owners TO plant_writer;

-- As in 017, but only ranges take rows: what goes into a partition's table goes on into any range of it.
CREATE OR REPLACE FUNCTION guard_log_table(name text) RETURNS void LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON log.%I '
                   'FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', name);
    EXECUTE format('GRANT SELECT ON log.%I TO plant_writer, plant_auditor', name);
    IF (SELECT c.relkind = 'r' FROM pg_class AS c WHERE c.oid = format('log.%I', name)::regclass) THEN
        EXECUTE format('GRANT INSERT ON log.%I TO plant_writer', name);
    END IF;
END
$$;

-- As in 022, but for which range is the next one: the one behind the last record can always be made. Empty ranges
-- further on are passed over, so that none that was made by mistake, or where Kafka has lost the end of its log, keeps
-- the partition from going on. A range behind a gap can be made while there is one empty range at most.
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

-- Whether the log has gone on to an offset: its checkpoint is there, or a record behind it. Then nothing is ever
-- written before the offset again.
CREATE OR REPLACE FUNCTION log_reaches(topic text, partition integer, "offset" bigint) RETURNS boolean LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    later text;
    filled boolean;
BEGIN
    IF EXISTS (SELECT FROM checkpoints AS c WHERE c.consumer = 'projector' AND c.topic = $1 AND c.partition = $2
               AND c.next_offset >= $3) THEN
        RETURN true;
    END IF;
    FOR later IN SELECT r.table_name FROM log_ranges AS r
        WHERE r.topic = $1 AND r.partition = $2 AND r.first_offset >= $3 ORDER BY r.first_offset
    LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM log.%I)', later) INTO filled;
        IF filled THEN
            RETURN true;
        END IF;
    END LOOP;
    RETURN false;
END
$$;

-- As in 023, and it ends the writer's right to add to the range once the log has gone on behind it. Before that the
-- index alone is made: where Kafka loses the end of its log, records may still come. The lock waits for whoever has
-- added rows and not committed, so that what is read back from then on is all that there will ever be.
CREATE OR REPLACE FUNCTION index_log_range(topic text, partition integer, first_offset bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    range log_ranges;
    index_name text;
    made boolean;
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
    made := to_regclass(format('log.%I', index_name)) IS NULL;
    IF made THEN
        EXECUTE format('CREATE UNIQUE INDEX %I ON log.%I (event_id) WITH (fillfactor = 100) '
                       'WHERE disposition IN (''applied'', ''parked'') '
                       'OR disposition = ''control'' AND entity_id IS NOT NULL', index_name, range.table_name);
    END IF;
    IF has_table_privilege('plant_writer', format('log.%I', range.table_name), 'INSERT')
       AND log_reaches(topic, partition, first_offset + log_range_offsets()) THEN
        EXECUTE format('LOCK TABLE log.%I IN SHARE MODE', range.table_name);
        EXECUTE format('REVOKE INSERT ON log.%I FROM plant_writer', range.table_name);
        -- The next round of autovacuum freezes all of it, and none has to come again.
        EXECUTE format('ALTER TABLE log.%I SET (autovacuum_vacuum_insert_threshold = 1000, '
                       'autovacuum_vacuum_insert_scale_factor = 0, autovacuum_freeze_min_age = 0)', range.table_name);
    END IF;
    RETURN made;
END
$$;

-- As in 017, but only for a range that nobody adds to any more, behind ranges that are closed. That its owner has asked
-- those for its ids is the owner's word.
CREATE OR REPLACE FUNCTION close_log_range(topic text, partition integer, first_offset bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE log_ranges AS r SET closed_at = clock_timestamp()
    WHERE r.topic = $1 AND r.partition = $2 AND r.first_offset = $3 AND r.closed_at IS NULL
      AND to_regclass(format('log.%I', 'event_ids_' || md5(r.table_name))) IS NOT NULL
      AND NOT has_table_privilege('plant_writer', format('log.%I', r.table_name), 'INSERT')
      AND NOT EXISTS (
          SELECT FROM log_ranges AS e
          WHERE e.topic = $1 AND e.partition = $2 AND e.first_offset < $3 AND e.closed_at IS NULL
      );
    RETURN EXISTS (
        SELECT FROM log_ranges AS r
        WHERE r.topic = $1 AND r.partition = $2 AND r.first_offset = $3 AND r.closed_at IS NOT NULL
    );
END
$$;

REVOKE EXECUTE ON FUNCTION is_logged_topic(text), log_reaches(text, integer, bigint) FROM PUBLIC;
"""

# A transaction a table: REVOKE waits for nobody. A closed range that the log has not gone on behind is open again: its
# owner closes it once more.
REVOKE_APPENDING = """
DO $$
DECLARE
    chain record;
    range record;
BEGIN
    FOR chain IN SELECT DISTINCT r.topic, r.partition FROM log_ranges AS r LOOP
        EXECUTE format('REVOKE INSERT ON log.%I FROM plant_writer', log_table_name(chain.topic, chain.partition));
        COMMIT;
    END LOOP;
    FOR range IN SELECT r.* FROM log_ranges AS r WHERE r.closed_at IS NOT NULL ORDER BY 1, 2, 3 LOOP
        IF log_reaches(range.topic, range.partition, range.first_offset + log_range_offsets()) THEN
            EXECUTE format('REVOKE INSERT ON log.%I FROM plant_writer', range.table_name);
        ELSE
            UPDATE log_ranges AS r SET closed_at = NULL WHERE r.table_name = range.table_name;
        END IF;
        COMMIT;
    END LOOP;
END
$$;
"""

DOWNGRADE = """
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT c.relname FROM pg_class AS c
        WHERE c.relnamespace = 'log'::regnamespace AND c.relkind IN ('r', 'p')
    LOOP
        EXECUTE format('GRANT INSERT ON log.%I TO plant_writer', name);
    END LOOP;
END
$$;
CREATE OR REPLACE FUNCTION add_partition_owners(
    consumer text, topic text, partitions integer, topic_id uuid, known_revision integer
) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT refuse_older_worker($5);
    INSERT INTO partition_owners (consumer, topic, partition, token, worker, backend_pid, backend_started_at, topic_id)
    SELECT $1, $2, number, 1, '', 0, '-infinity', $4 FROM generate_series(0, $3 - 1) AS number
    WHERE NOT EXISTS (SELECT FROM partition_owners AS o WHERE o.consumer = $1 AND o.topic = $2)
    ON CONFLICT DO NOTHING
$$;
REVOKE UPDATE ON partition_owners FROM plant_writer;
GRANT UPDATE ON partition_owners TO plant_writer;
CREATE OR REPLACE FUNCTION guard_log_table(name text) RETURNS void LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON log.%I '
                   'FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', name);
    EXECUTE format('GRANT SELECT, INSERT ON log.%I TO plant_writer', name);
    EXECUTE format('GRANT SELECT ON log.%I TO plant_auditor', name);
END
$$;
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
                   'WHERE disposition IN (''applied'', ''parked'') '
                   'OR disposition = ''control'' AND entity_id IS NOT NULL', index_name, range.table_name);
    -- Nothing is added to it any more: the next round of autovacuum freezes all of it, and none has to come again.
    EXECUTE format('ALTER TABLE log.%I SET (autovacuum_vacuum_insert_threshold = 1000, '
                   'autovacuum_vacuum_insert_scale_factor = 0, autovacuum_freeze_min_age = 0)', range.table_name);
    RETURN true;
END
$$;
CREATE OR REPLACE FUNCTION close_log_range(topic text, partition integer, first_offset bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE log_ranges AS r SET closed_at = clock_timestamp()
    WHERE r.topic = $1 AND r.partition = $2 AND r.first_offset = $3 AND r.closed_at IS NULL
      AND to_regclass(format('log.%I', 'event_ids_' || md5(r.table_name))) IS NOT NULL;
    RETURN EXISTS (
        SELECT FROM log_ranges AS r
        WHERE r.topic = $1 AND r.partition = $2 AND r.first_offset = $3 AND r.closed_at IS NOT NULL
    );
END
$$;
DROP FUNCTION is_logged_topic(text);
DROP FUNCTION log_reaches(text, integer, bigint);
"""


def upgrade() -> None:
    run_script(UPGRADE)
    with op.get_context().autocommit_block():
        run_script(REVOKE_APPENDING)


def downgrade() -> None:
    run_script(DOWNGRADE)
