-- Read model `activity`: how many events of each type came in an hour of their occurred_at, which is the producer's
-- clock. The rows are those of one partition; readers add them up. A row for all partitions would make them wait for
-- each other.
CREATE TABLE IF NOT EXISTS __schema__.activity (
    hour                 timestamptz,
    event_type           text COLLATE "C",
    partition            bigint,
    events               bigint NOT NULL,
    -- Events carry no tenant: what is folded from them belongs to the first one.
    governance_agent_id  text COLLATE "C" NOT NULL DEFAULT 'genesis',
    PRIMARY KEY (hour, event_type, partition)
) WITH (fillfactor = 20);
