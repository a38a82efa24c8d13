"""A dead letter as operators see it: what is decoded of it, and what stands in for what is missing."""

from __future__ import annotations

import doctest
from datetime import UTC, datetime
from uuid import UUID

import pytest

from audit.canonical import headers_bytes
from operations.dead_letters import dead_letter, errors, search
from operations.dead_letters.dead_letter import DeadLetter, entity_of, repaired_id
from projections.dead_letter_rows import LoggedRow
from projections.repeats import ID_REUSED
from runtime import process
from schemas import codec
from schemas.control import RecordSkipped
from schemas.examples import examples
from streams.record_position import RecordPosition

APPENDED = datetime(2026, 11, 27, 8, tzinfo=UTC)
EVENT = examples()["genesis.agent.rated"]
OWN = repaired_id(RecordPosition("genesis.events", 3, 42))


def letter(value: bytes | None, headers: list[tuple[str, bytes | None]] | None = None, reason: str = "r") -> DeadLetter:
    row = LoggedRow(
        topic="genesis.events",
        partition=3,
        offset=42,
        disposition="poison",
        created_at=APPENDED,
        reason=reason,
        key=codec.key(EVENT),
        entity_id=EVENT.entity_id,
        event_id=None,
        event_type=None,
        headers=headers_bytes(headers or []),
        value=value,
        value_bytes=None if value is None else len(value),
    )
    return DeadLetter(row=row)


@pytest.mark.parametrize("module", [dead_letter, errors, search, process])
def test_examples_in_docstrings_hold(module: object) -> None:
    """Each module has some."""
    results = doctest.testmod(module)  # type: ignore[arg-type]
    assert (results.failed, results.attempted > 0) == (0, True)


@pytest.mark.parametrize("value", [None, b"", b"\0", b"\0\0\0\0\x63rest", codec.encode(EVENT) + b"more"])
def test_what_can_not_be_decoded_has_no_data(value: bytes | None) -> None:
    """Its line names type, id and time by the headers, and shows the bytes in hex."""
    headers: list[tuple[str, bytes | None]] = [
        ("ce_type", b"genesis.agent.rated"), ("ce_id", str(UUID(int=7)).encode()), ("ce_time", b"2026-01-02T00:00:00Z"),
    ]  # fmt: skip
    line = letter(value, headers).line()
    assert line["event"] == {
        "type": "genesis.agent.rated", "id": str(UUID(int=7)), "timestamp": "2026-01-02T00:00:00Z", "data": None,
    }  # fmt: skip
    assert line.get("value_hex") == (None if value is None else value.hex())


def test_what_can_be_decoded_is_in_its_line_whole() -> None:
    """As `plant publish` reads events: the fields but for id and time, which stand beside them."""
    event = letter(codec.encode(EVENT)).line()["event"]
    assert (event["id"], event["type"]) == (str(EVENT.event_id), EVENT.event_type)
    assert event["data"]["agent_id"] == str(EVENT.entity_id)
    assert "occurred_at" not in event["data"]


@pytest.mark.parametrize("stated", [b"", b"no id", b"\xff", None])
def test_an_id_that_is_none_is_made_of_the_position(stated: bytes | None) -> None:
    """The same each time, so that redriving a file again gives the same event."""
    assert letter(b"", [("ce_id", stated), ("ce_time", stated)]).event_id == OWN
    assert letter(b"", [("ce_id", stated), ("ce_time", stated)]).occurred_at == APPENDED


def test_an_id_that_was_used_before_gets_another() -> None:
    """In the default of a repair and in the line that is to be repaired."""
    reused = letter(codec.encode(EVENT), [("ce_id", str(EVENT.event_id).encode())], reason=ID_REUSED)
    assert reused.event_id == OWN
    assert reused.line()["event"]["id"] == str(OWN)


def test_a_control_record_is_no_event_to_repair() -> None:
    """One that is poison, for its key say, is shown in hex."""
    skipped = RecordSkipped(event_id=UUID(int=1), poison_offset=1, reason="r")
    shown = letter(codec.encode(skipped))
    assert (shown.event_type, shown.line()["event"]["data"]) == ("plant.record.skipped", None)


@pytest.mark.parametrize("key", [None, b"", b"x", b"\xff" * 36, str(UUID(int=1)).encode() + b"\0", b"{" + b"0" * 34])
def test_other_keys_are_no_entitys(key: bytes | None) -> None:
    """Only the canonical text of a UUID is, as no other key can be an event's."""
    assert entity_of(key) is None
