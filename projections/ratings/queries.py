"""Queries on the read model `ratings`: means are computed here, from whole numbers."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from database.connector import Database
from entities.vocabulary import DEFAULT_TENANT
from projections.listing import ListingColumn, positional

PRIOR_RATINGS: Final = 10
"""Weight of the prior in the Bayesian average: so many ratings at the mean of all ratings."""

RECENT_DAYS: Final = 90

# The nil id stands for ratings of the agent as a whole. The mean of all ratings is read once a query. Through a view
# with a policy, grouping sets would keep Postgres from using the index, hence the part that is materialized. An agent
# may have ratings of any number of skills, so its rows come in pages: behind a place, in the order of places.
_OF_AN_AGENT_TEXT: Final = """
    WITH own AS MATERIALIZED (SELECT * FROM read_models.ratings WHERE agent_id = :agent_id), rated AS (
        SELECT
            (CASE WHEN grouping(skill_id) = 1 THEN '' ELSE skill_id::text END) COLLATE "C" AS place,
            nullif(skill_id, '00000000-0000-0000-0000-000000000000') AS skill_id,
            grouping(skill_id) = 1 AS overall,
            sum(ratings)::bigint AS ratings,
            sum(rating_sum)::bigint AS rating_sum,
            ARRAY[sum(rated_1), sum(rated_2), sum(rated_3), sum(rated_4), sum(rated_5)]::bigint[] AS histogram,
            (sum(rating_sum) / sum(ratings)::numeric)::double precision AS mean,
            ((:prior * (SELECT sum(rating_sum) / sum(ratings)::numeric FROM read_models.rating_totals)
                + sum(rating_sum)) / (:prior + sum(ratings)))::double precision AS bayesian_average,
            coalesce(sum(ratings) FILTER (WHERE day BETWEEN :first AND :today), 0)::bigint AS recent_ratings,
            (sum(rating_sum) FILTER (WHERE day BETWEEN :first AND :today)
                / sum(ratings) FILTER (WHERE day BETWEEN :first AND :today)::numeric)::double precision AS recent_mean
        FROM own GROUP BY GROUPING SETS ((), (skill_id)) HAVING sum(ratings) > 0
    )
    SELECT * FROM rated WHERE CAST(:after AS text) IS NULL OR place > CAST(:after AS text) ORDER BY place LIMIT :rows
"""
_OF_AN_AGENT: Final = text(_OF_AN_AGENT_TEXT)

OF_AN_AGENT: Final = positional(_OF_AN_AGENT_TEXT, ("agent_id", "prior", "first", "today", "after", "rows"))
"""The same for asyncpg: the agent, the prior, the first of the last 90 days, the last of them, the place, the rows."""
PLACE: Final = "place"
"""The column that rows of an agent are in the order of: a page goes on behind its last one's."""
PAGE_MAX: Final = 1_000
RATING_COLUMNS: Final = (
    ListingColumn("skill_id", "uuid", "The skill that was rated; null for the agent as a whole, and for all ratings."),
    ListingColumn("overall", "boolean", "Whether the row is of all ratings.", nullable=False),
    ListingColumn("ratings", "integer", "How many there are.", nullable=False),
    ListingColumn("rating_sum", "integer", "Their sum.", nullable=False),
    ListingColumn("histogram", "integers", "How often 1 to 5 was given.", nullable=False),
    ListingColumn("mean", "number", "Their mean.", nullable=False),
    ListingColumn(
        "bayesian_average", "number", "Their mean with ten ratings at the mean of all agents.", nullable=False
    ),
    ListingColumn("recent_ratings", "integer", "How many are of the last 90 days (UTC).", nullable=False),
    ListingColumn("recent_mean", "number", "The mean of those; null where there are none."),
)


def recent_days(now: datetime) -> tuple[date, date]:
    """Return the first and the last of the days that count as recent, in UTC."""
    today = now.astimezone(UTC).date()
    return today - timedelta(days=RECENT_DAYS - 1), today


async def ratings(
    database: Database, agent_id: UUID, now: datetime, limit: int = PAGE_MAX, after: str | None = None
) -> list[Any]:
    """Return an agent's ratings: a row with `overall` for all of them, then one a skill. No row where there are none.

    At most `limit` rows, those behind the `place` of a row before. A row without `overall` and without a skill has the
    ratings of the agent as a whole. `histogram` has how often 1 to 5 was given. `bayesian_average` is
    (k * m + sum) / (k + n): n ratings of the row, k = PRIOR_RATINGS at m, the mean of all ratings of all agents. What
    is recent is of the last RECENT_DAYS days (UTC), today among them; `recent_mean` is null where nothing is.
    """
    first, today = recent_days(now)
    arguments = {
        "agent_id": agent_id, "prior": PRIOR_RATINGS, "first": first, "today": today, "after": after,
        "rows": min(limit, PAGE_MAX),
    }  # fmt: skip
    async with database.transaction(DEFAULT_TENANT, read_only=True) as connection:
        return list((await connection.execute(_OF_AN_AGENT, arguments)).all())
