"""Limits as they are locked with a schema id, and which of them are tighter than others."""

from __future__ import annotations

import pytest

from schemas.events import EVENT_TYPES, AgentRated, EntityAmended, SkillRegistered
from schemas.locked_limits import FieldLimits, limits_to_lock, tightened
from schemas.registry import bundled


def test_limits_are_locked_by_field() -> None:
    """Ranges, lengths, numbers of items, listed texts, nested records, and which state goes with which kind."""
    assert limits_to_lock(AgentRated) == {"rating": {"ge": 1, "le": 5}}
    assert limits_to_lock(SkillRegistered)["description"] == {"max_length": 10_000}
    amended = limits_to_lock(EntityAmended)
    assert amended["agent.skill_ids"] == {"max_items": 1_000}
    assert amended["skill.category"] == {"one_of": ["domain_expertise", "soft_skill", "technical"]}
    assert amended["entity_type"]["states"] == ["agent", "skill", "job_role", "industry", "team"]


def test_every_bundled_version_has_its_limits() -> None:
    """They are in the registry itself, not only in today's structs."""
    assert all(version.limits is not None for version in bundled().versions)
    for event in EVENT_TYPES.values():
        assert bundled().current(event).limits == limits_to_lock(event)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ({"max_length": 200}, {"max_length": 201}),
        ({"min_length": 1}, {}),
        ({"min_length": 1}, {"min_length": 0}),
        ({"ge": 1, "le": 5}, {"ge": 0, "le": 10}),
        ({"max_items": 10}, {"max_items": 11}),
        ({"one_of": ["a", "b"]}, {"one_of": ["b", "c", "a"]}),
        ({"one_of": ["a", "bb"]}, {"min_length": 1, "max_length": 2}),
        ({"states": ["a"]}, {"states": ["a", "b"]}),
    ],
)
def test_a_limit_that_goes_the_other_way_is_tighter(earlier: FieldLimits, later: FieldLimits) -> None:
    """Each of these loosens; the way back is refused, by the field's name."""
    assert list(tightened({"x": later}, {"x": earlier})) == []
    assert {found.field for found in tightened({"x": earlier}, {"x": later})} == {"x"}
    assert list(tightened({"x": later}, {"x": later})) == []


def test_a_new_limit_is_a_tighter_one() -> None:
    """A field that had none held values which the new one refuses."""
    ((field, rule),) = tightened({"x": {"max_length": 5}}, {})
    assert (field, rule) == ("x", "max_length is 5 and there was none: a limit may only be loosened")
    assert [found.rule for found in tightened({"x": {"one_of": ["a"]}}, {"x": {"one_of": ["a", "b"]}})] == [
        "one_of is a and it was a, b: a limit may only be loosened"
    ]


def test_a_free_text_allows_listed_ones_only_where_it_is_long_enough() -> None:
    """Listed texts are compared by their lengths."""
    assert list(tightened({"x": {"max_length": 2}}, {"x": {"one_of": ["abc"]}}))
