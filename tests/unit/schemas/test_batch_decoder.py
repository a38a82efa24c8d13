"""A batch decoded in columns: its frames, and rejected values that leave their neighbours as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from unittest.mock import patch
from uuid import UUID, uuid4

import msgspec
import numpy
import pytest

from schemas import batch_decoder, codec
from schemas.binary import block
from schemas.entity_states import IndustryState
from schemas.errors import UnknownSchema
from schemas.events import (
    EVENT_TYPES,
    AgentAvailable,
    AgentOnboarded,
    AgentRated,
    EntityAmended,
    Event,
    IndustryDefined,
    OperationRecorded,
)
from schemas.examples import examples
from schemas.polars_import import polars
from tests.support.made_events import unchecked_value

NOW = datetime(2026, 1, 15, 9, 30, tzinfo=UTC)
MANY = 2 * block.BLOCK_ROWS_MIN


def onboarded(name: str = "Planner", skills: int = 3) -> AgentOnboarded:
    return AgentOnboarded(
        event_id=uuid4(), agent_id=uuid4(), occurred_at=NOW, name=name, skill_ids=tuple(uuid4() for _ in range(skills))
    )


def industry(description: str) -> IndustryDefined:
    return IndustryDefined(
        event_id=uuid4(), industry_id=uuid4(), occurred_at=NOW, name="Mining", description=description
    )


def unchecked(event: Event, **changes: object) -> bytes:
    plain = msgspec.to_builtins(event, builtin_types=(UUID, datetime))
    return unchecked_value(type(event), {**plain, **changes})


@pytest.mark.parametrize("least", [1, 10**9], ids=["block", "one by one"])
@pytest.mark.parametrize("name", EVENT_TYPES)
def test_frames_hold_the_fields_of_each_type(name: str, least: int) -> None:
    """Every type's frame has its struct's fields, with UUIDs as 16 bytes and times in UTC microseconds."""
    event = examples()[name]
    with patch.object(block, "BLOCK_ROWS_MIN", least):
        decoded, rejected = batch_decoder.decode_batch([codec.encode(event)] * 3)

    assert rejected == []
    assert [part.event_type for part in decoded] == [name]
    frame = decoded[0].frame
    assert decoded[0].rows.tolist() == [0, 1, 2]
    assert decoded[0].rows.dtype == numpy.int64
    assert tuple(frame.columns) == event.__struct_fields__
    assert frame.schema == batch_decoder.empty_frame(type(event)).schema
    assert frame["event_id"].to_list() == [event.event_id.bytes] * 3
    assert frame[event.entity_field].to_list() == [event.entity_id.bytes] * 3
    assert frame["occurred_at"].to_list() == [event.occurred_at] * 3
    plain = msgspec.to_builtins(event, builtin_types=(UUID, datetime))
    assert frame.row(0, named=True) == _bytes_for_uuids(plain)


def _bytes_for_uuids(value: object) -> object:
    match value:
        case UUID():
            return value.bytes
        case list() | tuple():
            return [_bytes_for_uuids(item) for item in value]
        case dict():
            return {key: _bytes_for_uuids(item) for key, item in value.items()}
        case _:
            return value


def test_an_empty_batch_gives_nothing() -> None:
    """No values, no frames, nothing rejected."""
    assert batch_decoder.decode_batch([]) == ([], [])


@pytest.mark.parametrize("count", [1, MANY])
def test_types_are_parted_and_rows_stay_in_order(count: int) -> None:
    """Each type has one frame, whose rows ascend and name the values' places in the batch."""
    pair = [onboarded(), AgentAvailable(event_id=uuid4(), agent_id=uuid4(), occurred_at=NOW, available=True)]
    batch = pair * count
    decoded, rejected = batch_decoder.decode_batch([codec.encode(event) for event in batch])

    assert rejected == []
    assert [part.event_type for part in decoded] == ["genesis.agent.onboarded", "genesis.agent.available"]
    assert decoded[0].rows.tolist() == list(range(0, 2 * count, 2))
    assert decoded[1].rows.tolist() == list(range(1, 2 * count, 2))


@pytest.mark.parametrize("harm", [b"\x00", b"\x00\x00\x00\x00\x01"], ids=["a byte", "a prefix"])
def test_trailing_bytes_reject_one_row_alone(harm: bytes) -> None:
    """A value with bytes after its record is rejected; its neighbours are read as they are."""
    batch = [onboarded(f"Agent {number}") for number in range(MANY)]
    values = [codec.encode(event) for event in batch]
    values[7] += harm
    decoded, rejected = batch_decoder.decode_batch(values)

    assert [(refusal.row, refusal.reason) for refusal in rejected] == [
        (7, f"{len(harm)} unread bytes after the record")
    ]
    names = [event.name for number, event in enumerate(batch) if number != 7]
    assert decoded[0].frame["name"].to_list() == names
    assert 7 not in decoded[0].rows


def test_two_records_back_to_back_are_one_rejected_value() -> None:
    """A second record in a value is never read as a row: it would shift every row after it."""
    batch = [onboarded(f"Agent {number}") for number in range(MANY)]
    values = [codec.encode(event) for event in batch]
    values[3] += codec.encode(onboarded("Forged"))[codec.WIRE_PREFIX.size :]
    values[4] = values[4][:-1]
    decoded, rejected = batch_decoder.decode_batch(values)

    assert [refusal.row for refusal in rejected] == [3, 4]
    assert "Forged" not in decoded[0].frame["name"].to_list()
    assert len(decoded[0].rows) == MANY - 2


def test_a_short_value_does_not_borrow_its_neighbours_bytes() -> None:
    """One value cut in two gives two rejected rows, though joined they are a whole record."""
    values = [codec.encode(onboarded()) for _ in range(MANY)]
    whole = values[5]
    cut = len(whole) // 2
    values[5:6] = [whole[:cut], whole[: codec.WIRE_PREFIX.size] + whole[cut:]]
    decoded, rejected = batch_decoder.decode_batch(values)

    assert [refusal.row for refusal in rejected] == [5, 6]
    assert len(decoded[0].rows) == MANY - 1


def test_a_record_inside_a_text_stays_a_text() -> None:
    """A text whose content is a whole valid value is read as that text."""
    forged = codec.encode(industry("inner")).decode("latin-1").replace("\0", "\x01")
    values = [codec.encode(industry(forged)) for _ in range(MANY)]
    decoded, rejected = batch_decoder.decode_batch(values)

    assert rejected == []
    assert decoded[0].frame["description"].to_list() == [forged] * MANY


def test_an_array_in_sized_blocks_is_read() -> None:
    """Negative block counts with sizes, which other writers write, are legal and give the same row."""
    event = onboarded(skills=3)
    value = codec.encode(event)
    ids = b"".join(skill.bytes for skill in event.skill_ids)
    start = value.index(ids) - 1
    sized = value[:start] + b"\x03\x40" + ids[:32] + b"\x02" + ids[32:] + b"\x00"
    values = [value] * MANY + [sized] + [value] * MANY
    decoded, rejected = batch_decoder.decode_batch(values)

    assert rejected == []
    assert decoded[0].frame.n_unique() == 1
    assert decoded[0].frame["skill_ids"][MANY].to_list() == [skill.bytes for skill in event.skill_ids]


def test_invalid_utf_8_rejects_its_rows_alone() -> None:
    """The columnar reader fails as a whole on invalid UTF-8; only the rows that hold it are rejected."""
    values = [codec.encode(industry(f"text {number}")) for number in range(10 * MANY)]
    for row in (11, 12, 9 * MANY):
        values[row] = values[row].replace(b"text", b"te\xff\xfe")
    decoded, rejected = batch_decoder.decode_batch(values)

    assert [(refusal.row, refusal.reason) for refusal in rejected] == [
        (row, "invalid UTF-8 in description") for row in (11, 12, 9 * MANY)
    ]
    assert decoded[0].frame["description"].to_list() == [
        f"text {number}" for number in range(10 * MANY) if number not in (11, 12, 9 * MANY)
    ]


def test_a_group_without_one_sound_row_is_read_one_by_one() -> None:
    """A batch of which every value is harmed gives a reason for each."""
    values = [codec.encode(onboarded()) + b"\x00"] * MANY
    decoded, rejected = batch_decoder.decode_batch(values)

    assert decoded == []
    assert {refusal.reason for refusal in rejected} == {"1 unread bytes after the record"}
    assert len(rejected) == MANY


LIMITS = [
    (onboarded(), {"name": ""}, "name has fewer than 1 characters"),
    (onboarded(), {"name": "é" * 201}, "name has more than 200 characters"),
    (onboarded(), {"name": "a\0b"}, "name has a NUL character"),
    (onboarded(), {"skill_ids": (UUID(int=1),) * 1_001}, "skill_ids has more than 1000 items"),
    (examples()["genesis.agent.rated"], {"rating": 0}, "rating is less than 1"),
    (examples()["genesis.agent.rated"], {"rating": 6}, "rating is more than 5"),
    (examples()["genesis.skill.validated"], {"score": 2**62}, "score is more than 100"),
    (
        examples()["genesis.skill.registered"],
        {"category": "magic"},
        "category is none of domain_expertise, soft_skill, technical",
    ),
    (examples()["genesis.job_role.defined"], {"seniority": "lead"}, "seniority is none of junior, mid, senior"),
    (
        examples()["genesis.entity.retired"],
        {"industry": msgspec.structs.asdict(IndustryState(name="a\0", description=""))},
        "industry.name has a NUL character",
    ),
    (examples()["genesis.entity.retired"], {"industry": None}, "industry is not set, and entity_type is industry"),
    (examples()["genesis.entity.retired"], {"entity_type": "agent"}, "agent is not set, and entity_type is agent"),
    (
        examples()["genesis.entity.amended"],
        {"industry": {"name": "x", "description": "", "external_id": None}},
        "industry is set, and entity_type is not industry",
    ),
]


@pytest.mark.parametrize("count", [1, MANY], ids=["one by one", "block"])
@pytest.mark.parametrize(("event", "changes", "reason"), LIMITS, ids=[reason for _, _, reason in LIMITS])
def test_a_broken_limit_is_rejected_by_name(event: Event, changes: dict[str, object], reason: str, count: int) -> None:
    """A value outside its struct's limits is rejected with its field; the other rows are kept."""
    good = codec.encode(event)
    decoded, rejected = batch_decoder.decode_batch([*[good] * count, unchecked(event, **changes), good])

    assert [(refusal.row, refusal.reason) for refusal in rejected] == [(count, reason)]
    assert decoded[0].rows.tolist() == [*range(count), count + 1]
    assert decoded[0].frame.height == count + 1


@pytest.mark.parametrize("number", [-62_135_596_800_000_001, 253_402_300_800_000_000, 2**62, -(2**63)])
def test_times_outside_the_years_1_to_9999_are_rejected(number: int) -> None:
    """Python and Postgres know no such time, so a row that has one never reaches a frame."""
    from schemas.binary.writer import long_bytes, to_microseconds

    value = codec.encode(onboarded())
    malformed = value.replace(long_bytes(to_microseconds(NOW)), long_bytes(number), 1)
    decoded, rejected = batch_decoder.decode_batch([*[value] * MANY, malformed])

    assert [(refusal.row, refusal.reason) for refusal in rejected] == [
        (MANY, "a time outside the years 1 to 9999 in occurred_at")
    ]
    assert decoded[0].frame.height == MANY


def test_values_that_name_no_schema_are_rejected() -> None:
    """Null, short, foreign and unregistered values are rejected each with its reason."""
    good = codec.encode(onboarded())
    _, rejected = batch_decoder.decode_batch([None, b"", b"\x00\x00", b"{}....", b"\x00\x00\x00\x27\x0f", good])

    assert [refusal.row for refusal in rejected] == [0, 1, 2, 3, 4]
    assert [refusal.reason for refusal in rejected] == [
        "no value",
        "too short for a schema id",
        "too short for a schema id",
        "the first byte is 123, not 0",
        "no schema has the id 9999",
    ]


def test_a_schema_of_another_topic_is_rejected() -> None:
    """With a topic, a value whose schema is registered for another topic is no event of this one."""
    act = examples()["plant.operation.recorded"]
    assert isinstance(act, OperationRecorded)
    values = [codec.encode(act), codec.encode(onboarded())]
    decoded, rejected = batch_decoder.decode_batch(values, topic="genesis.events")

    assert [part.event_type for part in decoded] == ["genesis.agent.onboarded"]
    assert [(refusal.row, refusal.reason) for refusal in rejected] == [
        (0, "plant.operation.recorded does not belong on genesis.events")
    ]


def test_polars_runs_in_one_thread() -> None:
    """More threads would fight the broker and the database for cores."""
    program = "import schemas.batch_decoder, polars; print(polars.thread_pool_size())"
    environ = {name: value for name, value in os.environ.items() if name != "POLARS_MAX_THREADS"}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environ)
    assert ran.stdout == "1\n"


def test_ratings_and_amendments_have_the_right_columns() -> None:
    """Whole numbers are Int64 and a state that is not set is null."""
    assert batch_decoder.empty_frame(AgentRated).schema["rating"] == polars.Int64()
    decoded, _ = batch_decoder.decode_batch([codec.encode(examples()["genesis.entity.amended"])])
    assert decoded[0].event_type == EntityAmended.event_type
    assert decoded[0].frame["team"].null_count() == 1
    assert decoded[0].frame["agent"].struct.field("status").to_list() == ["onboarded"]


@pytest.mark.parametrize("schema_id", [99, 2**30, 2**31 - 1])
def test_a_schema_of_a_later_release_is_not_judged(schema_id: int) -> None:
    """Ids that Plant's releases give out are never rejected: the first such value is named by its row and its id."""
    good, newer = codec.encode(onboarded()), codec.WIRE_PREFIX.pack(0, schema_id) + b"anything"
    with pytest.raises(UnknownSchema) as raised:
        batch_decoder.decode_batch([good, b"{}....", newer, good, newer], topic="genesis.events")
    assert (raised.value.row, raised.value.schema_id) == (2, schema_id)


@pytest.mark.parametrize("schema_id", [0, -1, -(2**31), 100, 2**30 - 1])
def test_an_id_that_no_release_gives_out_is_rejected(schema_id: int) -> None:
    """What can't be a schema's id is no event of any release."""
    _, rejected = batch_decoder.decode_batch([codec.WIRE_PREFIX.pack(0, schema_id) + b"anything"])
    assert [refusal.reason for refusal in rejected] == [f"no schema has the id {schema_id}"]
