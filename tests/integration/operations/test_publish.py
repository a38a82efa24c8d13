"""`plant publish`: held to the producer's policy, recorded as one operator action, and no id for two contents."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from operations.cli import main as command_line
from runtime.settings import Settings
from streams.topics import EVENTS_TOPIC, apply
from tests.support.command_line import environ_with, operations
from tests.support.webhooks import read_all

Publish = Callable[..., int]


@pytest.fixture
def producer() -> str:
    """A producer that no other test has: the topics are shared."""
    return f"p{uuid4().hex[:12]}"


@pytest.fixture
def publish(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, producer: str) -> Publish:
    """Publishes lines from a file, in this process."""
    asyncio.run(apply(settings))
    for name, value in environ_with(settings).items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "events.jsonl"

    def publish(*lines: dict[str, object], more: tuple[str, ...] = ()) -> int:
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return command_line.run(["publish", str(file), "--producer", producer, *more])

    return publish


def rating(stars: int, **changes: object) -> dict[str, object]:
    data = {"agent_id": str(uuid4()), "rating": stars, "rater_id": str(uuid4())}
    return {"type": "genesis.agent.rated", "data": data, "timestamp": "2026-11-27T00:00:00Z", **changes}


def sent(settings: Settings, producer: str) -> list[dict[str, bytes | None]]:
    """The headers of the producer's records."""
    records = asyncio.run(read_all(settings, EVENTS_TOPIC))
    headers = [dict(received.headers) for received in records]
    return [each for each in headers if each.get("plant_producer") == producer.encode()]


def test_a_run_is_one_operator_action_and_its_records_say_so(
    publish: Publish, settings: Settings, producer: str
) -> None:
    """The action is recorded with count and digest; each record names the producer and the action."""
    assert publish(rating(1), rating(2), more=("--actor", "ops", "--reason", "they were lost")) == 0
    (act,) = asyncio.run(operations(settings, producer))
    assert (act.actor, act.action) == ("ops", "events.publish")
    assert act.reason.startswith("they were lost [2 events; sha256 ")
    assert [each["plant_operation"] for each in sent(settings, producer)] == [str(act.operation_id).encode()] * 2


def test_a_producer_is_held_to_its_policy(
    publish: Publish, settings: Settings, producer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Types that it may not send are bad lines; one that is disabled sends nothing; neither is recorded."""
    only = ["producers", "set", producer, "--event-types", "genesis.agent.available"]
    assert command_line.run(only) == 0
    assert publish(rating(1)) == 3
    assert "may not send genesis.agent.rated" in capsys.readouterr().err
    assert publish(rating(1), more=("--skip-invalid",)) == 0
    assert command_line.run(["producers", "set", producer, "--event-types", "all"]) == 0
    assert command_line.run(["producers", "disable", producer, "--execute"]) == 0
    assert publish(rating(1)) == 3
    assert sent(settings, producer) == []
    assert "events.publish" not in {act.action for act in asyncio.run(operations(settings, producer))}


@pytest.mark.parametrize("more", [(), ("--skip-invalid",)])
def test_an_id_with_two_contents_ends_it_before_anything_is_sent(
    publish: Publish, settings: Settings, producer: str, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    """The lines are named; an id that comes twice with the same content is a repeat and passes."""
    first, other = rating(1, id="a"), rating(2, id="a")
    assert publish(first, rating(3), other, more=more) == 3
    assert "Lines 1 and 3 have the same id" in capsys.readouterr().err
    assert sent(settings, producer) == []
    assert publish(first, rating(3), first, more=more) == 0
    assert len(sent(settings, producer)) == 3
