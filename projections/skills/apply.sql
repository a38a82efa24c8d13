-- Fold a batch of staged events into `skills` and `skill_validations`. Of each skill's events the last one of each group
-- counts, and of each agent's skill the last validation, so the outcome is the same however the sequence is cut into
-- batches. A skill that is validated before it is registered becomes a stub. Rows are written sorted by primary key.
WITH catalogue AS (
    SELECT DISTINCT ON (skill_id) *
    FROM (
        SELECT skill_id, name, description, category, external_id, 'registered' AS status, occurred_at, "offset"
        FROM staged_skill_registered
        UNION ALL
        SELECT entity_id, skill__name, skill__description, skill__category, skill__external_id, 'registered',
               occurred_at, "offset"
        FROM staged_entity_amended WHERE entity_type = 'skill'
        UNION ALL
        SELECT entity_id, skill__name, skill__description, skill__category, skill__external_id, 'retired',
               occurred_at, "offset"
        FROM staged_entity_retired WHERE entity_type = 'skill'
    ) AS events
    ORDER BY skill_id, "offset" DESC
), validations AS MATERIALIZED (
    SELECT DISTINCT ON (skill_id, agent_id) skill_id, agent_id, validator_id, score, occurred_at, "offset"
    FROM staged_skill_validated
    ORDER BY skill_id, agent_id, "offset" DESC
), of_agents AS (
    INSERT INTO __schema__.skill_validations AS validation
        (skill_id, agent_id, validator_id, score, validated_at, validation_offset)
    SELECT skill_id, agent_id, validator_id, score, occurred_at, "offset"
    FROM validations WHERE agent_id IS NOT NULL
    ORDER BY skill_id, agent_id
    ON CONFLICT (skill_id, agent_id) DO UPDATE SET
        validator_id = excluded.validator_id,
        score = excluded.score,
        validated_at = excluded.validated_at,
        validation_offset = excluded.validation_offset
), validated AS (
    SELECT v.skill_id, s.validator_id, s.score, s.occurred_at, s."offset"
    FROM (SELECT DISTINCT skill_id FROM validations) AS v
    LEFT JOIN validations AS s ON s.skill_id = v.skill_id AND s.agent_id IS NULL
    WHERE s.skill_id IS NOT NULL
       OR (SELECT true FROM __schema__.skills AS known WHERE known.skill_id = v.skill_id) IS NULL
)
INSERT INTO __schema__.skills AS skill (
    skill_id, name, description, category, external_id, status, catalogue_offset, catalogue_changed_at,
    validator_id, score, validated_at, validation_offset
)
SELECT
    skill_id, c.name, c.description, c.category, c.external_id, c.status, c."offset", c.occurred_at,
    v.validator_id, v.score, v.occurred_at, v."offset"
FROM catalogue AS c FULL JOIN validated AS v USING (skill_id)
ORDER BY skill_id
ON CONFLICT (skill_id) DO UPDATE SET
    name = CASE WHEN excluded.catalogue_offset IS NULL THEN skill.name ELSE excluded.name END,
    description = CASE WHEN excluded.catalogue_offset IS NULL THEN skill.description ELSE excluded.description END,
    category = CASE WHEN excluded.catalogue_offset IS NULL THEN skill.category ELSE excluded.category END,
    external_id = CASE WHEN excluded.catalogue_offset IS NULL THEN skill.external_id ELSE excluded.external_id END,
    status = CASE WHEN excluded.catalogue_offset IS NULL THEN skill.status ELSE excluded.status END,
    catalogue_changed_at = CASE WHEN excluded.catalogue_offset IS NULL THEN skill.catalogue_changed_at ELSE excluded.catalogue_changed_at END,
    catalogue_offset = coalesce(excluded.catalogue_offset, skill.catalogue_offset),
    validator_id = CASE WHEN excluded.validation_offset IS NULL THEN skill.validator_id ELSE excluded.validator_id END,
    score = CASE WHEN excluded.validation_offset IS NULL THEN skill.score ELSE excluded.score END,
    validated_at = CASE WHEN excluded.validation_offset IS NULL THEN skill.validated_at ELSE excluded.validated_at END,
    validation_offset = coalesce(excluded.validation_offset, skill.validation_offset)
