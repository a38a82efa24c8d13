"""Record batches are compressed at lz4's fast level, and read as before."""

from __future__ import annotations

import aiokafka.record.default_records as plain_records
import pytest
from aiokafka import codec
from aiokafka.record._crecords import default_records as compiled_records
from aiokafka.record.memory_records import MemoryRecords

from runtime.settings import Settings
from streams.kafka.clients import make_producer

SETTINGS = Settings(kafka_bootstrap_servers="127.0.0.1:1")
BATCH_HEAD_BYTES = 61
RECORDS = [(b"%036d" % (number * 7919), b"value of %d" % number, [("ce_id", b"%d" % number)]) for number in range(500)]


async def built(compression: str | None) -> bytes:
    """The bytes of a batch as they are sent."""
    producer = make_producer(SETTINGS, compression_type=compression, max_batch_size=1_000_000)
    builder = producer.create_batch()
    for key, value, headers in RECORDS:
        builder.append(timestamp=1, key=key, value=value, headers=headers)
    await producer.stop()
    return bytes(builder._build())


async def test_a_batch_is_compressed_at_the_fast_level() -> None:
    """It holds what level 1 makes of its records, and a reader gets them all."""
    sent, plain = await built("lz4"), await built(None)
    assert sent[BATCH_HEAD_BYTES:] == codec.lz4_encode(plain[BATCH_HEAD_BYTES:], level=1)
    assert sent[BATCH_HEAD_BYTES:] != codec.lz4_encode(plain[BATCH_HEAD_BYTES:])
    read = list(MemoryRecords(sent).next_batch())
    assert [(record.key, record.value, record.headers) for record in read] == RECORDS


@pytest.mark.parametrize("module", [plain_records, compiled_records])
async def test_both_builders_of_aiokafka_compress_so(module: object) -> None:
    """The one in C, and the one in Python that stands in where there is no compiler."""
    await built("lz4")
    assert vars(module)["lz4_encode"](bytes(1_000)) == codec.lz4_encode(bytes(1_000), level=1)
