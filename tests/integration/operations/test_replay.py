"""`plant replay`: a slice of history again, from the log's dispositions."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from uuid import UUID

import pytest
import pytest_asyncio
from aiokafka.admin import RecordsToDelete
from aiokafka.structs import TopicPartition

from operations import replay
from operations.event_lines import read_lines
from operations.recovery import RecoveredTopics
from projections import replayed_events
from runtime.settings import Settings
from schemas import codec
from schemas.events import Event
from streams.topics import admin, apply
from tests.conftest import MakeTopic
from tests.support.batches import PARTITIONS as COUNT
from tests.support.batches import TOPIC
from tests.support.command_line import operations, plant
from tests.support.load import fill, some_events
from tests.support.raw_records import read_records
from tests.support.read_model_folds import Applied
from tests.support.rebuilding import PARTITIONS, ProjectedLog
from tests.support.recovering import recovered

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest_asyncio.fixture
async def topics(settings: Settings) -> None:
    """The catalogue's topics are there."""
    await apply(settings)


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of a few events, so that a slice has several."""
    monkeypatch.setattr(replayed_events, "PAGE_EVENTS", 7)


def by_entity(events: list[Event]) -> dict[UUID, list[Event]]:
    """Events by their entity, in order."""
    found: dict[UUID, list[Event]] = {}
    for each in events:
        found.setdefault(each.entity_id, []).append(each)
    return found


def in_order(applied: list[Applied]) -> list[Event]:
    """The events that took effect, partition by partition, in the order in which they did."""
    return [each.event for each in sorted(applied, key=lambda each: each.partition)]


@pytest.mark.usefixtures("topics")
async def test_what_took_effect_is_written_to_a_topic_in_order_and_marked(
    settings: Settings,
    projected_log: ProjectedLog,
    make_topic: MakeTopic,
) -> None:
    """Repeats, poison and control records are left out; parked and repaired events come with what took effect."""
    into = await make_topic(3, family="a-slice-again")
    written = plant(settings, "replay", "--into", into, "--reason", "a test", "--output", "json")
    assert written.returncode == 0, written.stderr
    expected = in_order(projected_log.applied)
    assert json.loads(written.stdout) == [{"into": into, "events": len(expected), "partitions": PARTITIONS}]
    records = await read_records(settings, into, 3)
    values = [codec.decode(record.value, TOPIC) for record in records]
    assert sorted(each.event_id for each in values) == sorted(each.event_id for each in expected)
    assert by_entity(values) == by_entity(expected)
    for record, event in zip(records, values, strict=True):
        headers = dict(record.headers)
        assert record.key == codec.key(event)
        assert headers["ce_id"] == str(event.event_id).encode()
        assert headers["plant_replayed"].decode().startswith(f"{TOPIC}/")
    (action,) = await operations(settings, into)
    assert (action.action, action.reason) == ("events.replay", f"a test [{TOPIC} from earliest to latest]")


async def test_lines_are_what_publish_takes(
    settings: Settings,
    projected_log: ProjectedLog,
) -> None:
    """Each event is a line with its id, its time and its data; the count is on stderr."""
    listed = plant(settings, "replay", "--stdout")
    assert listed.returncode == 0, listed.stderr
    expected = in_order(projected_log.applied)
    assert listed.stderr == f"{len(expected):,} events\n"
    lines = listed.stdout.encode().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [str(each.event_id) for each in expected]
    read = [each for each in read_lines(lines, "cli", NOW) if isinstance(each, Event)]
    assert len(read) == len(expected)
    fields = [{name: getattr(each, name) for name in each.__struct_fields__ if name != "event_id"} for each in read]
    sent = [each.without_nil() for each in expected]
    assert sent != expected  # the log has ratings of the nil skill, which nobody may publish any more
    wanted = [{name: getattr(each, name) for name in each.__struct_fields__ if name != "event_id"} for each in sent]
    assert fields == wanted


async def test_a_slice_is_bounded_by_offsets_type_and_entity(
    settings: Settings,
    projected_log: ProjectedLog,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By where events took effect; an entity's are in one partition alone."""

    def ids(*arguments: str) -> list[str]:
        ended = plant(settings, "replay", "--stdout", *arguments)
        assert ended.returncode == 0, ended.stderr
        return [json.loads(line)["id"] for line in ended.stdout.splitlines()]

    whole, first = ids(), ids("--to", "80")
    assert 0 < len(first) < len(whole)
    later = ids("--from", "80")
    assert sorted(first + later) == sorted(whole)
    assert ids("--from=-70") == later
    rated = [str(each.event_id) for each in in_order(projected_log.applied) if each.event_type == "genesis.agent.rated"]
    assert rated
    assert ids("--type", "genesis.agent.rated") == rated
    assert ids("--to", "0") == []
    of_entities = by_entity(in_order(projected_log.applied))
    entity_id, counts = max(of_entities), set[int]()

    def of_this_log(key: bytes, count: int) -> int:
        counts.add(count)
        return UUID(key.decode()).int % PARTITIONS

    monkeypatch.setattr(replay, "partition_of", of_this_log)
    own = [str(each.event_id) for each in of_entities[entity_id]]
    assert ids("--entity", str(entity_id)) == own
    assert counts == {COUNT}


@pytest.mark.usefixtures("topics")
async def test_a_slice_is_bounded_by_the_broker_s_times(settings: Settings, make_topic: MakeTopic) -> None:
    """Kafka is asked for them; where it has lost the records of that time, the topic's beginning is no answer."""
    topic = await make_topic(2)
    operations_topic = await make_topic(1, family="plant.operations")
    fill(settings, topic, iter(some_events(20)))
    names = RecoveredTopics(events=topic, operations=operations_topic, dead_letters="genesis.events.dead-none")
    await recovered(settings, names)

    def count(*arguments: str) -> int:
        ended = plant(settings, "replay", "--stdout", "--topic", topic, *arguments)
        assert ended.returncode == 0, ended.stderr
        return len(ended.stdout.splitlines())

    assert [count("--from", "1d"), count("--to", "1d"), count("--from", "2020-01-01", "--to", "0s")] == [20, 0, 20]
    async with admin(settings) as client:
        await client.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=1)})
    refused = plant(settings, "replay", "--stdout", "--topic", topic, "--from", "1d")
    assert (refused.returncode, f"{topic}/0 begins after that time." in refused.stderr) == (2, True)
    assert count() == 20


@pytest.mark.usefixtures("topics")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--into", "genesis.events"], "genesis.events is a topic of the catalogue."),
        (["--into", "genesis.deliveries"], "genesis.deliveries is a topic of the catalogue."),
        ([], "Give one of --into TOPIC and --stdout."),
        (["--into", "a", "--stdout"], "Give one of --into TOPIC and --stdout."),
        (["--stdout", "--type", "genesis.none"], "genesis.none is none of"),
        (["--stdout", "--from", "9", "--to", "3"], "The end is before the start."),
        (["--stdout", "--topic", "genesis.none"], "The log has nothing of genesis.none."),
    ],
)
async def test_what_can_not_be_replayed_is_refused(settings: Settings, arguments: list[str], said: str) -> None:
    """By name, with exit code 2, before anything is written."""
    refused = plant(settings, "replay", *arguments)
    assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr
