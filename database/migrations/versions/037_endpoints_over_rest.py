"""A role that changes endpoints for the API, within the tenant of a token, and what receivers have agreed to.

`webhook_deliveries` and `webhook_attempts` have no policies: the recorder copies rows straight into them, and COPY
refuses a table with row-level security. The API's role reads them through views with a barrier instead, and has no
right on the tables.
"""

from database.migrations.script import run_script

revision = "037"
down_revision = "035"
branch_labels = None
depends_on = None

UPGRADE = """
ALTER TABLE endpoints
    ADD COLUMN handshake boolean NOT NULL DEFAULT false,
    ADD COLUMN agreed_at timestamptz,
    ADD COLUMN agreed_rate_per_minute integer CHECK (agreed_rate_per_minute > 0),
    ADD COLUMN configured_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN creation_digest bytea CHECK (octet_length(creation_digest) = 32),
    -- Nothing is sent to an endpoint that asks for a handshake before it has agreed: there is no such row.
    ADD CONSTRAINT endpoints_agreed CHECK (handshake = (agreed_at IS NOT NULL)),
    ADD CONSTRAINT endpoints_agreed_rate CHECK (handshake OR agreed_rate_per_minute IS NULL);

CREATE OR REPLACE FUNCTION keep_endpoints() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.state = 'removed' AND NEW IS DISTINCT FROM OLD THEN
        RAISE EXCEPTION 'endpoint % is removed, permanently', OLD.id
            USING ERRCODE = 'insufficient_privilege', HINT = 'Make another endpoint: plant endpoints add';
    END IF;
    IF (NEW.id, NEW.governance_agent_id, NEW.start_offsets, NEW.starts_at, NEW.created_at, NEW.creation_digest)
        IS DISTINCT FROM
        (OLD.id, OLD.governance_agent_id, OLD.start_offsets, OLD.starts_at, OLD.created_at, OLD.creation_digest)
    THEN
        RAISE EXCEPTION 'endpoint % keeps its id, its tenant and its start', OLD.id
            USING ERRCODE = 'insufficient_privilege', HINT = 'Make another endpoint: plant endpoints add';
    END IF;
    -- Which deliveries there are follows from these, and every owner of a partition makes the same ones.
    IF (NEW.event_types, NEW.filter, NEW.ordering, NEW.after_dead_letter) IS DISTINCT FROM
        (OLD.event_types, OLD.filter, OLD.ordering, OLD.after_dead_letter)
    THEN
        RAISE EXCEPTION 'endpoint % keeps its events and their order', OLD.id
            USING ERRCODE = 'insufficient_privilege', HINT = 'Make another endpoint: plant endpoints add';
    END IF;
    IF NEW.handshake AND NEW.url <> OLD.url AND NEW.agreed_at IS NOT DISTINCT FROM OLD.agreed_at THEN
        RAISE EXCEPTION 'the receiver at another URL of endpoint % has not agreed', OLD.id
            USING ERRCODE = 'insufficient_privilege', HINT = 'Ask it: plant endpoints handshake';
    END IF;
    RETURN NEW;
END
$$;

-- Whoever serves one tenant sees the rows of that one; the other services serve all tenants. The owner is not bound,
-- so that functions of the owner and checks of foreign keys see what there is.
ALTER TABLE endpoints ENABLE ROW LEVEL SECURITY;
CREATE POLICY every_tenant ON endpoints TO plant_operator, plant_writer, plant_deliverer
    USING (true) WITH CHECK (true);
CREATE POLICY governance_boundary ON endpoints TO plant_endpoints
    USING (governance_agent_id = current_setting('plant.governance_agent_id', true))
    WITH CHECK (governance_agent_id = current_setting('plant.governance_agent_id', true));
ALTER TABLE endpoint_secrets ENABLE ROW LEVEL SECURITY;
CREATE POLICY every_tenant ON endpoint_secrets TO plant_operator, plant_deliverer USING (true) WITH CHECK (true);
CREATE POLICY governance_boundary ON endpoint_secrets TO plant_endpoints
    USING (EXISTS (SELECT FROM endpoints AS e WHERE e.id = endpoint_id))
    WITH CHECK (EXISTS (SELECT FROM endpoints AS e WHERE e.id = endpoint_id));

-- Each row asks for its endpoint by itself: a join may be planned such that the tables of all days are read.
CREATE VIEW tenant_deliveries WITH (security_barrier) AS
    SELECT d.occurred_at, d.id, d.endpoint_id, d.event_id, d.type, d.entity_id, d.source_partition, d.source_offset,
           d.source_rank, d.stream, d.state, d.state_at, d.attempts, d.redriven, d.first_attempted_at,
           d.last_attempted_at, d.next_attempt_at, d.status_code, d.error_class, d.why
    FROM webhook_deliveries AS d
    WHERE (SELECT e.governance_agent_id = current_setting('plant.governance_agent_id', true)
           FROM endpoints AS e WHERE e.id = d.endpoint_id);
CREATE VIEW tenant_attempts WITH (security_barrier) AS
    SELECT a.occurred_at, a.delivery_id, a.attempted_at, a.hop, a.token, a.attempt, a.stream, a.outcome, a.state,
           a.duration_us, a.status_code, a.error_class, a.why, a.next_attempt_at, a.request, a.answer
    FROM webhook_attempts AS a
    WHERE (SELECT e.governance_agent_id = current_setting('plant.governance_agent_id', true)
           FROM webhook_deliveries AS d JOIN endpoints AS e ON e.id = d.endpoint_id
           WHERE (d.id, d.occurred_at) = (a.delivery_id, a.occurred_at));

-- Locked until the transaction ends, by whoever encrypts a secret and may not change which master key is current.
CREATE FUNCTION hold_master_key() RETURNS bytea LANGUAGE sql
SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT check_value FROM master_keys WHERE retired_at IS NULL FOR SHARE
$$;
REVOKE EXECUTE ON FUNCTION hold_master_key() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION hold_master_key() TO plant_operator, plant_endpoints;

GRANT INSERT (handshake, agreed_at, agreed_rate_per_minute, creation_digest),
      UPDATE (handshake, agreed_at, agreed_rate_per_minute, configured_at) ON endpoints TO plant_operator;
GRANT SELECT, INSERT (id, governance_agent_id, url, description, event_types, filter, payload_form, ordering,
                      after_dead_letter, retry_schedule, rate_per_second, timeout_seconds, custom_header_names,
                      start_offsets, starts_at, handshake, agreed_at, agreed_rate_per_minute, creation_digest),
      UPDATE (url, description, payload_form, retry_schedule, rate_per_second, timeout_seconds, custom_header_names,
              handshake, agreed_at, agreed_rate_per_minute, configured_at, state, state_reason, state_changed_at)
      ON endpoints TO plant_endpoints;
GRANT SELECT, INSERT (id, endpoint_id, kind, nonce, ciphertext, public_key), UPDATE (expires_at), DELETE
      ON endpoint_secrets TO plant_endpoints;
GRANT SELECT, INSERT (check_value) ON master_keys TO plant_endpoints;
GRANT SELECT ON tenant_deliveries, tenant_attempts TO plant_endpoints;
REVOKE SELECT ON webhook_deliveries, webhook_attempts FROM plant_api;
"""

DOWNGRADE = """
GRANT SELECT ON webhook_deliveries, webhook_attempts TO plant_api;
REVOKE SELECT, INSERT (check_value) ON master_keys FROM plant_endpoints;
DROP FUNCTION hold_master_key();
DROP VIEW tenant_attempts, tenant_deliveries;
DROP POLICY governance_boundary ON endpoint_secrets;
DROP POLICY every_tenant ON endpoint_secrets;
ALTER TABLE endpoint_secrets DISABLE ROW LEVEL SECURITY;
DROP POLICY governance_boundary ON endpoints;
DROP POLICY every_tenant ON endpoints;
ALTER TABLE endpoints DISABLE ROW LEVEL SECURITY;
REVOKE ALL ON endpoint_secrets, endpoints FROM plant_endpoints;
CREATE OR REPLACE FUNCTION keep_endpoints() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.state = 'removed' AND NEW IS DISTINCT FROM OLD THEN
        RAISE EXCEPTION 'endpoint % is removed, permanently', OLD.id
            USING ERRCODE = 'insufficient_privilege', HINT = 'Make another endpoint: plant endpoints add';
    END IF;
    IF (NEW.id, NEW.governance_agent_id, NEW.start_offsets, NEW.starts_at, NEW.created_at) IS DISTINCT FROM
        (OLD.id, OLD.governance_agent_id, OLD.start_offsets, OLD.starts_at, OLD.created_at)
    THEN
        RAISE EXCEPTION 'endpoint % keeps its id, its tenant and its start', OLD.id
            USING ERRCODE = 'insufficient_privilege', HINT = 'Make another endpoint: plant endpoints add';
    END IF;
    RETURN NEW;
END
$$;
ALTER TABLE endpoints DROP COLUMN creation_digest, DROP COLUMN configured_at, DROP COLUMN agreed_rate_per_minute,
    DROP COLUMN agreed_at, DROP COLUMN handshake;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
