"""Where each endpoint's live events begin in a partition, and a hint to dispatchers when endpoints change."""

from database.migrations.script import run_script

revision = "035"
down_revision = "034"
branch_labels = None
depends_on = None

UPGRADE = """
-- Offsets of genesis.events. An endpoint gets events from `until_offset` on as they come. What lies between its start
-- and that was dispatched before the partition's owner knew of it: it is read again, and done below `next_offset`.
CREATE TABLE endpoint_backfills (
    endpoint_id   uuid NOT NULL,
    partition     integer NOT NULL CHECK (partition >= 0),
    next_offset   bigint NOT NULL CHECK (next_offset >= 0),
    until_offset  bigint NOT NULL CHECK (until_offset >= next_offset),
    PRIMARY KEY (partition, endpoint_id),
    FOREIGN KEY (endpoint_id) REFERENCES endpoints (id)
);
GRANT SELECT, INSERT, UPDATE (next_offset) ON endpoint_backfills TO plant_writer;

CREATE FUNCTION notify_endpoints() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('plant_endpoints', '');
    RETURN NULL;
END
$$;
REVOKE EXECUTE ON FUNCTION notify_endpoints() FROM PUBLIC;
CREATE TRIGGER notify_dispatchers AFTER INSERT OR UPDATE ON endpoints
    FOR EACH STATEMENT EXECUTE FUNCTION notify_endpoints();
"""

DOWNGRADE = """
DROP TRIGGER notify_dispatchers ON endpoints;
DROP FUNCTION notify_endpoints();
DROP TABLE endpoint_backfills;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
