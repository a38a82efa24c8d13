-- Where a batch waits for the read models: one temporary table an event type, on each worker connection. A batch is
-- copied in once and every read model's apply.sql reads it. The engine fills the columns that stand here, by name;
-- `agent__name` is the field `name` of the nested record `agent`. Arrays of ids arrive as array literals, to be cast to uuid[].
-- Only event types that some read model needs have a table.

CREATE TEMPORARY TABLE staged_agent_onboarded (
    "offset"      bigint NOT NULL,
    agent_id      uuid NOT NULL,
    occurred_at   timestamptz NOT NULL,
    name          text NOT NULL,
    industry_id   uuid,
    job_role_id   uuid,
    team_id       uuid,
    skill_ids     text NOT NULL
) ON COMMIT DELETE ROWS;

CREATE TEMPORARY TABLE staged_agent_available (
    "offset"        bigint NOT NULL,
    agent_id        uuid NOT NULL,
    occurred_at     timestamptz NOT NULL,
    available       boolean NOT NULL,
    available_from  timestamptz
) ON COMMIT DELETE ROWS;

CREATE TEMPORARY TABLE staged_entity_amended (
    "offset"            bigint NOT NULL,
    entity_type         text NOT NULL,
    entity_id           uuid NOT NULL,
    occurred_at         timestamptz NOT NULL,
    agent__name         text,
    agent__industry_id  uuid,
    agent__job_role_id  uuid,
    agent__team_id      uuid,
    agent__skill_ids    text,
    agent__status       text,
    agent__available    boolean
) ON COMMIT DELETE ROWS;

CREATE TEMPORARY TABLE staged_entity_retired (
    "offset"            bigint NOT NULL,
    entity_type         text NOT NULL,
    entity_id           uuid NOT NULL,
    occurred_at         timestamptz NOT NULL,
    agent__name         text,
    agent__industry_id  uuid,
    agent__job_role_id  uuid,
    agent__team_id      uuid,
    agent__skill_ids    text
) ON COMMIT DELETE ROWS;
