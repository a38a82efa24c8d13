"""Reading dead letters, as any consumer of the topic can."""

from __future__ import annotations

from runtime.settings import Settings
from tests.support.raw_records import read_records

DeadLetter = tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]
"""Key, value and headers."""


async def read_dead_letters(settings: Settings, topic: str) -> list[DeadLetter]:
    """Return the topic's dead letters, partition by partition, in the order of their offsets."""
    return [(record.key, record.value, list(record.headers)) for record in await read_records(settings, topic)]


def by_offset(dead_letters: list[DeadLetter]) -> list[DeadLetter]:
    """Return them in the order of the records that they copy."""
    return sorted(dead_letters, key=offset_of)


def error_header(dead_letter: DeadLetter, name: str) -> bytes | None:
    """Return a header that the relay added."""
    return dict(dead_letter[2]).get(f"__connect.errors.{name}")


def offset_of(dead_letter: DeadLetter) -> int:
    """Return the offset of the record that it copies."""
    return int(error_header(dead_letter, "offset") or b"-1")
