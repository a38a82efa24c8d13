-- Read model `agents`: one row an agent. Several event types set its columns, in two groups; each group keeps the
-- offset that set it last. A row whose profile_offset is null is a stub: its agent was heard of before it was onboarded.
-- Room is left on each page, so that updates stay there and touch no index (a quarter of the statement's time).
CREATE TABLE IF NOT EXISTS __schema__.agents (
    agent_id             uuid PRIMARY KEY,
    name                 text,
    industry_id          uuid,
    job_role_id          uuid,
    team_id              uuid,
    skill_ids            uuid[] NOT NULL DEFAULT '{}',
    status               text,
    profile_offset       bigint,
    profile_changed_at   timestamptz,
    available            boolean,
    available_from       timestamptz,
    availability_offset  bigint,
    availability_changed_at timestamptz,
    -- Events carry no tenant: what is folded from them belongs to the first one.
    governance_agent_id  text COLLATE "C" NOT NULL DEFAULT 'genesis'
) WITH (fillfactor = 60);
