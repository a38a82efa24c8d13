"""Queries on the read model `ratings`: means are computed here, from whole numbers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from database.connector import Database
from entities.vocabulary import DEFAULT_TENANT

PRIOR_RATINGS: Final = 10
"""Weight of the prior in the Bayesian average: so many ratings at the mean of all ratings."""

RECENT_DAYS: Final = 90

# The nil id stands for ratings of the agent as a whole. The mean of all ratings is read once a query. Through a view
# with a policy, grouping sets would keep Postgres from using the index, hence the part that is materialized.
_OF_AN_AGENT: Final = text("""
    WITH own AS MATERIALIZED (SELECT * FROM read_models.ratings WHERE agent_id = :agent_id)
    SELECT
        nullif(skill_id, '00000000-0000-0000-0000-000000000000') AS skill_id,
        grouping(skill_id) = 1 AS overall,
        sum(ratings) AS ratings,
        sum(rating_sum) AS rating_sum,
        ARRAY[sum(rated_1), sum(rated_2), sum(rated_3), sum(rated_4), sum(rated_5)] AS histogram,
        (sum(rating_sum) / sum(ratings)::numeric)::double precision AS mean,
        ((:prior * (SELECT sum(rating_sum) / sum(ratings)::numeric FROM read_models.rating_totals) + sum(rating_sum))
            / (:prior + sum(ratings)))::double precision AS bayesian_average,
        coalesce(sum(ratings) FILTER (WHERE day BETWEEN :first AND :today), 0) AS recent_ratings,
        (sum(rating_sum) FILTER (WHERE day BETWEEN :first AND :today)
            / sum(ratings) FILTER (WHERE day BETWEEN :first AND :today)::numeric)::double precision AS recent_mean
    FROM own GROUP BY GROUPING SETS ((), (skill_id)) HAVING sum(ratings) > 0
    ORDER BY overall DESC, skill_id NULLS FIRST
""")


async def ratings(database: Database, agent_id: UUID, now: datetime) -> list[Any]:
    """Return an agent's ratings: a row with `overall` for all of them, then one a skill. No row where there are none.

    A row without `overall` and without a skill has the ratings of the agent as a whole. `histogram` has how often 1 to
    5 was given. `bayesian_average` is (k * m + sum) / (k + n): n ratings of the row, k = PRIOR_RATINGS at m, the mean
    of all ratings of all agents. What is recent is of the last RECENT_DAYS days (UTC), today among them;
    `recent_mean` is null where nothing is.
    """
    today = now.astimezone(UTC).date()
    days = {"first": today - timedelta(days=RECENT_DAYS - 1), "today": today}
    arguments = {"agent_id": agent_id, "prior": PRIOR_RATINGS, **days}
    async with database.transaction(DEFAULT_TENANT, read_only=True) as connection:
        return list((await connection.execute(_OF_AN_AGENT, arguments)).all())
