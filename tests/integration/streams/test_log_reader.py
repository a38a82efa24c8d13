"""A partition read without a group: batches as workers get them, from a position that is compared first."""

from __future__ import annotations

from contextlib import aclosing

import msgspec
import pytest
from aiokafka.admin import RecordsToDelete
from aiokafka.structs import TopicPartition

from runtime.settings import Settings
from streams import log_reader
from streams.batch import EventBatch
from streams.errors import CheckpointOutOfLog, KafkaUnavailable, LogTruncated
from streams.log_end import LogEnd, LoggedRecord, record_of
from streams.log_reader import LogReader
from streams.topics import admin
from tests.conftest import MakeTopic
from tests.support.load import events, fill

RECORDS = 50


async def read(reader: LogReader, until: int) -> list[EventBatch]:
    """All batches up to an offset."""
    async with aclosing(reader.batches(until)) as batches:
        return [batch async for batch in batches]


async def test_batches_follow_each_other_and_shrink_and_grow(
    settings: Settings, make_topic: MakeTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every record once, in order; after a failure batches are halved, and grow to where they began."""
    monkeypatch.setattr(log_reader, "BATCH_RECORDS", 16)
    monkeypatch.setattr(log_reader, "FETCH_RECORDS", 16)
    topic = await make_topic(1)
    fill(settings, topic, events(RECORDS))
    async with LogReader(settings, topic, 0) as reader:
        watermarks = await reader.watermarks()
        reader.open(7, watermarks, LogEnd(None, 0))
        reader.halve()
        batches = await read(reader, RECORDS)
        assert [offset for batch in batches for offset in batch.offsets] == list(range(RECORDS))
        assert {batch.token for batch in batches} == {7}
        assert max(map(len, batches)) == 8
        last = record_of(batches[-1], -1)
        reader.grow()
        reader.grow()
        reader.open(8, watermarks, LogEnd(record_of(batches[0], -1), batches[0].next_offset))
        again = await read(reader, RECORDS)
        assert (again[0].fetched_from, max(map(len, again))) == (batches[0].next_offset, 16)
        reader.open(9, watermarks, LogEnd(last, RECORDS))
        assert await read(reader, RECORDS) == []


async def test_what_is_not_in_kafka_s_log_is_named(settings: Settings, make_topic: MakeTopic) -> None:
    """A checkpoint outside of it, records that it has lost, and a last record that is another one."""
    topic = await make_topic(1)
    fill(settings, topic, events(RECORDS))
    async with LogReader(settings, topic, 0) as reader:
        watermarks = await reader.watermarks()
        with pytest.raises(CheckpointOutOfLog):
            reader.open(1, watermarks, LogEnd(None, RECORDS + 1))
        reader.open(1, watermarks, LogEnd(LoggedRecord(9, 0, None, b"another", b""), 10))
        with pytest.raises(LogTruncated, match="that is not the one that was logged"):
            await read(reader, RECORDS)
        async with admin(settings) as client:
            await client.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=5)})
        reader.open(1, watermarks, LogEnd(None, 0, compared=False))
        with pytest.raises(CheckpointOutOfLog):
            await read(reader, RECORDS)


async def test_a_kafka_that_is_not_there_is_named(settings: Settings) -> None:
    """Nothing stays open."""
    nowhere = msgspec.structs.replace(settings, kafka_bootstrap_servers="127.0.0.1:1")
    with pytest.raises(KafkaUnavailable):
        async with LogReader(nowhere, "genesis.events", 0):
            pass
