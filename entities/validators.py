"""Validators of an entity before it is written: its structure, and the constitution's rules.

Pure functions of an entity's fields. Writes through the mapped classes and through `entities/store.py` call
:func:`accept`. What reaches the tables otherwise meets the closed sets and the limits of texts and of `tags` again as
CHECK constraints, and the rules L0-01 to L0-04 as constraints and triggers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, Protocol

from entities.errors import ConstitutionBroken, EntityInvalid, listed
from entities.structure import CHECKS, nodes
from entities.vocabulary import RETIRED, STUB

Amendments = Sequence[dict[str, Any]]


class ValidatedEntity(Protocol):
    """The part of an entity that is validated, and the fields that keep the verdicts."""

    governance_agent_id: str
    append_only: bool
    tamper_proof: bool
    amendment_history: list[dict[str, Any]]
    status: str
    deleted_at: datetime | None
    l0_compliance_status: dict[str, Any]
    amendment_alignment: str
    drift_detector: dict[str, Any]

    @property
    def is_stub(self) -> bool:
        """Whether only its id and kind are known."""

    def fields(self) -> dict[str, Any]:
        """Return its fields by name, as far as they are loaded."""


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

    `why_broken` takes the entity and the amendments that it had before, and returns the reason; empty: the rule holds.
    """

    name: str
    level: Literal["L0", "L1"]
    meaning: str
    why_broken: Callable[[ValidatedEntity, Amendments], str]


def violations(entity: ValidatedEntity) -> list[Violation]:
    """Return what is structurally wrong; fields that are not loaded are not examined."""
    fields = entity.fields()
    wrong = [
        Violation(name, problem)
        for name, check in CHECKS.items()
        if name in fields and (problem := check(fields[name]))
    ]
    if fields.get("parent_id") is not None and fields["parent_id"] == fields.get("id"):
        wrong.append(Violation("parent_id", "must not be the entity itself"))
    if entity.is_stub == hasattr(entity, "name"):
        wrong.append(Violation("status", f"must be {STUB} where nothing else is known, and only there"))
    return wrong


def judge(entity: ValidatedEntity, amendments_before: Amendments = ()) -> list[Verdict]:
    """Return every rule's verdict, in the order of :data:`RULES`."""
    broken = [(rule, rule.why_broken(entity, amendments_before)) for rule in RULES]
    return [Verdict(rule.name, rule.level, not reason, reason) for rule, reason in broken]


def accept(entity: ValidatedEntity, amendments_before: Amendments = ()) -> None:
    """Validate an entity that is about to be written, and note the verdicts on it.

    Raises EntityInvalid for its structure and ConstitutionBroken for an L0 rule. An L1 rule that is broken makes it
    `drifted`, with the reason in `drift_detector`. A stub has nothing to judge yet.
    """
    if wrong := violations(entity):
        raise EntityInvalid(f"{entity!r} can't be written.", why=listed([str(violation) for violation in wrong]))
    if entity.is_stub:
        return
    verdicts = judge(entity, amendments_before)
    if broken := [f"{v.rule}: {v.reason}" for v in verdicts if v.level == "L0" and not v.holds]:
        raise ConstitutionBroken(f"{entity!r} can't be written.", why=listed(broken))
    drift = {v.rule: v.reason for v in verdicts if not v.holds}
    entity.l0_compliance_status = {v.rule: v.holds for v in verdicts if v.level == "L0"}
    entity.amendment_alignment = "drifted" if drift else "aligned"
    entity.drift_detector = drift


def _governed(entity: ValidatedEntity, _: Amendments) -> str:
    return "" if entity.governance_agent_id else "nobody governs it"


def _keeps_versions(entity: ValidatedEntity, _: Amendments) -> str:
    return "" if entity.append_only is True else "append_only is not true"


def _tamper_proof(entity: ValidatedEntity, _: Amendments) -> str:
    return "" if entity.tamper_proof is True else "tamper_proof is not true"


def _amendments_kept(entity: ValidatedEntity, before: Amendments) -> str:
    kept = list(entity.amendment_history)[: len(before)]
    return "" if kept == list(before) else "amendments that it had before are gone or changed"


_ADDRESS: Final = re.compile(r"\w@\w[\w-]*(?:\.[\w-]+)*\.[^\W\d_]{2}")


def holds_address(text: str) -> bool:
    """Return whether a text holds an e-mail address.

    >>> [holds_address(text) for text in ("write to ada@example.org", "package@1.2.3", "an @ sign")]
    [True, False, False]
    """
    return _ADDRESS.search(text) is not None


def _impersonal(entity: ValidatedEntity, _: Amendments) -> str:
    texts = (node for value in entity.fields().values() for _, node in nodes(value) if isinstance(node, str))
    personal = any(map(holds_address, texts))
    return "it holds an e-mail address, and what is written is kept permanently" if personal else ""


def _amendments_explained(entity: ValidatedEntity, _: Amendments) -> str:
    for number, amendment in enumerate(entity.amendment_history, start=1):
        missing = [name for name in ("at", "by", "reason") if not amendment.get(name)]
        if missing:
            return f"amendment {number} lacks {', '.join(missing)}"
    return ""


def _retirement_dated(entity: ValidatedEntity, _: Amendments) -> str:
    if (entity.status == RETIRED) == (entity.deleted_at is not None):
        return ""
    return "it is retired without a date" if entity.status == RETIRED else "it has a deleted_at and is not retired"


def _described(entity: ValidatedEntity, _: Amendments) -> str:
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
