"""Which records have a dead letter on the topic: what the relay has published, after the database was lost."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Mapping, Set

from audit.canonical import read_headers
from runtime.settings import Settings
from streams.log_reader import topic_batches
from streams.topic_watermarks import TopicWatermarks

HEADERS = {f"__connect.errors.{name}": name for name in ("topic", "partition", "offset")}
"""The headers by which a dead letter names its record."""


async def read_published(
    settings: Settings, dead_topic: str, watermarks: TopicWatermarks
) -> Mapping[tuple[str, int], Set[int]]:
    """Return the offsets that the topic has dead letters of, by topic and partition. Raises KafkaUnavailable."""
    found: dict[tuple[str, int], set[int]] = defaultdict(set)
    async with contextlib.aclosing(topic_batches(settings, dead_topic, watermarks)) as batches:
        async for batch in batches:
            for headers in batch.headers:
                if (named := named_record(headers)) is not None:
                    found[named[0], named[1]].add(named[2])
    return found


def named_record(headers: bytes) -> tuple[str, int, int] | None:
    """Return topic, partition and offset of the record that a dead letter's headers name, in canonical bytes.

    The last header of a name counts: the record's own come first.

    >>> from audit.canonical import headers_bytes
    >>> names = {"topic": b"genesis.events", "partition": b"3", "offset": b"42"}
    >>> named_record(headers_bytes([(f"__connect.errors.{name}", value) for name, value in names.items()]))
    ('genesis.events', 3, 42)
    """
    values = {HEADERS[name]: value for name, value in read_headers(headers) if name in HEADERS}
    try:
        return values["topic"].decode(), int(values["partition"]), int(values["offset"])  # type: ignore[union-attr, arg-type]  # a null is no record of the relay's
    except (KeyError, ValueError, AttributeError, TypeError):
        return None
