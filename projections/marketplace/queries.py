"""Queries on the read model `marketplace`: agents that can be hired, page by page. Averages are computed here."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from database.connector import Database
from entities.errors import SearchRefused
from entities.vocabulary import DEFAULT_TENANT
from projections.marketplace.agent_search import AgentSearch, Sort, check_search
from projections.ratings.queries import PRIOR_RATINGS

NEUTRAL_RATING: Final = 3.0
"""The mean of all ratings while there are none."""

CURSOR_MAX_CHARACTERS: Final = 2_000


class HireableAgent(NamedTuple):
    """An agent of the marketplace; names are null, or left out of `skills`, while the catalogue lacks them."""

    agent_id: UUID
    name: str
    status: str
    industry_id: UUID | None
    industry: str | None
    job_role_id: UUID | None
    job_role: str | None
    skill_ids: Sequence[UUID]
    skills: Sequence[str]
    available: bool | None
    available_from: datetime | None
    ratings: int
    bayesian_average: float


class AgentPage(NamedTuple):
    """Agents in the order of their search, and the cursor of the page after this one; None where there is none."""

    agents: Sequence[HireableAgent]
    next_cursor: str | None


class _Cursor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The last row of a page, and the mean of all ratings that its averages were computed with."""

    sort: Sort
    mean: float
    value: str | float
    agent_id: UUID


# Until a table is analysed, and where it can't know how many agents fit, Postgres would read all agents and sort them.
# Where nothing narrows a search by name, agents are to come in the order of the index, until a page is full.
_MEAN: Final = text("""
    SELECT (sum(rating_sum) / nullif(sum(ratings), 0)::numeric)::double precision AS mean,
        set_config('enable_seqscan', :whole_tables, true), set_config('enable_sort', :sorting, true)
    FROM read_models.marketplace_totals
""")

_AVERAGE: Final = """(
    (CAST(:prior_sum AS double precision) + coalesce(s.rating_sum, 0))
    / (CAST(:prior AS bigint) + coalesce(s.ratings, 0))
)"""

_PAGE: Final = """
    SELECT a.agent_id, a.name, a.status, a.industry_id, a.job_role_id, a.skill_ids, s.available, s.available_from,
        coalesce(s.ratings, 0) AS ratings, {average} AS bayesian_average
    FROM read_models.marketplace_agents AS a
    LEFT JOIN {standings} AS s ON s.agent_id = a.agent_id
    WHERE {conditions} ORDER BY {order} LIMIT :limit
"""

_STANDINGS: Final = "read_models.marketplace_standings"

# LATERAL and OFFSET 0 have Postgres look up each agent's standing, whatever it expects of their number.
_STANDING_OF_EACH: Final = """LATERAL (
        SELECT * FROM read_models.marketplace_standings AS one WHERE one.agent_id = a.agent_id OFFSET 0
    )"""

# The names of a page's rows alone.
_WITH_NAMES: Final = """
    WITH page AS MATERIALIZED ({page})
    SELECT p.agent_id, p.name, p.status, p.industry_id,
        (SELECT c.name FROM read_models.marketplace_catalogue AS c
         WHERE c.kind = 'industry' AND c.entity_id = p.industry_id) AS industry,
        p.job_role_id,
        (SELECT c.name FROM read_models.marketplace_catalogue AS c
         WHERE c.kind = 'job_role' AND c.entity_id = p.job_role_id) AS job_role,
        p.skill_ids,
        ARRAY(SELECT c.name FROM read_models.marketplace_catalogue AS c
              WHERE c.kind = 'skill' AND c.entity_id = ANY (p.skill_ids) ORDER BY c.name) AS skills,
        p.available, p.available_from, p.ratings, p.bayesian_average
    FROM page AS p ORDER BY {order}
"""

# Ids go on as arrays: so each is looked up by an index, whatever Postgres expects of their number.
_ALL_SKILLS: Final = """a.agent_id = ANY ((
    SELECT array_agg(f.agent_id) FROM (
        SELECT h.agent_id FROM read_models.marketplace_agent_skills AS h
        WHERE h.skill_id = ANY (CAST(:all_skills AS uuid[]))
        GROUP BY h.agent_id HAVING count(*) = :all_skills_count
    ) AS f
)::uuid[])"""

_ANY_SKILLS: Final = """a.agent_id = ANY ((
    SELECT array_agg(DISTINCT h.agent_id) FROM read_models.marketplace_agent_skills AS h
    WHERE h.skill_id = ANY (CAST(:any_skills AS uuid[]))
)::uuid[])"""

# An entry of the catalogue is found where it has every word.
_FOUND: Final = """
    SELECT array_agg(f.entity_id) FROM (
        SELECT w.entity_id FROM read_models.marketplace_words AS w
        WHERE w.kind = '{kind}'
        AND w.word = ANY ((SELECT tsvector_to_array(to_tsvector('simple', CAST(:text AS text))))::text[])
        GROUP BY w.entity_id
        HAVING count(*) = (SELECT cardinality(tsvector_to_array(to_tsvector('simple', CAST(:text AS text)))))
    ) AS f
"""

_TEXT: Final = f"""a.agent_id = ANY ((
    SELECT array_agg(DISTINCT f.agent_id) FROM (
        SELECT h.agent_id FROM read_models.marketplace_agent_skills AS h
        WHERE h.skill_id = ANY (({_FOUND.format(kind="skill")})::uuid[])
        UNION ALL
        SELECT b.agent_id FROM read_models.marketplace_agents AS b
        WHERE b.job_role_id = ANY (({_FOUND.format(kind="job_role")})::uuid[])
        UNION ALL
        SELECT b.agent_id FROM read_models.marketplace_agents AS b
        WHERE b.industry_id = ANY (({_FOUND.format(kind="industry")})::uuid[])
    ) AS f
)::uuid[])"""  # noqa: S608 (no value in it)


async def hireable_agents(
    database: Database, search: AgentSearch, *, limit: int = 50, cursor: str | None = None
) -> AgentPage:
    """Return a page of the agents that a search finds, at most `limit` and PAGE_MAX; `cursor` is of the page before.

    `bayesian_average` is (k * m + sum) / (k + n): n ratings of the agent, k = PRIOR_RATINGS at m, the mean of all
    ratings of all agents. Later pages go on with the m of the first, so that their order is the same. An agent whose
    name or rating changes between two pages may come twice, or not at all; no other one does. Raises SearchRefused.
    """
    check_search(search, limit)
    _read_cursor(search, cursor)  # refused before there is a transaction
    async with database.transaction(DEFAULT_TENANT, read_only=True, replica=True) as connection:
        return await find_hireable_agents(connection, search, limit=limit, cursor=cursor)


async def find_hireable_agents(
    connection: AsyncConnection, search: AgentSearch, *, limit: int, cursor: str | None
) -> AgentPage:
    """Return the page of `hireable_agents`, in a read-only transaction of the caller's. Raises SearchRefused."""
    check_search(search, limit)
    after = _read_cursor(search, cursor)
    present_mean = await _begin(connection, search)
    mean = present_mean if after is None else after.mean
    arguments = _arguments(search, mean, after) | {"limit": limit + 1}
    rows = (await connection.execute(_statement(search, after is not None), arguments)).all()
    found = [HireableAgent(*row) for row in rows[:limit]]
    return AgentPage(found, _write_cursor(search, mean, found[-1]) if len(rows) > limit else None)


async def _begin(connection: AsyncConnection, search: AgentSearch) -> float:
    """Return the mean of all ratings, and have the transaction go by indexes where a search needs not compare all."""
    mean: float | None = (await connection.execute(_MEAN, _planning(search))).one().mean
    return NEUTRAL_RATING if mean is None else mean


def _planning(search: AgentSearch) -> dict[str, str]:
    """Return how Postgres is to plan a search: whether it may read whole tables, and sort."""
    all_by_name = not _narrows(search) and search.sort == "name"
    return {"whole_tables": "on" if _compares_all(search) else "off", "sorting": "off" if all_by_name else "on"}


def _narrows(search: AgentSearch) -> bool:
    """Return whether a search has a condition that leaves few agents, found by an index."""
    conditions = (search.industry_id, search.job_role_id, search.all_skills, search.any_skills)
    return any(conditions) or search.text is not None


def _compares_all(search: AgentSearch) -> bool:
    """Return whether a search ranks every agent there is: its order has no index, since the mean is of the moment."""
    return search.sort == "rating" and not _narrows(search)


def _statement(search: AgentSearch, goes_on: bool) -> TextClause:
    """Return the statement of a page: the conditions that are set, and no others, so that each has its own plan."""
    conditions = ["a.status <> 'retired'"]
    if search.industry_id is not None:
        conditions.append("a.industry_id = :industry_id")
    if search.job_role_id is not None:
        conditions.append("a.job_role_id = :job_role_id")
    if search.all_skills:
        conditions.append(_ALL_SKILLS)
    if search.any_skills:
        conditions.append(_ANY_SKILLS)
    if search.text is not None:
        conditions.append(_TEXT)
    if search.available_at is not None:
        conditions.append("(s.available OR s.available_from <= :available_at)")
    if search.lowest_rating is not None:
        conditions.append(f"{_AVERAGE} >= :lowest_rating")
    if goes_on and search.sort == "name":
        conditions.append("(a.name, a.agent_id) > (:after_value, :after_id)")
    if goes_on and search.sort == "rating":
        conditions.append(
            f"({_AVERAGE} < :after_value OR {_AVERAGE} = :after_value AND a.agent_id > CAST(:after_id AS uuid))"
        )
    standings = _STANDINGS if _compares_all(search) else _STANDING_OF_EACH
    page = _PAGE.format(
        average=_AVERAGE, standings=standings, conditions=" AND ".join(conditions), order=_order(search.sort, "a")
    )
    return text(_WITH_NAMES.format(page=page, order=_order(search.sort, "p")))


def _order(sort: Sort, table: str) -> str:
    first = f"{table}.name" if sort == "name" else "bayesian_average DESC"
    return f"{first}, {table}.agent_id"


def _arguments(search: AgentSearch, mean: float, after: _Cursor | None) -> dict[str, Any]:
    """Return the values of the parameters that the statement has."""
    values: dict[str, Any] = {"prior": PRIOR_RATINGS, "prior_sum": PRIOR_RATINGS * mean}
    for name in ("industry_id", "job_role_id", "text", "available_at", "lowest_rating"):
        if (value := getattr(search, name)) is not None:
            values[name] = value
    if search.all_skills:
        wanted = sorted(set(search.all_skills))
        values |= {"all_skills": wanted, "all_skills_count": len(wanted)}
    if search.any_skills:
        values["any_skills"] = list(search.any_skills)
    if after is not None:
        values |= {"after_value": after.value, "after_id": after.agent_id}
    return values


def _write_cursor(search: AgentSearch, mean: float, last: HireableAgent) -> str:
    value = last.name if search.sort == "name" else last.bayesian_average
    written = msgspec.json.encode(_Cursor(search.sort, mean, value, last.agent_id))
    return base64.urlsafe_b64encode(written).decode().rstrip("=")


def _read_cursor(search: AgentSearch, cursor: str | None) -> _Cursor | None:
    """Return what a cursor says. Raises SearchRefused for one that this search did not make."""
    if cursor is None:
        return None
    try:
        if len(cursor) > CURSOR_MAX_CHARACTERS:
            raise ValueError
        read = msgspec.json.decode(base64.b64decode(cursor + "=" * (-len(cursor) % 4), "-_", True), type=_Cursor)
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise SearchRefused(why="The cursor is not one that a page of this search ended with.") from error
    kind = str if read.sort == "name" else float
    if "\x00" in str(read.value):
        raise SearchRefused(why="The cursor is not one that a page of this search ended with.")
    if read.sort != search.sort or type(read.value) is not kind or not 1 <= read.mean <= 5:
        raise SearchRefused(why="The cursor is of a search with another order.")
    return read
