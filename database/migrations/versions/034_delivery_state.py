"""Deliveries and their attempts, by the day of their event, as the recorder writes them and operators ask for them.

The `webhook_deliveries` of 006 is dropped: no release has written a row to it.
"""

from database.migrations.script import run_script

revision = "034"
down_revision = "033"
branch_labels = None
depends_on = None

UPGRADE = """
DROP TABLE webhook_deliveries;

-- One row a delivery. An event has one time, so an id is in one partition, and is there once. No column that changes
-- at each attempt is in an index: only an attempt that ends the wait of a delivery makes Postgres write to one.
CREATE TABLE webhook_deliveries (
    occurred_at         timestamptz NOT NULL,
    id                  uuid NOT NULL,
    endpoint_id         uuid NOT NULL,
    event_id            uuid NOT NULL,
    type                text COLLATE "C" NOT NULL,
    entity_id           uuid NOT NULL,
    source_partition    bigint NOT NULL,
    source_offset       bigint NOT NULL,
    source_rank         bigint NOT NULL,
    stream              text COLLATE "C" NOT NULL,
    state               text COLLATE "C" NOT NULL,
    state_at            timestamptz NOT NULL,
    attempts            bigint NOT NULL,
    hop                 bigint NOT NULL,
    token               bigint NOT NULL,
    redriven            bigint NOT NULL DEFAULT 0,
    first_attempted_at  timestamptz,
    last_attempted_at   timestamptz,
    next_attempt_at     timestamptz,
    status_code         integer,
    error_class         text COLLATE "C",
    why                 text NOT NULL,
    PRIMARY KEY (id, occurred_at)
) PARTITION BY RANGE (occurred_at);
CREATE INDEX webhook_deliveries_endpoint ON webhook_deliveries (endpoint_id, occurred_at);
CREATE INDEX webhook_deliveries_time ON webhook_deliveries (occurred_at);
-- Those that are delivered are nearly all, and are asked for by their endpoint, their event or their time.
CREATE INDEX webhook_deliveries_undelivered ON webhook_deliveries (state, occurred_at) WHERE state <> 'delivered';

-- One row an attempt; what only put a delivery off or gave it up is one, too. Its key tells a copy of its record.
CREATE TABLE webhook_attempts (
    occurred_at      timestamptz NOT NULL,
    delivery_id      uuid NOT NULL,
    attempted_at     timestamptz NOT NULL,
    hop              bigint NOT NULL,
    token            bigint NOT NULL,
    attempt          bigint NOT NULL,
    stream           text COLLATE "C" NOT NULL,
    outcome          text COLLATE "C" NOT NULL,
    state            text COLLATE "C" NOT NULL,
    duration_us      bigint NOT NULL,
    status_code      integer,
    error_class      text COLLATE "C",
    why              text NOT NULL,
    next_attempt_at  timestamptz,
    request          bytea NOT NULL,
    answer           bytea NOT NULL,
    PRIMARY KEY (occurred_at, delivery_id, attempted_at, hop, token)
) PARTITION BY RANGE (occurred_at);
-- Compressing them takes longer than all the rest of a row.
ALTER TABLE webhook_attempts ALTER COLUMN request SET STORAGE EXTERNAL, ALTER COLUMN answer SET STORAGE EXTERNAL;

-- Of events that are older than the days that were made, by a backfill, or said to be of the future.
CREATE TABLE webhook_deliveries_other PARTITION OF webhook_deliveries DEFAULT WITH (fillfactor = 90);
CREATE TABLE webhook_attempts_other PARTITION OF webhook_attempts DEFAULT;

-- Make the tables of the days up to so many ahead, and bring there what waits for its day; returns how many were made.
-- The default partition has no part in it meanwhile: it would be searched once for each day.
CREATE FUNCTION add_delivery_days(days_ahead integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET timezone = 'UTC' SET lock_timeout = '3s' AS $$
DECLARE
    days text[];
    each text;
    bounds text;
BEGIN
    IF days_ahead IS NULL OR days_ahead NOT BETWEEN 0 AND 14 THEN
        RAISE EXCEPTION 'days are made at most 14 ahead, not %', days_ahead USING ERRCODE = 'insufficient_privilege';
    END IF;
    FOR attempt IN 1..2 LOOP
        days := ARRAY(
            SELECT to_char(d, 'YYYYMMDD')
            FROM generate_series(current_date - 1, current_date + days_ahead, '1 day') AS d
            WHERE to_regclass('public.webhook_deliveries_' || to_char(d, 'YYYYMMDD')) IS NULL ORDER BY d
        );
        IF cardinality(days) = 0 THEN
            RETURN 0;
        END IF;
        -- Another deliverer may have made them while this one waited.
        LOCK TABLE webhook_deliveries, webhook_attempts IN ACCESS EXCLUSIVE MODE;
    END LOOP;
    ALTER TABLE webhook_deliveries DETACH PARTITION webhook_deliveries_other;
    ALTER TABLE webhook_attempts DETACH PARTITION webhook_attempts_other;
    FOREACH each IN ARRAY days LOOP
        bounds := format('FROM (%L) TO (%L)', to_date(each, 'YYYYMMDD'), to_date(each, 'YYYYMMDD') + 1);
        EXECUTE format('CREATE TABLE webhook_deliveries_%s PARTITION OF webhook_deliveries FOR VALUES %s'
            ' WITH (fillfactor = 90)', each, bounds);
        EXECUTE format('CREATE TABLE webhook_attempts_%s PARTITION OF webhook_attempts FOR VALUES %s', each, bounds);
    END LOOP;
    WITH moved AS (
        DELETE FROM webhook_deliveries_other WHERE occurred_at >= to_date(days[1], 'YYYYMMDD')
            AND occurred_at < to_date(days[cardinality(days)], 'YYYYMMDD') + 1 RETURNING *
    ) INSERT INTO webhook_deliveries SELECT * FROM moved;
    WITH moved AS (
        DELETE FROM webhook_attempts_other WHERE occurred_at >= to_date(days[1], 'YYYYMMDD')
            AND occurred_at < to_date(days[cardinality(days)], 'YYYYMMDD') + 1 RETURNING *
    ) INSERT INTO webhook_attempts SELECT * FROM moved;
    ALTER TABLE webhook_deliveries ATTACH PARTITION webhook_deliveries_other DEFAULT;
    ALTER TABLE webhook_attempts ATTACH PARTITION webhook_attempts_other DEFAULT;
    RETURN cardinality(days);
END
$$;

-- Drop the tables of the oldest day that has ended so many days ago, but for deliveries whose state is of these days;
-- returns the day, null where there is none. No caller can ask for less than a week.
CREATE FUNCTION drop_delivery_day(keep_days integer) RETURNS date
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET timezone = 'UTC' SET lock_timeout = '3s' AS $$
DECLARE
    oldest text;
    kept_from timestamptz;
BEGIN
    IF keep_days IS NULL OR keep_days < 7 THEN
        RAISE EXCEPTION 'deliveries are kept for 7 days at least, not %', keep_days
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    kept_from := current_timestamp - make_interval(days => keep_days);
    FOR attempt IN 1..2 LOOP
        SELECT substr(c.relname, 20) INTO oldest FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'webhook_deliveries'::regclass AND c.relname ~ '^webhook_deliveries_[0-9]{8}$'
        ORDER BY c.relname LIMIT 1;
        IF oldest IS NULL OR to_date(oldest, 'YYYYMMDD') + 1 > kept_from THEN
            RETURN NULL;
        END IF;
        LOCK TABLE webhook_deliveries, webhook_attempts IN ACCESS EXCLUSIVE MODE;
    END LOOP;
    EXECUTE format('ALTER TABLE webhook_deliveries DETACH PARTITION webhook_deliveries_%s', oldest);
    EXECUTE format('ALTER TABLE webhook_attempts DETACH PARTITION webhook_attempts_%s', oldest);
    EXECUTE format('INSERT INTO webhook_attempts SELECT a.* FROM webhook_attempts_%1$s AS a'
        ' JOIN webhook_deliveries_%1$s AS d ON (d.id, d.occurred_at) = (a.delivery_id, a.occurred_at)'
        ' WHERE d.state_at >= $1', oldest) USING kept_from;
    EXECUTE format('INSERT INTO webhook_deliveries SELECT * FROM webhook_deliveries_%s WHERE state_at >= $1', oldest)
        USING kept_from;
    EXECUTE format('DROP TABLE webhook_deliveries_%1$s, webhook_attempts_%1$s', oldest);
    RETURN to_date(oldest, 'YYYYMMDD');
END
$$;

-- Delete deliveries that are in the table of no day, and whose state is older; returns how many, at most `rows_max`.
CREATE FUNCTION delete_other_deliveries(keep_days integer, rows_max integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    deleted bigint;
BEGIN
    IF keep_days IS NULL OR keep_days < 7 THEN
        RAISE EXCEPTION 'deliveries are kept for 7 days at least, not %', keep_days
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    WITH old AS (
        SELECT id, occurred_at FROM webhook_deliveries_other
        WHERE state_at < current_timestamp - make_interval(days => keep_days)
        ORDER BY occurred_at LIMIT rows_max FOR UPDATE SKIP LOCKED
    ), without_attempts AS (
        DELETE FROM webhook_attempts_other AS a USING old
        WHERE (a.occurred_at, a.delivery_id) = (old.occurred_at, old.id)
    )
    DELETE FROM webhook_deliveries_other AS d USING old WHERE (d.id, d.occurred_at) = (old.id, old.occurred_at);
    GET DIAGNOSTICS deleted = ROW_COUNT;
    RETURN deleted;
END
$$;
REVOKE EXECUTE ON FUNCTION add_delivery_days(integer), drop_delivery_day(integer),
    delete_other_deliveries(integer, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION add_delivery_days(integer), drop_delivery_day(integer),
    delete_other_deliveries(integer, integer) TO plant_deliverer;

GRANT SELECT, INSERT, UPDATE ON webhook_deliveries TO plant_deliverer;
GRANT SELECT, INSERT ON webhook_attempts TO plant_deliverer;
GRANT SELECT ON webhook_deliveries, webhook_attempts TO plant_operator, plant_api;
"""

DOWNGRADE = """
DROP FUNCTION delete_other_deliveries(integer, integer);
DROP FUNCTION drop_delivery_day(integer);
DROP FUNCTION add_delivery_days(integer);
DROP TABLE webhook_attempts, webhook_deliveries;
CREATE TABLE webhook_deliveries (
    id               uuid PRIMARY KEY,
    endpoint_id      uuid NOT NULL,
    topic            text COLLATE "C" NOT NULL,
    partition        integer NOT NULL CHECK (partition >= 0),
    "offset"         bigint NOT NULL CHECK ("offset" >= 0),
    event_id         uuid NOT NULL,
    state            text NOT NULL DEFAULT 'pending'
                     CHECK (state IN ('pending', 'delivered', 'dead', 'cancelled')),
    attempts         integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    last_status      integer CHECK (last_status BETWEEN 100 AND 599),
    last_error       text,
    next_attempt_at  timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    CHECK ((state = 'pending') OR next_attempt_at IS NULL),
    UNIQUE (endpoint_id, event_id)
);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (next_attempt_at) WHERE state = 'pending';
GRANT SELECT, INSERT, UPDATE ON webhook_deliveries TO plant_writer;
GRANT SELECT ON webhook_deliveries TO plant_api;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
