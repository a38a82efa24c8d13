"""What stored bytes prove about the columns next to them, at the edges of each rule."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.verifier import decoded_columns
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


@pytest.mark.parametrize(
    ("data", "at", "expected"),
    [
        (b"", 0, (0, 0)), (b"\x00", 0, (0, 1)), (b"\x01", 0, (-1, 1)), (b"\x02", 0, (1, 1)), (b"\x03", 0, (-2, 1)),
        (b"\x7f", 0, (-64, 1)), (b"\x80\x01", 0, (64, 2)), (b"\x81\x01", 0, (-65, 2)), (b"\x80", 0, (0, 1)),
        (b"\xff\xff\x03\x02", 0, (-32768, 3)), (b"\x02\x04\x06", 1, (2, 2)), (b"\x02\x80\x02", 1, (128, 3)),
        (b"\xfe" + b"\xff" * 8 + b"\x01", 0, (2**63 - 1, 10)), (b"\xff" * 9 + b"\x01", 0, (-(2**63), 10)),
    ],
)  # fmt: skip
def test_a_varint_is_read_to_its_end(data: bytes, at: int, expected: tuple[int, int]) -> None:
    """Zigzag, seven bits a byte, least first; the index is that of the byte after it, or the end of the data."""
    assert decoded_columns._varint(data, at) == expected


FIXED, SHORT = {"type": {"type": "fixed", "size": 16}}, {"type": {"type": "fixed", "size": 15}}
BYTES, LONG, TEXT = {"type": {"type": "bytes", "size": 16}}, {"type": "long"}, {"type": "string"}


@pytest.mark.parametrize(
    ("fields", "ids", "named"),
    [
        ([FIXED, FIXED], True, False), ([FIXED, FIXED, TEXT], True, False), ([FIXED], False, None),
        ([FIXED, LONG], False, True), ([FIXED, TEXT], False, False), ([FIXED, SHORT], False, False),
        ([SHORT, FIXED], False, False), ([SHORT, LONG], False, False), ([TEXT, LONG], False, False),
        ([TEXT, FIXED], False, False), ([FIXED, BYTES], False, False), ([BYTES, FIXED], False, False),
        ([LONG, LONG], False, False), ([FIXED, LONG, TEXT], False, True),
    ],
)  # fmt: skip
def test_a_schema_is_known_by_its_first_two_fields(fields: list[dict[str, Any]], ids: bool, named: bool | None) -> None:
    """Two ids begin an event, an id and a number a control record about poison."""
    assert decoded_columns._begins_with_ids(fields) is ids
    assert named is None or decoded_columns._begins_with_named_offset(fields) is named


def test_layouts_follow_from_the_files_of_schemas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each id of a logged subject has its own; what begins otherwise, or has no file, has none."""
    names = {
        "a.b.Rated": "genesis.agent.rated", "a.b.Amended": "genesis.entity.amended",
        "a.b.Raised": "plant.chain.version_raised", "a.b.Redriven": "plant.record.redriven",
        "a.b.Skipped": "plant.record.skipped", "a.c.Rated": "genesis.skill.rated",
    }  # fmt: skip
    (tmp_path / "avro").mkdir()
    for full, file in names.items():
        namespace, _, name = full.rpartition(".")
        text = json.dumps({"namespace": namespace, "name": name, "doc": "\u00e9"}, ensure_ascii=False)
        (tmp_path / "avro" / f"{file}.avsc").write_text(text, encoding="utf-8")
    entries = [
        ("genesis.events-x", 1, "a.b.Rated", [FIXED, FIXED]),
        ("plant.operations-x", 1, "a.b.Amended", [FIXED, FIXED, LONG]),
        ("genesis.deliveries-x", 1, "a.b.Rated", [FIXED, FIXED]),
        ("genesis.events-x", 1, "a.b.Unknown", [FIXED, FIXED]),
        ("genesis.events-x", 2, "a.b.Rated", [FIXED, TEXT]),
        ("genesis.events-x", 1, "a.b.Raised", [FIXED, TEXT]),
        ("genesis.events-x", 2, "a.b.Raised", [FIXED, TEXT]),
        ("genesis.events-x", 1, "a.b.Redriven", [FIXED, LONG]),
        ("genesis.events-x", 2, "a.b.Redriven", [FIXED, TEXT]),
        ("genesis.events-x", 3, "a.b.Skipped", [FIXED, LONG, TEXT]),
        ("genesis.events-x", 1, "a.c.Rated", [FIXED, FIXED]),
    ]
    rows = []
    for number, (subject, version, full, fields) in enumerate(entries, start=1):
        namespace, _, name = full.rpartition(".")
        schema = {"namespace": namespace, "name": name, "fields": fields}
        rows.append({"subject": subject, "id": number, "version": version, "schema": schema, "sha256": f"sha {number}"})
    (tmp_path / "registry.json").write_text(json.dumps(rows), encoding="utf-8")
    monkeypatch.setattr(decoded_columns, "SCHEMAS", tmp_path)
    layouts, fingerprints = decoded_columns._bundled_layouts()
    expected = {
        1: Layout("genesis.agent.rated", "agent"),
        2: Layout("genesis.entity.amended", None),
        6: Layout("plant.chain.version_raised", None, control=True),
        8: Layout("plant.record.redriven", None, control=True),
        10: Layout("plant.record.skipped", None, control=True),
        11: Layout("genesis.skill.rated", "skill"),
    }
    assert layouts == {struct.pack(">bi", 0, number): layout for number, layout in expected.items()}
    assert fingerprints == {struct.pack(">bi", 0, number): f"sha {number}" for number in expected}
    assert [layout.raises for layout in layouts.values()] == [False, False, True, False, False, False]


ZERO, HIGH = bytes(16), bytes(range(0xF0, 0x100))
HIGH_TEXT = b"f0f1f2f3-f4f5-f6f7-f8f9-fafbfcfdfeff"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (HIGH_TEXT, HIGH), (b"00000000-0000-0000-0000-000000000000", ZERO), (None, None), (b"", None),
        (HIGH_TEXT.upper(), None), (HIGH_TEXT.replace(b"-", b""), None), (HIGH_TEXT[:-1], None),
        (HIGH_TEXT + b"0", None), (HIGH_TEXT[:-1] + b"g", None), (b"g" + HIGH_TEXT[1:], None),
        (HIGH_TEXT[:-1] + b"\xff", None), (HIGH_TEXT[:-1] + b" ", None), (b"-" + HIGH_TEXT.replace(b"-", b""), None),
    ],
)  # fmt: skip
def test_a_key_is_an_ids_text_in_one_form(key: bytes | None, expected: bytes | None) -> None:
    """Thirty-six characters in small letters, and what is read from them is written as them."""
    assert decoded_columns._uuid_bytes(key) == expected
    assert expected is None or decoded_columns._uuid_text(expected) == key
    assert decoded_columns._uuid_text(None) == b"----"


CUT = (UNKNOWN[:21], UNKNOWN[:20], UNKNOWN[:37], UNKNOWN[:36], b"\x01" + UNKNOWN[1:], b"", None)


@pytest.mark.parametrize("value", CUT)
@pytest.mark.parametrize("disposition", ["applied", "repeat", "parked", "control", "poison"])
def test_a_value_of_an_unknown_schema_contradicts_what_it_is_too_short_for(
    value: bytes | None, disposition: str
) -> None:
    """Each is either judged or names the id that keeps it from being judged, as far as its columns say anything."""
    least = 21 if disposition == "control" else 37
    may_be = value is not None and len(value) >= least and value[0] == 0
    for columns in (EMPTY, COLUMNS):
        wrong, unknown = mismatch(columns, disposition, value), unknown_schema(columns, disposition, value)
        says = columns is COLUMNS or disposition != "poison"
        assert (unknown == 0x01020304) == (may_be and says)
        assert unknown in (None, 0x01020304)
        if disposition == "repeat" and columns is EMPTY and may_be:
            assert wrong == "event_id is empty, but disposition is repeat"
        else:
            assert (wrong is None) == (may_be or not says)
