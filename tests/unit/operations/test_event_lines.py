"""Files of events, line by line."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from operations.event_lines import LINE_MAX_BYTES, InvalidLine, read_lines, read_sent_lines
from schemas.clock_fields import ClockStamped
from schemas.event_id import event_id
from schemas.events import AgentAvailable, AgentRated
from schemas.examples import examples, webhook_body
from schemas.sender_headers import EventOfSender

NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
DATA = b'{"agent_id":"72d76358-5032-530d-b5a7-ee89ea19f5a4","available":true}'
GOOD = b'{"type":"genesis.agent.available","data":%b}' % DATA


def test_lines_become_events_or_reasons() -> None:
    """Good lines are events with ids of their own or from their content; bad ones carry number and reason."""
    bad = [b"nope", b'{"type":"x.y","data":{}}', GOOD.replace(b"true", b"1"), b'{"a":' + b"[" * 100_000, b"x" * 2**21]
    (sent,) = read_sent_lines([GOOD], "cli", NOW)
    assert isinstance(sent, EventOfSender)
    assert dict(sent.sender)["plant_producer"] == b"cli"
    message_id = dict(sent.sender)["plant_message_id"].decode()
    event = sent.event.event if isinstance(sent.event, ClockStamped) else sent.event
    assert event.event_id == event_id("cli", message_id)
    read = list(read_lines([GOOD + b"\n", b"\n", *bad, GOOD], "cli", NOW))
    first, last = read[0], read[-1]
    assert isinstance(first, ClockStamped)
    assert isinstance(first.event, AgentAvailable)
    assert first == last
    assert first.event.occurred_at == NOW
    assert [line.number for line in read if isinstance(line, InvalidLine)] == [3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"nope", "The line is not JSON in UTF-8."),
        (b'{"type":"x.y","data":' + b"[" * 100_000, "The line is nested too deeply."),
        (b'{"type":"x.y","data":{}}', "The event type 'x.y' is not known at #/type"),
        (b'{"type":"plant.operation.recorded","data":{}}', "The event type 'plant.operation.recorded' is not known"),
        (
            b'{"type":"plant.record.skipped","data":{"poison_offset":1,"reason":"mine"}}',
            "plant.record.skipped is a control record, which operators alone publish at #/type",
        ),
        (GOOD.replace(b"true", b"1"), "Expected `bool`, got `int` at #/data/available"),
        (GOOD.replace(b"}}", b'},"id":"a b"}'), "at #/id"),
        (GOOD.replace(b"}}", b'},"timestamp":"2026-11-23T08:00:00"}'), "at #/timestamp"),
        (GOOD.replace(b"}}", b'},"surprise":1}'), "unknown field `surprise` at #/surprise"),
        (b" " * 5 + b"x" * (LINE_MAX_BYTES + 1), f"longer than {LINE_MAX_BYTES} bytes"),
    ],
)
def test_a_bad_line_says_why_and_where(line: bytes, reason: str) -> None:
    """Each reason points to the field of the line that does not fit."""
    (read,) = read_lines([line], "cli", NOW)
    assert isinstance(read, InvalidLine)
    assert reason in read.reason


def test_a_line_as_long_as_it_may_be_is_read() -> None:
    """The limit counts the line without the blanks around it."""
    padded = GOOD.replace(b"{", b"{" + b" " * (LINE_MAX_BYTES - len(GOOD)), 1)
    assert len(padded) == LINE_MAX_BYTES
    (read,) = read_lines([b"  " + padded + b"\n"], "cli", NOW)
    assert isinstance(read, ClockStamped)


def test_a_line_keeps_its_own_id_and_time() -> None:
    """A line with an id and a timestamp is the same event as a webhook that brings them."""
    example = examples()["genesis.agent.rated"]
    line = webhook_body(example).replace("{", '{"id": "msg_7",', 1).replace("\n", " ").encode()
    (read,) = read_lines([line], "cli", NOW)
    assert isinstance(read, AgentRated)
    assert read.event_id == event_id("cli", "msg_7")
    assert read.occurred_at == example.occurred_at


ONBOARDED = {
    "type": "genesis.agent.onboarded",
    "data": {"agent_id": "72d76358-5032-530d-b5a7-ee89ea19f5a4", "name": "Ada", "skill_ids": []},
}


def id_of(line: dict[str, object], now: datetime = NOW) -> UUID:
    (read,) = read_lines([json.dumps(line).encode()], "cli", now)
    assert not isinstance(read, InvalidLine)
    return read.event.event_id if isinstance(read, ClockStamped) else read.event_id


def with_data(**fields: object) -> dict[str, object]:
    return {**ONBOARDED, "data": {**ONBOARDED["data"], **fields}}  # type: ignore[dict-item]


def test_a_line_written_in_another_way_is_the_same_event() -> None:
    """Order of fields, defaults spelled out, the case of an id and the clock of the run change no id."""
    data = ONBOARDED["data"]
    assert isinstance(data, dict)
    others = [
        {"data": dict(reversed(data.items())), "type": ONBOARDED["type"]},
        with_data(team_id=None, industry_id=None),
        with_data(agent_id=data["agent_id"].upper()),
        {**ONBOARDED, "id": None, "timestamp": None},
    ]
    assert {id_of(each) for each in others} == {id_of(ONBOARDED), id_of(ONBOARDED, NOW + timedelta(days=1))}
    stamped = [{**ONBOARDED, "timestamp": f"2026-11-23T{time}"} for time in ("08:00:00Z", "09:00:00.000+01:00")]
    assert len({id_of(each) for each in stamped}) == 1


def test_a_line_with_other_content_is_another_event() -> None:
    """Another field, type, or a time of its own."""
    lines = [
        ONBOARDED,
        with_data(name="Bob"),
        with_data(team_id="72d76358-5032-530d-b5a7-ee89ea19f5a4"),
        {**ONBOARDED, "timestamp": "2026-11-23T08:00:00Z"},
        {**ONBOARDED, "timestamp": "2026-11-23T08:00:01Z"},
    ]
    assert len({id_of(line) for line in lines}) == len(lines)
