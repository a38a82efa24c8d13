"""The columns that were decoded from a record, compared with its stored bytes, without an Avro library.

A value is `0x00`, the schema's id (big-endian int32), then Avro. Every schema of Plant begins with the event's id and
its entity's id, each `fixed(16)`, so both have a fixed position; the locked registry has the event type of each schema
id, and the ids file says which of these an external registry's id stands for. The files are read as data: nothing
here is shared with the code that writes the log.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta

from audit.verifier.errors import BadIdsFile

SCHEMAS: Final = Path(__file__).parents[2] / "schemas"

EVENT_ID: Final = slice(5, 21)
ENTITY_ID: Final = slice(21, 37)
_AFTER_IDS: Final = 37
_HEX: Final = b"0123456789abcdef"
_NAMED_IN_DATA: Final = "entity"
"""`genesis.entity.amended` and `.retired` name their entity's kind in their data."""

_LOGGED_SUBJECTS: Final = ("genesis.events-", "plant.operations-")
"""How the subjects of schemas begin whose records are logged; those of deliveries are not."""

_RAISING_TYPE: Final = "plant.chain.version_raised"
"""The type of the control record that takes a chain to v2. The first version of its schema knows v2 alone."""
_VERSION_2: Final = b"\x04"

_REDRIVING_TYPE: Final = "plant.record.redriven"
_SKIPPING_TYPE: Final = "plant.record.skipped"
"""The types of control records that name a poison record: an event id, then the offset."""

APPLIED, REPEAT, PARKED, CONTROL, POISON = "applied", "repeat", "parked", "control", "poison"
HOLDS_AN_EVENT: Final = (APPLIED, REPEAT, PARKED)


class DecodedColumns(NamedTuple):
    """The log's columns about a record, or from :func:`expected_columns` their right values."""

    event_type: str | None
    entity_type: str | None
    entity_id: bytes | None
    event_id: bytes | None


class Layout(NamedTuple):
    """The type of a schema id, and its entity type."""

    event_type: str
    entity_type: str | None
    """None: it is in the data, after the ids and a time; a control record has none."""
    control: bool = False
    """Whether it is a control record: an event id, and the version or the offset of a poison record."""

    @property
    def raises(self) -> bool:
        """Whether it is the control record that takes a chain to v2."""
        return self.event_type == _RAISING_TYPE


Layouts = Mapping[bytes, Layout]
"""Layouts by a value's first five bytes."""


def expected_columns(value: bytes | None, layouts: Layouts | None = None) -> DecodedColumns | None:
    """Return the columns that follow from an event's value; None if it is too short or no event's schema is known.

    The known schemas are `layouts`, or the bundled ones.
    """
    if value is None or len(value) < _AFTER_IDS:
        return None
    layout = (id_offsets() if layouts is None else layouts).get(value[:5])
    if layout is None or layout.control:
        return None
    entity_type = layout.entity_type or _entity_type_in(value)
    return DecodedColumns(layout.event_type, entity_type, value[ENTITY_ID], value[EVENT_ID])


def mismatch(
    columns: DecodedColumns,
    disposition: str,
    value: bytes | None,
    layouts: Layouts | None = None,
    *,
    key: bytes | None = None,
    control_offset: int | None = None,
) -> str | None:
    """Return how the columns contradict key and value; None if they don't.

    Columns of a record that was not applied may be empty, and must be right otherwise. A poison record that parks its
    entity has the entity of its key alone. A value whose schema is not known contradicts nothing:
    :func:`unknown_schema` returns its id.
    """
    layouts = id_offsets() if layouts is None else layouts
    if disposition == POISON and is_parking(columns) and key is not None:
        return None if key == _uuid_text(columns.entity_id) else "entity_id is not the id that the key is"
    if control_offset is not None and disposition != CONTROL:
        return f"control_offset is {control_offset}, but disposition is {disposition}"
    if disposition == CONTROL and names_poison(value, layouts):
        return _naming_mismatch(columns, value, layouts, key, control_offset)
    raises = raises_chain(key, value, layouts)
    if raises or disposition == CONTROL:
        return _control_mismatch(columns, disposition, value, layouts, raises=raises)
    expected = expected_columns(value, layouts)
    if expected is None:
        if _may_hold_an_event(value) and not _is_control_schema(value, layouts):
            repeats_nothing = disposition == REPEAT and columns.event_id is None
            return "event_id is empty, but disposition is repeat" if repeats_nothing else None
        if disposition in HOLDS_AN_EVENT:
            return f"disposition is {disposition}, but the value holds no event"
        if any(column is not None for column in columns):
            return f"disposition is {disposition}, and the value proves none of what the columns say"
        return None
    for name, stored, right in zip(DecodedColumns._fields, columns, expected, strict=True):
        if stored != right and (stored is not None or disposition in HOLDS_AN_EVENT):
            return f"{name} is {_text(stored)}, but the value says {_text(right)}"
    return None


def raises_chain(key: bytes | None, value: bytes | None, layouts: Layouts) -> bool:
    """Return whether a record takes its chain to v2, from its bytes: no key, a known schema, an id, and the version."""
    if key is not None or value is None or value[21:] != _VERSION_2:
        return False
    return value[:5] in layouts and layouts[value[:5]].raises


def is_parking(columns: DecodedColumns) -> bool:
    """Return whether the columns of a poison record say that it parks an entity, and nothing else."""
    return columns.entity_id is not None and (columns.event_type, columns.entity_type, columns.event_id) == (None,) * 3


def names_poison(value: bytes | None, layouts: Layouts) -> bool:
    """Return whether a value has the schema of a control record that redrives or skips a poison record."""
    return _is_control_schema(value, layouts) and value is not None and not layouts[value[:5]].raises


def _naming_mismatch(
    columns: DecodedColumns, value: bytes | None, layouts: Layouts, key: bytes | None, control_offset: int | None
) -> str | None:
    """Return how the columns of a control record that names a poison record contradict key and value.

    One without effect has its type alone. A skip that has one names the record and has its event id; so does a redrive
    that brings an event in, with the entity of its key. Any other redrive with an effect names the record.
    """
    assert value is not None
    named, after = _varint(value, EVENT_ID.stop)
    if len(value) <= EVENT_ID.stop or value[after - 1] >= 0x80 or named < 0:
        return "disposition is control, but key and value are not those of a control record"
    event_type = layouts[value[:5]].event_type
    brings_in = columns.event_id is not None and event_type == _REDRIVING_TYPE
    entity_id = _uuid_bytes(key) if brings_in else None
    right = DecodedColumns(event_type, None, entity_id, None if columns.event_id is None else value[EVENT_ID])
    for name, stored, expected in zip(DecodedColumns._fields, columns, right, strict=True):
        if stored != expected:
            return f"{name} is {_text(stored)}, but key and value say {_text(expected)}"
    if brings_in and entity_id is None:
        return "event_id is filled, but the key is no entity's"
    if control_offset not in (None, named):
        return f"control_offset is {control_offset}, but the value says {named}"
    if columns.event_id is not None and control_offset is None:
        return "event_id is filled, but control_offset is empty"
    if columns.event_id is None and control_offset is not None and event_type == _SKIPPING_TYPE:
        return "control_offset is filled, but event_id is empty"
    return None


def _is_control_schema(value: bytes | None, layouts: Layouts) -> bool:
    layout = None if value is None else layouts.get(value[:5])
    return layout is not None and layout.control


def _control_mismatch(
    columns: DecodedColumns, disposition: str, value: bytes | None, layouts: Layouts, *, raises: bool
) -> str | None:
    if not raises:
        if _may_be_control(value) and value is not None and value[:5] not in layouts:
            return None
        return f"disposition is {disposition}, but key and value are not those of a control record"
    assert value is not None
    if disposition != CONTROL:
        return f"disposition is {disposition}, but key and value are those of a control record"
    right = DecodedColumns(layouts[value[:5]].event_type, None, None, value[EVENT_ID])
    for name, stored, expected in zip(DecodedColumns._fields, columns, right, strict=True):
        if stored != expected:
            return f"{name} is {_text(stored)}, but the value says {_text(expected)}"
    return None


def unknown_schema(
    columns: DecodedColumns,
    disposition: str,
    value: bytes | None,
    layouts: Layouts | None = None,
    *,
    key: bytes | None = None,
) -> int | None:
    """Return the schema id that keeps the columns from being judged; None if they can be.

    Empty columns of a record that was not applied say nothing, so there is nothing to judge; nor is there of the entity
    that a poison record parks, which is its key. `control` itself says something.
    """
    if disposition == POISON and is_parking(columns) and key is not None:
        return None
    layouts = id_offsets() if layouts is None else layouts
    if disposition == CONTROL:
        unknown = _may_be_control(value) and value is not None and value[:5] not in layouts
        return int.from_bytes(value[1:5], "big") if unknown and value is not None else None
    if _is_control_schema(value, layouts):
        return None
    if not _may_hold_an_event(value) or expected_columns(value, layouts) is not None:
        return None
    if disposition not in HOLDS_AN_EVENT and all(column is None for column in columns):
        return None
    assert value is not None
    return int.from_bytes(value[1:5], "big")


def _may_hold_an_event(value: bytes | None) -> bool:
    """Return whether some schema may explain a value: every event begins with a zero byte, an id, and the two ids."""
    return value is not None and len(value) >= _AFTER_IDS and value[0] == 0


def _may_be_control(value: bytes | None) -> bool:
    """Return whether some schema of a control record may explain a value: a zero byte, an id, and the event id."""
    return value is not None and len(value) >= EVENT_ID.stop and value[0] == 0


@cache
def id_offsets(ids_file: Path | None = None) -> Layouts:
    """Return the layout by a value's first five bytes, for events' schemas and that of a chain's switch to v2.

    `ids_file` is PLANT_SCHEMA_IDS_FILE: the ids of an external registry, and the bundled schemas that they stand for.
    A line about a schema that is not the bundled one is left out. Raises BadIdsFile.
    """
    layouts, fingerprints = _bundled_layouts()
    for entry in () if ids_file is None else _read_ids(ids_file):
        start = struct.pack(">bi", 0, entry.id)
        own = struct.pack(">bi", 0, entry.own_id)
        if start not in layouts and fingerprints.get(own) == entry.sha256:
            layouts[start] = layouts[own]
    return layouts


class _ExternalId(msgspec.Struct, frozen=True):
    """A line of the ids file, less what is not needed here."""

    id: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    own_id: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    sha256: str


def _read_ids(ids_file: Path) -> list[_ExternalId]:
    try:
        return msgspec.json.decode(ids_file.read_bytes(), type=list[_ExternalId])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadIdsFile(why=f"{ids_file}: {error}.", next_step="plant schemas register") from error


def _bundled_layouts() -> tuple[dict[bytes, Layout], dict[bytes, str]]:
    """Return the bundled layouts, and the fingerprints of their schemas."""
    names = {}
    for file in sorted((SCHEMAS / "avro").glob("*.avsc")):
        schema = json.loads(file.read_text(encoding="utf-8"))
        names[f"{schema['namespace']}.{schema['name']}"] = file.stem
    layouts, fingerprints = {}, {}
    for entry in json.loads((SCHEMAS / "registry.json").read_text(encoding="utf-8")):
        if not entry["subject"].startswith(_LOGGED_SUBJECTS):
            continue
        schema = entry["schema"]
        event_type = names.get(f"{schema['namespace']}.{schema['name']}")
        start = struct.pack(">bi", 0, entry["id"])
        first_raising = event_type == _RAISING_TYPE and entry["version"] == 1
        naming = event_type in (_REDRIVING_TYPE, _SKIPPING_TYPE) and _begins_with_named_offset(schema["fields"])
        if event_type is not None and (first_raising or naming):
            layouts[start] = Layout(event_type, None, control=True)
        elif event_type is not None and _begins_with_ids(schema["fields"]):
            layouts[start] = Layout(event_type, _entity_type_of(event_type))
        else:
            continue
        fingerprints[start] = entry["sha256"]
    return layouts, fingerprints


def _entity_type_of(event_type: str) -> str | None:
    entity = event_type.split(".")[1]
    return None if entity == _NAMED_IN_DATA else entity


def _begins_with_named_offset(fields: list[dict[str, Any]]) -> bool:
    ids, offset = fields[0], fields[1]
    return isinstance(ids["type"], dict) and ids["type"].get("size") == 16 and offset["type"] == "long"


def _begins_with_ids(fields: list[dict[str, Any]]) -> bool:
    return len(fields) > 1 and all(
        isinstance(field["type"], dict) and field["type"].get("type") == "fixed" and field["type"].get("size") == 16
        for field in fields[:2]
    )


def _entity_type_in(value: bytes) -> str | None:
    """Return the string after the ids and `occurred_at`: two Avro varints, then UTF-8."""
    _, at = _varint(value, _AFTER_IDS)
    length, at = _varint(value, at)
    return value[at : at + length].decode("utf-8", "replace")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return an Avro long (zigzag, seven bits a byte, least first) and the index after it."""
    shift = unsigned = 0
    for byte in data[at:]:
        at += 1
        unsigned |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return (unsigned >> 1) ^ -(unsigned & 1), at


def _uuid_text(data: bytes | None) -> bytes:
    """Return an id as 36 lower-case characters."""
    digits = (data or b"").hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])).encode()


def _uuid_bytes(key: bytes | None) -> bytes | None:
    """Return the id that a key is the text of; None: it is no id's."""
    digits = (key or b"").replace(b"-", b"")
    data = bytes.fromhex(digits.decode()) if len(digits) == 32 and digits.isalnum() and not digits.strip(_HEX) else b""
    return data if len(data) == 16 and _uuid_text(data) == key else None


def _text(column: str | bytes | None) -> str:
    if column is None:
        return "empty"
    return column if isinstance(column, str) else column.hex()
