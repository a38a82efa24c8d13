"""`plant dead-letters`: what is listed and shown, what is refused, and what redriving and skipping publish."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4, uuid5

import msgspec
import pytest

from database.connector import connect
from operations.dead_letters.dead_letter import repaired_id
from operations.dead_letters.publishing import PublishedRanges, await_effects
from operations.operator_actions import ACTIONS_PRODUCER
from projections import dead_letter_rows
from projections.dead_letter_rows import DeadLetterRows
from projections.repeats import ID_REUSED
from runtime.settings import Settings
from schemas import codec
from schemas.control import RecordRedriven, RecordSkipped
from schemas.event_id import NAMESPACE_PLANT, event_id
from schemas.events import AgentRated, OperationRecorded
from streams.partitioning import partition_of
from streams.record_position import RecordPosition
from streams.topics import OPERATIONS_TOPIC, RECORD_MAX_BYTES, apply
from tests.conftest import Database
from tests.support.command_line import operations, plant
from tests.support.made_dead_letters import APPENDED, UNREADABLE, MadeLog
from tests.support.raw_records import RawRecord, append_raw, read_records

AGENT, OTHER = UUID(int=1), UUID(int=2)
TIME = datetime(2026, 11, 27, 7, tzinfo=UTC)


def rated(agent_id: UUID, stars: int = 5, identity: UUID | None = None) -> AgentRated:
    return AgentRated(
        event_id=identity or uuid4(), agent_id=agent_id, occurred_at=TIME, rater_id=UUID(int=9), rating=stars
    )


def too_many_stars(agent_id: UUID, identity: UUID) -> bytes:
    """A rating of nine stars, in bytes: five are the most that there may be."""
    before, _, behind = codec.encode(rated(agent_id, 5, identity)).rpartition(b"\x0a")
    return before + b"\x12" + behind


async def run(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(plant, settings, "dead-letters", *arguments)


async def rows(settings: Settings, *arguments: str) -> list[dict[str, Any]]:
    """What a command prints as JSON."""
    done = await run(settings, *arguments, "--output", "json")
    assert done.returncode == 0, done.stderr
    listed: list[dict[str, Any]] = json.loads(done.stdout)
    return listed


async def offsets(settings: Settings, *arguments: str) -> list[int]:
    return [row["offset"] for row in await rows(settings, "list", *arguments)]


def file_of(folder: Path, lines: Sequence[dict[str, Any] | str]) -> str:
    file = folder / "repaired.jsonl"
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(file)


def repair(offset: int, agent_id: UUID, partition: int = 0, **changes: Any) -> dict[str, Any]:
    """A line that repairs a record as a rating."""
    data = {"agent_id": str(agent_id), "rating": 4, "rater_id": str(UUID(int=9))}
    event = {"type": "genesis.agent.rated", "data": data, **changes}
    return {"topic": "genesis.events", "partition": partition, "offset": offset, "event": event}


@pytest.fixture
def log(topic: str) -> MadeLog:
    """The log of a topic of this test's own."""
    return MadeLog(topic)


async def test_those_that_wait_are_listed_in_order_with_what_is_parked(
    settings: Settings, database: Database, log: MadeLog
) -> None:
    """By partition and offset; resolved ones only when they are asked for; parked events are those of the entity."""
    log.poison(1, 3, OTHER)
    log.poison(0, 4, AGENT)
    log.parked(0, 5, rated(AGENT))
    log.parked(0, 6, rated(OTHER))
    log.parked(0, 8, rated(AGENT))
    log.poison(0, 7, AGENT)
    log.poison(0, 9, None)
    log.poison(0, 10, OTHER)
    log.control(0, 11, RecordSkipped(event_id=uuid4(), poison_offset=10, reason="r"), key=str(OTHER).encode())
    log.store(database)
    listed = await rows(settings, "list")
    assert [(row["partition"], row["offset"], row["parked"]) for row in listed] == [
        (0, 4, 2), (0, 7, 1), (0, 9, 0), (1, 3, 0),
    ]  # fmt: skip
    assert {row["state"] for row in listed} == {"waiting"}
    resolved = await rows(settings, "list", "--state", "resolved")
    assert [(row["offset"], row["state"], row["resolved_at"]) for row in resolved] == [(10, "resolved", 11)]
    assert len(await rows(settings, "list", "--state", "all")) == 5
    table = await run(settings, "list")
    assert "4 dead letters; 2 events are parked" in table.stderr
    assert len(table.stdout.splitlines()) == 5
    nothing = await run(settings, "list", "--topic", "genesis.events-99", "--output", "json")
    assert (json.loads(nothing.stdout), "0 dead letters" in nothing.stderr) == ([], True)


async def test_filters_go_together(settings: Settings, database: Database, log: MadeLog) -> None:
    """By part of the reason, type of header or value, entity, topic, partition and time of appending."""
    hour = timedelta(hours=1)
    log.poison(0, 0, AGENT, reason="event_id: Used before", at=APPENDED)
    log.poison(0, 1, OTHER, headers=[("ce_type", b"genesis.agent.rated")], at=APPENDED + hour)
    log.poison(0, 2, AGENT, too_many_stars(AGENT, uuid4()), reason="rating: over 5", at=APPENDED + 2 * hour)
    log.poison(2, 3, AGENT, at=APPENDED + 3 * hour)
    log.store(database)
    assert await offsets(settings, "--cause", "USED") == [0]
    assert await offsets(settings, "--type", "genesis.agent.rated") == [1, 2]
    assert await offsets(settings, "--entity", str(AGENT)) == [0, 2, 3]
    assert await offsets(settings, "--entity", str(AGENT), "--partition", "0", "--topic", log.topic) == [0, 2]
    assert await offsets(settings, "--since", "2026-11-27T09:00Z", "--until", "2026-11-27T11:00Z") == [1, 2]
    refused = await run(settings, "list", "--since", "earliest")
    assert (refused.returncode, "is no time" in refused.stderr) == (2, True)


async def test_a_long_list_is_read_page_by_page(
    settings: Settings, database: Database, log: MadeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each record once and in order, whatever the pages cut; large records come alone."""
    monkeypatch.setattr(dead_letter_rows, "_PAGE", dead_letter_rows._PAGE.replace("LIMIT 500", "LIMIT 3"))
    for offset in range(0, 40, 2):
        log.poison(offset % 3, offset, UUID(int=offset), bytes(offset * 100))
    log.store(database)
    listed = [(row["partition"], row["offset"]) for row in await rows(settings, "list")]
    assert listed == sorted((offset % 3, offset) for offset in range(0, 40, 2))


async def test_one_is_shown_with_all_that_is_known(settings: Settings, database: Database, log: MadeLog) -> None:
    """Decoded though it breaks a limit, hex where nothing can be; its headers, and what waits behind it."""
    identity = uuid4()
    headers = [("ce_id", str(identity).encode()), ("odd", b"\xff"), ("none", None)]
    log.poison(0, 1, AGENT, too_many_stars(AGENT, identity), reason="rating: over 5", headers=headers)
    log.parked(0, 2, rated(AGENT))
    log.poison(0, 3, b"key \xff", b"\xfe" * 2000)
    log.store(database)
    (shown,) = await rows(settings, "show", f"{log.topic}/0/1")
    assert shown["event"] == {
        "type": "genesis.agent.rated",
        "id": str(identity),
        "timestamp": "2026-11-27T07:00:00Z",
        "data": {"agent_id": str(AGENT), "rater_id": str(UUID(int=9)), "rating": 9},
    }
    assert shown["headers"] == [["ce_id", str(identity)], ["odd", "\\xff"], ["none", None]]
    assert (shown["parked"], shown["parked_first_offsets"], shown["resolution"]) == (1, [2], None)
    (other,) = await rows(settings, "show", f"{log.topic}/0@3")
    assert (other["key"], other["entity"], other["value_hex"]) == ("key \\xff", None, "fe" * 2000)
    table = await run(settings, "show", f"{log.topic}/0/1")
    assert "event.data.rating" in table.stdout
    assert "rating: over 5" in table.stdout


async def test_what_resolved_one_is_shown_with_who_did_it(settings: Settings, database: Database, log: MadeLog) -> None:
    """The control record, and the operator action that its header names, once the log has that."""
    operation = uuid4()
    log.poison(0, 0, AGENT)
    header = [("plant_operation", str(operation).encode())]
    redriven = RecordRedriven(event_id=uuid4(), poison_offset=0, value=b"v", reason="repaired")
    log.control(0, 1, redriven, key=str(AGENT).encode(), headers=header)
    log.store(database)
    (before,) = await rows(settings, "show", f"{log.topic}/0/0")
    assert (before["state"], before["resolution"]["actor"], before["resolution"]["repaired"]) == (
        "resolved",
        None,
        True,
    )
    actions = MadeLog(OPERATIONS_TOPIC)
    identity = event_id(ACTIONS_PRODUCER, str(operation))
    recorded = OperationRecorded(
        event_id=identity, operation_id=operation, occurred_at=TIME, actor="ops", action="a", target="t", reason="why"
    )
    actions.applied(0, 0, recorded)
    actions.store(database)
    (after,) = await rows(settings, "show", f"{log.topic}/0/0")
    resolution = after["resolution"]
    assert (resolution["actor"], resolution["operation_id"], resolution["reason"]) == (
        "ops",
        str(operation),
        "repaired",
    )
    assert (resolution["type"], resolution["offset"]) == ("plant.record.redriven", 1)


async def test_what_is_no_dead_letter_is_refused_by_name(settings: Settings, database: Database, log: MadeLog) -> None:
    """An applied record, a resolved one, a gap, an offset that workers have not come to, a partition nobody reads."""
    log.applied(0, 0, rated(AGENT))
    log.poison(0, 2, AGENT)
    log.control(0, 3, RecordSkipped(event_id=uuid4(), poison_offset=2, reason="r"), key=str(AGENT).encode())
    log.store(database)
    for offset, told in {
        "0/0": "is no dead letter",
        "0/2": "was redriven or skipped before",
        "0/1": "a gap",
        "0/4": "have not come to it: offset 4 is read next",
        "1/0": "No worker has read",
    }.items():
        refused = await run(settings, "skip", f"{log.topic}/{offset}", "--execute")
        assert (refused.returncode, told in refused.stderr) == (3, True), refused.stderr
    assert await read_records(settings, log.topic) == []


async def test_without_execute_there_is_only_a_plan(settings: Settings, database: Database, log: MadeLog) -> None:
    """It counts by reason and key; nothing is published or recorded."""
    await apply(settings)
    for offset in range(3):
        log.poison(0, offset, AGENT)
    log.poison(1, 0, None, reason="no value")
    log.store(database)
    shown = await run(settings, "skip", "--topic", log.topic, "--output", "json")
    assert json.loads(shown.stdout) == [
        {"reason": UNREADABLE, "entity": str(AGENT), "records": 3},
        {"reason": "no value", "entity": None, "records": 1},
    ]
    assert "4 control records to publish. Nothing was done" in shown.stderr
    assert await read_records(settings, log.topic) == []
    assert await operations(settings, log.topic) == []


async def test_a_skip_goes_to_the_records_own_partition_with_its_key(
    settings: Settings, database: Database, log: MadeLog
) -> None:
    """Though the key belongs on another one, or there is none; in the order of offsets, as one operator action."""
    foreign = (partition_of(str(AGENT).encode(), 4) + 1) % 4
    log.poison(foreign, 7, AGENT)
    log.poison(foreign, 5, None)
    log.poison(foreign, 6, b"no id")
    log.store(database)
    await apply(settings)
    done = await run(settings, "skip", "--topic", log.topic, "--execute", "--reason", "junk", "--actor", "ops")
    assert (done.returncode, "3 control records published" in done.stderr) == (0, True), done.stderr
    records = await read_records(settings, log.topic)
    assert [(each.partition, each.key) for each in records] == [
        (foreign, None), (foreign, b"no id"), (foreign, str(AGENT).encode()),
    ]  # fmt: skip
    (action,) = await operations(settings, log.topic)
    assert (action.action, action.actor, action.reason) == ("dead_letters.skip", "ops", "junk [3 records]")
    for each, offset in zip(records, (5, 6, 7), strict=True):
        skipped = codec.decode_record(each.value)
        name = f"plant.record.skipped\n{log.topic}/{foreign}\n{offset}"
        assert skipped == RecordSkipped(event_id=uuid5(NAMESPACE_PLANT, name), poison_offset=offset, reason="junk")
        headers = dict(each.headers)
        assert headers["plant_operation"] == str(action.operation_id).encode()
        assert headers["ce_type"] == b"plant.record.skipped"


async def test_a_key_that_leaves_no_room_is_left_out(settings: Settings, database: Database, log: MadeLog) -> None:
    """A control record has it too, and Kafka would take none as large: found before anything is published."""
    log.poison(0, 0, b"k" * (RECORD_MAX_BYTES - 200))
    log.poison(0, 1, AGENT)
    log.store(database)
    await apply(settings)
    named = await run(settings, "skip", f"{log.topic}/0/0", f"{log.topic}/0/1", "--execute")
    assert (named.returncode, "would be too large" in named.stderr) == (3, True), named.stderr
    assert await read_records(settings, log.topic) == []
    done = await run(settings, "skip", "--topic", log.topic, "--execute")
    assert (done.returncode, "1 dead letters are left out" in done.stderr) == (0, True), done.stderr
    assert [each.key for each in await read_records(settings, log.topic)] == [str(AGENT).encode()]


async def test_own_bytes_are_redriven_where_they_are_valid_by_now(
    settings: Settings, database: Database, log: MadeLog
) -> None:
    """Those that would be poison again, or can only be skipped, are left out and named; named ones are refused."""
    valid = rated(AGENT)
    log.poison(0, 0, AGENT, codec.encode(valid))
    log.poison(0, 1, AGENT)
    log.poison(0, 2, AGENT, codec.encode(rated(OTHER)))
    log.poison(0, 3, AGENT, codec.encode(rated(AGENT)), reason=ID_REUSED, parks=False)
    log.poison(0, 4, None, codec.encode(rated(AGENT)))
    log.store(database)
    await apply(settings)
    done = await run(settings, "redrive", "--as-is", "--topic", log.topic, "--execute")
    assert (done.returncode, "1 control records published" in done.stderr) == (0, True), done.stderr
    assert "4 dead letters are left out" in done.stderr
    for told in (
        f"0/1 would be poison again. {UNREADABLE}",
        "its key is another",
        ID_REUSED,
        "0/4 can only be skipped",
    ):
        assert told in done.stderr
    (record,) = await read_records(settings, log.topic)
    assert codec.decode_record(record.value) == RecordRedriven(
        event_id=valid.event_id, poison_offset=0, value=None, reason="Dead letters are redriven."
    )
    assert (record.partition, record.key) == (0, str(AGENT).encode())
    for offset, told in {1: "would be poison again", 4: "It has no key"}.items():
        refused = await run(settings, "redrive", "--as-is", f"{log.topic}/0/{offset}", "--execute")
        assert (refused.returncode, told in refused.stderr) == (3, True), refused.stderr


async def test_listed_lines_repaired_are_redriven_in_order(
    settings: Settings, database: Database, log: MadeLog, tmp_path: Path
) -> None:
    """Whatever their order in the file; ids and times are the records' own, or made of their position."""
    identity, other = uuid4(), uuid4()
    headers = [("ce_id", str(identity).encode()), ("ce_time", b"2026-11-27T06:00:00Z")]
    log.poison(0, 8, AGENT, headers=headers)
    log.poison(0, 5, OTHER)
    log.poison(3, 1, AGENT, too_many_stars(AGENT, other), reason="rating: over 5")
    log.store(database)
    await apply(settings)
    listed = await run(settings, "list", "--output", "jsonl")
    lines = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [line["event"]["data"] is None for line in lines] == [True, True, False]
    for line, agent_id in zip(lines, (OTHER, AGENT, AGENT), strict=True):
        line["event"]["type"] = "genesis.agent.rated"
        line["event"]["data"] = {"agent_id": str(agent_id), "rating": 4, "rater_id": str(UUID(int=9))}
    file = file_of(tmp_path, [lines[2], "", lines[1], lines[0]])
    done = await run(settings, "redrive", "--repaired", file, "--execute", "--reason", "mended")
    assert (done.returncode, "3 control records published" in done.stderr) == (0, True), done.stderr
    records = await read_records(settings, log.topic)
    redriven = [msgspec.convert(codec.decode_record(each.value), RecordRedriven) for each in records]
    assert [(each.partition, what.poison_offset) for each, what in zip(records, redriven, strict=True)] == [
        (0, 5), (0, 8), (3, 1),
    ]  # fmt: skip
    events = [codec.decode(what.value) for what in redriven]
    assert [what.event_id for what in redriven] == [event.event_id for event in events]
    assert [(event.event_id, event.occurred_at) for event in events] == [
        (repaired_id(RecordPosition(log.topic, 0, 5)), APPENDED),
        (identity, datetime(2026, 11, 27, 6, tzinfo=UTC)),
        (other, TIME),
    ]
    assert [each.key for each in records] == [codec.key(event) for event in events]
    assert {what.reason for what in redriven} == {"mended"}


async def test_the_first_bad_line_ends_it_before_anything_is_published(
    settings: Settings, database: Database, log: MadeLog, tmp_path: Path
) -> None:
    """It is named by its number with what is wrong: JSON, limits, type, key, id, record."""
    await apply(settings)
    log.poison(0, 0, AGENT)
    log.poison(0, 1, AGENT)
    log.poison(0, 2, None)
    log.applied(0, 3, rated(AGENT))
    log.store(database)
    good = {**repair(0, AGENT, id=str(UUID(int=5))), "topic": log.topic}

    def line(offset: int, agent_id: UUID = AGENT, **changes: Any) -> dict[str, Any]:
        return {**repair(offset, agent_id, **changes), "topic": log.topic}

    too_high = line(1)
    too_high["event"]["data"]["rating"] = 6
    bad: list[tuple[dict[str, Any] | str, str]] = [
        ("{", "not JSON"),
        ("{}", "#/topic"),
        (too_high, "#/event/data/rating"),
        (line(1, type="plant.record.skipped"), "is a control record"),
        (line(1, type="genesis.unknown"), "#/event/type"),
        (line(1, data=None), "#/event/data"),
        (line(1, other=1), "#/event/other"),
        (line(1, OTHER), f"the record's key is {AGENT}"),
        (line(1, id=str(UUID(int=5))), "Line 1 has the same event id"),
        (line(0), "Line 1 is of the same record"),
        (line(2), "can only be skipped"),
        (line(3), "is no dead letter"),
        (line(9), "have not come to it"),
        (line(-1), "#/offset"),
    ]
    for other, told in bad:
        file = file_of(tmp_path, [good, other, "junk"])
        refused = await run(settings, "redrive", "--repaired", file, "--execute")
        assert (refused.returncode, "Line 2" in refused.stderr, told in refused.stderr) == (3, True, True), (
            told, refused.stderr,
        )  # fmt: skip
        assert refused.stderr.count("Nothing was published") == 1
    assert await read_records(settings, log.topic) == []
    assert await operations(settings, log.topic) == []


async def test_running_a_file_again_does_the_rest(
    settings: Settings, database: Database, log: MadeLog, tmp_path: Path
) -> None:
    """Lines whose record is resolved by now are left out and counted; with none left nothing is recorded."""
    for offset in range(3):
        log.poison(0, offset, AGENT)
    done = RecordRedriven(event_id=uuid4(), poison_offset=1, value=b"v", reason="r")
    log.control(0, 3, done, key=str(AGENT).encode())
    log.store(database)
    await apply(settings)
    file = file_of(tmp_path, [{**repair(offset, AGENT), "topic": log.topic} for offset in range(3)])
    rest = await run(settings, "redrive", "--repaired", file, "--execute")
    assert (rest.returncode, "2 control records published" in rest.stderr) == (0, True)
    assert "1 lines are left out" in rest.stderr
    named = [codec.decode_record(each.value).poison_offset for each in await read_records(settings, log.topic)]  # type: ignore[attr-defined]
    assert named == [0, 2]
    for offset in (0, 2):
        again = RecordRedriven(event_id=uuid4(), poison_offset=offset, value=b"v", reason="r")
        log.control(0, 4 + offset, again, key=str(AGENT).encode())
    log.store(database)
    nothing = await run(settings, "redrive", "--repaired", file, "--execute")
    assert (nothing.returncode, "0 control records published" in nothing.stderr) == (0, True)
    assert len(await operations(settings, log.topic)) == 1


async def test_waiting_reports_what_has_no_effect(settings: Settings, database: Database, log: MadeLog) -> None:
    """Once the log has come to the control records; until then it says where workers are."""
    log.poison(0, 0, AGENT)
    log.poison(0, 1, AGENT)
    log.store(database)
    await apply(settings)
    await append_raw(settings, log.topic, 0, [RawRecord(None, b"v")] * 3)
    late = await run(settings, "skip", "--topic", log.topic, "--execute", "--wait", "--timeout", "0")
    assert (late.returncode, "Workers have not come to" in late.stderr) == (1, True)
    assert "2 control records published." in late.stderr
    (action,) = await operations(settings, log.topic)
    mark = [("plant_operation", str(action.operation_id).encode())]
    key = str(AGENT).encode()
    log.control(0, 3, RecordSkipped(event_id=uuid4(), poison_offset=0, reason="r"), key=key, headers=mark)
    log.control(0, 4, RecordSkipped(event_id=uuid4(), poison_offset=0, reason="r"), key=key, headers=mark, effect=False)
    log.control(0, 5, RecordSkipped(event_id=uuid4(), poison_offset=1, reason="r"), key=key, headers=mark, effect=False)
    log.store(database)
    published = PublishedRanges()
    for offset in (3, 4, 5):
        published.add(RecordPosition(log.topic, 0, offset))
    auditor = connect(settings, "auditor")
    ineffective = await await_effects(DeadLetterRows(auditor), published, action.operation_id, 0)
    await auditor.close()
    assert ineffective == [(RecordPosition(log.topic, 0, 4), 0, 3), (RecordPosition(log.topic, 0, 5), 1, None)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("redrive",), "--as-is"),
        (("redrive", "--as-is"), "Name records"),
        (("skip",), "Name records"),
        (("skip", "genesis.events/0/1", "--topic", "genesis.events"), "Name records"),
        (("skip", "genesis.events/0"), "is not TOPIC/PARTITION/OFFSET"),
        (("show", "genesis.events/0/99999999999999999999"), "is not TOPIC/PARTITION/OFFSET"),
        (("skip", "--topic", "genesis.events", "--reason", "a\0b"), "no NUL"),
        (("skip", "--topic", "genesis.events", "--reason", "x" * 9_001), "characters"),
    ],
)
async def test_what_can_not_be_meant_is_a_usage_error(
    settings: Settings, arguments: tuple[str, ...], told: str
) -> None:
    """Neither everything by an empty command line, nor two ways to name records."""
    refused = await run(settings, *arguments)
    assert (refused.returncode, told in refused.stderr) == (2, True), refused.stderr
