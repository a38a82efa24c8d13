-- Fold a batch of staged events into `agents`. Of each agent's events the last one of each group counts, so the
-- outcome is the same however the sequence is cut into batches. Rows are written sorted by primary key.
WITH profile AS (
    SELECT DISTINCT ON (agent_id) *
    FROM (
        SELECT agent_id, name, industry_id, job_role_id, team_id, skill_ids, 'onboarded' AS status, occurred_at, "offset"
        FROM staged_agent_onboarded
        UNION ALL
        SELECT entity_id, agent__name, agent__industry_id, agent__job_role_id, agent__team_id, agent__skill_ids,
               agent__status, occurred_at, "offset"
        FROM staged_entity_amended WHERE entity_type = 'agent'
        UNION ALL
        SELECT entity_id, agent__name, agent__industry_id, agent__job_role_id, agent__team_id, agent__skill_ids,
               'retired', occurred_at, "offset"
        FROM staged_entity_retired WHERE entity_type = 'agent'
    ) AS events
    ORDER BY agent_id, "offset" DESC
), availability AS (
    SELECT DISTINCT ON (agent_id) *
    FROM (
        SELECT agent_id, available, available_from, occurred_at, "offset" FROM staged_agent_available
        UNION ALL
        SELECT entity_id, agent__available, NULL, occurred_at, "offset"
        FROM staged_entity_amended WHERE entity_type = 'agent'
        UNION ALL
        SELECT entity_id, false, NULL, occurred_at, "offset" FROM staged_entity_retired WHERE entity_type = 'agent'
    ) AS events
    ORDER BY agent_id, "offset" DESC
)
INSERT INTO __schema__.agents AS agent (
    agent_id, name, industry_id, job_role_id, team_id, skill_ids, status, profile_offset, profile_changed_at,
    available, available_from, availability_offset, availability_changed_at
)
SELECT
    agent_id, p.name, p.industry_id, p.job_role_id, p.team_id,
    coalesce(p.skill_ids::uuid[], '{}'), p.status, p."offset", p.occurred_at,
    v.available, v.available_from, v."offset", v.occurred_at
FROM profile AS p FULL JOIN availability AS v USING (agent_id)
ORDER BY agent_id
ON CONFLICT (agent_id) DO UPDATE SET
    name = CASE WHEN excluded.profile_offset IS NULL THEN agent.name ELSE excluded.name END,
    industry_id = CASE WHEN excluded.profile_offset IS NULL THEN agent.industry_id ELSE excluded.industry_id END,
    job_role_id = CASE WHEN excluded.profile_offset IS NULL THEN agent.job_role_id ELSE excluded.job_role_id END,
    team_id = CASE WHEN excluded.profile_offset IS NULL THEN agent.team_id ELSE excluded.team_id END,
    skill_ids = CASE WHEN excluded.profile_offset IS NULL THEN agent.skill_ids ELSE excluded.skill_ids END,
    status = CASE WHEN excluded.profile_offset IS NULL THEN agent.status ELSE excluded.status END,
    profile_changed_at = CASE WHEN excluded.profile_offset IS NULL THEN agent.profile_changed_at ELSE excluded.profile_changed_at END,
    profile_offset = coalesce(excluded.profile_offset, agent.profile_offset),
    available = CASE WHEN excluded.availability_offset IS NULL THEN agent.available ELSE excluded.available END,
    available_from = CASE WHEN excluded.availability_offset IS NULL THEN agent.available_from ELSE excluded.available_from END,
    availability_changed_at = CASE WHEN excluded.availability_offset IS NULL THEN agent.availability_changed_at ELSE excluded.availability_changed_at END,
    availability_offset = coalesce(excluded.availability_offset, agent.availability_offset)
