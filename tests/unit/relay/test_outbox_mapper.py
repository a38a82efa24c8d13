"""Rows of the outbox as events: every entity type and event type, and what no event can be made of."""

from __future__ import annotations

import doctest
from datetime import UTC, datetime
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay import outbox
from relay import outbox_mapper as amendments
from relay.outbox import FIRST, LAST, next_after
from relay.outbox_mapper import ENTITY_STATES, OutboxRow, event_of
from schemas import codec
from schemas.errors import Unencodable
from schemas.events import EntityAmended, EntityRetired
from streams.errors import UnmappableRow
from tests.support import made_events

SECRET = "Ada Lovelace"
GOOD: dict[str, dict[str, object]] = {
    "agent": {"name": "a", "available": True, "status": "active", "skill_ids": [str(uuid4())], "team_id": None},
    "skill": {"name": "s", "description": "", "category": "technical", "external_id": None},
    "job_role": {"name": "j", "description": "", "seniority": None, "required_skill_ids": []},
    "industry": {"name": "i", "description": ""},
    "team": {"name": "t", "description": "", "member_ids": []},
}
NOT_CARRIED = {"tags": ["x"], "custom_attributes": {"deep": {"er": 1}}, "deleted_at": None, "parent_id": None}


def change(entity_type: str, state: object, **changes: object) -> OutboxRow:
    """A row of the outbox."""
    row = OutboxRow(
        id=1,
        event_id=uuid4(),
        event_type="genesis.entity.amended",
        entity_id=uuid4(),
        entity_type=entity_type,
        occurred_at=datetime(2026, 11, 23, tzinfo=UTC),
        state=state if isinstance(state, str) else msgspec.json.encode(state).decode(),
    )
    return msgspec.structs.replace(row, **changes)


@settings(deadline=None)
@given(st.sampled_from([EntityAmended, EntityRetired]).flatmap(made_events.events))
def test_a_row_becomes_the_event_that_says_the_same(event: EntityAmended | EntityRetired) -> None:
    """Of any type, whatever else the state holds; its record reads back as that event."""
    state = msgspec.to_builtins(getattr(event, event.entity_type))
    row = change(
        event.entity_type,
        {**NOT_CARRIED, "status": "active", **state},
        event_id=event.event_id,
        event_type=event.event_type,
        entity_id=event.entity_id,
        occurred_at=event.occurred_at,
    )

    made = event_of(row)

    assert made == event
    assert codec.decode(codec.encode(made)) == event


@pytest.mark.parametrize("entity_type", ENTITY_STATES)
def test_a_state_that_lacks_its_name_is_none(entity_type: str) -> None:
    """As when only the row in `entities` was written."""
    event_of(change(entity_type, GOOD[entity_type]))
    with pytest.raises(UnmappableRow, match=f"^.*{entity_type}: Object missing required field `name`$"):
        event_of(change(entity_type, {name: value for name, value in GOOD[entity_type].items() if name != "name"}))


@pytest.mark.parametrize(
    ("entity_type", "wrong", "reason"),
    [
        ("agent", {"skill_ids": [str(uuid4())] * 1001}, "agent.skill_ids: Expected `array` of length <= 1000"),
        ("team", {"member_ids": [SECRET]}, "team.member_ids[0]: Invalid UUID"),
        ("skill", {"category": SECRET}, "skill.category: not a value it may have"),
        ("skill", {"category": f"{SECRET}' - at `$.name`"}, "skill.category: not a value it may have"),
        ("skill", {"name": SECRET * 20}, "skill.name: Expected `str` of length <= 200"),
        ("job_role", {"industry_id": 7}, "job_role.industry_id: Expected `uuid | null`, got `int`"),
        ("industry", {"description": None}, "industry.description: Expected `str`, got `null`"),
    ],
)
def test_a_reason_names_the_field_and_no_value(entity_type: str, wrong: dict[str, object], reason: str) -> None:
    """Reasons are logged and kept, and a value may be anything."""
    with pytest.raises(UnmappableRow) as raised:
        event_of(change(entity_type, {**GOOD[entity_type], **wrong}))

    assert raised.value.reason == reason


@pytest.mark.parametrize(
    ("entity_type", "state", "changes", "reason"),
    [
        ("planet", {}, {}, "entity_type: not one of agent, skill, job_role, industry, team"),
        ("skill", {}, {"event_type": SECRET}, "event_type: neither"),
        ("skill", f'"{SECRET}"', {}, "Expected `object`, got `str`"),
        ("skill", "{", {}, "state: not an object in JSON"),
        ("skill", '{"name": ' + "[" * 100_000, {}, "state: not an object in JSON"),
    ],
    ids=["entity type", "event type", "no object", "no JSON", "too deep"],
)
def test_a_row_that_the_trigger_never_writes_has_a_reason_too(
    entity_type: str, state: object, changes: dict[str, object], reason: str
) -> None:
    """Whatever a row holds, the answer is an event or a reason."""
    with pytest.raises(UnmappableRow) as raised:
        event_of(change(entity_type, state, **changes))

    assert reason in raised.value.reason
    assert SECRET not in raised.value.reason


@settings(deadline=None)
@given(
    st.sampled_from(list(ENTITY_STATES)),
    st.dictionaries(
        st.sampled_from(sorted({name for state in ENTITY_STATES.values() for name in state.__struct_fields__})),
        st.none() | st.booleans() | st.text(max_size=5) | st.lists(st.uuids().map(str), max_size=2) | st.integers(),
    ),
)
def test_any_state_gives_an_event_that_can_be_encoded_or_a_reason(entity_type: str, state: dict[str, object]) -> None:
    """No state ends the relay's cycle with another error."""
    try:
        event = event_of(change(entity_type, {**GOOD[entity_type], **state}))
    except UnmappableRow:
        return
    codec.encode(event)


def test_an_event_that_breaks_a_limit_is_unencodable_with_its_field() -> None:
    """The second check, when the record is made, speaks the same language."""
    event = event_of(change("industry", GOOD["industry"]))
    broken = msgspec.structs.replace(event, industry=msgspec.structs.replace(event.industry, name=SECRET * 20))
    with pytest.raises(Unencodable) as raised:
        codec.encode(broken)

    assert amendments.without_values(raised.value.reason) == "industry.name: Expected `str` of length <= 200"


def test_the_circle_of_entities_is_closed() -> None:
    """After the last id comes the first, and after any other the next."""
    assert next_after(LAST) == FIRST
    assert next_after(UUID(int=41)) == UUID(int=42)


@pytest.mark.parametrize("module", [amendments, outbox])
def test_examples_hold(module: object) -> None:
    """The doctests."""
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]
