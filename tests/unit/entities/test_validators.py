"""What is asked of an entity before it is written: every field's check, every rule of the constitution both ways."""

from __future__ import annotations

import doctest
import json
import math
import time
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from entities import errors, structure, validators
from entities.agent import Agent
from entities.entity import Entity
from entities.errors import ConstitutionBroken, EntityInvalid, EntityRefused, listed
from entities.industry import Industry
from entities.job_role import JobRole
from entities.skill import Skill
from entities.structure import CHECKS
from entities.team import Team
from entities.validators import RULES, accept, judge, violations
from entities.vocabulary import ATTRIBUTES_DEPTH_MAX, ATTRIBUTES_VALUES_MAX, IDS_MAX, RETIRED, STUB, TAGS_MAX

NOW = datetime(2026, 1, 2, tzinfo=UTC)
IDS = {uuid4() for _ in range(IDS_MAX)}
AMENDMENT = {"at": "2026-01-02T00:00:00+00:00", "by": "genesis", "reason": "a better name"}
KINDS: dict[type[Entity], dict[str, Any]] = {
    Agent: {},
    Skill: {"category": "technical", "description": "Asks for rows."},
    JobRole: {"description": "Keeps databases."},
    Industry: {"description": "Makes software."},
    Team: {"description": "Moves the archive."},
}


def entity(kind: type[Entity] = Skill, **fields: Any) -> Entity:
    """A valid one, but for these fields."""
    return kind(**{"name": "SQL", **KINDS[kind], **fields})


def nested(levels: int) -> dict[str, Any]:
    """Objects in each other: this many."""
    return {"in": nested(levels - 1)} if levels > 1 else {"in": 1}


def wide(names_and_values: int) -> dict[str, Any]:
    return {"all": [0] * (names_and_values - 2)}


GOOD: dict[str, list[Any]] = {
    "id": [uuid4()],
    "entity_type": ["agent", "skill", "job_role", "industry", "team"],
    "external_id": [None, "x", "x" * 200],
    "created_at": [None, NOW],
    "deleted_at": [None, NOW],
    "status": ["active", "x", "x" * 200],
    "amendment_history": [[], [AMENDMENT], [{}]],
    "evolution_markers": [{}, {"a": [1, 2.5, None, True, "ü", {"b": {}}]}],
    "append_only": [True, False],
    "tamper_proof": [True, False],
    "tags": [[], ["x" * 100], ["tag"] * TAGS_MAX],
    "custom_attributes": [
        {},
        nested(ATTRIBUTES_DEPTH_MAX),
        wide(ATTRIBUTES_VALUES_MAX),
        {"largest": 2**63 - 1, "smallest": -(2**63) + 1},
    ],
    "governance_notes": ["", "x" * 10_000],
    "parent_id": [None, uuid4()],
    "governance_agent_id": ["genesis", "x" * 200],
    "name": ["x", "🜚" * 200],
    "description": ["", "x" * 10_000],
    "category": ["technical", "soft_skill", "domain_expertise"],
    "seniority": [None, "junior", "mid", "senior"],
    "available": [True, False],
    "embedding": [None, [0.5] * 384, [0.0] * 383 + [1.0]],
    "industry_id": [None, uuid4()],
    "job_role_id": [None, uuid4()],
    "team_id": [None, uuid4()],
    "skill_ids": [set(), IDS],
    "required_skill_ids": [set(), IDS],
    "member_ids": [set(), IDS],
}
_TEXTS = {"name": 200, "description": 10_000, "governance_notes": 10_000, "status": 200, "governance_agent_id": 200}
_TEXTS["external_id"] = 200
_TOO_MANY = {*IDS, uuid4()}
BAD: dict[str, list[Any]] = {
    **{name: [None, 7, b"x", "x" * (most + 1), "a\0b", "\ud800"] for name, most in _TEXTS.items()},
    **{name: ["x", 7] for name in ("parent_id", "industry_id", "job_role_id", "team_id")},
    **{name: [_TOO_MANY, {"x"}] for name in ("skill_ids", "required_skill_ids", "member_ids")},
    **{name: [None, 1, "true"] for name in ("append_only", "tamper_proof", "available")},
    **{name: [NOW.replace(tzinfo=None), "2026-01-02", 0] for name in ("created_at", "deleted_at")},
    **{
        name: [
            None,
            [],
            "{}",
            nested(ATTRIBUTES_DEPTH_MAX + 1),
            wide(ATTRIBUTES_VALUES_MAX + 1),
            {"a": "b\0"},
            {"a\0": 1},
            {"a": "\udfff"},
            {"a": math.nan},
            {"a": -math.inf},
            {"a": 2**63},
            {1: "a"},
            {("a",): 1},
            {"a": NOW},
            {"a": (1, 2)},
            {"a": [{"b": {1, 2}}]},
        ]
        for name in ("custom_attributes", "evolution_markers")
    },
    "id": [None, "x"],
    "entity_type": [None, "", "stub", "Skill"],
    "category": [None, "", "Technical", ["technical"]],
    "seniority": ["", "principal", 1],
    "amendment_history": [None, {}, [1], [AMENDMENT, {"at": math.nan}], [{"at": NOW}]],
    "tags": [None, "tag", ("a",), ["t"] * (TAGS_MAX + 1), [""], ["x" * 101], [None], ["a\0"]],
    "embedding": [
        7,
        "x",
        [],
        [0.5] * 383,
        [[0.5] * 384],
        ["x"] * 384,
        [0.0] * 384,
        [math.nan] * 384,
        [1e39] * 384,
        [1e-50] * 384,
    ],
}  # fmt: skip
BAD["name"].append("")
BAD["status"].append("")
BAD["governance_agent_id"].append("")
BAD["external_id"] = [*BAD["external_id"][1:], ""]


def of(field: str) -> type[Entity]:
    """A kind that has this field."""
    return next(kind for kind in KINDS if hasattr(kind, field))


def test_every_field_has_a_check_and_cases() -> None:
    """No field that can be set goes without a check, and no check without values that pass and that don't."""
    known = {name for kind in KINDS for name in (*kind.__mapper__.columns.keys(), *kind.id_lists)}
    written_here = {"l0_compliance_status", "amendment_alignment", "drift_detector"}
    by_the_database = {
        *("updated_at", "version_hash", "hash_chain_sha256", "_sa_polymorphic_on", "external_id_from_event"),
    }
    assert known - written_here - by_the_database == set(CHECKS) == set(GOOD) == set(BAD)


@pytest.mark.parametrize("kind", KINDS)
def test_the_examples_are_valid(kind: type[Entity]) -> None:
    """What the other tests begin with is in order, and is aligned."""
    found = entity(kind)
    accept(found)
    assert found.amendment_alignment == "aligned"


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in GOOD for value in GOOD[field]])
def test_values_within_the_limits_pass(field: str, value: Any) -> None:
    """Each field at the edges of what it may be."""
    assert CHECKS[field](value) == ""


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in BAD for value in BAD[field]])
def test_values_beyond_the_limits_are_named(field: str, value: Any) -> None:
    """Each field just beyond what it may be, and of another type; the reason never repeats a text."""
    problem = CHECKS[field](value)
    assert problem
    assert not (isinstance(value, str) and len(value) > 5 and value in problem)


@pytest.mark.parametrize("field", [field for field in BAD if not field.endswith("_ids")])
def test_a_bad_field_is_refused_by_name(field: str) -> None:
    """An entity with one bad field is refused, and the refusal says which."""
    refused = entity(of(field), **{field: BAD[field][1]})
    with pytest.raises(EntityInvalid) as caught:
        accept(refused)
    assert caught.value.why.startswith(f"{field} ")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind in KINDS for field in kind.id_lists])
def test_lists_of_ids_have_a_limit(kind: type[Entity], field: str) -> None:
    """As many as an event carries, and no more."""
    accept(entity(kind, **{field: IDS}))
    with pytest.raises(EntityInvalid, match=f"{field} must have at most 1000 ids, and has 1001"):
        accept(entity(kind, **{field: _TOO_MANY}))


def test_an_entity_is_not_its_own_parent() -> None:
    """Its parent is another one, or none."""
    identity = uuid4()
    assert violations(entity(id=identity, parent_id=uuid4())) == []
    assert [str(found) for found in violations(entity(id=identity, parent_id=identity))] == [
        "parent_id must not be the entity itself"
    ]


def test_only_what_is_not_described_is_a_stub() -> None:
    """A described entity can't pass as a stub, which no rule judges, nor a stub as a described entity."""
    stub = Entity(entity_type="skill")
    assert stub.is_stub
    accept(stub)
    assert (stub.amendment_alignment, stub.l0_compliance_status) == ("unknown", {})
    for refused in (entity(status=STUB, description="ada@example.org"), Entity(entity_type="skill", status="active")):
        with pytest.raises(EntityInvalid, match="status must be stub where nothing else is known, and only there"):
            accept(refused)


def test_all_that_is_wrong_is_told_at_once() -> None:
    """Up to five problems in one sentence, then how many more."""
    fields: dict[str, Any] = {
        "name": "",
        "category": "x",
        "tags": None,
        "status": "",
        "external_id": "",
        "parent_id": 1,
    }
    with pytest.raises(EntityInvalid) as caught:
        accept(entity(**fields))
    assert caught.value.why.count(";") == 5
    assert caught.value.why.endswith("; and 1 more.")
    assert listed(["a"]) == "a."


def test_what_refers_to_itself_is_refused() -> None:
    """Attributes that hold themselves, or share much, end in a refusal and not in the stack or in a day's work."""
    circle: dict[str, Any] = {}
    circle["in"] = circle
    shared: list[Any] = []
    for _ in range(ATTRIBUTES_DEPTH_MAX - 2):
        shared = [shared] * 100
    for value in (circle, {"shared": shared}):
        with pytest.raises(EntityInvalid, match="custom_attributes must"):
            accept(entity(custom_attributes=value))


# Each rule: fields that it objects to, with the amendments before, and fields that it lets pass.
OBJECTIONS: dict[str, list[tuple[dict[str, Any], list[dict[str, Any]]]]] = {
    "L0-01": [({"governance_agent_id": ""}, [])],
    "L0-02": [({"append_only": False}, [])],
    "L0-03": [({"tamper_proof": False}, [])],
    "L0-04": [
        ({"amendment_history": []}, [AMENDMENT]),
        ({"amendment_history": [AMENDMENT | {"by": "acme"}]}, [AMENDMENT]),
        ({"amendment_history": [{}, AMENDMENT]}, [AMENDMENT]),
    ],
    "L0-05": [
        ({"name": "ada@example.org"}, []),
        ({"name": "ada@mail.1-x.org"}, []),
        ({"description": "Write to <Ada.Lovelace+jobs@mail.example.org>."}, []),
        ({"governance_notes": "ädä@beispiel-größe.de"}, []),
        ({"tags": ["sql", "ada@example.org"]}, []),
        ({"custom_attributes": {"a": [{"owner": "ada@example.org"}]}}, []),
        ({"custom_attributes": {"ada@example.org": 1}}, []),
        ({"evolution_markers": {"by": "ada@example.org"}}, []),
        ({"amendment_history": [AMENDMENT | {"by": "ada@example.org"}]}, []),
        ({"external_id": "mailto:ada@example.org"}, []),
    ],
    "L1-01": [
        ({"amendment_history": [{}]}, []),
        ({"amendment_history": [AMENDMENT, AMENDMENT | {"reason": ""}]}, []),
    ],
    "L1-02": [({"status": RETIRED}, []), ({"deleted_at": NOW}, [])],
    "L1-03": [({"description": ""}, [])],
}
CONSENTS: dict[str, list[tuple[dict[str, Any], list[dict[str, Any]]]]] = {
    "L0-01": [({"governance_agent_id": "acme"}, [])],
    "L0-02": [({"append_only": True}, [])],
    "L0-03": [({"tamper_proof": True}, [])],
    "L0-04": [
        ({"amendment_history": [AMENDMENT]}, []),
        ({"amendment_history": [AMENDMENT]}, [AMENDMENT]),
        ({"amendment_history": [AMENDMENT, {}]}, [AMENDMENT]),
    ],
    "L0-05": [
        ({"name": "npm package@1.2.3"}, []),
        ({"description": "an @ sign, user@host, @example.org and C@3.5"}, []),
        ({"external_id": "http://data.europa.eu/esco/skill/1"}, []),
    ],
    "L1-01": [({"amendment_history": [AMENDMENT, AMENDMENT]}, [])],
    "L1-02": [({"status": RETIRED, "deleted_at": NOW}, [])],
    "L1-03": [({"description": "x"}, [])],
}


def verdict(rule: str, fields: dict[str, Any], before: list[dict[str, Any]]) -> tuple[bool, str]:
    found = next(each for each in judge(entity(**fields), before) if each.rule == rule)
    return found.holds, found.reason


def test_every_rule_has_cases_and_a_meaning() -> None:
    """The tables of this file name all rules, each rule says what it means, and its level is in its name."""
    names = [rule.name for rule in RULES]
    assert names == sorted(set(names)) == list(OBJECTIONS) == list(CONSENTS)
    assert all(rule.meaning.endswith(".") and rule.name.startswith(rule.level) for rule in RULES)


@pytest.mark.parametrize(("rule", "case"), [(rule, case) for rule in OBJECTIONS for case in OBJECTIONS[rule]])
def test_a_rule_objects(rule: str, case: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    """The rule does not hold, and says why without the text that breaks it."""
    holds, reason = verdict(rule, *case)
    assert not holds
    assert reason
    assert "example" not in reason


@pytest.mark.parametrize(("rule", "case"), [(rule, case) for rule in CONSENTS for case in CONSENTS[rule]])
def test_a_rule_lets_pass(rule: str, case: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    """The rule holds, and gives no reason."""
    assert verdict(rule, *case) == (True, "")


@pytest.mark.parametrize("rule", [rule for rule in OBJECTIONS if rule.startswith("L0") and rule != "L0-01"])
def test_what_breaks_l0_is_refused(rule: str) -> None:
    """It can't be written, and the refusal names the rule. L0-01 is a matter of structure before it is one of rules."""
    for fields, before in OBJECTIONS[rule]:
        with pytest.raises(ConstitutionBroken, match=rule):
            accept(entity(**fields), before)


@pytest.mark.parametrize("rule", [rule for rule in OBJECTIONS if rule.startswith("L1")])
def test_what_breaks_l1_is_written_and_marked(rule: str) -> None:
    """It is marked as drifted, with rule and reason; mended, it is aligned again."""
    for fields, before in OBJECTIONS[rule]:
        found = entity(**fields)
        accept(found, before)
        assert found.amendment_alignment == "drifted"
        assert list(found.drift_detector) == [rule]
        assert found.l0_compliance_status == {name: True for name in OBJECTIONS if name.startswith("L0")}
    found.description, found.status, found.deleted_at, found.amendment_history = "x", "active", None, []
    accept(found)
    assert (found.amendment_alignment, found.drift_detector) == ("aligned", {})


def test_an_agent_needs_no_description() -> None:
    """It has none."""
    assert all(found.holds for found in judge(entity(Agent)))


def test_a_long_text_is_judged_quickly() -> None:
    """No text makes the search for addresses slow: ten thousand characters of each sort take no second together."""
    started = time.process_time()
    for part in ("a", "a.", "@", "a@", "a@a.", "a@a-", ".a@a.1"):
        judge(entity(description=(part * 10_000)[:10_000]))
    assert time.process_time() - started < 1


def test_amendments_and_retirement() -> None:
    """`amend` adds what L1-01 asks for, `retire` sets what L1-02 asks for."""
    found = entity()
    found.amend(at=NOW, by="genesis", reason="a better name")
    found.retire(NOW)
    accept(found)
    assert found.amendment_history == [{"at": NOW.isoformat(), "by": "genesis", "reason": "a better name"}]
    assert (found.status, found.deleted_at, found.amendment_alignment) == (RETIRED, NOW, "aligned")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=3) | st.datetimes(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
    max_leaves=20,
)
anything = (
    json_values
    | st.uuids()
    | st.datetimes(timezones=st.timezones())
    | st.tuples(st.text())
    | st.lists(st.floats() | st.text(), max_size=390)
    | st.sampled_from([value for values in (*GOOD.values(), *BAD.values()) for value in values])
)
SETTABLE = [name for name in CHECKS if not name.endswith("_ids")]


@given(
    st.sampled_from(list(KINDS)), st.dictionaries(st.sampled_from(SETTABLE), anything, max_size=6), st.lists(anything)
)
@example(kind=Skill, fields={"id": "\ud800"}, before=[])
def test_accept_raises_nothing_but_its_own(kind: type[Entity], fields: dict[str, Any], before: list[Any]) -> None:
    """Whatever the fields: it is accepted, or refused with one of the two errors, and what is accepted is JSON."""
    found = entity(kind, **{name: value for name, value in fields.items() if hasattr(kind, name)})
    try:
        accept(found, before)
    except EntityRefused as error:
        refused: EntityRefused | None = error
    else:
        refused = None
    if refused is not None:
        assert type(refused) in {EntityInvalid, ConstitutionBroken}
        assert refused.why
        str(refused).encode()
    else:
        parts = [found.custom_attributes, found.evolution_markers, found.amendment_history, found.drift_detector]
        json.dumps(parts, allow_nan=False).encode()
        assert all(found.l0_compliance_status.values())


@given(st.uuids(), st.text(), st.text())
def test_accepting_twice_is_accepting_once(identity: UUID, name: str, description: str) -> None:
    """The verdicts that were noted are no part of what is judged."""
    try:
        found = entity(id=identity, name=name, description=description)
        accept(found)
    except EntityRefused:
        return
    once = found.fields()
    accept(found)
    assert found.fields() == once


def test_fields_that_are_not_loaded_are_not_looked_at() -> None:
    """A skill without its embedding, which is loaded only when asked for, is judged by the rest."""
    assert "embedding" not in entity().fields()
    assert violations(entity()) == []


@pytest.mark.parametrize("module", [validators, structure, errors])
def test_documented_examples_hold(module: object) -> None:
    """The examples in the docstrings give what they say."""
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]
