"""Partitions remember the session that feeds their lagging read models, next to the one that projects.

Operators can ask how old the record is that a read model reads next.

Workers of before would fold a slice that such a session folds too: they are refused, as in 026.
"""

from database.migrations.script import run_script

revision = "027"
down_revision = "026"
branch_labels = None
depends_on = None

REFUSE = """
CREATE OR REPLACE FUNCTION refuse_older_worker(known_revision integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF known_revision < __revision__ THEN
        RAISE EXCEPTION 'this worker is older than the database: stop it, and start one of the version that migrated it'
            USING ERRCODE = 'PL002';
    END IF;
END
$$;
"""

UPGRADE = """
ALTER TABLE partition_owners
    ADD COLUMN feeder_pid integer NOT NULL DEFAULT 0,
    ADD COLUMN feeder_started_at timestamptz NOT NULL DEFAULT '-infinity';

-- How long a read model has lacked a record: operators see that, and nothing else of the log's records.
CREATE FUNCTION record_age_seconds(topic text, partition integer, next_offset bigint) RETURNS double precision
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET enable_seqscan = off AS $$
    SELECT greatest(extract(epoch FROM clock_timestamp() - r.created_at), 0) FROM log_records AS r
    WHERE r.topic = $1 AND r.partition = $2 AND r."offset" >= $3 ORDER BY r."offset" LIMIT 1
$$;
REVOKE EXECUTE ON FUNCTION record_age_seconds(text, integer, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION record_age_seconds(text, integer, bigint) TO plant_operator;
"""

DOWNGRADE = """
DROP FUNCTION record_age_seconds(text, integer, bigint);
ALTER TABLE partition_owners DROP COLUMN feeder_pid, DROP COLUMN feeder_started_at;
"""


def upgrade() -> None:
    run_script(UPGRADE)
    run_script(REFUSE.replace("__revision__", "27"))


def downgrade() -> None:
    run_script(REFUSE.replace("__revision__", "26"))
    run_script(DOWNGRADE)
