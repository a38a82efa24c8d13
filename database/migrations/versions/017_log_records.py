"""The log in one table: a child a Kafka partition, ranges of offsets below it, and functions to make and close them.

018 carries the records over while workers go on writing to the tables of before, and 020 moves the names.
"""

from database.migrations.script import run_script

revision = "017"
down_revision = "016"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE TYPE log_disposition AS ENUM ('applied', 'repeat', 'poison', 'parked', 'control');
CREATE TYPE log_entity_type AS ENUM ('agent', 'skill', 'job_role', 'industry', 'team', 'operation');
CREATE TYPE log_event_type AS ENUM (
    'genesis.agent.onboarded', 'genesis.agent.available', 'genesis.agent.rated', 'genesis.skill.validated',
    'genesis.skill.registered', 'genesis.job_role.defined', 'genesis.industry.defined', 'genesis.team.formed',
    'genesis.entity.amended', 'genesis.entity.retired', 'plant.operation.recorded', 'plant.chain.version_raised'
);

-- One row for every Kafka record, poison and repeats included, and its link in the audit chain. `headers` holds the
-- canonical bytes of the ordered headers (audit/canonical.py), so that the hash can be computed from the stored bytes
-- alone. A key is stored only where it is not the id of the entity in text, which it nearly always is: 37 bytes a row.
-- Columns stand in the order of their alignment: that is 3 bytes a row.
CREATE TABLE log_records (
    "offset"        bigint NOT NULL CHECK ("offset" >= 0),
    created_at      timestamptz NOT NULL,
    control_offset  bigint CHECK (control_offset >= 0),
    event_id        uuid,
    entity_id       uuid,
    partition       integer NOT NULL CHECK (partition >= 0),
    disposition     log_disposition NOT NULL DEFAULT 'applied',
    entity_type     log_entity_type,
    event_type      log_event_type,
    topic           text COLLATE "C" NOT NULL,
    hash            bytea NOT NULL CHECK (octet_length(hash) = 32),
    key             bytea,
    value           bytea,
    headers         bytea NOT NULL,
    reason          text,
    CONSTRAINT log_records_reason CHECK ((disposition = 'poison') = (reason IS NOT NULL)),
    CONSTRAINT log_records_event_id CHECK (disposition NOT IN ('applied', 'repeat', 'parked') OR event_id IS NOT NULL),
    CONSTRAINT log_records_control CHECK (control_offset IS NULL OR disposition = 'control')
) PARTITION BY RANGE (topic, partition);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON log_records
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Who reads in boundaries (plant_api) reads the views of 020, which leave out what records say.
CREATE SCHEMA log;
GRANT USAGE ON SCHEMA log TO plant_writer, plant_auditor;
GRANT SELECT ON log_records TO plant_writer, plant_auditor;

-- The ranges that there are. An open one, the last of its partition, has no index on event ids: the partition's owner
-- knows them. A closed one has, and every earlier range was asked for its ids.
CREATE TABLE log_ranges (
    topic         text COLLATE "C" NOT NULL,
    partition     integer NOT NULL CHECK (partition >= 0),
    first_offset  bigint NOT NULL CHECK (first_offset >= 0),
    table_name    text NOT NULL UNIQUE,
    closed_at     timestamptz,
    PRIMARY KEY (topic, partition, first_offset)
);
GRANT SELECT ON log_ranges TO plant_writer, plant_api, plant_auditor;

CREATE FUNCTION log_range_offsets() RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN 1048576;

-- A partition's table in the schema `log`. Kafka allows topics of 249 characters, Postgres names of 63: a range's name
-- adds up to 31 of them for partition and offset.
CREATE FUNCTION log_table_name(topic text, partition integer) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (CASE WHEN length(topic) <= 32 THEN topic ELSE left(topic, 23) || '~' || left(md5(topic), 8) END)
    || '/' || partition;

-- What every table of the log is given, whichever level it is of.
CREATE FUNCTION guard_log_table(name text) RETURNS void LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON log.%I '
                   'FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', name);
    EXECUTE format('GRANT SELECT, INSERT ON log.%I TO plant_writer', name);
    EXECUTE format('GRANT SELECT ON log.%I TO plant_auditor', name);
END
$$;

-- Make a range that is not there yet, and the partition's table. Both are made apart and attached, for which nobody who
-- reads or writes has to wait. Returns the range's table. Nobody is granted it; whoever calls it, the tables are the
-- owner's.
CREATE FUNCTION add_log_range(topic text, partition integer, first_offset bigint) RETURNS text LANGUAGE plpgsql
SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    parent text := log_table_name(topic, partition);
    child text := parent || '/' || first_offset;
BEGIN
    IF topic !~ '^[a-zA-Z0-9._-]{1,249}$' THEN
        RAISE EXCEPTION '% is no name of a topic', quote_literal(topic) USING ERRCODE = 'insufficient_privilege';
    ELSIF to_regclass(format('log.%I', parent)) IS NULL THEN
        EXECUTE format('CREATE TABLE log.%I (LIKE log_records INCLUDING DEFAULTS INCLUDING CONSTRAINTS) '
                       'PARTITION BY RANGE ("offset")', parent);
        PERFORM guard_log_table(parent);
        EXECUTE format('ALTER TABLE log_records ATTACH PARTITION log.%I FOR VALUES FROM (%L, %s) TO (%L, %s)',
                       parent, topic, partition, topic, partition + 1);
    END IF;
    EXECUTE format('CREATE TABLE log.%I (LIKE log_records INCLUDING DEFAULTS INCLUDING CONSTRAINTS) '
                   'WITH (autovacuum_vacuum_insert_threshold = 5000000, autovacuum_analyze_threshold = 500, '
                   'autovacuum_analyze_scale_factor = 0.05)', child);
    -- A sample has the same size however large the table is; it leaves out long columns without conditions.
    EXECUTE format('ALTER TABLE log.%I ALTER topic SET DEFAULT %L, ALTER partition SET DEFAULT %s, '
                   'ALTER hash SET STATISTICS 0, ALTER key SET STATISTICS 0, ALTER value SET STATISTICS 0, '
                   'ALTER headers SET STATISTICS 0, ALTER reason SET STATISTICS 0, '
                   'ADD PRIMARY KEY ("offset") WITH (fillfactor = 100)', child, topic, partition);
    EXECUTE format('CREATE INDEX ON log.%I (disposition, "offset") WHERE disposition <> ''applied''', child);
    -- For those who look for an event by its id while its range is open: a byte a record, and it misses none.
    EXECUTE format('CREATE INDEX %I ON log.%I USING brin (event_id uuid_bloom_ops (n_distinct_per_range = 650, '
                   'false_positive_rate = 0.01)) WITH (pages_per_range = 32)', 'id_blocks_' || md5(child), child);
    PERFORM guard_log_table(child);
    EXECUTE format('ALTER TABLE log.%I ATTACH PARTITION log.%I FOR VALUES FROM (%s) TO (%s)',
                   parent, child, first_offset, first_offset + log_range_offsets());
    INSERT INTO log_ranges (topic, partition, first_offset, table_name) VALUES (topic, partition, first_offset, child);
    RETURN child;
END
$$;

-- The table of the range that begins at an offset, made where it is missing. Only a partition that has an owner's row,
-- and only a range after the last one can be made. One that is empty may lie between two that have records, as where
-- a worker ended before it wrote to it and the log goes on behind a gap; a second one may not.
CREATE FUNCTION make_log_range(topic text, partition integer, first_offset bigint) RETURNS text LANGUAGE plpgsql
SECURITY DEFINER SET search_path = public, pg_temp AS $$
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

-- Let look-ups by event id pass over what was added to a range since last time.
CREATE FUNCTION summarize_log_range(topic text, partition integer, first_offset bigint) RETURNS integer LANGUAGE sql
SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT brin_summarize_new_values(format('log.%I', 'id_blocks_' || md5(r.table_name))::regclass) FROM log_ranges AS r
    WHERE r.topic = $1 AND r.partition = $2 AND r.first_offset = $3
$$;

-- Give a range that is full its unique index, in bulk: an event id is applied or parked once. Returns whether it was
-- missing. Raises unique_violation, naming the index, where the range holds an id twice.
CREATE FUNCTION index_log_range(topic text, partition integer, first_offset bigint) RETURNS boolean LANGUAGE plpgsql
SECURITY DEFINER SET search_path = public, pg_temp AS $$
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
                   'WHERE disposition IN (''applied'', ''parked'')', index_name, range.table_name);
    -- Nothing is added to it any more: the next round of autovacuum freezes all of it, and none has to come again.
    EXECUTE format('ALTER TABLE log.%I SET (autovacuum_vacuum_insert_threshold = 1000, '
                   'autovacuum_vacuum_insert_scale_factor = 0, autovacuum_freeze_min_age = 0)', range.table_name);
    RETURN true;
END
$$;

-- Note that a range is closed: it has its index, and its owner has asked every earlier range for its ids.
-- Returns whether it is.
CREATE FUNCTION close_log_range(topic text, partition integer, first_offset bigint) RETURNS boolean LANGUAGE plpgsql
SECURITY DEFINER SET search_path = public, pg_temp AS $$
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

REVOKE EXECUTE ON FUNCTION guard_log_table(text), add_log_range(text, integer, bigint),
    make_log_range(text, integer, bigint), summarize_log_range(text, integer, bigint),
    index_log_range(text, integer, bigint), close_log_range(text, integer, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION make_log_range(text, integer, bigint), summarize_log_range(text, integer, bigint),
    index_log_range(text, integer, bigint), close_log_range(text, integer, bigint) TO plant_writer;
"""

DOWNGRADE = """
DROP TABLE log_records, log_ranges;
DROP SCHEMA log;
DROP FUNCTION make_log_range(text, integer, bigint);
DROP FUNCTION summarize_log_range(text, integer, bigint);
DROP FUNCTION index_log_range(text, integer, bigint);
DROP FUNCTION close_log_range(text, integer, bigint);
DROP FUNCTION add_log_range(text, integer, bigint);
DROP FUNCTION guard_log_table(text);
DROP FUNCTION log_table_name(text, integer);
DROP FUNCTION log_range_offsets();
DROP TYPE log_disposition;
DROP TYPE log_event_type;
DROP TYPE log_entity_type;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
