"""The statements that carry the log's records over to their ranges, for the migrations that do it."""

from typing import Final

from alembic import op

from database.migrations.script import run_script

RECORDS_MAX: Final = 50_000
"""Records of a slice."""

LOG_NAMES_REVISION: Final = "020"
"""The migration whose way down a control record closes: earlier versions can't read it."""

REFUSE_CONTROL_RECORDS: Final = """
DO $$
DECLARE
    chain record;
BEGIN
    SELECT topic, partition, "offset" INTO chain FROM log_records WHERE disposition = 'control' LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'the log of %/% has a control record at offset %, which earlier versions can not read',
            chain.topic, chain.partition, chain."offset" USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END
$$
"""
"""A chain that has gone over to v2 has one as its first v2 entry."""

FUNCTIONS: Final = """
-- Carry over the next records of a partition, of one range; returns how many. Raises data_exception where the two
-- tables contradict each other, or a link does not hold the hash of the entry before.
CREATE OR REPLACE FUNCTION carry_log_slice(topic text, partition integer, records_max integer) RETURNS integer
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    has_entries boolean;
    first bigint;
    range_first bigint;
    until bigint;
    child text;
    carried bigint;
    head bytea;
    bad record;
    records integer;
BEGIN
    -- A range may be empty: looked at from the last one on, until one has records.
    FOR child IN SELECT r.table_name FROM log_ranges AS r
        WHERE r.topic = $1 AND r.partition = $2 ORDER BY r.first_offset DESC
    LOOP
        EXECUTE format('SELECT "offset", hash FROM log.%I ORDER BY "offset" DESC LIMIT 1', child) INTO carried, head;
        EXIT WHEN carried IS NOT NULL;
    END LOOP;
    carried := coalesce(carried, -1);
    head := coalesce(head, decode(repeat('00', 32), 'hex'));
    -- One statement, so one snapshot: a worker may append to both tables between two.
    SELECT (SELECT s."offset" FROM event_stream AS s
            WHERE s.topic = $1 AND s.partition = $2 AND s."offset" > carried ORDER BY s."offset" LIMIT 1),
        EXISTS (SELECT FROM audit_log AS a WHERE a.topic = $1 AND a.partition = $2 AND a."offset" > carried)
    INTO first, has_entries;
    IF first IS NULL THEN
        IF has_entries THEN
            RAISE EXCEPTION 'the log of %/% can not be carried over: audit_log has entries after offset % that '
                'event_stream lacks', topic, partition, carried USING ERRCODE = 'data_exception';
        END IF;
        RETURN 0;
    END IF;
    range_first := first - first % log_range_offsets();
    SELECT r.table_name INTO child FROM log_ranges AS r
    WHERE r.topic = $1 AND r.partition = $2 AND r.first_offset = range_first;
    IF child IS NULL THEN
        child := add_log_range(topic, partition, range_first);
    END IF;
    SELECT max(slice."offset") + 1 INTO until FROM (
        SELECT s."offset" FROM event_stream AS s
        WHERE s.topic = $1 AND s.partition = $2 AND s."offset" >= first
          AND s."offset" < range_first + log_range_offsets()
        ORDER BY s."offset" LIMIT records_max
    ) AS slice;
    SELECT pair."offset", CASE
            WHEN pair.created_at IS NULL THEN 'audit_log has an entry there that event_stream lacks'
            WHEN pair.audit_created_at IS NULL THEN 'event_stream has a record there that audit_log lacks'
            WHEN pair.created_at <> pair.audit_created_at THEN 'event_stream and audit_log have different times there'
            WHEN pair.previous_hash IS DISTINCT FROM pair.before THEN 'the entry there does not follow the one before'
            ELSE 'the record there is an entity''s and has no key' END AS reason
    INTO bad FROM (
        SELECT coalesce(s."offset", a."offset") AS "offset", s.created_at, s.key, a.created_at AS audit_created_at,
            a.entity_id, a.previous_hash,
            lag(a.hash, 1, head) OVER (ORDER BY coalesce(s."offset", a."offset")) AS before
        FROM (SELECT * FROM event_stream AS e WHERE e.topic = $1 AND e.partition = $2 AND e."offset" > carried
              AND e."offset" < until) AS s
        FULL JOIN (SELECT * FROM audit_log AS l WHERE l.topic = $1 AND l.partition = $2 AND l."offset" > carried
                   AND l."offset" < until) AS a ON a."offset" = s."offset"
    ) AS pair
    WHERE pair.created_at IS DISTINCT FROM pair.audit_created_at OR pair.previous_hash IS DISTINCT FROM pair.before
       OR pair.entity_id IS NOT NULL AND pair.key IS NULL
    ORDER BY pair."offset" LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'the log of %/% can not be carried over from offset % on: %', topic, partition, bad."offset",
            bad.reason USING ERRCODE = 'data_exception';
    END IF;
    EXECUTE format($insert$
        INSERT INTO log.%I ("offset", created_at, event_id, entity_id, disposition, entity_type, event_type, hash, key,
                            value, headers, reason)
        SELECT s."offset", s.created_at, s.event_id, a.entity_id, s.disposition::log_disposition,
            a.entity_type::log_entity_type, a.event_type::log_event_type, a.hash,
            nullif(s.key, convert_to(a.entity_id::text, 'UTF8')), s.value, s.headers, s.reason
        FROM event_stream AS s JOIN audit_log AS a USING (topic, partition, "offset")
        WHERE s.topic = $1 AND s.partition = $2 AND s."offset" >= $3 AND s."offset" < $4 ORDER BY s."offset"
    $insert$, child) USING topic, partition, first, until;
    GET DIAGNOSTICS records = ROW_COUNT;
    RETURN records;
END
$$;

-- Every partition that one of the two tables has.
CREATE OR REPLACE FUNCTION chains_to_carry() RETURNS TABLE (topic text, partition integer) LANGUAGE sql
SET search_path = public, pg_temp AS $$
    WITH RECURSIVE logged AS (
        (SELECT e.topic, e.partition FROM event_stream AS e ORDER BY 1, 2 LIMIT 1)
        UNION ALL
        SELECT n.* FROM logged AS c CROSS JOIN LATERAL (SELECT e.topic, e.partition FROM event_stream AS e
            WHERE (e.topic, e.partition) > (c.topic, c.partition) ORDER BY 1, 2 LIMIT 1) AS n
    ), linked AS (
        (SELECT e.topic, e.partition FROM audit_log AS e ORDER BY 1, 2 LIMIT 1)
        UNION ALL
        SELECT n.* FROM linked AS c CROSS JOIN LATERAL (SELECT e.topic, e.partition FROM audit_log AS e
            WHERE (e.topic, e.partition) > (c.topic, c.partition) ORDER BY 1, 2 LIMIT 1) AS n
    ) SELECT * FROM logged UNION SELECT * FROM linked ORDER BY 1, 2
$$;

CREATE OR REPLACE PROCEDURE carry_log_over(records_max integer) LANGUAGE plpgsql AS $$
DECLARE
    chain record;
    range record;
BEGIN
    FOR chain IN SELECT * FROM chains_to_carry()
    LOOP
        WHILE carry_log_slice(chain.topic, chain.partition, records_max) > 0 LOOP
            COMMIT;
        END LOOP;
        -- The unique index of before held across ranges, so none has to be asked for another's ids.
        FOR range IN
            SELECT r.* FROM log_ranges AS r
            WHERE r.topic = chain.topic AND r.partition = chain.partition AND r.closed_at IS NULL
            ORDER BY r.first_offset DESC OFFSET 1
        LOOP
            PERFORM index_log_range(range.topic, range.partition, range.first_offset);
            PERFORM close_log_range(range.topic, range.partition, range.first_offset);
            COMMIT;
        END LOOP;
    END LOOP;
END
$$;
"""

DROP_FUNCTIONS: Final = """
DROP PROCEDURE IF EXISTS carry_log_over(integer);
DROP FUNCTION IF EXISTS carry_log_slice(text, integer, integer);
DROP FUNCTION IF EXISTS chains_to_carry();
"""


def carry_log_over() -> None:
    """Carry over every record that there is by now, each slice in a transaction of its own."""
    with op.get_context().autocommit_block():
        run_script(FUNCTIONS)
        # Postgres plans with statistics; a load that was never analysed would be compared row by row.
        run_script("SET enable_nestloop = off; SET enable_hashjoin = off; SET enable_seqscan = off;")
        run_script(f"CALL carry_log_over({RECORDS_MAX});")
        run_script("RESET enable_nestloop; RESET enable_hashjoin; RESET enable_seqscan;")
