"""Where deliverers are, and what waits: owners, checkpoints, marks of what has come, and deliveries that wait.

They are apart from the owners and checkpoints of the log: who handles the answers of strangers has no right on those.
"""

from database.migrations.script import run_script

revision = "033"
down_revision = "032"
branch_labels = None
depends_on = None

UPGRADE = """
-- One owner of a partition number, on all topics of deliveries: whatever concerns an endpoint is in one process.
CREATE TABLE delivery_owners (
    consumer            text COLLATE "C" NOT NULL CHECK (consumer IN ('deliverer', 'recorder')),
    partition           integer NOT NULL CHECK (partition >= 0),
    token               bigint NOT NULL CHECK (token > 0),
    worker              text NOT NULL,
    backend_pid         integer NOT NULL,
    backend_started_at  timestamptz NOT NULL,
    taken_at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    stop_reason         text,
    PRIMARY KEY (consumer, partition)
);

-- All below `next_offset` is done, and so are the offsets in `done`. Up to `read_to` records were told from copies.
CREATE TABLE delivery_checkpoints (
    consumer     text COLLATE "C" NOT NULL CHECK (consumer IN ('deliverer', 'recorder')),
    topic        text COLLATE "C" NOT NULL,
    partition    integer NOT NULL CHECK (partition >= 0),
    partitions   integer NOT NULL CHECK (partitions > partition),
    topic_id     uuid,
    next_offset  bigint NOT NULL DEFAULT 0 CHECK (next_offset >= 0),
    done         int8multirange NOT NULL DEFAULT '{}',
    read_to      bigint NOT NULL DEFAULT 0 CHECK (read_to >= next_offset),
    PRIMARY KEY (consumer, topic, partition)
) WITH (fillfactor = 50);

-- The last of the deliveries that were read, in the order in which they are dispatched: a later record that is not
-- after it is a copy. A backfill is a stream of its own, by the endpoint's id, and so is a redrive, by its number.
CREATE TABLE delivery_marks (
    partition         integer NOT NULL CHECK (partition >= 0),
    stream            text COLLATE "C" NOT NULL,
    source_partition  integer NOT NULL CHECK (source_partition >= 0),
    source_offset     bigint NOT NULL CHECK (source_offset >= 0),
    source_rank       bigint NOT NULL CHECK (source_rank >= 0),
    endpoint_id       uuid NOT NULL,
    PRIMARY KEY (partition, stream, source_partition)
) WITH (fillfactor = 50);

-- A delivery that waits has a row, and a record in a retry topic or in the row. A record of another hop is a copy.
CREATE TABLE delivery_waits (
    delivery_id       uuid PRIMARY KEY,
    partition         integer NOT NULL CHECK (partition >= 0),
    endpoint_id       uuid NOT NULL,
    hop               bigint NOT NULL CHECK (hop > 0),
    due_at            timestamptz NOT NULL,
    record            bytea,
    -- Set where a later delivery of the entity may not overtake it: the order is that of the source.
    entity_id         uuid,
    source_partition  integer NOT NULL,
    source_offset     bigint NOT NULL,
    source_rank       bigint NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX delivery_waits_due ON delivery_waits (partition, due_at) WHERE record IS NOT NULL;
CREATE INDEX delivery_waits_entity ON delivery_waits (partition, endpoint_id, entity_id) WHERE entity_id IS NOT NULL;

-- What every transaction of an owner begins with.
CREATE FUNCTION lock_deliveries(consumer text, partition integer, token bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM delivery_owners AS o
    WHERE o.consumer = $1 AND o.partition = $2 AND o.token = $3 FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the token % of partition % is not current for the consumer %', token, partition, consumer
            USING ERRCODE = 'PL001';
    END IF;
END
$$;

-- An endpoint that answers that it is gone takes no deliveries from then on; nothing else of it may change so.
CREATE FUNCTION disable_endpoint(endpoint_id uuid, reason text) RETURNS boolean LANGUAGE sql
SECURITY DEFINER SET search_path = public, pg_temp AS $$
    UPDATE endpoints SET state = 'disabled', state_reason = left(reason, 500), state_changed_at = now()
    WHERE id = endpoint_id AND state = 'active' RETURNING true
$$;
REVOKE EXECUTE ON FUNCTION disable_endpoint(uuid, text), lock_deliveries(text, integer, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION disable_endpoint(uuid, text), lock_deliveries(text, integer, bigint) TO plant_deliverer;

GRANT SELECT ON endpoints TO plant_writer, plant_deliverer;
GRANT SELECT ON endpoint_secrets TO plant_deliverer;
GRANT SELECT, INSERT, UPDATE ON delivery_owners, delivery_checkpoints TO plant_deliverer;
GRANT SELECT, INSERT, UPDATE, DELETE ON delivery_marks, delivery_waits TO plant_deliverer;
GRANT SELECT ON delivery_owners, delivery_checkpoints, delivery_waits TO plant_operator;
"""

DOWNGRADE = """
REVOKE SELECT ON endpoints FROM plant_writer;
REVOKE SELECT ON endpoints, endpoint_secrets FROM plant_deliverer;
DROP FUNCTION disable_endpoint(uuid, text);
DROP FUNCTION lock_deliveries(text, integer, bigint);
DROP TABLE delivery_waits, delivery_marks, delivery_checkpoints, delivery_owners;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
