"""Searches for events that an endpoint was not sent: asked for over HTTP, made by a dispatcher, which reads the log.

The role of the API does not read the log: it stores what is asked for, and reads what was found. A dispatcher needs
three columns of deliveries for that, and gives the order where one is asked for.
"""

from database.migrations.script import run_script

revision = "045"
down_revision = "043"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE TABLE missing_searches (
    number               bigint GENERATED ALWAYS AS IDENTITY (MAXVALUE 2147483647) PRIMARY KEY,
    operation_id         uuid NOT NULL UNIQUE,
    governance_agent_id  text COLLATE "C" NOT NULL CHECK (governance_agent_id = 'genesis'),
    request_digest       bytea CHECK (octet_length(request_digest) = 32),
    endpoint_id          uuid NOT NULL,
    since                timestamptz NOT NULL,
    rate_per_second      integer NOT NULL CHECK (rate_per_second > 0),
    execute              boolean NOT NULL,
    reason               text NOT NULL,
    asked_by             text NOT NULL,
    asked_at             timestamptz NOT NULL DEFAULT clock_timestamp(),
    state                text COLLATE "C" NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'ended', 'refused')),
    ended_at             timestamptz,
    why                  text,
    compared             bigint CHECK (compared >= 0),
    plan                 jsonb,
    redrive              bigint,
    FOREIGN KEY (endpoint_id) REFERENCES endpoints (id),
    FOREIGN KEY (redrive) REFERENCES redrives (number),
    CHECK ((state = 'waiting') = (ended_at IS NULL)),
    CHECK ((state = 'ended') = (plan IS NOT NULL)),
    CHECK ((state = 'ended') = (compared IS NOT NULL)),
    CHECK ((state = 'refused') = (why IS NOT NULL)),
    CHECK (redrive IS NULL OR (execute AND state = 'ended'))
);
CREATE INDEX missing_searches_waiting ON missing_searches (number) WHERE state = 'waiting';
CREATE INDEX missing_searches_of_tenants ON missing_searches (governance_agent_id, number);

ALTER TABLE missing_searches ENABLE ROW LEVEL SECURITY;
CREATE POLICY every_tenant ON missing_searches TO plant_writer USING (true) WITH CHECK (true);
CREATE POLICY governance_boundary ON missing_searches TO plant_endpoints
    USING (governance_agent_id = current_setting('plant.governance_agent_id', true))
    WITH CHECK (governance_agent_id = current_setting('plant.governance_agent_id', true)
                AND EXISTS (SELECT FROM endpoints AS e WHERE e.id = endpoint_id));

GRANT SELECT, INSERT (operation_id, governance_agent_id, request_digest, endpoint_id, since, rate_per_second, execute,
                      reason, asked_by) ON missing_searches TO plant_endpoints;
GRANT SELECT, UPDATE (state, ended_at, why, compared, plan, redrive), DELETE ON missing_searches TO plant_writer;

GRANT SELECT (id, state, hop) ON webhook_deliveries TO plant_writer;
GRANT EXECUTE ON FUNCTION redrive_pending(uuid, bigint), forget_redrives() TO plant_writer;
GRANT INSERT (operation_id, kind, selection, reason, ordered_by, rate_per_second, governance_agent_id, request_digest)
    ON redrives TO plant_writer;
GRANT INSERT ON redrive_slots TO plant_writer;
GRANT INSERT (number, source_partition, slots) ON redrive_partitions TO plant_writer;
"""

DOWNGRADE = """
REVOKE INSERT (number, source_partition, slots) ON redrive_partitions FROM plant_writer;
REVOKE INSERT ON redrive_slots FROM plant_writer;
REVOKE INSERT (operation_id, kind, selection, reason, ordered_by, rate_per_second, governance_agent_id, request_digest)
    ON redrives FROM plant_writer;
REVOKE EXECUTE ON FUNCTION redrive_pending(uuid, bigint), forget_redrives() FROM plant_writer;
REVOKE SELECT (id, state, hop) ON webhook_deliveries FROM plant_writer;
DROP TABLE missing_searches;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
