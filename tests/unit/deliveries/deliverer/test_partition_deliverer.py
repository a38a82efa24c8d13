"""The topics of a partition share a run: one that is opened again begins another, and the others follow."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from database.errors import DatabaseUnreachable
from deliveries.deliverer.delivery_process import DeliveryProcess
from deliveries.deliverer.partition_deliverer import DeliveryTopicWriter, PartitionDeliverer
from deliveries.delivery_fence import TopicOffsets
from streams.errors import OwnershipLost
from tests.support.made_attempts import WATERMARKS

TOPICS = ("deliveries", "retry.1s")


class SeenRun:
    """A run that reads nothing."""

    def __init__(self, token: int) -> None:
        self.token = token
        self.failure = None
        self.trackers: set[str] = set()
        self.writer = SimpleNamespace(fence=SimpleNamespace(open_topic=None), call=self._call)
        self.closed = self.is_cut_off = False

    async def _call(self, *_: object) -> TopicOffsets:
        if self.is_cut_off:
            raise DatabaseUnreachable(why="For tests.")
        return TopicOffsets(5)

    def open_topic(self, topic: str, _offsets: TopicOffsets) -> None:
        self.trackers.add(topic)

    def check(self) -> None:
        assert not self.closed

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[SeenRun]:
    """The runs that were begun."""
    made = list[SeenRun]()

    async def begin(_deliverer: PartitionDeliverer) -> Any:
        made.append(SeenRun(len(made) + 1))
        return made[-1]

    monkeypatch.setattr(PartitionDeliverer, "_begin", begin)
    return made


async def test_every_topic_takes_part_in_the_run_that_has_begun(runs: list[SeenRun]) -> None:
    """Also one without records: what the former run had read of it, and not done, is read again."""
    deliverer = PartitionDeliverer(cast(DeliveryProcess, None), "", 0)
    first, second = (DeliveryTopicWriter(deliverer, topic) for topic in TOPICS)
    for topic in TOPICS:
        assert (await deliverer.open_topic(topic, WATERMARKS)).token == 1
    await asyncio.to_thread(first.idle)
    await asyncio.to_thread(second.idle)

    assert (await deliverer.open_topic(TOPICS[0], WATERMARKS)).token == 2
    assert runs[0].closed
    await asyncio.to_thread(first.idle)
    with pytest.raises(OwnershipLost):
        await asyncio.to_thread(second.idle)
    assert (await deliverer.open_topic(TOPICS[1], WATERMARKS)).token == 2
    await asyncio.to_thread(second.idle)
    await deliverer.close()
    with pytest.raises(OwnershipLost):
        await asyncio.to_thread(first.idle)


async def test_a_topic_that_finds_a_run_cut_off_from_postgres_ends_it(runs: list[SeenRun]) -> None:
    """A run that has nothing to write does not notice, and no topic could come to it."""
    deliverer = PartitionDeliverer(cast(DeliveryProcess, None), "", 0)
    await deliverer.open_topic(TOPICS[0], WATERMARKS)
    runs[0].is_cut_off = True
    with pytest.raises(DatabaseUnreachable):
        await deliverer.open_topic(TOPICS[1], WATERMARKS)
    assert runs[0].closed
    with pytest.raises(OwnershipLost):
        await deliverer.check(TOPICS[0])
    assert (await deliverer.open_topic(TOPICS[1], WATERMARKS)).token == 2
    await deliverer.close()
