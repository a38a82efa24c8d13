"""A plan's counts: bounded, whatever is planned."""

from __future__ import annotations

from uuid import UUID

import pytest

from operations.dead_letters import plan as planning
from operations.dead_letters.controls import Control
from operations.dead_letters.errors import PoisonUnchanged
from operations.dead_letters.plan import LEFT_OUT_SHOWN_MAX, Plan
from schemas.control import RecordSkipped
from streams.record_position import RecordPosition


def control(offset: int, key: bytes | None = b"k", topic: str = "t", reason: str = "r") -> Control:
    record = RecordSkipped(event_id=UUID(int=offset), poison_offset=offset, reason="why")
    return Control(RecordPosition(topic, 0, offset), key, record, reason)


def test_the_largest_groups_come_first() -> None:
    """By reason and key; a record without one has a group too."""
    plan = Plan()
    for key in (b"a", b"b", b"b", None):
        plan.add(control(1, key))
    assert [(row["entity"], row["records"]) for row in plan.rows()] == [("b", 2), ("a", 1), (None, 1)]


def test_groups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those beyond the bound are counted together, by reason."""
    monkeypatch.setattr(planning, "GROUPS_MAX", 2)
    plan = Plan()
    for key in (b"a", b"b", b"c", b"d", b"a"):
        plan.add(control(1, key))
    assert {row["entity"]: row["records"] for row in plan.rows()} == {"a": 2, "b": 1, "others": 2}
    assert plan.count == 5


def test_what_is_left_out_is_named_up_to_a_bound() -> None:
    """And counted beyond it."""
    plan = Plan()
    for offset in range(LEFT_OUT_SHOWN_MAX + 5):
        plan.leave_out(PoisonUnchanged(RecordPosition("t", 0, offset), "no value"))
    assert (plan.left_out, len(plan.left_out_shown)) == (LEFT_OUT_SHOWN_MAX + 5, LEFT_OUT_SHOWN_MAX)
    assert plan.left_out_shown[0] == "t/0/0 would be poison again. no value."


def test_the_target_is_one_record_or_the_topics() -> None:
    """No longer than an operator action can hold."""
    plan = Plan()
    plan.add(control(1))
    assert plan.target == "t/0/1"
    plan.add(control(2, topic="s"))
    assert plan.target == "s, t"
    plan.add(control(3, topic="x" * 249))
    assert len(plan.target) == 200
