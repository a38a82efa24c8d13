"""What is asked of an entity before it is written: its structure, and the constitution's rules.

Pure functions of an entity's fields. Writes through the mapped classes and through `entities/store.py` call
:func:`accept`; what else reaches the tables meets the same limits again as CHECK constraints, less the rules.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from entities.errors import ConstitutionBroken, EntityInvalid, listed
from entities.vocabulary import (
    ATTRIBUTES_DEPTH_MAX,
    ATTRIBUTES_VALUES_MAX,
    EMBEDDING_DIMENSIONS,
    ENTITY_TYPES,
    IDS_MAX,
    NAME_MAX_CHARACTERS,
    RETIRED,
    SENIORITIES,
    SKILL_CATEGORIES,
    STUB,
    TAG_MAX_CHARACTERS,
    TAGS_MAX,
    TEXT_MAX_CHARACTERS,
)

if TYPE_CHECKING:
    from entities.entity import Entity

Amendments = Sequence[dict[str, Any]]


class Violation(NamedTuple):
    """A field that is not what it has to be."""

    field: str
    problem: str

    def __str__(self) -> str:
        return f"{self.field} {self.problem}"


class Verdict(NamedTuple):
    """What one rule says of one entity. `reason` is empty where the rule holds."""

    rule: str
    level: Literal["L0", "L1"]
    holds: bool
    reason: str


class Rule(NamedTuple):
    """A rule of the constitution. L0 may never be broken; what breaks L1 is written, and marked as drifted.

    `objection` is told the entity and the amendments it had before, and returns why it objects, or nothing.
    """

    name: str
    level: Literal["L0", "L1"]
    meaning: str
    objection: Callable[[Entity, Amendments], str]


def violations(entity: Entity) -> list[Violation]:
    """What is structurally wrong; fields that are not loaded are not looked at. Nothing is asked of a stub."""
    if entity.status == STUB:
        return []
    fields = entity.fields()
    return [
        Violation(name, problem)
        for name, check in _CHECKS.items()
        if name in fields and (problem := check(fields[name], fields))
    ]


def judge(entity: Entity, amendments_before: Amendments = ()) -> list[Verdict]:
    """Every rule's verdict, in the order of :data:`RULES`."""
    objections = [(rule, rule.objection(entity, amendments_before)) for rule in RULES]
    return [Verdict(rule.name, rule.level, not reason, reason) for rule, reason in objections]


def accept(entity: Entity, amendments_before: Amendments = ()) -> None:
    """Let an entity be written, with the verdicts noted on it.

    Raises EntityInvalid for its structure and ConstitutionBroken for an L0 rule. An L1 rule that is broken makes it
    `drifted`, with the reason in `drift_detector`.
    """
    if entity.status == STUB:
        return
    if wrong := violations(entity):
        raise EntityInvalid(f"{entity!r} can't be written.", why=listed([str(violation) for violation in wrong]))
    verdicts = judge(entity, amendments_before)
    if broken := [f"{v.rule}: {v.reason}" for v in verdicts if v.level == "L0" and not v.holds]:
        raise ConstitutionBroken(f"{entity!r} can't be written.", why=listed(broken))
    drift = {v.rule: v.reason for v in verdicts if not v.holds}
    entity.l0_compliance_status = {v.rule: v.holds for v in verdicts if v.level == "L0"}
    entity.amendment_alignment = "drifted" if drift else "aligned"
    entity.drift_detector = drift


Fields = dict[str, Any]
Check = Callable[[Any, Fields], str]


def _text(longest: int, *, shortest: int = 0) -> Check:
    def check(value: Any, _: Fields) -> str:
        if not isinstance(value, str):
            return "must be a text"
        if not shortest <= len(value) <= longest:
            return f"must have {shortest} to {longest} characters, and has {len(value)}"
        return "must not hold NUL characters" if "\x00" in value else ""

    return check


def _optional(check: Check) -> Check:
    return lambda value, fields: "" if value is None else check(value, fields)


def _one_of(*values: str) -> Check:
    return lambda value, _: "" if value in values else f"must be one of {', '.join(values)}"


def _ids(value: Any, _: Fields) -> str:
    return "" if len(value) <= IDS_MAX else f"must have at most {IDS_MAX} ids, and has {len(value)}"


def _tags(value: Any, fields: Fields) -> str:
    if len(value) > TAGS_MAX:
        return f"must be at most {TAGS_MAX}"
    check = _text(TAG_MAX_CHARACTERS, shortest=1)
    return next((problem for tag in value if (problem := check(tag, fields))), "")


def _true(value: Any, _: Fields) -> str:
    return "" if value is True else "must be true"


def _parent(value: Any, fields: Fields) -> str:
    return "must not be the entity itself" if value is not None and value == fields.get("id") else ""


def _attributes(value: Any, _: Fields) -> str:
    if not isinstance(value, dict):
        return "must be an object"
    for count, (depth, leaf) in enumerate(_leaves(value), start=1):
        if depth > ATTRIBUTES_DEPTH_MAX:
            return f"must be nested at most {ATTRIBUTES_DEPTH_MAX} deep"
        if count > ATTRIBUTES_VALUES_MAX:
            return f"must hold at most {ATTRIBUTES_VALUES_MAX} values"
        if isinstance(leaf, str) and "\x00" in leaf:
            return "must not hold NUL characters"
        if isinstance(leaf, float) and not math.isfinite(leaf):
            return "must hold no NaN and no infinity"
    return ""


def _amendments(value: Any, _: Fields) -> str:
    return (
        "" if isinstance(value, list) and all(isinstance(each, dict) for each in value) else "must be a list of objects"
    )


def _leaves(value: Any, depth: int = 1) -> Iterator[tuple[int, Any]]:
    """Keys and scalars with their depth. Deeper than allowed, it stops at the first."""
    if depth > ATTRIBUTES_DEPTH_MAX or not isinstance(value, dict | list):
        yield depth, value
        return
    for each in value if isinstance(value, list) else [*value.keys(), *value.values()]:
        yield from _leaves(each, depth + 1 if isinstance(each, dict | list) else depth)


def _embedding(value: Any, _: Fields) -> str:
    if len(value) != EMBEDDING_DIMENSIONS:
        return f"must have {EMBEDDING_DIMENSIONS} dimensions, and has {len(value)}"
    numbers = [float(number) for number in value]
    if not all(map(math.isfinite, numbers)):
        return "must hold no NaN and no infinity"
    return "" if any(numbers) else "must not be all zero: it would have no direction"


_CHECKS: Final[dict[str, Check]] = {
    "entity_type": _one_of(*ENTITY_TYPES),
    "external_id": _optional(_text(NAME_MAX_CHARACTERS, shortest=1)),
    "status": _text(NAME_MAX_CHARACTERS, shortest=1),
    "governance_agent_id": _text(NAME_MAX_CHARACTERS, shortest=1),
    "governance_notes": _text(TEXT_MAX_CHARACTERS),
    "amendment_history": _amendments,
    "evolution_markers": _attributes,
    "custom_attributes": _attributes,
    "tags": _tags,
    "parent_id": _parent,
    "name": _text(NAME_MAX_CHARACTERS, shortest=1),
    "description": _text(TEXT_MAX_CHARACTERS),
    "category": _one_of(*SKILL_CATEGORIES),
    "seniority": _optional(_one_of(*SENIORITIES)),
    "available": lambda value, _: "" if isinstance(value, bool) else "must be true or false",
    "embedding": _optional(_embedding),
    "skill_ids": _ids,
    "required_skill_ids": _ids,
    "member_ids": _ids,
}

_MAIL: Final = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")


def _governed(entity: Entity, _: Amendments) -> str:
    return "" if entity.governance_agent_id else "nobody governs it"


def _keeps_versions(entity: Entity, _: Amendments) -> str:
    return "" if entity.append_only is True else "append_only is not true"


def _tamper_proof(entity: Entity, _: Amendments) -> str:
    return "" if entity.tamper_proof is True else "tamper_proof is not true"


def _amendments_kept(entity: Entity, before: Amendments) -> str:
    kept = list(entity.amendment_history)[: len(before)]
    return "" if kept == list(before) else "amendments that it had before are gone or changed"


def _impersonal(entity: Entity, _: Amendments) -> str:
    fields = entity.fields()
    texts = [fields.get(name) for name in ("name", "description", "governance_notes")]
    texts += [*entity.tags, *(leaf for _, leaf in _leaves(entity.custom_attributes))]
    found = any(isinstance(text, str) and _MAIL.search(text) for text in texts)
    return "it holds an e-mail address, and what is written is kept for ever" if found else ""


def _amendments_explained(entity: Entity, _: Amendments) -> str:
    for number, amendment in enumerate(entity.amendment_history, start=1):
        missing = [name for name in ("at", "by", "reason") if not amendment.get(name)]
        if missing:
            return f"amendment {number} lacks {', '.join(missing)}"
    return ""


def _retirement_dated(entity: Entity, _: Amendments) -> str:
    if (entity.status == RETIRED) == (entity.deleted_at is not None):
        return ""
    return "it is retired without a date" if entity.status == RETIRED else "it has a deleted_at and is not retired"


def _described(entity: Entity, _: Amendments) -> str:
    return "it has no description" if entity.fields().get("description") == "" else ""


RULES: Final = (
    Rule("L0-01", "L0", "An entity is governed.", _governed),
    Rule("L0-02", "L0", "Its versions are kept.", _keeps_versions),
    Rule("L0-03", "L0", "Its versions are chained.", _tamper_proof),
    Rule("L0-04", "L0", "Its amendments are only added to.", _amendments_kept),
    Rule("L0-05", "L0", "It says nothing about a person.", _impersonal),
    Rule("L1-01", "L1", "Each amendment says when, by whom and why.", _amendments_explained),
    Rule("L1-02", "L1", "It has a deleted_at exactly when it is retired.", _retirement_dated),
    Rule("L1-03", "L1", "It is described.", _described),
)
"""The constitution, as far as a program can check it."""
