-- Fold a batch of staged events into `ratings` and `rating_totals`. Whole numbers are added up, so the outcome is the
-- same however the sequence is cut into batches. Rows are written sorted by primary key.
WITH totals AS (
    INSERT INTO __schema__.rating_totals AS total (partition, ratings, rating_sum)
    SELECT partition, count(*), sum(rating::integer) FROM staged_agent_rated GROUP BY partition ORDER BY partition
    ON CONFLICT (partition) DO UPDATE SET
        ratings = total.ratings + excluded.ratings,
        rating_sum = total.rating_sum + excluded.rating_sum
)
INSERT INTO __schema__.ratings AS rated (
    agent_id, skill_id, day, ratings, rating_sum, rated_1, rated_2, rated_3, rated_4, rated_5
)
SELECT
    agent_id, coalesce(skill_id, '00000000-0000-0000-0000-000000000000'), (occurred_at AT TIME ZONE 'UTC')::date,
    count(*), sum(rating::integer), count(*) FILTER (WHERE rating = 1), count(*) FILTER (WHERE rating = 2),
    count(*) FILTER (WHERE rating = 3), count(*) FILTER (WHERE rating = 4), count(*) FILTER (WHERE rating = 5)
FROM staged_agent_rated
GROUP BY 1, 2, 3
ORDER BY 1, 2, 3
ON CONFLICT (agent_id, skill_id, day) DO UPDATE SET
    ratings = rated.ratings + excluded.ratings,
    rating_sum = rated.rating_sum + excluded.rating_sum,
    rated_1 = rated.rated_1 + excluded.rated_1,
    rated_2 = rated.rated_2 + excluded.rated_2,
    rated_3 = rated.rated_3 + excluded.rated_3,
    rated_4 = rated.rated_4 + excluded.rated_4,
    rated_5 = rated.rated_5 + excluded.rated_5
