"""The search of the marketplace, from the parameters of a request."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, Final, cast
from uuid import UUID

from api.parameters import Parameters, read_value, refused, single
from projections.marketplace.agent_search import SKILLS_MAX, AgentSearch, Sort

_RATING: Final = re.compile(r"[1-4](?:\.[0-9]{1,3})?|5(?:\.0{1,3})?")
_SORTS: Final = ("name", "rating")


def read_search(parameters: Parameters) -> AgentSearch:
    """Return what agents are looked for. Raises Problem (400)."""
    return AgentSearch(
        industry_id=cast("UUID | None", _value(parameters, "industry", "uuid")),
        job_role_id=cast("UUID | None", _value(parameters, "job-role", "uuid")),
        all_skills=_ids(parameters, "skill"),
        any_skills=_ids(parameters, "any-skill"),
        text=cast("str | None", _value(parameters, "text", "text")),
        available_at=cast("datetime | None", _value(parameters, "available-at", "time")),
        lowest_rating=_rating(single(parameters, "lowest-rating")),
        sort=_sort(single(parameters, "sort")),
    )


def _value(parameters: Parameters, name: str, kind: Any) -> object:
    text = single(parameters, name)
    return None if text is None else read_value(name, kind, text)


def _ids(parameters: Parameters, name: str) -> list[UUID]:
    texts = parameters.get(name, [])
    if len(texts) > SKILLS_MAX:
        raise refused(name, f"It may be there {SKILLS_MAX} times.")
    return [cast("UUID", read_value(name, "uuid", text)) for text in texts]


def _rating(text: str | None) -> float | None:
    if text is None:
        return None
    if not _RATING.fullmatch(text):
        raise refused("lowest-rating", "It is no number from 1 to 5, such as 3.5.")
    return float(text)


def _sort(text: str | None) -> Sort:
    if text is None:
        return "name"
    if text not in _SORTS:
        raise refused("sort", f"It is none of {', '.join(_SORTS)}.")
    return cast("Sort", text)
