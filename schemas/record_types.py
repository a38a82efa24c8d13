"""Every type that a record's value may have: events, control records, records of deliveries, events of endpoints."""

from __future__ import annotations

from typing import Final

import msgspec

from schemas.control import CONTROL_TYPES
from schemas.delivery_records import DELIVERY_TYPES
from schemas.endpoint_events import ENDPOINT_EVENT_TYPES
from schemas.events import EVENT_TYPES, RecordValue

RECORD_TYPES: Final[dict[str, type[RecordValue]]] = {
    **EVENT_TYPES, **CONTROL_TYPES, **DELIVERY_TYPES, **ENDPOINT_EVENT_TYPES
}  # fmt: skip
"""Type to its struct."""

for _each in RECORD_TYPES.values():
    # What msgspec knows of a type it finds out when that is first used. Two threads that do so at once end the process:
    # one of them follows a null pointer into what the other has half made.
    msgspec.json.Decoder(_each)
