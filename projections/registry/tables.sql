-- Read model `registry`: a row for each id whose events could not all be folded into the entity tables. The entities
-- themselves are in `entities` and the tables of their kinds.
CREATE TABLE IF NOT EXISTS __schema__.registry_clashes (
    entity_id            uuid PRIMARY KEY, -- The id that the events are about.
    events               bigint NOT NULL, -- How many of its events were left out.
    last_offset          bigint NOT NULL, -- Offset of the last one.
    last_event_type      text NOT NULL, -- Its type.
    last_reason          text NOT NULL, -- Why it was left out.
    governance_agent_id  text COLLATE "C" NOT NULL DEFAULT 'genesis' -- Always the first tenant.
);
