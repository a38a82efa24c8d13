"""Record batches made by hand, byte for byte, for what no client library would write, and records read as they are.

Format: https://kafka.apache.org/documentation/#recordbatch
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, ConsumerRecord
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import NotLeaderForPartitionError
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition

from runtime.settings import Settings
from streams.kafka.connection import connection_options
from tests.conftest import DEFAULT_PARTITIONS
from tests.support.waiting import wait_until_async


@dataclass(frozen=True)
class RawRecord:
    """One record; header names are bytes, and `attributes` is the byte that clients leave 0.

    `offset_delta` is where in its batch it says that it is; None for where it is.
    """

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[bytes, bytes | None]] = ()
    attributes: int = 0
    offset_delta: int | None = None


def record_batch(records: Sequence[RawRecord], *, base_offset: int = 0) -> bytes:
    """Return an uncompressed batch of format 2."""
    body = b"".join(_record(index, record) for index, record in enumerate(records))
    now_ms = int(time.time() * 1000)
    after_crc = struct.pack(">hiqqqhii", 0, len(records) - 1, now_ms, now_ms, -1, -1, -1, len(records)) + body
    after_length = struct.pack(">ibI", -1, 2, calc_crc32c(after_crc)) + after_crc
    return struct.pack(">qi", base_offset, len(after_length)) + after_length


async def append_raw(settings: Settings, topic: str, partition: int, records: Sequence[RawRecord]) -> int:
    """Write a batch to a partition; its first offset."""
    client = AIOKafkaClient(**connection_options(settings))
    await client.bootstrap()
    try:
        await client.add_topic(topic)
        request = ProduceRequest(None, -1, 10_000, [(topic, [(partition, record_batch(records))])])
        answers: list[tuple[int, int]] = []

        async def is_answered_by_the_leader() -> bool:
            await client.force_metadata_update()
            node = client.cluster.leader_for_partition(TopicPartition(topic, partition))
            response = await client.send(node, request)
            ((_, ((_, error, offset, *_rest),)),) = response.topics
            answers.append((error, offset))
            return bool(error != NotLeaderForPartitionError.errno)

        # The broker of a topic that has just been made may not know yet that it leads.
        await wait_until_async(is_answered_by_the_leader, f"the leader of {topic} answers")
        error, offset = answers[-1]
        assert error == 0, error
        return offset
    finally:
        await client.close()


async def read_records(settings: Settings, topic: str, count: int = DEFAULT_PARTITIONS) -> list[ConsumerRecord]:
    """Return every record of a topic, partition by partition, in the order of their offsets."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_address(), enable_auto_commit=False)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(count)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        records_read: list[ConsumerRecord] = []
        while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                records_read += records
    finally:
        await consumer.stop()
    return sorted(records_read, key=lambda record: (record.partition, record.offset))


def _record(index: int, record: RawRecord) -> bytes:
    offset_delta = index if record.offset_delta is None else record.offset_delta
    headers = b"".join(_sized(name) + _sized(value) for name, value in record.headers)
    content = (
        struct.pack(">B", record.attributes) + _varint(0) + _varint(offset_delta)
        + _sized(record.key) + _sized(record.value) + _varint(len(record.headers)) + headers
    )  # fmt: skip
    return _varint(len(content)) + content


def _sized(data: bytes | None) -> bytes:
    return _varint(-1) if data is None else _varint(len(data)) + data


def _varint(number: int) -> bytes:
    """Zigzag, seven bits a byte, least significant first."""
    rest, out = (number << 1) ^ (number >> 63), bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)
