"""Files of events, line by line."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from operations.event_lines import LINE_MAX_BYTES, InvalidLine, read_lines
from schemas.event_id import event_id
from schemas.events import AgentAvailable, AgentRated
from schemas.examples import examples, webhook_body

NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
DATA = b'{"agent_id":"72d76358-5032-530d-b5a7-ee89ea19f5a4","available":true}'
GOOD = b'{"type":"genesis.agent.available","data":%b}' % DATA


def test_lines_become_events_or_reasons() -> None:
    """Good lines are events with ids of their own or from their content; bad ones carry number and reason."""
    bad = [b"nope", b'{"type":"x.y","data":{}}', GOOD.replace(b"true", b"1"), b'{"a":' + b"[" * 100_000, b"x" * 2**21]
    read = list(read_lines([GOOD + b"\n", b"\n", *bad, GOOD], "cli", NOW))
    first, last = read[0], read[-1]
    assert isinstance(first, AgentAvailable)
    assert isinstance(last, AgentAvailable)
    assert first == last
    assert first.occurred_at == NOW
    assert [line.number for line in read if isinstance(line, InvalidLine)] == [3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"nope", "The line is not JSON in UTF-8."),
        (b'{"type":"x.y","data":' + b"[" * 100_000, "The line is nested too deeply."),
        (b'{"type":"x.y","data":{}}', "The event type 'x.y' is not known at #/type"),
        (b'{"type":"plant.operation.recorded","data":{}}', "The event type 'plant.operation.recorded' is not known"),
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
    assert isinstance(read, AgentAvailable)


def test_a_line_keeps_its_own_id_and_time() -> None:
    """A line with an id and a timestamp is the same event as a webhook that brings them."""
    example = examples()["genesis.agent.rated"]
    line = webhook_body(example).replace("{", '{"id": "msg_7",', 1).replace("\n", " ").encode()
    (read,) = read_lines([line], "cli", NOW)
    assert isinstance(read, AgentRated)
    assert read.event_id == event_id("cli", "msg_7")
    assert read.occurred_at == example.occurred_at
