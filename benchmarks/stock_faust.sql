CREATE TABLE stock_log (topic text, partition integer, "offset" bigint, event_id uuid, value bytea,
    PRIMARY KEY (topic, partition, "offset"));
CREATE TABLE stock_agents (agent_id uuid PRIMARY KEY, name text, industry_id uuid, available boolean, "offset" bigint);
GRANT SELECT, INSERT, UPDATE ON stock_log, stock_agents TO plant_writer
