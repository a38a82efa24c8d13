"""Endpoints of subscribers, and their secrets: signing keys and custom headers, encrypted under the master key."""

from database.migrations.script import run_script

revision = "031"
down_revision = "030"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE TABLE endpoints (
    id                   uuid PRIMARY KEY,
    -- Events carry no tenant yet, so an endpoint of another one would get events that may not be its own.
    governance_agent_id  text COLLATE "C" NOT NULL CHECK (governance_agent_id = 'genesis'),
    url                  text COLLATE "C" NOT NULL CHECK (octet_length(url) BETWEEN 1 AND 2048),
    description          text NOT NULL DEFAULT '' CHECK (char_length(description) <= 500),
    event_types          text[] COLLATE "C" NOT NULL
                         CHECK (cardinality(event_types) BETWEEN 1 AND 64
                                AND array_position(event_types, NULL) IS NULL),
    filter               jsonb NOT NULL DEFAULT '{}'
                         CHECK (jsonb_typeof(filter) = 'object' AND octet_length(filter::text) <= 8192),
    payload_form         text COLLATE "C" NOT NULL CHECK (payload_form IN ('standard', 'cloud_event')),
    ordering             text COLLATE "C" NOT NULL CHECK (ordering IN ('none', 'per_entity')),
    after_dead_letter    text COLLATE "C" NOT NULL CHECK (after_dead_letter IN ('proceed', 'block')),
    retry_schedule       text COLLATE "C" NOT NULL CHECK (retry_schedule IN ('short', 'long')),
    rate_per_second      integer CHECK (rate_per_second BETWEEN 1 AND 100000),
    timeout_seconds      integer NOT NULL CHECK (timeout_seconds BETWEEN 1 AND 15),
    custom_header_names  text[] COLLATE "C" NOT NULL DEFAULT '{}' CHECK (cardinality(custom_header_names) <= 16),
    -- The first offset of each partition that it gets events from; partition 0 is the first element.
    start_offsets        bigint[] NOT NULL
                         CHECK (cardinality(start_offsets) BETWEEN 1 AND 10000 AND 0 <= ALL (start_offsets)),
    starts_at            timestamptz,
    state                text COLLATE "C" NOT NULL DEFAULT 'active'
                         CHECK (state IN ('active', 'paused', 'disabled', 'removed')),
    state_reason         text,
    state_changed_at     timestamptz NOT NULL DEFAULT now(),
    created_at           timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE endpoint_secrets (
    id           uuid PRIMARY KEY,
    endpoint_id  uuid NOT NULL,
    kind         text COLLATE "C" NOT NULL CHECK (kind IN ('v1', 'v1a', 'headers')),
    nonce        bytea NOT NULL CHECK (octet_length(nonce) = 12),
    ciphertext   bytea NOT NULL CHECK (octet_length(ciphertext) BETWEEN 17 AND 65536),
    public_key   bytea CHECK (octet_length(public_key) = 32),
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at   timestamptz,
    FOREIGN KEY (endpoint_id) REFERENCES endpoints (id),
    CHECK ((kind = 'v1a') = (public_key IS NOT NULL)),
    CHECK (kind <> 'headers' OR expires_at IS NULL)
);
CREATE INDEX endpoint_secrets_endpoint ON endpoint_secrets (endpoint_id);
CREATE UNIQUE INDEX endpoint_secrets_headers ON endpoint_secrets (endpoint_id) WHERE kind = 'headers';

-- A removed endpoint stays removed, and where an endpoint began never changes; whoever runs the statement.
CREATE FUNCTION keep_endpoints() RETURNS trigger LANGUAGE plpgsql AS $$
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
CREATE FUNCTION keep_endpoint_secrets() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.id, NEW.endpoint_id, NEW.kind, NEW.public_key, NEW.created_at) IS DISTINCT FROM
        (OLD.id, OLD.endpoint_id, OLD.kind, OLD.public_key, OLD.created_at)
    THEN
        RAISE EXCEPTION 'secret % stays its endpoint''s', OLD.id USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF OLD.expires_at IS NOT NULL AND (NEW.expires_at IS NULL OR NEW.expires_at > OLD.expires_at) THEN
        RAISE EXCEPTION 'secret % expires at %, and no later', OLD.id, OLD.expires_at
            USING ERRCODE = 'insufficient_privilege', HINT = 'Make another key: plant endpoints rotate-key';
    END IF;
    RETURN NEW;
END
$$;
CREATE FUNCTION refuse_endpoint_removal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'endpoints are marked as removed: % refused', TG_OP
        USING ERRCODE = 'insufficient_privilege', HINT = 'plant endpoints remove';
END
$$;
CREATE TRIGGER keep_rows BEFORE UPDATE ON endpoints FOR EACH ROW EXECUTE FUNCTION keep_endpoints();
CREATE TRIGGER keep_removed BEFORE DELETE OR TRUNCATE ON endpoints
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_endpoint_removal();
CREATE TRIGGER keep_rows BEFORE UPDATE ON endpoint_secrets FOR EACH ROW EXECUTE FUNCTION keep_endpoint_secrets();
REVOKE EXECUTE ON FUNCTION keep_endpoints(), keep_endpoint_secrets(), refuse_endpoint_removal() FROM PUBLIC;

GRANT SELECT, INSERT (id, governance_agent_id, url, description, event_types, filter, payload_form, ordering,
                      after_dead_letter, retry_schedule, rate_per_second, timeout_seconds, custom_header_names,
                      start_offsets, starts_at),
      UPDATE (state, state_reason, state_changed_at) ON endpoints TO plant_operator;
GRANT SELECT, INSERT (id, endpoint_id, kind, nonce, ciphertext, public_key),
      UPDATE (nonce, ciphertext, expires_at), DELETE ON endpoint_secrets TO plant_operator;
"""

DOWNGRADE = """
DROP TABLE endpoint_secrets;
DROP TABLE endpoints;
DROP FUNCTION refuse_endpoint_removal();
DROP FUNCTION keep_endpoint_secrets();
DROP FUNCTION keep_endpoints();
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
