"""The event log, its audit chain, webhook tables, partition owners and checkpoints.

Depends on no entity table: 001-005 (the entities) are a branch of their own, and 007 joins the two.
"""

from database.migrations.script import run_script

revision = "006"
down_revision = None
branch_labels = ("event_log",)
depends_on = None

UPGRADE = """
-- One row for every Kafka record, poison and repeats included. `headers` holds the canonical bytes of the ordered
-- headers (audit/canonical.py), so that the audit hash can be recomputed from the stored bytes alone.
CREATE TABLE event_stream (
    topic        text COLLATE "C" NOT NULL,
    partition    integer NOT NULL CHECK (partition >= 0),
    "offset"     bigint NOT NULL CHECK ("offset" >= 0),
    created_at   timestamptz NOT NULL,
    disposition  text COLLATE "C" NOT NULL
                 CHECK (disposition IN ('applied', 'repeat', 'poison', 'parked', 'control')),
    event_id     uuid,
    key          bytea,
    value        bytea,
    headers      bytea NOT NULL,
    reason       text CHECK ((disposition = 'poison') = (reason IS NOT NULL)),
    CHECK (disposition NOT IN ('applied', 'repeat', 'parked') OR event_id IS NOT NULL),
    PRIMARY KEY (topic, partition, "offset")
) WITH (autovacuum_vacuum_insert_threshold = 5000000, autovacuum_analyze_threshold = 1000000);
-- The exact repeat check: an event id is applied once a partition.
CREATE UNIQUE INDEX event_stream_applied_once ON event_stream (event_id, partition, topic)
    WHERE disposition = 'applied';

CREATE TABLE audit_log (
    topic          text COLLATE "C" NOT NULL,
    partition      integer NOT NULL CHECK (partition >= 0),
    "offset"       bigint NOT NULL CHECK ("offset" >= 0),
    created_at     timestamptz NOT NULL,
    entity_type    text COLLATE "C",
    entity_id      uuid,
    event_type     text COLLATE "C",
    previous_hash  bytea NOT NULL CHECK (octet_length(previous_hash) = 32),
    hash           bytea NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (topic, partition, "offset")
) WITH (autovacuum_vacuum_insert_threshold = 5000000, autovacuum_analyze_threshold = 1000000);

-- Who may write a partition: the token is the fence, the backend is what a successor terminates.
CREATE TABLE partition_owners (
    topic               text COLLATE "C" NOT NULL,
    partition           integer NOT NULL CHECK (partition >= 0),
    token               bigint NOT NULL CHECK (token > 0),
    worker              text NOT NULL,
    backend_pid         integer NOT NULL,
    backend_started_at  timestamptz NOT NULL,
    topic_id            uuid,
    taken_at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (topic, partition)
);

CREATE TABLE checkpoints (
    projection   text COLLATE "C" NOT NULL,
    version      integer NOT NULL CHECK (version >= 0),
    topic        text COLLATE "C" NOT NULL,
    partition    integer NOT NULL CHECK (partition >= 0),
    next_offset  bigint NOT NULL CHECK (next_offset >= 0),
    PRIMARY KEY (projection, version, topic, partition)
) WITH (fillfactor = 50);

-- What every batch's transaction begins with: lock the token, and see that the log ends where its writer thinks.
CREATE FUNCTION hold_partition(topic text, partition integer, token bigint, next_offset bigint) RETURNS void
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

-- Keys that sign webhooks: secrets are AES-GCM ciphertext under PLANT_MASTER_KEY, never the secret itself.
CREATE TABLE webhook_signatures (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    producer     text NOT NULL CHECK (producer ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    scheme       text NOT NULL CHECK (scheme IN ('v1', 'v1a')),
    nonce        bytea NOT NULL CHECK (octet_length(nonce) = 12),
    ciphertext   bytea NOT NULL CHECK (octet_length(ciphertext) BETWEEN 17 AND 1024),
    created_at   timestamptz NOT NULL DEFAULT now(),
    not_before   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz CHECK (expires_at > not_before),
    revoked_at   timestamptz
);
CREATE INDEX webhook_signatures_active ON webhook_signatures (producer) WHERE revoked_at IS NULL;

-- One row a delivery: an event on its way to one endpoint.
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

-- Append only: no grant allows a change, and the triggers refuse one from the owner too.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'insufficient_privilege',
              HINT = 'Records are kept for ever; publish a correcting event instead.';
END
$$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON event_stream
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

GRANT SELECT, INSERT ON event_stream, audit_log TO plant_writer;
GRANT SELECT, INSERT, UPDATE ON partition_owners, checkpoints, webhook_deliveries TO plant_writer;
GRANT SELECT ON event_stream, audit_log, checkpoints, partition_owners TO plant_auditor;
GRANT SELECT ON event_stream, audit_log, checkpoints, partition_owners, webhook_deliveries TO plant_api;
GRANT SELECT, INSERT, UPDATE (revoked_at, expires_at) ON webhook_signatures TO plant_api;
"""

DOWNGRADE = """
DROP TABLE webhook_deliveries, webhook_signatures, checkpoints, partition_owners, audit_log, event_stream;
DROP FUNCTION refuse_change();
DROP FUNCTION hold_partition(text, integer, bigint, bigint);
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
