"""What `plant consume` asks for, and what it refuses before anything is asked."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from operations.cli.main import run
from schemas.events import AgentAvailable
from streams import consume as consuming
from streams.consume import Received
from streams.record_position import RecordPosition
from streams.start import LastOffsets

AGENT = UUID("72d76358-5032-530d-b5a7-ee89ea19f5a4")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Returns what is asked of a topic that holds one event of every agent but AGENT."""
    calls: list[dict[str, Any]] = []

    async def consume(_: object, **options: Any) -> AsyncGenerator[Received]:
        calls.append(options)
        if options["entity_id"] != AGENT:
            now = datetime(2026, 11, 27, tzinfo=UTC)
            event = AgentAvailable(event_id=uuid4(), agent_id=uuid4(), occurred_at=now, available=True)
            yield Received(event, RecordPosition("genesis.events", 0, 0), now, ())

    monkeypatch.setattr(consuming, "consume", consume)
    return calls


def test_both_ends_take_the_same_forms(asked: list[dict[str, Any]]) -> None:
    """A number before the end begins with a dash, which is no option; durations go back from the same moment."""
    assert run(["consume", "--from", "-10", "--to", "-5"]) == 0
    assert run(["consume", "--from=-10", "--to", "offset:20261126"]) == 0
    assert run(["consume", "--from", "10m", "--to", "5m"]) == 0
    assert run(["consume", "--from", "2026-11-26", "--to", "2026-11-27T08:00:00Z"]) == 0
    ranges = [(call["start"], call["end"]) for call in asked]
    assert ranges[:2] == [(LastOffsets(10), LastOffsets(5)), (LastOffsets(10), 20261126)]
    assert ranges[2][1] - ranges[2][0] == timedelta(minutes=5)
    assert ranges[3] == (datetime(2026, 11, 26, tzinfo=UTC), datetime(2026, 11, 27, 8, tzinfo=UTC))


def test_a_moment_is_an_end(asked: list[dict[str, Any]]) -> None:
    """What was there at a time, of an entity say: from the beginning to the time, or a duration before now."""
    assert run(["consume", "--as-of", "2026-11-27", "--entity", str(AGENT)]) == 0
    assert run(["consume", "--as-of", "10m", "--from", "20m"]) == 0
    first, second = asked
    assert (first["start"], first["end"], first["entity_id"]) == ("earliest", datetime(2026, 11, 27, tzinfo=UTC), AGENT)
    assert second["end"] - second["start"] == timedelta(minutes=10)


@pytest.mark.parametrize("more", [["42"], ["latest"], ["-10"], ["10m", "--to", "5m"], ["10m", "--follow"]])
def test_what_is_no_moment_is_refused(more: list[str], asked: list[dict[str, Any]]) -> None:
    """An offset is another one in each partition; a second end, or none, contradicts it."""
    assert run(["consume", "--as-of", *more]) == 2
    assert asked == []


@pytest.mark.parametrize("option", ["--from", "--to", "--as-of"])
def test_a_date_without_separators_is_refused(
    option: str, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, with both readings and how to write each; nothing is read."""
    assert run(["consume", option, "20261126"]) == 2
    told = capsys.readouterr().err
    assert f"{option} 2026-11-26 or {option} offset:20261126" in told
    assert asked == []


@pytest.mark.parametrize("text", [str(AGENT), str(AGENT).upper(), AGENT.hex, AGENT.urn])
def test_a_key_is_an_entitys_id(text: str, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    """In any form of a UUID; where it has no event, that is written to stderr, and stdout stays empty."""
    assert run(["consume", "--key", text, "--from", "1h"]) == 0
    assert asked[0]["entity_id"] == AGENT
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"no such event of {AGENT} from 1h to latest" in shown.err


@pytest.mark.parametrize("text", ["", "agent", "72d76358-5032-530d-b5a7"])
def test_what_is_no_id_is_refused(text: str, asked: list[dict[str, Any]]) -> None:
    """It can be no record's key: nothing would match it."""
    assert run(["consume", "--key", text]) == 2
    assert asked == []


def test_what_is_followed_has_no_end(asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    """--follow and --to contradict each other."""
    assert run(["consume", "--follow", "--to", "latest"]) == 2
    assert "--to" in capsys.readouterr().err
    assert asked == []
