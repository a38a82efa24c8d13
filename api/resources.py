"""The resources of the API: each is a read model's listing at a path, with a scope of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Final

import msgspec

from api.parameters import Parameters, read_count, read_time, refused, single
from projections.activity.queries import ACTIVITY
from projections.agents.queries import AGENTS
from projections.listing import Kind, Listing, ListingColumn
from projections.marketplace.agent_search import SKILLS_MAX
from projections.marketplace.queries import HireableAgent
from projections.ratings.queries import OF_AN_AGENT, PLACE, PRIOR_RATINGS, RATING_COLUMNS, recent_days
from projections.skills.queries import SKILLS, VALIDATION_DAYS

HOURS_MAX: Final = 24 * 92
"""Most hours of `/activity`."""
HOURS_DEFAULT: Final = 24
DAYS_MAX: Final = 36_500

Arguments = Callable[[Parameters, datetime], tuple[object, ...]]
"""What the statement's first arguments are, from a request's own parameters and the time. Raises Problem."""


class ResourceParameter(msgspec.Struct, frozen=True):
    """A parameter that is no filter."""

    name: str
    kind: Kind
    meaning: str
    choices: tuple[str, ...] = ()
    repeated: bool = False


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of a read model under a path: a listing, single rows of it, what one key has (`statement`), or a search.

    A statement's arguments are the key, its own (`arguments`), the place behind which a page begins, and its rows.
    """

    name: str
    model: str
    summary: str
    columns: tuple[ListingColumn, ...]
    listing: Listing | None = None
    has_rows: bool = False
    """Whether a single row can be read, at the path and its key."""
    statement: str = ""
    is_search: bool = False
    """Whether it is the search of the marketplace, which has its own order and pages."""
    key_name: str = ""
    place: str = ""
    """The column that the statement's rows are in the order of."""
    extra: tuple[ResourceParameter, ...] = ()
    arguments: Arguments = lambda _parameters, _now: ()

    @property
    def extra_names(self) -> frozenset[str]:
        """The names of the parameters that are no filters."""
        return frozenset(each.name for each in self.extra)


HIREABLE_COLUMNS: Final = (
    ListingColumn("agent_id", "uuid", "The agent.", nullable=False),
    ListingColumn("name", "text", "Its name.", nullable=False),
    ListingColumn("status", "text", "`onboarded`, or what an amendment made of it; never `retired`.", nullable=False),
    ListingColumn("industry_id", "uuid", "Its industry, if any."),
    ListingColumn("industry", "text", "The industry's name; null while the catalogue lacks it."),
    ListingColumn("job_role_id", "uuid", "Its job role, if any."),
    ListingColumn("job_role", "text", "The job role's name; null while the catalogue lacks it."),
    ListingColumn("skill_ids", "uuids", "Its skills.", nullable=False),
    ListingColumn("skills", "texts", "Their names, as far as the catalogue has them.", nullable=False),
    ListingColumn("available", "boolean", "Whether it takes work; null where nobody has said so."),
    ListingColumn("available_from", "time", "When it will take work, where that is known."),
    ListingColumn("ratings", "integer", "How many ratings it has.", nullable=False),
    ListingColumn("bayesian_average", "number", "Their mean with ten at the mean of all agents.", nullable=False),
)
assert tuple(each.name for each in HIREABLE_COLUMNS) == HireableAgent._fields

SEARCH_PARAMETERS: Final = (
    ResourceParameter("industry", "uuid", "Agents of this industry."),
    ResourceParameter("job-role", "uuid", "Agents of this job role."),
    ResourceParameter("skill", "uuid", f"A skill that they all have; up to {SKILLS_MAX} times.", repeated=True),
    ResourceParameter("any-skill", "uuid", f"Skills of which they have one; up to {SKILLS_MAX} times.", repeated=True),
    ResourceParameter("text", "text", "Words, all of them, of a skill, the job role or the industry."),
    ResourceParameter("available-at", "time", "Agents that take work then, or will by then."),
    ResourceParameter("lowest-rating", "number", "The least Bayesian average, from 1 to 5."),
    ResourceParameter("sort", "text", "The order: by name, or the best first; then by id.", choices=("name", "rating")),
)


def _skill_arguments(parameters: Parameters, now: datetime) -> tuple[object, ...]:
    return now, read_count(parameters, "validation-days", VALIDATION_DAYS, DAYS_MAX)


def _activity_arguments(parameters: Parameters, now: datetime) -> tuple[object, ...]:
    """Return the range of hours: the last day, or a bounded one that a request names."""
    stop = _time(parameters, "to") or now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    try:
        start = _time(parameters, "from") or stop - timedelta(hours=HOURS_DEFAULT)
    except OverflowError:
        raise refused("to", "There is no day before it.") from None
    if start >= stop:
        raise refused("from", "It is not before `to`.")
    if stop - start > timedelta(hours=HOURS_MAX):
        raise refused("from", f"It is more than {HOURS_MAX // 24} days before `to`.")
    return start, stop


def _rating_arguments(_parameters: Parameters, now: datetime) -> tuple[object, ...]:
    return PRIOR_RATINGS, *recent_days(now)


def _time(parameters: Parameters, name: str) -> datetime | None:
    text = single(parameters, name)
    moment = None if text is None else read_time(text)
    if text is not None and moment is None:
        raise refused(name, "It is no time with a zone, such as 2026-11-27T08:00:00Z.")
    return moment


RESOURCES: Final[Mapping[str, Resource]] = {
    each.name: each
    for each in (
        Resource(
            name="agents",
            model="agents",
            summary="Agents, by id",
            listing=AGENTS,
            columns=AGENTS.columns,
            has_rows=True,
        ),
        Resource(
            name="skills",
            model="skills",
            summary="Skills, by id",
            listing=SKILLS,
            columns=SKILLS.columns,
            has_rows=True,
            extra=(
                ResourceParameter(
                    "validation-days", "integer", f"How many days a validation holds; else {VALIDATION_DAYS}."
                ),
            ),
            arguments=_skill_arguments,
        ),
        Resource(
            name="marketplace",
            model="marketplace",
            summary="Agents that can be hired, by name or by rating",
            columns=HIREABLE_COLUMNS,
            is_search=True,
            extra=SEARCH_PARAMETERS,
        ),
        Resource(
            name="ratings",
            model="ratings",
            summary="An agent's ratings: all of them, those of the agent as a whole, then those of each skill",
            columns=RATING_COLUMNS,
            statement=OF_AN_AGENT,
            key_name="agent_id",
            place=PLACE,
            arguments=_rating_arguments,
        ),
        Resource(
            name="activity",
            model="activity",
            summary="How many events of each type there were in each hour",
            listing=ACTIVITY,
            columns=ACTIVITY.columns,
            extra=(
                ResourceParameter("from", "time", "The first hour that counts; a day before `to` else."),
                ResourceParameter("to", "time", "Where the hours end, exclusively; the end of this hour else."),
            ),
            arguments=_activity_arguments,
        ),
    )
}
"""Each resource by the first segment of its path, which is the last part of its scope, too."""
