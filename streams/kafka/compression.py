"""Compression of record batches at lz4's fast level.

aiokafka compresses at level 9, Kafka's own default, and takes no other. That level searches for the shortest form: in
batches of 500 it takes sixteen times as long as level 1, which makes them 3 % larger
(docs/decisions/0021-lz4-at-its-fast-level.md).
"""

from __future__ import annotations

from functools import partial
from typing import Final

from aiokafka import codec
from aiokafka.record import default_records
from aiokafka.record._crecords import default_records as compiled_records

from streams.kafka.repair import Repair

LEVEL: Final = 1

REPAIR: Final = Repair(
    name="compression level",
    needed_by="aiokafka 0.14.0",
    reason="Batches are compressed at lz4's level 9, which takes up to sixteen times as long as level 1 and saves 3 %.",
    until="aiokafka's producer takes a compression level.",
    touches=(
        "aiokafka.codec:lz4_encode(payload, level)",
        "aiokafka.record.default_records:lz4_encode",
        "aiokafka.record._crecords.default_records:lz4_encode",
    ),
)


def compress_fast() -> None:
    """Make this process's aiokafka producers compress at the fast level. Consumers read either."""
    default_records.lz4_encode = compiled_records.lz4_encode = partial(codec.lz4_encode, level=LEVEL)
