-- Fold a batch of staged events into the entity tables, one event after another: each entity's in the order in which
-- they take effect, and entities in the order of their ids, as all who write many of them. Events that say nothing that
-- the entity tables hold, ratings and validations, are not read.
WITH changes AS (
    SELECT agent_id AS entity_id, 'agent' AS kind, 'genesis.agent.onboarded' AS event_type, 'defined' AS change,
           occurred_at, effective_offset, "offset", change_tenant, change_version, skill_ids AS ids,
           jsonb_build_object('name', name, 'industry_id', industry_id, 'job_role_id', job_role_id,
                              'team_id', team_id) AS state
    FROM staged_agent_onboarded
    UNION ALL
    SELECT agent_id, 'agent', 'genesis.agent.available', 'available', occurred_at, effective_offset, "offset",
           change_tenant, change_version, NULL, jsonb_build_object('available', available)
    FROM staged_agent_available
    UNION ALL
    SELECT skill_id, 'skill', 'genesis.skill.registered', 'defined', occurred_at, effective_offset, "offset",
           change_tenant, change_version, NULL,
           jsonb_build_object('name', name, 'description', description, 'category', category,
                              'external_id', external_id)
    FROM staged_skill_registered
    UNION ALL
    SELECT job_role_id, 'job_role', 'genesis.job_role.defined', 'defined', occurred_at, effective_offset, "offset",
           change_tenant, change_version, required_skill_ids,
           jsonb_build_object('name', name, 'description', description, 'seniority', seniority,
                              'industry_id', industry_id, 'external_id', external_id)
    FROM staged_job_role_defined
    UNION ALL
    SELECT industry_id, 'industry', 'genesis.industry.defined', 'defined', occurred_at, effective_offset, "offset",
           change_tenant, change_version, NULL,
           jsonb_build_object('name', name, 'description', description, 'external_id', external_id)
    FROM staged_industry_defined
    UNION ALL
    SELECT team_id, 'team', 'genesis.team.formed', 'defined', occurred_at, effective_offset, "offset",
           change_tenant, change_version, member_ids,
           jsonb_build_object('name', name, 'description', description, 'job_role_id', job_role_id,
                              'industry_id', industry_id)
    FROM staged_team_formed
    UNION ALL
    SELECT entity_id, entity_type, event_type, change, occurred_at, effective_offset, "offset", change_tenant,
           change_version,
           CASE entity_type WHEN 'agent' THEN agent__skill_ids WHEN 'job_role' THEN job_role__required_skill_ids
                            WHEN 'team' THEN team__member_ids END,
           CASE entity_type
               WHEN 'agent' THEN jsonb_build_object(
                   'name', agent__name, 'industry_id', agent__industry_id, 'job_role_id', agent__job_role_id,
                   'team_id', agent__team_id, 'status', agent__status,
                   'available', agent__available AND change = 'amended')
               WHEN 'skill' THEN jsonb_build_object(
                   'name', skill__name, 'description', skill__description, 'category', skill__category,
                   'external_id', skill__external_id)
               WHEN 'job_role' THEN jsonb_build_object(
                   'name', job_role__name, 'description', job_role__description, 'seniority', job_role__seniority,
                   'industry_id', job_role__industry_id, 'external_id', job_role__external_id)
               WHEN 'industry' THEN jsonb_build_object(
                   'name', industry__name, 'description', industry__description, 'external_id', industry__external_id)
               ELSE jsonb_build_object(
                   'name', team__name, 'description', team__description, 'job_role_id', team__job_role_id,
                   'industry_id', team__industry_id)
           END
    FROM (
        SELECT 'genesis.entity.amended' AS event_type, 'amended' AS change, entity_id, entity_type, occurred_at, effective_offset, "offset", change_tenant, change_version,
               agent__name, agent__industry_id, agent__job_role_id, agent__team_id, agent__skill_ids, agent__status,
               agent__available, skill__name, skill__description, skill__category, skill__external_id, job_role__name,
               job_role__description, job_role__seniority, job_role__industry_id, job_role__required_skill_ids,
               job_role__external_id, industry__name, industry__description, industry__external_id, team__name,
               team__description, team__job_role_id, team__industry_id, team__member_ids
        FROM staged_entity_amended
        UNION ALL
        SELECT 'genesis.entity.retired', 'retired', entity_id, entity_type, occurred_at, effective_offset, "offset", change_tenant, change_version,
               agent__name, agent__industry_id, agent__job_role_id, agent__team_id, agent__skill_ids, agent__status,
               agent__available, skill__name, skill__description, skill__category, skill__external_id, job_role__name,
               job_role__description, job_role__seniority, job_role__industry_id, job_role__required_skill_ids,
               job_role__external_id, industry__name, industry__description, industry__external_id, team__name,
               team__description, team__job_role_id, team__industry_id, team__member_ids
        FROM staged_entity_retired
    ) AS states
), folded AS MATERIALIZED (
    SELECT entity_id, event_type, effective_offset, "offset",
           public.fold_entity(coalesce(change_tenant, 'genesis'), change_version, kind, entity_id, change, occurred_at,
                              state, coalesce(ids::uuid[], '{}')) AS reason
    FROM (SELECT * FROM changes ORDER BY entity_id, effective_offset, "offset") AS ordered
)
INSERT INTO __schema__.registry_clashes AS clash (entity_id, events, last_offset, last_event_type, last_reason)
SELECT DISTINCT ON (entity_id) entity_id, count(*) OVER (PARTITION BY entity_id), "offset", event_type, reason
FROM folded WHERE reason IS NOT NULL ORDER BY entity_id, effective_offset DESC, "offset" DESC
ON CONFLICT (entity_id) DO UPDATE SET
    events = clash.events + excluded.events, last_offset = excluded.last_offset,
    last_event_type = excluded.last_event_type, last_reason = excluded.last_reason
