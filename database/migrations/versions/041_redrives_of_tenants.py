"""Redrives of a tenant: ordered and read by the role of the API, which sees its own orders and deliveries alone.

An operator's order has no tenant, and no tenant sees it. Its deliveries count as ordered for everybody: a function of
the owner says so of one delivery.

Also what a resumed endpoint is owed from, and the last record that was read of a topic of deliveries.
"""

from database.migrations.script import run_script

revision = "041"
down_revision = "040"
branch_labels = None
depends_on = None

UPGRADE = """
ALTER TABLE redrives
    ADD COLUMN governance_agent_id text COLLATE "C" CHECK (governance_agent_id = 'genesis'),
    ADD COLUMN request_digest bytea CHECK (octet_length(request_digest) = 32);
CREATE INDEX redrives_of_tenants ON redrives (governance_agent_id, number) WHERE governance_agent_id IS NOT NULL;

ALTER TABLE redrives ENABLE ROW LEVEL SECURITY;
CREATE POLICY every_tenant ON redrives TO plant_operator, plant_writer, plant_deliverer USING (true) WITH CHECK (true);
CREATE POLICY governance_boundary ON redrives TO plant_endpoints
    USING (governance_agent_id = current_setting('plant.governance_agent_id', true))
    WITH CHECK (governance_agent_id = current_setting('plant.governance_agent_id', true));
ALTER TABLE redrive_partitions ENABLE ROW LEVEL SECURITY;
CREATE POLICY every_tenant ON redrive_partitions TO plant_operator, plant_writer USING (true) WITH CHECK (true);
CREATE POLICY governance_boundary ON redrive_partitions TO plant_endpoints
    USING (EXISTS (SELECT FROM redrives AS r WHERE r.number = redrive_partitions.number))
    WITH CHECK (EXISTS (SELECT FROM redrives AS r WHERE r.number = redrive_partitions.number));
ALTER TABLE redrive_slots ENABLE ROW LEVEL SECURITY;
CREATE POLICY every_tenant ON redrive_slots TO plant_operator, plant_writer USING (true) WITH CHECK (true);
CREATE POLICY governance_boundary ON redrive_slots TO plant_endpoints
    USING (EXISTS (SELECT FROM redrives AS r WHERE r.number = redrive_slots.number))
    WITH CHECK (EXISTS (SELECT FROM redrives AS r WHERE r.number = redrive_slots.number)
                AND EXISTS (SELECT FROM endpoints AS e WHERE e.id = endpoint_id));

-- A slot that was claimed is over once anything of its redrive is recorded, or a day has gone: should its record on
-- Kafka be lost, it can be ordered again.
CREATE FUNCTION redrive_pending(delivery uuid, recorded_hop bigint) RETURNS boolean LANGUAGE plpgsql STABLE
SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM redrive_slots AS s
        JOIN redrive_partitions AS p ON (p.number, p.source_partition) = (s.number, s.source_partition)
        JOIN redrives AS r ON r.number = s.number
        WHERE s.delivery_id = delivery AND CASE
            WHEN s.slot >= p.claimed THEN r.state = 'running'
            ELSE recorded_hop < (s.number << 32) AND p.claimed_at > now() - interval '1 day'
        END
    );
END
$$;
-- Slots stay after the end of their order for longer than its records are on their topic.
CREATE FUNCTION forget_redrives() RETURNS void LANGUAGE sql
SECURITY DEFINER SET search_path = public, pg_temp AS $$
    DELETE FROM redrive_slots WHERE number IN (SELECT number FROM redrives WHERE ended_at < now() - interval '8 days')
$$;
REVOKE EXECUTE ON FUNCTION redrive_pending(uuid, bigint), forget_redrives() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION redrive_pending(uuid, bigint), forget_redrives() TO plant_operator, plant_endpoints;
REVOKE DELETE ON redrive_slots FROM plant_operator;

CREATE OR REPLACE VIEW tenant_deliveries WITH (security_barrier) AS
    SELECT d.occurred_at, d.id, d.endpoint_id, d.event_id, d.type, d.entity_id, d.source_partition, d.source_offset,
           d.source_rank, d.stream, d.state, d.state_at, d.attempts, d.redriven, d.first_attempted_at,
           d.last_attempted_at, d.next_attempt_at, d.status_code, d.error_class, d.why, d.hop
    FROM webhook_deliveries AS d
    WHERE (SELECT e.governance_agent_id = current_setting('plant.governance_agent_id', true)
           FROM endpoints AS e WHERE e.id = d.endpoint_id);

GRANT SELECT, INSERT (operation_id, kind, selection, reason, ordered_by, rate_per_second, governance_agent_id,
                      request_digest), UPDATE (state, ended_at) ON redrives TO plant_endpoints;
GRANT SELECT, INSERT ON redrive_slots TO plant_endpoints;
GRANT SELECT, INSERT (number, source_partition, slots) ON redrive_partitions TO plant_endpoints;

-- A resumed endpoint gets the events from these offsets on, as a new one does from its start. A partition's dispatcher
-- makes good what it had passed, once for each resume.
ALTER TABLE endpoints
    ADD COLUMN resumes integer NOT NULL DEFAULT 0 CHECK (resumes >= 0),
    ADD COLUMN resumed_offsets bigint[] NOT NULL DEFAULT '{}';
ALTER TABLE endpoint_backfills ADD COLUMN resumes integer NOT NULL DEFAULT 0 CHECK (resumes >= 0);
GRANT UPDATE (resumes, resumed_offsets) ON endpoints TO plant_operator, plant_endpoints;
GRANT UPDATE (until_offset, resumes) ON endpoint_backfills TO plant_writer;

-- By the last record that was read a topic is known that has lost its tail and grown again.
ALTER TABLE delivery_checkpoints
    ADD COLUMN last_offset bigint,
    ADD COLUMN last_digest bytea CHECK (octet_length(last_digest) = 32),
    ADD CONSTRAINT delivery_checkpoints_last CHECK ((last_offset IS NULL) = (last_digest IS NULL));
"""

DOWNGRADE = """
ALTER TABLE delivery_checkpoints DROP COLUMN last_digest, DROP COLUMN last_offset;
REVOKE UPDATE (until_offset, resumes) ON endpoint_backfills FROM plant_writer;
ALTER TABLE endpoint_backfills DROP COLUMN resumes;
ALTER TABLE endpoints DROP COLUMN resumed_offsets, DROP COLUMN resumes;
REVOKE ALL ON redrives, redrive_slots, redrive_partitions FROM plant_endpoints;
DROP VIEW tenant_deliveries;
CREATE VIEW tenant_deliveries WITH (security_barrier) AS
    SELECT d.occurred_at, d.id, d.endpoint_id, d.event_id, d.type, d.entity_id, d.source_partition, d.source_offset,
           d.source_rank, d.stream, d.state, d.state_at, d.attempts, d.redriven, d.first_attempted_at,
           d.last_attempted_at, d.next_attempt_at, d.status_code, d.error_class, d.why
    FROM webhook_deliveries AS d
    WHERE (SELECT e.governance_agent_id = current_setting('plant.governance_agent_id', true)
           FROM endpoints AS e WHERE e.id = d.endpoint_id);
GRANT SELECT ON tenant_deliveries TO plant_endpoints;
GRANT DELETE ON redrive_slots TO plant_operator;
DROP FUNCTION forget_redrives();
DROP FUNCTION redrive_pending(uuid, bigint);
DROP POLICY governance_boundary ON redrive_slots;
DROP POLICY every_tenant ON redrive_slots;
ALTER TABLE redrive_slots DISABLE ROW LEVEL SECURITY;
DROP POLICY governance_boundary ON redrive_partitions;
DROP POLICY every_tenant ON redrive_partitions;
ALTER TABLE redrive_partitions DISABLE ROW LEVEL SECURITY;
DROP POLICY governance_boundary ON redrives;
DROP POLICY every_tenant ON redrives;
ALTER TABLE redrives DISABLE ROW LEVEL SECURITY;
ALTER TABLE redrives DROP COLUMN request_digest, DROP COLUMN governance_agent_id;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
