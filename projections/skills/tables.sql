-- Read model `skills`: one row a skill. Several event types set its columns, in two groups; each group keeps the offset
-- that set it last. A row whose catalogue_offset is null is a stub: its skill was heard of before it was registered.
-- The validation in the row is of the skill as such; those of agents' skills are in skill_validations.
CREATE TABLE IF NOT EXISTS __schema__.skills (
    skill_id             uuid PRIMARY KEY,
    name                 text,
    description          text,
    category             text,
    external_id          text,
    status               text,
    catalogue_offset     bigint,
    catalogue_changed_at timestamptz,
    validator_id         uuid,
    score                integer,
    validated_at         timestamptz,
    validation_offset    bigint,
    -- Events carry no tenant: what is folded from them belongs to the first one.
    governance_agent_id  text COLLATE "C" NOT NULL DEFAULT 'genesis'
) WITH (fillfactor = 60);

-- Read model `skills`: the last validation of each skill of each agent. A skill's events are in one partition, the
-- agent's are in another, so an agent may be unknown here for a while.
CREATE TABLE IF NOT EXISTS __schema__.skill_validations (
    skill_id             uuid,
    agent_id             uuid,
    validator_id         uuid NOT NULL,
    score                integer NOT NULL,
    validated_at         timestamptz NOT NULL,
    validation_offset    bigint NOT NULL,
    governance_agent_id  text COLLATE "C" NOT NULL DEFAULT 'genesis',
    PRIMARY KEY (skill_id, agent_id)
) WITH (fillfactor = 80);
