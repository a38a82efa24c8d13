"""What stored bytes prove about the columns next to them, at the edges of each rule."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.verifier.decoded_columns import (
    DecodedColumns,
    Layout,
    expected_columns,
    id_offsets,
    mismatch,
    raises_chain,
    unknown_schema,
)
from audit.verifier.errors import BadIdsFile
from projections.prepared import prepare
from schemas import codec
from schemas.control import CONTROL_TYPES, RecordRedriven, RecordSkipped, chain_version_raised
from schemas.delivery_records import DELIVERY_TYPES
from schemas.endpoint_events import ENDPOINT_EVENT_TYPES
from schemas.events import EVENT_TYPES, Event
from schemas.examples import examples
from tests.support import ROOT
from tests.support.batches import batch_of

RATED = examples()["genesis.agent.rated"]
VALUE = codec.encode(RATED)
COLUMNS = DecodedColumns(RATED.event_type, "agent", VALUE[21:37], VALUE[5:21])
EMPTY = DecodedColumns(None, None, None, None)
UNKNOWN = struct.pack(">bi", 0, 0x01020304) + bytes(32)
"""The shortest value that may hold an event, of a schema that nobody knows."""


@pytest.mark.parametrize("event", examples().values(), ids=list(examples()))
def test_each_event_type_proves_its_columns(event: Event) -> None:
    """The columns are the event's own, whatever its entity's kind is read from."""
    kind = event.entity_type
    assert isinstance(kind, str)
    columns = expected_columns(codec.encode(event))
    assert columns is not None
    assert (columns.event_type, columns.entity_type, columns.event_id) == (event.event_type, kind, event.event_id.bytes)


def test_a_value_that_ends_with_its_ids_proves_them() -> None:
    """37 bytes hold both ids; with one byte less nothing is proved, and nothing is left to judge."""
    layouts = {UNKNOWN[:5]: Layout("genesis.agent.rated", "agent")}
    assert expected_columns(UNKNOWN, layouts) == DecodedColumns("genesis.agent.rated", "agent", bytes(16), bytes(16))
    assert expected_columns(UNKNOWN[:-1], layouts) is None
    assert expected_columns(None, layouts) is None
    assert unknown_schema(COLUMNS, "applied", UNKNOWN) == 0x01020304
    assert unknown_schema(COLUMNS, "applied", UNKNOWN[:-1]) is None
    assert unknown_schema(COLUMNS, "applied", None) is None
    assert unknown_schema(COLUMNS, "applied", b"\x01" + UNKNOWN[1:]) is None


def test_the_layouts_that_are_passed_are_the_ones_that_count() -> None:
    """None stands for the bundled ones, and an empty mapping knows nothing."""
    assert expected_columns(VALUE, {}) is None
    assert unknown_schema(COLUMNS, "applied", VALUE, {}) == struct.unpack(">i", VALUE[1:5])[0]
    assert unknown_schema(COLUMNS, "applied", VALUE) is None
    assert mismatch(EMPTY, "applied", VALUE, {}) is None
    wrong = {VALUE[:5]: Layout("genesis.skill.validated", "skill")}
    assert mismatch(COLUMNS, "applied", VALUE, wrong) is not None


@pytest.mark.parametrize(
    ("disposition", "judged"), [("applied", True), ("repeat", True), ("parked", True), ("poison", False)]
)
def test_empty_columns_say_nothing_unless_the_record_was_an_event(disposition: str, judged: bool) -> None:
    """Of a record that was not applied empty columns contradict nothing, and there is nothing to judge."""
    assert (mismatch(EMPTY, disposition, VALUE) is not None) == judged
    assert (unknown_schema(EMPTY, disposition, UNKNOWN) is not None) == judged
    assert unknown_schema(EMPTY._replace(event_id=bytes(16)), disposition, UNKNOWN) is not None


@pytest.mark.parametrize("name", DecodedColumns._fields)
@pytest.mark.parametrize("disposition", ["applied", "poison"])
def test_each_column_is_compared(name: str, disposition: str) -> None:
    """A wrong column is named with both values, whatever became of the record; a right one alone is none."""
    right = getattr(COLUMNS, name)
    wrong = "other" if isinstance(right, str) else b"other"
    text = {"other": "other", b"other": b"other".hex()}[wrong]
    stored = right if isinstance(right, str) else right.hex()
    assert (
        mismatch(COLUMNS._replace(**{name: wrong}), disposition, VALUE)
        == f"{name} is {text}, but the value says {stored}"
    )
    assert mismatch(EMPTY._replace(**{name: right}), "poison", VALUE) is None
    assert (
        mismatch(COLUMNS._replace(**{name: None}), "applied", VALUE) == f"{name} is empty, but the value says {stored}"
    )


@pytest.mark.parametrize("value", [None, b"", b"\x01" + VALUE[1:], VALUE[:36]], ids=["null", "empty", "other", "short"])
def test_a_value_that_can_be_no_event_proves_no_column(value: bytes | None) -> None:
    """It was applied by no reader, and any column of it is made up."""
    for disposition in ("applied", "repeat", "parked"):
        assert mismatch(EMPTY, disposition, value) == f"disposition is {disposition}, but the value holds no event"
    for name, column in COLUMNS._asdict().items():
        finding = mismatch(EMPTY._replace(**{name: column}), "poison", value)
        assert finding == "disposition is poison, and the value proves none of what the columns say"
    assert mismatch(EMPTY, "poison", value) is None


def test_the_kind_of_an_amended_entity_is_read_after_any_time() -> None:
    """Times and lengths are varints of one byte to ten; what is no UTF-8 is read with replacements."""
    start = VALUE[:5] + bytes(32)
    layouts = {VALUE[:5]: Layout("genesis.entity.amended", None)}
    for time in (b"\x00", b"\x7f", b"\x80\x01", b"\xff" * 9 + b"\x01"):
        found = expected_columns(start + time + b"\x0aagent" + b"after", layouts)
        assert found is not None
        assert found.entity_type == "agent"
    long = b"\x80\x01" + b"k" * 64
    assert (found := expected_columns(start + b"\x02" + long + b"z", layouts)) is not None
    assert found.entity_type == "k" * 64
    assert (found := expected_columns(start + b"\x02" + b"\x04\xffx" + b"z", layouts)) is not None
    assert found.entity_type == "\ufffdx"
    assert (found := expected_columns(start + b"\x02" + b"\x01" + b"agent", layouts)) is not None
    assert found.entity_type == ""  # a length below zero


RAISED = codec.encode(chain_version_raised("genesis.events", 0))
CONTROL_COLUMNS = DecodedColumns("plant.chain.version_raised", None, None, RAISED[5:21])


@given(st.none() | st.binary(max_size=2), st.binary(min_size=16, max_size=16), st.binary(max_size=3))
def test_a_switch_is_what_the_writer_decodes_as_one(key: bytes | None, event_id: bytes, rest: bytes) -> None:
    """The verifier's own reading of the bytes agrees with the worker's, for any rest of a value."""
    value = RAISED[:5] + event_id + rest
    judged = prepare(batch_of([(key, value)], token=1)).with_dispositions({}).rows["disposition"].to_list()
    assert raises_chain(key, value, id_offsets()) == (judged == ["control"])


@pytest.mark.parametrize("rest", [b"\x04", b"\x02", b"\x06", b"\x84\x00", b"\x04\x00", b""])
def test_only_the_version_2_in_its_shortest_form_is_a_switch(rest: bytes) -> None:
    """One byte after the event id; anything else is not a control record, and no other disposition is one's."""
    value = RAISED[:21] + rest
    is_switch = rest == b"\x04"
    assert raises_chain(None, value, id_offsets()) == is_switch
    assert (mismatch(CONTROL_COLUMNS, "control", value) is None) == is_switch
    assert (mismatch(EMPTY, "poison", value) is None) != is_switch
    assert mismatch(EMPTY, "applied", value) is not None
    assert mismatch(EMPTY, "control", value) is not None
    assert unknown_schema(CONTROL_COLUMNS, "control", value) is None


def test_a_long_value_with_the_switchs_schema_can_be_judged() -> None:
    """Its schema is known, so it is poison, and never an entry that can't be judged."""
    value = RAISED[:21] + bytes(40)
    assert mismatch(EMPTY, "poison", value) is None
    assert unknown_schema(EMPTY._replace(event_type="x"), "poison", value) is None
    assert mismatch(EMPTY._replace(event_type="x"), "poison", value) is not None
    assert mismatch(EMPTY, "applied", value) == "disposition is applied, but the value holds no event"


def test_a_control_record_of_an_unknown_schema_can_not_be_judged() -> None:
    """A newer Plant's, or one with an external registry's id: its hash is checked, its columns are not."""
    value = b"\x00\x7f\xff\xff\xff" + RAISED[5:]
    assert mismatch(CONTROL_COLUMNS, "control", value) is None
    assert unknown_schema(CONTROL_COLUMNS, "control", value) == 0x7FFFFFFF
    for malformed in (None, b"", b"\x01" + value[1:], value[:20]):
        assert mismatch(CONTROL_COLUMNS, "control", malformed) is not None
        assert unknown_schema(CONTROL_COLUMNS, "control", malformed) is None


def test_every_bundled_event_type_has_a_layout() -> None:
    """A type that is about any entity has no entity type of its own, all others have the one in their name."""
    layouts = id_offsets()
    assert {layout.event_type for layout in layouts.values() if not layout.control} == set(EVENT_TYPES)
    assert {layout.event_type for layout in layouts.values() if layout.control} == set(CONTROL_TYPES)
    for layout in layouts.values():
        if layout.control:
            continue
        entity = layout.event_type.split(".")[1]
        assert layout.entity_type == (None if entity == "entity" else entity)
    entries = json.loads((ROOT / "schemas" / "registry.json").read_text("utf-8"))
    ids = [
        entry["id"] for entry in entries if not entry["subject"].startswith(("genesis.deliveries", "plant.endpoints"))
    ]
    assert len(ids) == len(entries) - len(DELIVERY_TYPES) - len(ENDPOINT_EVENT_TYPES)
    assert set(layouts) == {struct.pack(">bi", 0, number) for number in ids}


def _ids_file(folder: Path, **changes: object) -> Path:
    own = next(
        entry
        for entry in json.loads((ROOT / "schemas" / "registry.json").read_text("utf-8"))
        if entry["id"] == VALUE[4]
    )
    file = folder / "ids.json"
    file.write_text(json.dumps([{"id": 70_000, "own_id": own["id"], "sha256": own["sha256"], "more": 1, **changes}]))
    return file


def test_an_external_id_stands_for_the_bundled_schema_with_its_fingerprint(tmp_path: Path) -> None:
    """Its layout is added to the bundled ones."""
    layouts = id_offsets(_ids_file(tmp_path))
    assert layouts[struct.pack(">bi", 0, 70_000)] == layouts[VALUE[:5]] == Layout("genesis.agent.rated", "agent")
    assert len(layouts) == len(id_offsets()) + 1


@pytest.mark.parametrize(
    "changes", [{"sha256": "other"}, {"own_id": 2**31 - 1}, {"id": 1}], ids=["another schema", "unknown", "own id"]
)
def test_other_lines_of_an_ids_file_change_nothing(tmp_path: Path, changes: dict[str, object]) -> None:
    """A line about a schema that is not the bundled one is left out, and a bundled id keeps its meaning."""
    assert id_offsets(_ids_file(tmp_path, **changes)) == id_offsets()


@pytest.mark.parametrize("changes", [{"id": 0}, {"own_id": 0}, {"id": 2**31}, {"sha256": 1}])
def test_an_ids_file_that_can_not_be_read_is_an_error_of_its_own(tmp_path: Path, changes: dict[str, object]) -> None:
    """The error names the file, and the command that writes it."""
    file = _ids_file(tmp_path, **changes)
    with pytest.raises(BadIdsFile, match=r"ids\.json: .+\.") as caught:
        id_offsets(file)
    assert "plant schemas register" in str(caught.value.next_step)
    with pytest.raises(BadIdsFile):
        id_offsets(tmp_path / "missing")


AGENT_ID = UUID(int=0xABC)
AGENT_KEY = str(AGENT_ID).encode()
REDRIVEN, SKIPPED = (
    codec.encode(record)
    for record in (
        RecordRedriven(event_id=UUID(int=5), poison_offset=70, reason="a test"),
        RecordSkipped(event_id=UUID(int=5), poison_offset=70, reason="a test"),
    )
)
BROUGHT_IN = DecodedColumns("plant.record.redriven", None, AGENT_ID.bytes, UUID(int=5).bytes)
REDRIVEN_ONLY = DecodedColumns("plant.record.redriven", None, None, None)
SKIPS = DecodedColumns("plant.record.skipped", None, None, UUID(int=5).bytes)
SKIPPED_ONLY = DecodedColumns("plant.record.skipped", None, None, None)


@pytest.mark.parametrize(
    ("columns", "value", "control_offset"),
    [
        (BROUGHT_IN, REDRIVEN, 70),
        (REDRIVEN_ONLY, REDRIVEN, 70),
        (REDRIVEN_ONLY, REDRIVEN, None),
        (SKIPS, SKIPPED, 70),
        (SKIPPED_ONLY, SKIPPED, None),
    ],
    ids=["brings an event in", "skips", "has no effect", "a skip", "a skip without effect"],
)
def test_a_control_record_about_poison_says_what_it_does(
    columns: DecodedColumns, value: bytes, control_offset: int | None
) -> None:
    """Each of its effects is accepted, as no other disposition of an event is, and any column that is wrong is not."""
    assert mismatch(columns, "control", value, key=AGENT_KEY, control_offset=control_offset) is None
    for name in DecodedColumns._fields:
        wrong = columns._replace(**{name: "other" if name.endswith("type") else bytes(16)})
        assert mismatch(wrong, "control", value, key=AGENT_KEY, control_offset=control_offset) is not None
    for other in (0, 71, -70):
        assert mismatch(columns, "control", value, key=AGENT_KEY, control_offset=other) is not None
    for disposition in ("applied", "repeat", "parked"):
        assert mismatch(columns, disposition, value, key=AGENT_KEY) is not None
    assert mismatch(EMPTY, "poison", value, key=AGENT_KEY) is None
    assert unknown_schema(columns, "control", value) is None


def test_what_a_control_record_about_poison_can_not_do_is_named() -> None:
    """An event id without an offset, a skip's offset without its id, an event without an entity, and cut bytes."""
    assert mismatch(BROUGHT_IN, "control", REDRIVEN, key=AGENT_KEY) == "event_id is filled, but control_offset is empty"
    assert (
        mismatch(SKIPPED_ONLY, "control", SKIPPED, key=AGENT_KEY, control_offset=70)
        == "control_offset is filled, but event_id is empty"
    )
    for key in (None, b"key", AGENT_KEY.upper(), AGENT_KEY.replace(b"-", b""), b"-" * 36):
        without = BROUGHT_IN._replace(entity_id=None)
        assert (
            mismatch(without, "control", REDRIVEN, key=key, control_offset=70)
            == "event_id is filled, but the key is no entity's"
        )
    for cut in (REDRIVEN[:21], REDRIVEN[:22], REDRIVEN[:21] + b"\x01", REDRIVEN[:21] + b"\x80"):
        assert mismatch(REDRIVEN_ONLY, "control", cut, key=AGENT_KEY) is not None
    assert mismatch(COLUMNS, "applied", VALUE, key=AGENT_KEY, control_offset=7) is not None


@pytest.mark.parametrize("value", [None, b"no event", VALUE, UNKNOWN, REDRIVEN])
def test_the_entity_that_poison_parks_is_its_key(value: bytes | None) -> None:
    """Whatever its bytes are, and then there is nothing that can't be judged."""
    parking = EMPTY._replace(entity_id=AGENT_ID.bytes)
    assert mismatch(parking, "poison", value, key=AGENT_KEY) is None
    assert unknown_schema(parking, "poison", value, key=AGENT_KEY) is None
    wrong = mismatch(parking, "poison", value, key=b"another key")
    assert wrong == "entity_id is not the id that the key is"
    assert unknown_schema(parking._replace(event_type="x"), "poison", UNKNOWN, key=AGENT_KEY) is not None
