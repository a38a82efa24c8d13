"""Checks of the structure of each field, whichever kinds have it: pure functions of a value."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import numpy as np

from entities.vocabulary import (
    ATTRIBUTES_DEPTH_MAX,
    ATTRIBUTES_VALUES_MAX,
    EMBEDDING_DIMENSIONS,
    ENTITY_TYPES,
    IDS_MAX,
    NAME_MAX_CHARACTERS,
    SENIORITIES,
    SKILL_CATEGORIES,
    TAG_MAX_CHARACTERS,
    TAGS_MAX,
    TEXT_MAX_CHARACTERS,
)

StructureCheck = Callable[[Any], str]
"""A function that returns the problem of a value, or nothing."""


def _text(longest: int, *, shortest: int = 0) -> StructureCheck:
    def check(value: Any) -> str:
        if not isinstance(value, str):
            return "must be a text"
        if not shortest <= len(value) <= longest:
            return f"must have {shortest} to {longest} characters, and has {len(value)}"
        return _unwritable(value)

    return check


def _unwritable(text: str) -> str:
    """Return why Postgres can't hold a text. Lone surrogates have no UTF-8."""
    return "must not hold NUL characters or half a character" if _UNWRITABLE.search(text) else ""


_UNWRITABLE: Final = re.compile("[\x00\ud800-\udfff]")


def _optional(check: StructureCheck) -> StructureCheck:
    return lambda value: "" if value is None else check(value)


def _one_of(*values: str) -> StructureCheck:
    return lambda value: "" if isinstance(value, str) and value in values else f"must be one of {', '.join(values)}"


def _id(value: Any) -> str:
    return "" if isinstance(value, UUID) else "must be a UUID"


def _ids(value: Any) -> str:
    if len(value) > IDS_MAX:
        return f"must have at most {IDS_MAX} ids, and has {len(value)}"
    return next((f"{problem} each" for each in value if (problem := _id(each))), "")


def _moment(value: Any) -> str:
    return "" if isinstance(value, datetime) and value.tzinfo is not None else "must be a time with its zone"


def _tags(value: Any) -> str:
    if not isinstance(value, list):
        return "must be a list of texts"
    if len(value) > TAGS_MAX:
        return f"must be at most {TAGS_MAX}"
    return next((f"{problem} each" for tag in value if (problem := _TAG(tag))), "")


_TAG: Final = _text(TAG_MAX_CHARACTERS, shortest=1)


def _object(value: Any) -> str:
    return _tree(value) if isinstance(value, dict) else "must be an object"


def _amendments(value: Any) -> str:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        return "must be a list of objects"
    return next((problem for each in value if (problem := _tree(each))), "")


def _tree(value: Any) -> str:
    """Return the problem of a value that must be JSON."""
    for count, (depth, node) in enumerate(nodes(value)):
        if depth == ATTRIBUTES_DEPTH_MAX and isinstance(node, dict | list):
            return f"must be nested at most {ATTRIBUTES_DEPTH_MAX} deep"
        if count > ATTRIBUTES_VALUES_MAX:
            return f"must hold at most {ATTRIBUTES_VALUES_MAX} names and values"
        if problem := _node(node):
            return problem
    return ""


def _node(value: Any) -> str:
    if isinstance(value, str):
        return _unwritable(value)
    if isinstance(value, float):
        return "" if math.isfinite(value) else "must hold no NaN and no infinity"
    if isinstance(value, int):
        return "" if value.bit_length() < 64 else "must hold no whole number of more than 64 bits"
    if isinstance(value, dict):
        return "" if all(isinstance(name, str) for name in value) else "must hold no name that is not a text"
    return "" if value is None or isinstance(value, list) else f"must hold no {type(value).__name__}: JSON has none"


def nodes(value: Any, depth: int = 0) -> Iterator[tuple[int, Any]]:
    """Yield a value with its depth, then all names and values in it; skip values that are nested too deeply."""
    yield depth, value
    if depth == ATTRIBUTES_DEPTH_MAX:
        return
    if isinstance(value, dict):
        for name in value:
            yield depth + 1, name
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from nodes(each, depth + 1)


def _embedding(value: Any) -> str:
    try:
        with np.errstate(over="ignore"):
            numbers = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        return "must be numbers"
    if numbers.shape != (EMBEDDING_DIMENSIONS,):
        return f"must have {EMBEDDING_DIMENSIONS} dimensions, and has the shape {numbers.shape}"
    if not np.isfinite(numbers).all():
        return "must hold no NaN and no infinity, also in four bytes each"
    return "" if numbers.any() else "must not be all zero: it would have no direction"


def _bool(value: Any) -> str:
    return "" if isinstance(value, bool) else "must be true or false"


CHECKS: Final[Mapping[str, StructureCheck]] = {
    "id": _id,
    "entity_type": _one_of(*ENTITY_TYPES),
    "external_id": _optional(_text(NAME_MAX_CHARACTERS, shortest=1)),
    "created_at": _optional(_moment),
    "deleted_at": _optional(_moment),
    "status": _text(NAME_MAX_CHARACTERS, shortest=1),
    "amendment_history": _amendments,
    "evolution_markers": _object,
    "append_only": _bool,
    "tamper_proof": _bool,
    "tags": _tags,
    "custom_attributes": _object,
    "governance_notes": _text(TEXT_MAX_CHARACTERS),
    "parent_id": _optional(_id),
    "governance_agent_id": _text(NAME_MAX_CHARACTERS, shortest=1),
    "name": _text(NAME_MAX_CHARACTERS, shortest=1),
    "description": _text(TEXT_MAX_CHARACTERS),
    "category": _one_of(*SKILL_CATEGORIES),
    "seniority": _optional(_one_of(*SENIORITIES)),
    "available": _bool,
    "embedding": _optional(_embedding),
    "industry_id": _optional(_id),
    "job_role_id": _optional(_id),
    "team_id": _optional(_id),
    "skill_ids": _ids,
    "required_skill_ids": _ids,
    "member_ids": _ids,
}
"""The check of each field, whichever kinds have it."""
