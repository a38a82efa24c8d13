"""Owners and checkpoints per consumer, and one checkpoint for the log and the read models that have caught up with it.

Both tables have a few rows a partition, so this is quick: it waits for the transactions that run, and later ones wait
for it. Workers of an earlier version are refused from then on.

The way back carries what that version knows: rows of the consumers `projector` and `dead_letters`, and of read models.
"""

from database.migrations.script import run_script

revision = "019"
down_revision = "018"
branch_labels = None
depends_on = None

# Every transaction locks owners first and checkpoints then, so none can wait here for who waits there. A lock that is
# not given within the connection's timeout ends the migration; a connection without one gets one.
LOCK = """
SELECT set_config('lock_timeout', '10s', true) WHERE current_setting('lock_timeout') = '0';
LOCK TABLE partition_owners, checkpoints IN ACCESS EXCLUSIVE MODE;
ALTER TABLE partition_owners RENAME TO former_owners;
ALTER TABLE former_owners RENAME CONSTRAINT partition_owners_pkey TO former_owners_pkey;
ALTER TABLE checkpoints RENAME TO former_checkpoints;
ALTER TABLE former_checkpoints RENAME CONSTRAINT checkpoints_pkey TO former_checkpoints_pkey;
"""

RIGHTS = """
GRANT SELECT, INSERT, UPDATE ON partition_owners, checkpoints TO plant_writer;
GRANT SELECT ON partition_owners, checkpoints TO plant_auditor, plant_api, plant_operator;
"""

UPGRADE = """
-- Who may write what a consumer makes of a partition: the token is the fence, the backend is what a successor ends.
CREATE TABLE partition_owners (
    consumer            text COLLATE "C" NOT NULL,
    topic               text COLLATE "C" NOT NULL,
    partition           integer NOT NULL CHECK (partition >= 0),
    token               bigint NOT NULL CHECK (token > 0),
    worker              text NOT NULL,
    backend_pid         integer NOT NULL,
    backend_started_at  timestamptz NOT NULL,
    topic_id            uuid,
    taken_at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    stop_reason         text,
    PRIMARY KEY (consumer, topic, partition)
);
INSERT INTO partition_owners
SELECT 'projector', topic, partition, token, worker, backend_pid, backend_started_at, topic_id, taken_at, stop_reason
FROM former_owners;

-- The offset that a consumer reads next. `read_models` are those, as `name/version`, whose tables hold every record
-- below it: they share the projector's row, and its transaction.
CREATE TABLE checkpoints (
    consumer     text COLLATE "C" NOT NULL,
    topic        text COLLATE "C" NOT NULL,
    partition    integer NOT NULL CHECK (partition >= 0),
    next_offset  bigint NOT NULL CHECK (next_offset >= 0),
    read_models  text[] COLLATE "C" NOT NULL DEFAULT '{}',
    PRIMARY KEY (consumer, topic, partition)
) WITH (fillfactor = 50);

-- A read model has a row here only while it lags behind the log or is stopped. One that has a place neither here nor
-- in a partition's `read_models` holds nothing of the partition.
CREATE TABLE model_checkpoints (
    projection   text COLLATE "C" NOT NULL,
    version      integer NOT NULL CHECK (version >= 0),
    topic        text COLLATE "C" NOT NULL,
    partition    integer NOT NULL CHECK (partition >= 0),
    next_offset  bigint NOT NULL CHECK (next_offset >= 0),
    stop_reason  text,
    PRIMARY KEY (projection, version, topic, partition)
) WITH (fillfactor = 50);

INSERT INTO checkpoints (consumer, topic, partition, next_offset, read_models)
SELECT 'projector', log.topic, log.partition, log.next_offset, ARRAY(
    SELECT m.projection || '/' || m.version FROM former_checkpoints AS m
    WHERE m.topic = log.topic AND m.partition = log.partition AND m.next_offset = log.next_offset
      AND m.stop_reason IS NULL AND (m.projection, m.version) NOT IN (('log', 0), ('dead_letters', 0))
    ORDER BY m.projection, m.version
)
FROM former_checkpoints AS log WHERE (log.projection, log.version) = ('log', 0)
UNION ALL
SELECT projection, topic, partition, next_offset, '{}' FROM former_checkpoints
WHERE (projection, version) = ('dead_letters', 0);

INSERT INTO model_checkpoints (projection, version, topic, partition, next_offset, stop_reason)
SELECT projection, version, topic, partition, next_offset, stop_reason FROM former_checkpoints AS m
WHERE (m.projection, m.version) NOT IN (('log', 0), ('dead_letters', 0)) AND NOT EXISTS (
    SELECT FROM checkpoints AS c
    WHERE c.consumer = 'projector' AND c.topic = m.topic AND c.partition = m.partition
      AND m.projection || '/' || m.version = ANY (c.read_models)
);
DROP TABLE former_owners, former_checkpoints;

-- Where the log and each read model are, whether they share a row or not.
CREATE VIEW projection_checkpoints WITH (security_invoker = true) AS
SELECT 'log' COLLATE "C" AS projection, 0 AS version, topic, partition, next_offset, NULL AS stop_reason
FROM checkpoints WHERE consumer = 'projector'
UNION ALL
SELECT split_part(name, '/', 1), split_part(name, '/', 2)::integer, topic, partition, next_offset, NULL
FROM checkpoints CROSS JOIN LATERAL unnest(read_models) AS name WHERE consumer = 'projector'
UNION ALL
SELECT projection, version, topic, partition, next_offset, stop_reason FROM model_checkpoints;

-- What every transaction of an owner begins with: lock the token, and see that the consumer is where the owner thinks.
--
-- Each commit leaves the row's former version. A long snapshot keeps them all, and an index leads through every one.
-- So the session remembers where the newest is, and goes there once the table has grown; a small table is read by its
-- key, since that is when Postgres removes versions that nobody needs. Neither plan may read the whole table.
CREATE FUNCTION lock_partition(consumer text, topic text, partition integer, token bigint, next_offset bigint)
RETURNS void LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    known tid := nullif(current_setting('plant.checkpoint', true), '')::tid;
    recorded bigint;
BEGIN
    PERFORM FROM partition_owners AS o
    WHERE o.consumer = $1 AND o.topic = $2 AND o.partition = $3 AND o.token = $4 FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the token % of %/% is not current for the consumer %', token, topic, partition, consumer
            USING ERRCODE = 'PL001';
    END IF;
    IF known >= '(16,0)' THEN
        SELECT c.next_offset INTO recorded FROM checkpoints AS c
        WHERE c.ctid = known AND c.consumer = $1 AND c.topic = $2 AND c.partition = $3;
    END IF;
    IF recorded IS NULL THEN
        SELECT c.next_offset INTO recorded FROM checkpoints AS c
        WHERE c.consumer = $1 AND c.topic = $2 AND c.partition = $3;
    END IF;
    IF recorded IS DISTINCT FROM $5 THEN
        RAISE EXCEPTION 'the checkpoint of the consumer % in %/% is %, not %', consumer, topic, partition, recorded,
            next_offset USING ERRCODE = 'PL001';
    END IF;
END
$$;

-- Move a checkpoint forward, in the transaction that has locked its partition.
CREATE FUNCTION advance_checkpoint(consumer text, topic text, partition integer, next_offset bigint)
RETURNS void LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    known tid := nullif(current_setting('plant.checkpoint', true), '')::tid;
    written tid;
BEGIN
    IF known >= '(16,0)' THEN
        UPDATE checkpoints AS c SET next_offset = $4
        WHERE c.ctid = known AND c.consumer = $1 AND c.topic = $2 AND c.partition = $3 AND c.next_offset <= $4
        RETURNING c.ctid INTO written;
    END IF;
    IF written IS NULL THEN
        UPDATE checkpoints AS c SET next_offset = $4
        WHERE c.consumer = $1 AND c.topic = $2 AND c.partition = $3 AND c.next_offset <= $4
        RETURNING c.ctid INTO written;
    END IF;
    IF written IS NULL THEN
        RAISE EXCEPTION 'the consumer % has no checkpoint in %/% that could move to %', consumer, topic, partition,
            next_offset USING ERRCODE = 'PL001';
    END IF;
    PERFORM set_config('plant.checkpoint', written::text, false);
END
$$;

-- Rows of owners are made here alone, so that a worker of an earlier version is known by trying to make some.
CREATE FUNCTION add_partition_owners(consumer text, topic text, partitions integer, topic_id uuid) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    INSERT INTO partition_owners (consumer, topic, partition, token, worker, backend_pid, backend_started_at, topic_id)
    SELECT $1, $2, number, 1, '', 0, '-infinity', $4 FROM generate_series(0, $3 - 1) AS number
    WHERE NOT EXISTS (SELECT FROM partition_owners AS o WHERE o.consumer = $1 AND o.topic = $2)
    ON CONFLICT DO NOTHING
$$;

-- An earlier worker's batch begins with this function, and acquiring a partition with an INSERT, before it ends the
-- session of the partition's owner.
CREATE OR REPLACE FUNCTION hold_partition(topic text, partition integer, token bigint, next_offset bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'this worker is older than the database: stop it, and start one of the version that migrated it'
        USING ERRCODE = 'PL002';
END
$$;
CREATE FUNCTION refuse_older_worker() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT pg_has_role(current_user, (SELECT c.relowner FROM pg_class AS c WHERE c.oid = TG_RELID), 'MEMBER') THEN
        RAISE EXCEPTION 'this worker is older than the database: stop it, and start one of the version that migrated it'
            USING ERRCODE = 'PL002';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER refuse_older_worker BEFORE INSERT ON partition_owners
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_older_worker();

-- Whether a build lacks records of the log, on any partition.
CREATE OR REPLACE FUNCTION build_is_behind(model text, build integer) RETURNS boolean LANGUAGE sql
SET search_path = public, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM checkpoints AS c
        LEFT JOIN projection_checkpoints AS m
            ON m.projection = model AND m.version = build AND m.topic = c.topic AND m.partition = c.partition
        WHERE c.consumer = 'projector' AND c.next_offset <> coalesce(m.next_offset, 0)
    )
$$;

REVOKE EXECUTE ON FUNCTION lock_partition(text, text, integer, bigint, bigint),
    advance_checkpoint(text, text, integer, bigint), add_partition_owners(text, text, integer, uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION lock_partition(text, text, integer, bigint, bigint),
    advance_checkpoint(text, text, integer, bigint), add_partition_owners(text, text, integer, uuid) TO plant_writer;
GRANT SELECT, INSERT, UPDATE, DELETE ON model_checkpoints TO plant_writer;
GRANT SELECT ON model_checkpoints TO plant_auditor, plant_api, plant_operator;
GRANT SELECT ON projection_checkpoints TO plant_writer, plant_auditor, plant_api, plant_operator;
"""

DOWNGRADE = """
DROP FUNCTION add_partition_owners(text, text, integer, uuid);
DROP FUNCTION advance_checkpoint(text, text, integer, bigint);
DROP FUNCTION lock_partition(text, text, integer, bigint, bigint);
DROP VIEW projection_checkpoints;
DROP TRIGGER refuse_older_worker ON former_owners;
DROP FUNCTION refuse_older_worker();

CREATE TABLE partition_owners (
    topic               text COLLATE "C" NOT NULL,
    partition           integer NOT NULL CHECK (partition >= 0),
    token               bigint NOT NULL CHECK (token > 0),
    worker              text NOT NULL,
    backend_pid         integer NOT NULL,
    backend_started_at  timestamptz NOT NULL,
    topic_id            uuid,
    taken_at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    stop_reason         text,
    PRIMARY KEY (topic, partition)
);
INSERT INTO partition_owners
SELECT topic, partition, token, worker, backend_pid, backend_started_at, topic_id, taken_at, stop_reason
FROM former_owners WHERE consumer = 'projector';

CREATE TABLE checkpoints (
    projection   text COLLATE "C" NOT NULL,
    version      integer NOT NULL CHECK (version >= 0),
    topic        text COLLATE "C" NOT NULL,
    partition    integer NOT NULL CHECK (partition >= 0),
    next_offset  bigint NOT NULL CHECK (next_offset >= 0),
    stop_reason  text,
    PRIMARY KEY (projection, version, topic, partition)
) WITH (fillfactor = 50);
INSERT INTO checkpoints (projection, version, topic, partition, next_offset, stop_reason)
SELECT CASE consumer WHEN 'projector' THEN 'log' ELSE consumer END, 0, topic, partition, next_offset, NULL
FROM former_checkpoints WHERE consumer IN ('projector', 'dead_letters')
UNION ALL
SELECT split_part(name, '/', 1), split_part(name, '/', 2)::integer, topic, partition, next_offset, NULL
FROM former_checkpoints CROSS JOIN LATERAL unnest(read_models) AS name WHERE consumer = 'projector'
UNION ALL
SELECT projection, version, topic, partition, next_offset, stop_reason FROM model_checkpoints;
DROP TABLE former_owners, former_checkpoints, model_checkpoints;

CREATE OR REPLACE FUNCTION hold_partition(topic text, partition integer, token bigint, next_offset bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    log_offset bigint;
BEGIN
    PERFORM FROM partition_owners AS o
    WHERE o.topic = $1 AND o.partition = $2 AND o.token = $3 FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the token % of %/% is not current', token, topic, partition USING ERRCODE = 'PL001';
    END IF;
    SELECT c.next_offset INTO log_offset FROM checkpoints AS c
    WHERE c.projection = 'log' AND c.version = 0 AND c.topic = $1 AND c.partition = $2;
    IF log_offset IS DISTINCT FROM $4 THEN
        RAISE EXCEPTION 'the log of %/% ends at %, not at %', topic, partition, log_offset, next_offset
            USING ERRCODE = 'PL001';
    END IF;
END
$$;
CREATE OR REPLACE FUNCTION build_is_behind(model text, build integer) RETURNS boolean LANGUAGE sql
SET search_path = public, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM checkpoints AS l
        LEFT JOIN checkpoints AS c
            ON c.projection = model AND c.version = build AND c.topic = l.topic AND c.partition = l.partition
        WHERE l.projection = 'log' AND l.version = 0 AND l.next_offset <> coalesce(c.next_offset, 0)
    )
$$;
"""


def upgrade() -> None:
    run_script(LOCK + UPGRADE + RIGHTS)


def downgrade() -> None:
    run_script(LOCK + DOWNGRADE + RIGHTS)
