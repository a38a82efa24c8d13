"""Fields that Plant filled in from a clock, since the sender left them out.

A sender that sends its message again gets another time from Plant's clock. So a record names these fields in a header,
and where two records with one event id both do, the fields are left out of their comparison: the second is a repeat. A
time that a sender gave is always compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

from schemas.events import Event

CLOCK_FIELDS_HEADER: Final = "plant_clock_fields"
CLOCK_FIELDS: Final = b"occurred_at"
"""The header's only value: no other field is ever filled in."""

_NO_TIME: Final = datetime(1970, 1, 1, tzinfo=UTC)


class ClockStamped(NamedTuple):
    """An event whose `occurred_at` is Plant's own time and not its sender's."""

    event: Event


def is_clock_stamped(headers: Iterable[tuple[str, bytes | None]]) -> bool:
    """Return whether a record's headers name the fields that were filled in.

    >>> is_clock_stamped([("ce_id", b"1"), ("plant_clock_fields", b"occurred_at")])
    True
    """
    return (CLOCK_FIELDS_HEADER, CLOCK_FIELDS) in headers


def without_clock_fields(event: Event) -> Event:
    """Return the event with the same time as every other, for a comparison of what its sender gave."""
    return msgspec.structs.replace(event, occurred_at=_NO_TIME)
