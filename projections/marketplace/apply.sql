-- Fold a batch of staged events into the tables of `marketplace`. Of each entity's events the last one of each group
-- counts, and ratings are added up as whole numbers, so the outcome is the same however the sequence is cut into
-- batches. An agent's skills and an entry's words have rows of their own: those that the row before does not list are
-- added, those that the new one does not list are removed, found one by one by their key, whatever Postgres expects of
-- their number. Words are compared as text search vectors, which are sorted: a description has thousands of them. Rows
-- are written sorted by primary key. Four statements, since Postgres takes longer to plan all of this than to run what a
-- small batch needs.
WITH profile AS MATERIALIZED (
    SELECT agent_id, name, industry_id, job_role_id, coalesce(skill_ids::uuid[], '{}') AS skill_ids, status, "offset",
        (SELECT known.skill_ids FROM __schema__.marketplace_agents AS known WHERE known.agent_id = p.agent_id) AS former
    FROM (
        SELECT DISTINCT ON (agent_id) *
        FROM (
            SELECT agent_id, name, industry_id, job_role_id, skill_ids, 'onboarded' AS status, "offset"
            FROM staged_agent_onboarded
            UNION ALL
            SELECT entity_id, agent__name, agent__industry_id, agent__job_role_id, agent__skill_ids, agent__status,
                   "offset"
            FROM staged_entity_amended WHERE entity_type = 'agent'
            UNION ALL
            SELECT entity_id, agent__name, agent__industry_id, agent__job_role_id, agent__skill_ids, 'retired', "offset"
            FROM staged_entity_retired WHERE entity_type = 'agent'
        ) AS events
        ORDER BY agent_id, "offset" DESC
    ) AS p
), lost_skills AS (
    DELETE FROM __schema__.marketplace_agent_skills WHERE ctid = ANY (ARRAY(
        SELECT (SELECT had.ctid FROM __schema__.marketplace_agent_skills AS had
                WHERE had.skill_id = lost AND had.agent_id = p.agent_id)
        FROM profile AS p, unnest(former) AS lost
        WHERE former <> skill_ids AND lost <> ALL (skill_ids)
    ))
), new_skills AS (
    INSERT INTO __schema__.marketplace_agent_skills (skill_id, agent_id)
    SELECT DISTINCT skill_id, agent_id FROM profile, unnest(skill_ids) AS skill_id
    WHERE former IS DISTINCT FROM skill_ids AND skill_id <> ALL (coalesce(former, '{}'))
    ORDER BY skill_id, agent_id
)
INSERT INTO __schema__.marketplace_agents (agent_id, name, industry_id, job_role_id, skill_ids, status, profile_offset)
SELECT agent_id, name, industry_id, job_role_id, skill_ids, status, "offset" FROM profile ORDER BY agent_id
ON CONFLICT (agent_id) DO UPDATE SET
    name = excluded.name,
    industry_id = excluded.industry_id,
    job_role_id = excluded.job_role_id,
    skill_ids = excluded.skill_ids,
    status = excluded.status,
    profile_offset = excluded.profile_offset;

WITH availability AS (
    SELECT DISTINCT ON (agent_id) *
    FROM (
        SELECT agent_id, available, available_from, "offset" FROM staged_agent_available
        UNION ALL
        SELECT entity_id, agent__available, NULL, "offset" FROM staged_entity_amended WHERE entity_type = 'agent'
        UNION ALL
        SELECT entity_id, false, NULL, "offset" FROM staged_entity_retired WHERE entity_type = 'agent'
    ) AS events
    ORDER BY agent_id, "offset" DESC
), rated AS (
    SELECT agent_id, count(*) AS ratings, sum(rating::integer) AS rating_sum FROM staged_agent_rated GROUP BY agent_id
)
INSERT INTO __schema__.marketplace_standings AS standing
    (agent_id, available, available_from, availability_offset, ratings, rating_sum)
SELECT agent_id, v.available, v.available_from, v."offset", coalesce(r.ratings, 0), coalesce(r.rating_sum, 0)
FROM availability AS v FULL JOIN rated AS r USING (agent_id)
ORDER BY agent_id
ON CONFLICT (agent_id) DO UPDATE SET
    available = CASE WHEN excluded.availability_offset IS NULL THEN standing.available ELSE excluded.available END,
    available_from = CASE WHEN excluded.availability_offset IS NULL THEN standing.available_from ELSE excluded.available_from END,
    availability_offset = coalesce(excluded.availability_offset, standing.availability_offset),
    ratings = standing.ratings + excluded.ratings,
    rating_sum = standing.rating_sum + excluded.rating_sum;

INSERT INTO __schema__.marketplace_totals AS total (partition, ratings, rating_sum)
SELECT partition, count(*), sum(rating::integer) FROM staged_agent_rated GROUP BY partition ORDER BY partition
ON CONFLICT (partition) DO UPDATE SET
    ratings = total.ratings + excluded.ratings,
    rating_sum = total.rating_sum + excluded.rating_sum;

WITH entry AS MATERIALIZED (
    SELECT kind COLLATE "C" AS kind, entity_id, name, description, retired, "offset",
        tsvector_to_array(to_tsvector('simple', name || ' ' || description)) AS words,
        (SELECT known.words FROM __schema__.marketplace_catalogue AS known
         WHERE known.kind = e.kind COLLATE "C" AND known.entity_id = e.entity_id) AS former
    FROM (
        SELECT DISTINCT ON (kind, entity_id) *
        FROM (
            SELECT 'skill' AS kind, skill_id AS entity_id, name, description, false AS retired, "offset"
            FROM staged_skill_registered
            UNION ALL
            SELECT 'job_role', job_role_id, name, description, false, "offset" FROM staged_job_role_defined
            UNION ALL
            SELECT 'industry', industry_id, name, description, false, "offset" FROM staged_industry_defined
            UNION ALL
            SELECT entity_type, entity_id, coalesce(skill__name, job_role__name, industry__name),
                   coalesce(skill__description, job_role__description, industry__description), false, "offset"
            FROM staged_entity_amended WHERE entity_type IN ('skill', 'job_role', 'industry')
            UNION ALL
            SELECT entity_type, entity_id, coalesce(skill__name, job_role__name, industry__name),
                   coalesce(skill__description, job_role__description, industry__description), true, "offset"
            FROM staged_entity_retired WHERE entity_type IN ('skill', 'job_role', 'industry')
        ) AS events
        ORDER BY kind, entity_id, "offset" DESC
    ) AS e
), lost_words AS (
    DELETE FROM __schema__.marketplace_words WHERE ctid = ANY (ARRAY(
        SELECT (SELECT had.ctid FROM __schema__.marketplace_words AS had
                WHERE had.word = lost COLLATE "C" AND had.kind = e.kind AND had.entity_id = e.entity_id)
        FROM entry AS e, unnest(tsvector_to_array(ts_delete(array_to_tsvector(former), words))) AS lost
        WHERE former <> words
    ))
), new_words AS (
    INSERT INTO __schema__.marketplace_words (word, kind, entity_id)
    SELECT word COLLATE "C", kind, entity_id
    FROM entry, unnest(tsvector_to_array(ts_delete(array_to_tsvector(words), coalesce(former, '{}')))) AS word
    WHERE former IS DISTINCT FROM words
    ORDER BY word COLLATE "C", kind, entity_id
)
INSERT INTO __schema__.marketplace_catalogue (kind, entity_id, name, description, words, retired, catalogue_offset)
SELECT kind, entity_id, name, description, words, retired, "offset" FROM entry ORDER BY kind, entity_id
ON CONFLICT (kind, entity_id) DO UPDATE SET
    name = excluded.name,
    description = excluded.description,
    words = excluded.words,
    retired = excluded.retired,
    catalogue_offset = excluded.catalogue_offset
