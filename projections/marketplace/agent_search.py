"""What may be searched for in the marketplace, and its bounds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

import msgspec

from entities.errors import SearchRefused
from entities.vocabulary import NAME_MAX_CHARACTERS

Sort = Literal["name", "rating"]

PAGE_MAX: Final = 200
"""Agents of one page."""

SKILLS_MAX: Final = 50
"""Skills in one filter."""

TEXT_MAX_CHARACTERS_SEARCHED: Final = NAME_MAX_CHARACTERS


class AgentSearch(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on agents; all that are set have to hold. Agents that are retired, or not onboarded, never come."""

    industry_id: UUID | None = None
    job_role_id: UUID | None = None
    all_skills: Sequence[UUID] = ()
    """Skills that an agent has to have, every one."""
    any_skills: Sequence[UUID] = ()
    """Skills of which an agent has to have one."""
    text: str | None = None
    """Words that stand, all of them, in the name or the description of its job role, its industry or one skill."""
    available_at: datetime | None = None
    """A moment: the agent is available, or will be by then."""
    lowest_rating: float | None = None
    """From 1 to 5: the least Bayesian average."""
    sort: Sort = "name"
    """By name; or by rating, the best first. Then by id."""


def check_search(search: AgentSearch, limit: int) -> None:
    """Raise SearchRefused for a search, or a page, that is out of bounds."""
    if isinstance(limit, bool) or not 1 <= limit <= PAGE_MAX:
        raise SearchRefused(why=f"limit must be from 1 to {PAGE_MAX}, and is {limit}.")
    for name, ids in (("all_skills", search.all_skills), ("any_skills", search.any_skills)):
        _check_ids(name, ids)
    if search.text is not None and len(search.text) > TEXT_MAX_CHARACTERS_SEARCHED:
        raise SearchRefused(
            why=f"text has at most {TEXT_MAX_CHARACTERS_SEARCHED} characters, and this one {len(search.text)}."
        )
    if search.text is not None and "\x00" in search.text:
        raise SearchRefused(why="text has a NUL character.")
    if search.lowest_rating is not None and not 1 <= search.lowest_rating <= 5:
        raise SearchRefused(why=f"lowest_rating must be from 1 to 5, and is {search.lowest_rating}.")
    if search.available_at is not None and search.available_at.tzinfo is None:
        raise SearchRefused(why="available_at must have a time zone.")


def _check_ids(name: str, ids: Collection[UUID]) -> None:
    if len(ids) > SKILLS_MAX:
        raise SearchRefused(why=f"{name} has at most {SKILLS_MAX} skills, and this one {len(ids)}.")
