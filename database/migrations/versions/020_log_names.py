"""The names `event_stream` and `audit_log`, moved from the tables of before to views of `log_records`.

What was written since 018 is carried over first. The last records are carried over under a lock that keeps writers out,
and only for as long. The way down gives every record back, as long as no chain has gone over to version 2 of the
canonical bytes.
"""

from database.migrations.log_records import DROP_FUNCTIONS, RECORDS_MAX, REFUSE_CONTROL_RECORDS, carry_log_over
from database.migrations.script import run_script

revision = "020"
down_revision = "019"
branch_labels = None
depends_on = None

CARRY_LAST = f"""
LOCK TABLE event_stream, audit_log IN SHARE ROW EXCLUSIVE MODE;
SET LOCAL enable_nestloop = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_seqscan = off;
DO $$
DECLARE
    chain record;
BEGIN
    FOR chain IN SELECT * FROM chains_to_carry() LOOP
        WHILE carry_log_slice(chain.topic, chain.partition, {RECORDS_MAX}) > 0 LOOP
        END LOOP;
    END LOOP;
END
$$;
"""  # noqa: S608 (a constant)

UPGRADE = """
DROP TABLE event_stream, audit_log;

-- The views have their owner's rights: plant_api may read the columns that say where records are, and with the rights
-- of who asks it would need all columns that a view is made of.
CREATE VIEW event_stream AS
SELECT topic, partition, "offset", created_at, disposition, event_id,
    coalesce(key, convert_to(entity_id::text, 'UTF8')) AS key, value, headers, reason, control_offset
FROM log_records;

-- The hash of the entry before, 32 zero bytes where there is none. It looks at the one range that can hold it, and at
-- earlier ones where that has none.
CREATE FUNCTION hash_before(topic text, partition integer, "offset" bigint) RETURNS bytea LANGUAGE plpgsql STABLE
SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    range record;
    hash bytea;
BEGIN
    FOR range IN SELECT r.table_name FROM log_ranges AS r
        WHERE r.topic = $1 AND r.partition = $2 AND r.first_offset < $3 ORDER BY r.first_offset DESC
    LOOP
        EXECUTE format('SELECT hash FROM log.%I WHERE "offset" < $1 ORDER BY "offset" DESC LIMIT 1', range.table_name)
        INTO hash USING $3;
        EXIT WHEN hash IS NOT NULL;
    END LOOP;
    RETURN coalesce(hash, decode(repeat('00', 32), 'hex'));
END
$$;

REVOKE EXECUTE ON FUNCTION hash_before(text, integer, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION hash_before(text, integer, bigint) TO plant_writer, plant_api, plant_auditor;

CREATE VIEW audit_log AS
SELECT topic, partition, "offset", created_at, entity_type, entity_id, event_type,
    hash_before(topic, partition, "offset") AS previous_hash, hash
FROM log_records;

GRANT SELECT ON event_stream, audit_log TO plant_writer, plant_auditor;
GRANT SELECT (topic, partition, "offset", created_at, disposition, event_id) ON event_stream TO plant_api;
GRANT SELECT (topic, partition, "offset", created_at, event_type, previous_hash, hash) ON audit_log TO plant_api;
"""

DOWNGRADE = """
DROP VIEW audit_log, event_stream;
DROP FUNCTION hash_before(text, integer, bigint);
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
    CHECK (disposition NOT IN ('applied', 'repeat', 'parked') OR event_id IS NOT NULL)
) WITH (autovacuum_vacuum_insert_threshold = 5000000, autovacuum_analyze_threshold = 500,
        autovacuum_analyze_scale_factor = 0.05);
CREATE TABLE audit_log (
    topic          text COLLATE "C" NOT NULL,
    partition      integer NOT NULL CHECK (partition >= 0),
    "offset"       bigint NOT NULL CHECK ("offset" >= 0),
    created_at     timestamptz NOT NULL,
    entity_type    text COLLATE "C",
    entity_id      uuid,
    event_type     text COLLATE "C",
    previous_hash  bytea NOT NULL CHECK (octet_length(previous_hash) = 32),
    hash           bytea NOT NULL CHECK (octet_length(hash) = 32)
) WITH (autovacuum_vacuum_insert_threshold = 5000000, autovacuum_analyze_threshold = 500,
        autovacuum_analyze_scale_factor = 0.05);
INSERT INTO event_stream
SELECT topic, partition, "offset", created_at, disposition::text, event_id,
    coalesce(key, convert_to(entity_id::text, 'UTF8')), value, headers, reason
FROM log_records ORDER BY topic, partition, "offset";
INSERT INTO audit_log
SELECT topic, partition, "offset", created_at, entity_type::text, entity_id, event_type::text,
    lag(hash, 1, decode(repeat('00', 32), 'hex')) OVER (PARTITION BY topic, partition ORDER BY "offset"), hash
FROM log_records ORDER BY topic, partition, "offset";
ALTER TABLE event_stream ADD PRIMARY KEY (topic, partition, "offset"),
    ALTER COLUMN key SET STATISTICS 0, ALTER COLUMN value SET STATISTICS 0, ALTER COLUMN headers SET STATISTICS 0,
    ALTER COLUMN reason SET STATISTICS 0;
ALTER TABLE audit_log ADD PRIMARY KEY (topic, partition, "offset"),
    ALTER COLUMN previous_hash SET STATISTICS 0, ALTER COLUMN hash SET STATISTICS 0;
CREATE UNIQUE INDEX event_stream_applied_once ON event_stream (event_id, partition, topic)
    WHERE disposition = 'applied';
CREATE INDEX event_stream_poison ON event_stream (topic, partition, "offset") WHERE disposition = 'poison';
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON event_stream
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
GRANT SELECT, INSERT ON event_stream, audit_log TO plant_writer;
GRANT SELECT ON event_stream, audit_log TO plant_auditor;
GRANT SELECT (topic, partition, "offset", created_at, disposition, event_id) ON event_stream TO plant_api;
GRANT SELECT (topic, partition, "offset", created_at, event_type, previous_hash, hash) ON audit_log TO plant_api;
ANALYZE event_stream, audit_log;
"""


def upgrade() -> None:
    carry_log_over()
    run_script(CARRY_LAST)
    run_script(DROP_FUNCTIONS)
    run_script(UPGRADE)


def downgrade() -> None:
    run_script("LOCK TABLE log_records IN SHARE ROW EXCLUSIVE MODE")
    run_script(REFUSE_CONTROL_RECORDS)
    run_script(DOWNGRADE)
