"""An endpoint's choice of events: types, patterns, and fields with values."""

from __future__ import annotations

import doctest
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deliveries import event_filters
from deliveries.errors import EndpointFilterRefused
from deliveries.event_filters import (
    DEPTH_MAX,
    EVENT_TYPES_MAX,
    FIELDS_MAX,
    FILTER_MAX_BYTES,
    INTEGER_MAX,
    VALUES_MAX,
    parse_event_filter,
    parse_event_types,
    passes_filter,
)
from schemas.events import EVENT_TYPES

AGENT = "3f2f7a8e-0d53-4c0e-9d6a-1b1a0c5a7f11"
RATED: dict[str, Any] = {
    "agent_id": AGENT,
    "rating": 5,
    "verified": True,
    "skill_id": None,
    "weight": 1.0,
    "tags": ["a"],
    "agent": {"status": "onboarded", "team": {"size": 0}},
}

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("types", "event_type", "included"),
    [
        (["genesis.agent.rated"], "genesis.agent.rated", True),
        (["genesis.agent.rated"], "genesis.agent.rated_again", False),
        (["genesis.agent.*"], "genesis.agent.rated", True),
        (["genesis.agent.*"], "genesis.agent.skill.rated", True),
        (["genesis.agent.*"], "genesis.agents.rated", False),
        (["genesis.agent.*"], "genesis.agent", False),
        (["genesis.*"], "genesis.skill.validated", True),
        (["*"], "genesis.skill.validated", True),
        (["*"], "plant.endpoint.disabled", False),
        (["*"], "plant.operation.recorded", False),
        (["genesis.*", "plant.endpoint.*"], "plant.endpoint.disabled", True),
        (["plant.endpoint.disabled"], "plant.endpoint.disabled", True),
        (["plant.endpoint.disabled"], "plant.endpoint.recovered", False),
        (["genesis.skill.validated", "genesis.agent.*"], "genesis.skill.validated", True),
    ],
)
def test_types_are_names_and_patterns(types: list[str], event_type: str, included: bool) -> None:
    """A pattern stands for whole segments at the end, and Plant's own events go to those who name them."""
    assert parse_event_types(types).include(event_type) is included


@pytest.mark.parametrize(
    "text",
    [
        "", "genesis", "genesis.", ".genesis.agent", "genesis..agent", "genesis.ag*", "genesis.*.rated", "*.rated",
        "**", "genesis.agent.**", "genesis.*.*", "Genesis.agent.rated", "genesis.agent.rated ",
        "genesis.agent.rated\n", "genesis.agent.(rated|onboarded)", "plant.*", "plant.operation.recorded",
        "plant.record.*", "other.agent.rated",
        "genesis." + "a" * 200, 7, None,
    ],
)  # fmt: skip
def test_another_text_is_no_type(text: Any) -> None:
    """A star stands alone or after the last dot, names are in lower case, and Plant's log is not delivered."""
    with pytest.raises(EndpointFilterRefused, match=r"write genesis\.agent\.rated|begin with genesis"):
        parse_event_types(["genesis.agent.rated", text])


@pytest.mark.parametrize("types", [[], ["*"] * (EVENT_TYPES_MAX + 1), "genesis.agent.rated"])
def test_types_are_a_list_of_bounded_length(types: Any) -> None:
    """There are 1 to 64 types; one text is no list of its letters."""
    assert parse_event_types(["*"] * EVENT_TYPES_MAX)
    with pytest.raises(EndpointFilterRefused, match="list of 1 to 64"):
        parse_event_types(types)


@pytest.mark.parametrize("text", ["genesis.agent.promoted", "genesis.agents.*", "plant.endpoint.*"])
def test_a_type_that_is_not_known_is_refused(text: str) -> None:
    """A misspelt type would never be delivered: with known types it is refused by its name."""
    assert parse_event_types(
        ["*", "genesis.agent.*", *(name for name in EVENT_TYPES if "genesis" in name)], EVENT_TYPES
    )
    with pytest.raises(EndpointFilterRefused, match="stands for no event type") as refused:
        parse_event_types(["*", text], EVENT_TYPES)
    assert text in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "passed"),
    [
        ({}, True),
        ({"agent_id": AGENT}, True),
        ({"agent_id": [AGENT, "other"]}, True),
        ({"agent_id": AGENT.upper()}, False),
        ({"agent_id": AGENT, "rating": [4, 5]}, True),
        ({"agent_id": AGENT, "rating": [3, 4]}, False),
        ({"rating": "5"}, False),
        ({"rating": True}, False),
        ({"verified": True}, True),
        ({"verified": 1}, False),
        ({"verified": [1, True]}, True),
        ({"weight": 1}, False),
        ({"skill_id": None}, True),
        ({"absent": None}, False),
        ({"skill_id": [False, 0, ""]}, False),
        ({"agent.status": "onboarded"}, True),
        ({"agent.team.size": 0}, True),
        ({"agent.team.size": False}, False),
        ({"agent.team.size.more": 0}, False),
        ({"agent": None}, False),
        ({"tags": "a"}, False),
        ({"rating.stars": 5}, False),
    ],
)
def test_all_fields_hold(fields: dict[str, object], passed: bool) -> None:
    """An event passes where each field has one of its values, of the same kind: true is not 1, absent is not null."""
    assert passes_filter(parse_event_filter(fields), RATED) is passed


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ([], "object of fields"), ("rating", "object of fields"), (None, "object of fields"),
        ({"": 1}, "names no field"), ({"a..b": 1}, "names no field"), ({".a": 1}, "names no field"),
        ({"a[0]": 1}, "names no field"), ({"$.a": 1}, "names no field"), ({"a*": 1}, "names no field"),
        ({"a b": 1}, "names no field"), ({"a\n": 1}, "names no field"), ({7: 1}, "names no field"),
        ({"a" * 201: 1}, "names no field"), ({".".join("abcdefghi"): 1}, "too deep"),
        ({"a": 1.0}, "fraction"), ({"a": [1, float("nan")]}, "fraction"), ({"a": {"$gt": 1}}, "object or a list"),
        ({"a": [[1]]}, "object or a list"), ({"a": []}, "list of 1 to 16"), ({"a": list(range(17))}, "list of 1 to 16"),
        ({"a": 2**63}, "63 bits"), ({"a": -(2**63)}, "63 bits"), ({"a": "b\x00"}, "NUL"),
        ({"a": "\ud800"}, "surrogate"),
        ({f"a{number}": 1 for number in range(9)}, "at most 8 fields"), ({"a": ["b" * 300] * 14}, "4096 bytes"),
        ({"a": "€" * 1400}, "4096 bytes"),
    ],
)  # fmt: skip
def test_another_filter_is_refused(fields: Any, why: str) -> None:
    """What can't be compared, is too large or too deep is refused, with what is wrong and what to write."""
    with pytest.raises(EndpointFilterRefused, match=why):
        parse_event_filter(fields)


def test_the_bounds_are_the_last_that_pass() -> None:
    """Eight fields, sixteen values, eight objects down, and numbers of 63 bits pass."""
    assert parse_event_filter({f"a{number}": list(range(VALUES_MAX)) for number in range(FIELDS_MAX)})
    assert parse_event_filter({".".join("abcdefgh"): [INTEGER_MAX, -INTEGER_MAX]}).fields[0].path == tuple("abcdefgh")
    assert len("abcdefgh") == DEPTH_MAX
    assert parse_event_filter({"a": "b" * (FILTER_MAX_BYTES - len('{"a":""}'))})


def test_equal_filters_are_equal() -> None:
    """The order of fields and of values makes no other filter, and a value more than once is one."""
    assert parse_event_filter({"a": [1, 2], "b": True}) == parse_event_filter({"b": True, "a": [2, 1, 2]})
    assert parse_event_filter({"a": True}) != parse_event_filter({"a": 1})


@given(st.dictionaries(st.sampled_from(["a", "b", "a.b"]), st.integers(0, 1) | st.booleans(), max_size=2), json_values)
def test_no_data_raises(fields: dict[str, Any], data: Any) -> None:
    """Whatever an event's data is, a filter passes it or not."""
    assert passes_filter(parse_event_filter(fields), data) in (True, False)


@given(st.dictionaries(st.text(max_size=4) | st.sampled_from(["a", "a.b"]), json_values, max_size=3))
def test_a_filter_of_its_own_values_passes(fields: dict[str, Any]) -> None:
    """A filter is refused or read, and the event that has just its values passes it, after JSON too."""
    try:
        parsed = parse_event_filter(fields)
    except EndpointFilterRefused:
        return
    data: dict[str, Any] = {}
    for field in parsed.fields:
        inner = data
        for segment in field.path[:-1]:
            inner = inner.setdefault(segment, {})
            if not isinstance(inner, dict):  # a filter of both `a` and `a.b` passes nothing
                return
        inner[field.path[-1]] = next(iter(field.values))[1]
    if {"a", "a.b"} <= fields.keys():
        return
    assert passes_filter(parsed, msgspec.json.decode(msgspec.json.encode(data)))


def test_examples() -> None:
    """The examples in the docstrings hold."""
    assert doctest.testmod(event_filters).failed == 0
