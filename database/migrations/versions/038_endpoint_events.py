"""Failure streaks of endpoints, and the events of what changes about an endpoint.

An event is a row that the transaction of the change adds, so neither is there without the other. `plant dispatcher`
publishes it.
"""

from database.migrations.script import run_script

revision = "038"
down_revision = "037"
branch_labels = None
depends_on = None

UPGRADE = """
-- When it was last enabled: failures from before count no more. A trigger sets it.
ALTER TABLE endpoints ADD COLUMN enabled_at timestamptz;

-- Failed attempts since the last success. An endpoint that has none since then has no row.
CREATE TABLE endpoint_streaks (
    endpoint_id     uuid PRIMARY KEY,
    partition       integer NOT NULL CHECK (partition >= 0),
    began_at        timestamptz NOT NULL,
    attempts        integer NOT NULL CHECK (attempts > 0),
    warned_percent  integer NOT NULL CHECK (warned_percent BETWEEN 0 AND 100),
    FOREIGN KEY (endpoint_id) REFERENCES endpoints (id)
) WITH (fillfactor = 70);
CREATE INDEX endpoint_streaks_partition ON endpoint_streaks (partition);

-- One row a change. Rows of an endpoint are added one transaction after the other: each locks the endpoint first.
CREATE TABLE endpoint_events (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id       uuid NOT NULL DEFAULT gen_random_uuid(),
    endpoint_id    uuid NOT NULL,
    type           text COLLATE "C" NOT NULL CHECK (type LIKE 'plant.endpoint.%'),
    occurred_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    reason         text,
    percent        integer CHECK (percent BETWEEN 1 AND 100),
    failing_since  timestamptz,
    -- Set once by a dispatcher, before it publishes anything of it: its number in the order of all, and who gets it.
    position       bigint UNIQUE CHECK (position >= 0),
    subscribers    uuid[],
    sent_at        timestamptz,
    FOREIGN KEY (endpoint_id) REFERENCES endpoints (id),
    CHECK ((position IS NULL) = (subscribers IS NULL)),
    CHECK (sent_at IS NULL OR position IS NOT NULL)
);
CREATE INDEX endpoint_events_unsent ON endpoint_events (id) WHERE sent_at IS NULL;

CREATE FUNCTION note_enabling() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.enabled_at := clock_timestamp();
    RETURN NEW;
END
$$;
CREATE TRIGGER note_enabling BEFORE UPDATE ON endpoints FOR EACH ROW
    WHEN (OLD.state = 'disabled' AND NEW.state = 'active') EXECUTE FUNCTION note_enabling();

CREATE FUNCTION note_endpoint_state() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
BEGIN
    IF NEW.state = 'removed' OR (OLD.state = 'disabled' AND NEW.state = 'active') THEN
        DELETE FROM endpoint_streaks WHERE endpoint_id = NEW.id;
    END IF;
    INSERT INTO endpoint_events (endpoint_id, type, reason) VALUES (NEW.id, 'plant.endpoint.' || CASE
        WHEN NEW.state <> 'active' THEN NEW.state WHEN OLD.state = 'disabled' THEN 'enabled' ELSE 'resumed' END,
        left(NEW.state_reason, 500));
    RETURN NULL;
END
$$;
CREATE TRIGGER note_state AFTER UPDATE ON endpoints FOR EACH ROW
    WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION note_endpoint_state();

-- What a streak leads to, as a deliverer found. Nothing comes of what it found before the endpoint was enabled again.
CREATE FUNCTION note_endpoint_failing(
    endpoint uuid, known_enabled_at timestamptz, since timestamptz, at_percent integer, disabled_because text
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM FROM endpoints AS e WHERE e.id = endpoint AND e.state IN ('active', 'paused')
        AND e.enabled_at IS NOT DISTINCT FROM known_enabled_at FOR NO KEY UPDATE;
    IF FOUND THEN
        INSERT INTO endpoint_events (endpoint_id, type, percent, failing_since)
        VALUES (endpoint, 'plant.endpoint.warned', at_percent, since);
        IF at_percent = 100 THEN
            UPDATE endpoints SET state = 'disabled', state_reason = left(disabled_because, 500),
                state_changed_at = now() WHERE id = endpoint;
        END IF;
    END IF;
END
$$;
CREATE FUNCTION note_endpoint_recovered(endpoint uuid, known_enabled_at timestamptz, since timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM FROM endpoints AS e WHERE e.id = endpoint AND e.state IN ('active', 'paused')
        AND e.enabled_at IS NOT DISTINCT FROM known_enabled_at FOR NO KEY UPDATE;
    IF FOUND THEN
        INSERT INTO endpoint_events (endpoint_id, type, failing_since)
        VALUES (endpoint, 'plant.endpoint.recovered', since);
    END IF;
END
$$;
REVOKE EXECUTE ON FUNCTION note_enabling(), note_endpoint_state(),
    note_endpoint_failing(uuid, timestamptz, timestamptz, integer, text),
    note_endpoint_recovered(uuid, timestamptz, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION note_endpoint_failing(uuid, timestamptz, timestamptz, integer, text),
    note_endpoint_recovered(uuid, timestamptz, timestamptz) TO plant_deliverer;

GRANT SELECT, INSERT, UPDATE, DELETE ON endpoint_streaks TO plant_deliverer;
GRANT SELECT, UPDATE (position, subscribers, sent_at), DELETE ON endpoint_events TO plant_writer;
GRANT SELECT ON endpoint_streaks, endpoint_events TO plant_operator;
"""

DOWNGRADE = """
DROP TRIGGER note_state ON endpoints;
DROP TRIGGER note_enabling ON endpoints;
DROP FUNCTION note_endpoint_recovered(uuid, timestamptz, timestamptz);
DROP FUNCTION note_endpoint_failing(uuid, timestamptz, timestamptz, integer, text);
DROP FUNCTION note_endpoint_state();
DROP FUNCTION note_enabling();
DROP TABLE endpoint_events;
DROP TABLE endpoint_streaks;
ALTER TABLE endpoints DROP COLUMN enabled_at;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
