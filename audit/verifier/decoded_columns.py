"""What the stored bytes prove about an event's id, entity and type, without an Avro library.

A value is `0x00`, the schema's id (big-endian int32), then Avro. Every schema of Plant begins with the event's id and
its entity's id, each `fixed(16)`, so both stand at a known place; the locked registry says which event type a schema id
stands for. Its files are read as data: nothing here is shared with the code that writes the log.
"""

from __future__ import annotations

import json
import struct
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

SCHEMAS: Final = Path(__file__).parents[2] / "schemas"

EVENT_ID: Final = slice(5, 21)
ENTITY_ID: Final = slice(21, 37)
_AFTER_IDS: Final = 37
_NAMED_IN_DATA: Final = "entity"
"""`genesis.entity.amended` and `.retired` say in their data what kind of entity they are about."""

APPLIED, REPEAT, PARKED = "applied", "repeat", "parked"
HOLDS_AN_EVENT: Final = (APPLIED, REPEAT, PARKED)


class DecodedColumns(NamedTuple):
    """What the log's columns say about a record; or, from :func:`expected_columns`, what they should say."""

    event_type: str | None
    entity_type: str | None
    entity_id: bytes | None
    event_id: bytes | None


class _Layout(NamedTuple):
    event_type: str
    entity_type: str | None
    """None: it stands in the data, after the ids and a time."""


def expected_columns(value: bytes | None) -> DecodedColumns | None:
    """What a value proves; None where its schema is not in the registry, or it is too short for one."""
    if value is None or len(value) < _AFTER_IDS:
        return None
    layout = id_offsets().get(value[:5])
    if layout is None:
        return None
    entity_type = layout.entity_type or _entity_type_in(value)
    return DecodedColumns(layout.event_type, entity_type, value[ENTITY_ID], value[EVENT_ID])


def mismatch(claims: DecodedColumns, disposition: str, value: bytes | None) -> str | None:
    """Why the columns can't be true of this value; None where nothing speaks against them.

    A record that was not applied may leave columns empty; what it fills in must still be right. A schema that is not
    in the registry (newer than this verifier) proves nothing.
    """
    truth = expected_columns(value)
    if truth is None:
        if disposition in HOLDS_AN_EVENT and (value is None or len(value) < _AFTER_IDS or value[0] != 0):
            return f"disposition is {disposition}, but the value holds no event"
        if disposition not in HOLDS_AN_EVENT and any(claim is not None for claim in claims):
            return f"disposition is {disposition}, and the value proves none of what the columns say"
        return None
    for name, claim, true in zip(DecodedColumns._fields, claims, truth, strict=True):
        if claim != true and (claim is not None or disposition in HOLDS_AN_EVENT):
            return f"{name} is {_shown(claim)}, but the value says {_shown(true)}"
    return None


@cache
def id_offsets() -> dict[bytes, _Layout]:
    """The first five bytes of a value to its event type, for schemas that begin with the two ids."""
    names = {}
    for file in sorted((SCHEMAS / "avro").glob("*.avsc")):
        schema = json.loads(file.read_text(encoding="utf-8"))
        names[f"{schema['namespace']}.{schema['name']}"] = file.stem
    found = {}
    for entry in json.loads((SCHEMAS / "registry.json").read_text(encoding="utf-8")):
        schema = entry["schema"]
        event_type = names.get(f"{schema['namespace']}.{schema['name']}")
        if event_type is not None and _begins_with_ids(schema["fields"]):
            found[struct.pack(">bi", 0, entry["id"])] = _Layout(event_type, _entity_type_of(event_type))
    return found


def _entity_type_of(event_type: str) -> str | None:
    entity = event_type.split(".")[1]
    return None if entity == _NAMED_IN_DATA else entity


def _begins_with_ids(fields: list[dict[str, Any]]) -> bool:
    return len(fields) > 1 and all(
        isinstance(field["type"], dict) and field["type"].get("type") == "fixed" and field["type"].get("size") == 16
        for field in fields[:2]
    )


def _entity_type_in(value: bytes) -> str | None:
    """The string after the ids and `occurred_at`: two Avro varints, then UTF-8."""
    _, at = _varint(value, _AFTER_IDS)
    length, at = _varint(value, at)
    return value[at : at + length].decode("utf-8", "replace")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """An Avro long (zigzag, seven bits a byte, least first) and the position after it."""
    shift = unsigned = 0
    for byte in data[at:]:
        at += 1
        unsigned |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return (unsigned >> 1) ^ -(unsigned & 1), at


def _shown(claim: str | bytes | None) -> str:
    if claim is None:
        return "empty"
    return claim if isinstance(claim, str) else claim.hex()
