-- Read model `ratings`: how often an agent got which rating, by skill and by day (UTC) of the event's occurred_at. The
-- nil id in skill_id stands for ratings of the agent as a whole. Whole numbers alone: means are computed by readers, and
-- so are the last 90 days.
CREATE TABLE IF NOT EXISTS __schema__.ratings (
    agent_id             uuid,
    skill_id             uuid,
    day                  date,
    ratings              integer NOT NULL,
    rating_sum           integer NOT NULL,
    rated_1              integer NOT NULL,
    rated_2              integer NOT NULL,
    rated_3              integer NOT NULL,
    rated_4              integer NOT NULL,
    rated_5              integer NOT NULL,
    -- Events carry no tenant: what is folded from them belongs to the first one.
    governance_agent_id  text COLLATE "C" NOT NULL DEFAULT 'genesis',
    PRIMARY KEY (agent_id, skill_id, day)
) WITH (fillfactor = 80);

-- Read model `ratings`: all ratings of one partition; readers add them up. A row for all partitions would make them wait
-- for each other.
CREATE TABLE IF NOT EXISTS __schema__.rating_totals (
    partition            bigint PRIMARY KEY,
    ratings              bigint NOT NULL,
    rating_sum           bigint NOT NULL,
    governance_agent_id  text COLLATE "C" NOT NULL DEFAULT 'genesis'
) WITH (fillfactor = 20);
