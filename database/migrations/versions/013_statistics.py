"""Statistics of the log from its first hundreds of rows on, and after a load that Plant makes itself.

Autovacuum did not analyse the log below a million changes, so Postgres took it for a table of one row until then, and
some plans compared every entry with every other one.
"""

from database.migrations.script import run_script

revision = "013"
down_revision = "012"
branch_labels = None
depends_on = None

# A sample has the same size however large the table is. It leaves out long columns that no query has a condition on:
# they are half of its cost.
UPGRADE = """
ALTER TABLE event_stream SET (autovacuum_analyze_threshold = 500, autovacuum_analyze_scale_factor = 0.05),
    ALTER COLUMN key SET STATISTICS 0, ALTER COLUMN value SET STATISTICS 0, ALTER COLUMN headers SET STATISTICS 0,
    ALTER COLUMN reason SET STATISTICS 0;
ALTER TABLE audit_log SET (autovacuum_analyze_threshold = 500, autovacuum_analyze_scale_factor = 0.05),
    ALTER COLUMN previous_hash SET STATISTICS 0, ALTER COLUMN hash SET STATISTICS 0;

-- Only a table's owner may analyse it. A table that another session analyses at this moment is left to that one.
CREATE FUNCTION refresh_statistics(tables regclass[]) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
DECLARE
    name regclass;
BEGIN
    FOREACH name IN ARRAY tables LOOP
        EXECUTE format('ANALYZE (SKIP_LOCKED) %s', name);
    END LOOP;
END
$$;
REVOKE EXECUTE ON FUNCTION refresh_statistics(regclass[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION refresh_statistics(regclass[]) TO plant_writer;

-- What was written before.
ANALYZE event_stream, audit_log;
"""

DOWNGRADE = """
DROP FUNCTION refresh_statistics(regclass[]);
ALTER TABLE event_stream SET (autovacuum_analyze_threshold = 1000000), RESET (autovacuum_analyze_scale_factor),
    ALTER COLUMN key SET STATISTICS -1, ALTER COLUMN value SET STATISTICS -1, ALTER COLUMN headers SET STATISTICS -1,
    ALTER COLUMN reason SET STATISTICS -1;
ALTER TABLE audit_log SET (autovacuum_analyze_threshold = 1000000), RESET (autovacuum_analyze_scale_factor),
    ALTER COLUMN previous_hash SET STATISTICS -1, ALTER COLUMN hash SET STATISTICS -1;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
