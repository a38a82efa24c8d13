"""Events read from JSON: each one that is accepted can be encoded, and each error points to its field."""

from __future__ import annotations

import doctest
import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import codec, json_events
from schemas.errors import InvalidEvent
from schemas.event_id import event_id
from schemas.events import EVENT_TYPES, NIL_ID, AgentOnboarded, Event, OperationRecorded
from schemas.examples import examples, webhook_body
from schemas.json_events import (
    DETAIL_MAX_CHARACTERS,
    NESTED_TOO_DEEPLY,
    NOT_JSON,
    decode_json,
    is_accepted,
    read_json_event,
    require_utf8,
    unfit,
)

NOW = datetime(2026, 11, 23, tzinfo=UTC)
AGENT = "72d76358-5032-530d-b5a7-ee89ea19f5a4"
RATED = {"agent_id": AGENT, "rater_id": AGENT, "rating": 4}


def refusal(data: bytes, event_type: str = "genesis.agent.rated", **changes: Any) -> InvalidEvent:
    with pytest.raises(InvalidEvent) as raised:
        read_json_event(event_type, data, event_id("genesis", "m"), changes.pop("time", NOW), **changes)
    return raised.value


def test_plants_own_operations_do_not_come_from_outside() -> None:
    """Only genesis events are accepted, and no type that does not exist."""
    assert [name for name in EVENT_TYPES if not is_accepted(name)] == [OperationRecorded.event_type]
    assert not is_accepted("genesis.unheard.of")


@pytest.mark.parametrize("event", examples().values(), ids=list(examples()))
def test_the_data_of_every_type_is_read(event: Event) -> None:
    """The data of an example, with the two fields that Plant sets, is the example again."""
    data = json.dumps(json.loads(webhook_body(event))["data"]).encode()
    read = read_json_event(event.event_type, data, event_id("genesis", "m"), event.occurred_at)
    assert read.event_id == event_id("genesis", "m")
    assert codec.encode(read)[21:] == codec.encode(event)[21:]


@pytest.mark.parametrize(
    ("data", "pointer", "detail"),
    [
        (RATED | {"rating": 6}, "#/data/rating", "Expected `int` <= 5"),
        ({"agent_id": AGENT}, "#/data/rater_id", "missing required field `rater_id`"),
        (RATED | {"event_id": AGENT}, "#/data/event_id", "unknown field `event_id`"),
        (RATED | {"occurred_at": "2026-11-23T08:00:00Z"}, "#/data/occurred_at", "unknown field `occurred_at`"),
        (RATED | {"surprise": 1}, "#/data/surprise", "unknown field `surprise`"),
        ([], "#/data", "Expected `object`, got `array`"),
        (RATED | {"skill_id": str(NIL_ID)}, "#/data/skill_id", "The nil id names nothing: leave the field out"),
    ],
)
def test_the_error_points_to_the_field(data: object, pointer: str, detail: str) -> None:
    """A field that does not fit, is missing or is unknown is named by its JSON pointer in the body."""
    error = refusal(json.dumps(data).encode())
    assert error.pointer == pointer
    assert detail in error.detail
    assert error.reason == f"{error.detail} at {pointer}"


def test_the_pointer_begins_where_the_data_stands() -> None:
    """Data that is the whole body is pointed into from its root; items of arrays are numbered."""
    assert refusal(json.dumps(RATED | {"rating": 6}).encode(), under="$").pointer == "#/rating"
    onboarded = {"agent_id": AGENT, "name": "A", "skill_ids": [AGENT, "x"]}
    error = refusal(json.dumps(onboarded).encode(), "genesis.agent.onboarded")
    assert error.pointer == "#/data/skill_ids/1"


@pytest.mark.parametrize(
    ("body", "detail", "cause"),
    [
        (b"", NOT_JSON, "DecodeError"),
        (b'{"rating": 4', NOT_JSON, "DecodeError"),
        (b'{"name": "\xff"}', NOT_JSON, "UnicodeDecodeError"),
        (b"[" * 200_000, NESTED_TOO_DEEPLY, ""),
    ],
    ids=["empty", "cut", "bad UTF-8", "deep"],
)
def test_bytes_that_are_no_json_have_no_pointer(body: bytes, detail: str, cause: str) -> None:
    """There is nothing to point at, and the decoder's error is named instead."""
    with pytest.raises(InvalidEvent) as raised:
        decode_json(msgspec.json.Decoder(), body)
    error = raised.value
    assert (error.pointer, error.detail, error.cause, error.reason) == (None, detail, cause, detail)


def test_bytes_that_are_no_utf_8_are_refused_whole() -> None:
    """Decoders skip fields without a look at their bytes, so the whole body is checked first."""
    require_utf8("é".encode())
    with pytest.raises(InvalidEvent) as raised:
        require_utf8(b'{"skipped":"\xff"}')
    assert (raised.value.detail, raised.value.pointer, raised.value.cause) == (NOT_JSON, None, "UnicodeDecodeError")


def test_times_outside_the_calendar_are_pointed_at() -> None:
    """A time whose UTC form lies before the year 1 or after the year 9999 is no event's time."""
    early = datetime.fromisoformat("0001-01-01T00:00:00+14:00")
    assert refusal(json.dumps(RATED).encode(), time=early).pointer == "#/time"


def test_rules_over_several_fields_point_to_the_data() -> None:
    """An amendment without the state that it names is refused as a whole."""
    error = refusal(json.dumps({"entity_id": AGENT, "entity_type": "agent"}).encode(), "genesis.entity.amended")
    assert (error.pointer, error.detail) == ("#/data", "agent must be set when entity_type is agent")


def test_times_are_in_utc() -> None:
    """An event holds its times in UTC, whatever their offset was."""
    east = datetime.fromisoformat("2026-11-23T14:00:00+14:00")
    read = read_json_event("genesis.agent.rated", json.dumps(RATED).encode(), event_id("genesis", "m"), east)
    assert read.occurred_at == NOW
    assert read.occurred_at.tzinfo is UTC


def test_what_the_sender_wrote_is_quoted_in_part() -> None:
    """Detail and pointer have at most 200 characters each; NUL is named in plain words."""
    error = unfit("x" * 1000, "#/" + "y" * 1000)
    assert (error.detail, error.pointer) == ("x" * 200, "#/" + "y" * 198)
    assert DETAIL_MAX_CHARACTERS == 200
    onboarded = {"agent_id": AGENT, "name": "a\0b", "skill_ids": []}
    named = refusal(json.dumps(onboarded).encode(), "genesis.agent.onboarded")
    assert (named.detail, named.pointer) == ("NUL characters are not allowed", "#/data/name")


@settings(max_examples=300)
@given(
    data=st.fixed_dictionaries(
        {
            "agent_id": st.uuids().map(str),
            "name": st.text(max_size=250),
            "skill_ids": st.lists(st.uuids().map(str), max_size=3),
        }
    )
)
def test_an_accepted_event_can_be_encoded_and_read_back(data: dict[str, Any]) -> None:
    """No accepted event is poison later: it encodes, and decodes to the same event."""
    body = json.dumps(data).encode()
    if not 1 <= len(data["name"]) <= 200 or "\0" in data["name"]:
        assert refusal(body, "genesis.agent.onboarded").pointer == "#/data/name"
        return
    event = read_json_event("genesis.agent.onboarded", body, event_id("genesis", "m"), NOW)
    assert isinstance(event, AgentOnboarded)
    assert event.agent_id == UUID(data["agent_id"])
    assert codec.decode(codec.encode(event)) == event


def test_the_docstrings_are_right() -> None:
    """The examples in the module hold."""
    assert doctest.testmod(json_events).failed == 0
    assert doctest.testmod(json_events).attempted > 0
