"""aiokafka's consumer, with the parts that workers and readers need of its inside."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final

from aiokafka import AIOKafkaConsumer
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import UnknownTopicOrPartitionError
from aiokafka.structs import TopicPartition

from runtime.logging import get_logger
from streams.kafka.fetched_columns import FetchedColumns
from streams.kafka.fetcher_restart import restart_fetcher
from streams.kafka.identified_fetches import IdentifiedFetches
from streams.kafka.record_columns import RecordColumns
from streams.kafka.repair import Repair
from streams.kafka.topic_ids import TopicIdsRequest, leaderships
from streams.watermarks import Leadership, Watermarks

log = get_logger(__name__)

REPAIR: Final = Repair(
    name="consumer inside",
    needed_by="aiokafka 0.14.0",
    reason="`getmany` makes several objects of each record, most of what a fetch costs; nothing public"
    " tells one assignment of a partition from the next, or which partition's records can't be read. `stop` ends at"
    " the first of its tasks that failed, and may wait for long.",
    until="aiokafka yields record batches, its errors name the partition, and its `stop` skips nothing and is bounded.",
    touches=(
        "aiokafka.consumer.consumer:AIOKafkaConsumer._client",
        "aiokafka.consumer.consumer:AIOKafkaConsumer._fetcher",
        "aiokafka.consumer.consumer:AIOKafkaConsumer._subscription",
        "aiokafka.consumer.consumer:AIOKafkaConsumer._max_poll_records",
        "aiokafka.consumer.consumer:AIOKafkaConsumer.getmany(partitions, timeout_ms, max_records)",
        "aiokafka.consumer.consumer:AIOKafkaConsumer.stop()",
        "aiokafka.consumer.consumer:AIOKafkaConsumer._closed",
        "aiokafka.consumer.consumer:AIOKafkaConsumer._coordinator",
        "aiokafka.consumer.consumer:AIOKafkaConsumer._request_timeout_ms",
        "aiokafka.consumer.group_coordinator:GroupCoordinator._closing",
        "aiokafka.consumer.group_coordinator:GroupCoordinator._coordination_task",
        "aiokafka.consumer.group_coordinator:GroupCoordinator._stop_heartbeat_task()",
        "aiokafka.consumer.group_coordinator:GroupCoordinator._stop_commit_offsets_refresh_task()",
        "aiokafka.consumer.group_coordinator:GroupCoordinator._maybe_leave_group()",
        "aiokafka.consumer.group_coordinator:NoGroupCoordinator.close()",
        "aiokafka.consumer.fetcher:Fetcher._closed",
        "aiokafka.consumer.fetcher:Fetcher._create_fetch_waiter()",
        "aiokafka.consumer.fetcher:Fetcher._max_partition_fetch_bytes",
        "aiokafka.consumer.fetcher:Fetcher._pending_tasks",
        "aiokafka.consumer.fetcher:Fetcher._records",
        "aiokafka.consumer.fetcher:Fetcher.close()",
        "aiokafka.consumer.fetcher:Fetcher._subscriptions",
        "aiokafka.consumer.fetcher:Fetcher.fetched_records(partitions, timeout, max_records)",
        "aiokafka.consumer.fetcher:FetchResult._partition_records",
        "aiokafka.consumer.fetcher:FetchResult._topic_partition",
        "aiokafka.consumer.fetcher:FetchResult._assignment",
        "aiokafka.consumer.subscription_state:TopicPartitionState.consumed_to(position)",
        "aiokafka.consumer.fetcher:FetchResult.check_assignment(tp)",
        "aiokafka.consumer.fetcher:FetchResult.getall(max_records)",
        "aiokafka.consumer.fetcher:FetchResult.has_more()",
        "aiokafka.consumer.fetcher:PartitionRecords._records",
        "aiokafka.consumer.fetcher:PartitionRecords.next_fetch_offset",
        "aiokafka.consumer.fetcher:PartitionRecords._records_iterator",
        "aiokafka.consumer.fetcher:PartitionRecords._consumer_record(tp, record)",
        "aiokafka.consumer.subscription_state:SubscriptionState.fetch_context()",
        "aiokafka.consumer.subscription_state:SubscriptionState.subscription",
        "aiokafka.consumer.subscription_state:Subscription.assignment",
        "aiokafka.consumer.subscription_state:Assignment.state_value(tp)",
        "aiokafka.consumer.subscription_state:TopicPartitionState.position",
        "aiokafka.consumer.subscription_state:TopicPartitionState.has_valid_position",
        "aiokafka.client:AIOKafkaClient._sync_task",
        "aiokafka.client:AIOKafkaClient._wait_on_metadata(topic)",
    ),
)


CANCELLED_SECONDS: Final = 5.0
"""What a part of a stop may take to end once it is cancelled."""


class RepairedConsumer(AIOKafkaConsumer):  # type: ignore[misc]  # aiokafka is not type-checked here
    """A consumer whose fetching is restarted when it has ended. Made by `streams.kafka.clients.make_consumer`."""

    fetches: IdentifiedFetches | None = None
    """Where fetches name the log that they are about."""

    _with_headers = True
    _closed: bool  # aiokafka's

    @property
    def client(self) -> AIOKafkaClient:
        """The connections to the brokers."""
        return self._client

    @property
    def fetching_closed(self) -> bool:
        """Whether the consumer has been stopped."""
        closed: bool = self._fetcher._closed
        return closed

    def identify_fetches(self, gathered_seconds: Mapping[str, float] | None = None) -> None:
        """Fetch nothing of a partition until its log was named; call this before `start`.

        `gathered_seconds`, by topic: how long records are left to gather after a fetch that brought few of them.
        """
        self.fetches = IdentifiedFetches(self._client, self.assignment, gathered_seconds)

    def name_log(self, partition: TopicPartition, log: Leadership) -> None:
        """Fetch a partition's records of this log alone."""
        if self.fetches is not None:
            self.fetches.name(partition, log)

    def take_refused(self, among: Collection[TopicPartition]) -> list[TopicPartition]:
        """Return which of these partitions have a leader that has refused their log, once."""
        return [] if self.fetches is None else self.fetches.take_refused(among)

    async def stop(self) -> None:
        """Leave the group and disconnect. What fails is logged, and what takes longer than a request may is cancelled.

        aiokafka's own ends at the first failure: heartbeats would go on, and connections be left open.
        """
        if self._closed:
            return
        self._closed = True
        coordinator, fetcher = self._coordinator, self._fetcher
        if isinstance(coordinator, GroupCoordinator):
            if not coordinator._closing.done():
                coordinator._closing.set_result(None)
            await self._finish(coordinator._coordination_task)
            await self._finish(coordinator._stop_heartbeat_task())
            await self._finish(coordinator._stop_commit_offsets_refresh_task())
            await self._finish(coordinator._maybe_leave_group())
        elif coordinator is not None:
            await self._finish(coordinator.close())
        if fetcher is not None:
            await self._finish(fetcher.close())
            for fetch in fetcher._pending_tasks:
                fetch.cancel()
            await self._finish(asyncio.gather(*fetcher._pending_tasks, return_exceptions=True))
        metadata_task, self._client._sync_task = self._client._sync_task, None
        if metadata_task is not None:
            metadata_task.cancel()
            await self._finish(metadata_task)
        await self._finish(self._client.close())

    async def _finish(self, part: Awaitable[object]) -> None:
        """Wait for a part of the stop. Raises nothing but the cancellation of who stops the consumer."""
        ending = asyncio.ensure_future(part)
        try:
            # Not `asyncio.timeout`: it waits for ever for a part that swallows its cancellation.
            await asyncio.wait([ending], timeout=self._request_timeout_ms / 1000)
            if not ending.done():
                log.warning("consumer.stop_failed", why="a part of it took longer than a request may")
                ending.cancel()
                await asyncio.wait([ending], timeout=CANCELLED_SECONDS)
        except asyncio.CancelledError:
            ending.cancel()
            raise
        error = ending.exception() if ending.done() and not ending.cancelled() else None
        if error is not None:
            log.warning("consumer.stop_failed", why=repr(error.__cause__ or error))

    async def getmany(self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None) -> Any:
        """Return records by partition as aiokafka's own method does."""
        restart_fetcher(self)
        return await super().getmany(*partitions, timeout_ms=timeout_ms, max_records=max_records)

    def poll_context(self) -> AbstractContextManager[None]:
        """Return a context that counts as a poll for the consumer's group; the fetcher runs when it is entered."""
        restart_fetcher(self)
        context: AbstractContextManager[None] = self._fetcher._subscriptions.fetch_context()
        return context

    def leave_out_headers(self) -> None:
        """Have :meth:`fetch_columns` return records with no bytes for their headers, from the next one on."""
        self._with_headers = False

    def bound_fetches(self, partition_bytes: int) -> None:
        """Ask for no more than this of one partition from the next fetch on."""
        self._fetcher._max_partition_fetch_bytes = partition_bytes

    async def fetch_columns(
        self,
        partitions: Collection[TopicPartition],
        timeout_seconds: float,
        still_wanted: Callable[[], Collection[TopicPartition]] | None = None,
    ) -> dict[TopicPartition, RecordColumns]:
        """Return fetched records by partition, in columns; nothing where none arrives in time.

        They are unpacked batch by batch, those too for which it has to wait. After a wait it is asked which of the
        partitions are `still_wanted`: of any other one nothing is taken. Nothing is where none is left.
        """
        deadline = time.monotonic() + timeout_seconds
        while partitions:  # of none aiokafka would return all
            if fetched := await self._fetched_columns(partitions):
                return fetched
            left_seconds = deadline - time.monotonic()
            if left_seconds <= 0 or not await self._arrival(left_seconds):
                break
            if still_wanted is not None:
                partitions = still_wanted()
        return {}

    async def _fetched_columns(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, RecordColumns]:
        """Return what has been fetched, without waiting."""
        budget, results = RecordBudget(self._max_poll_records or sys.maxsize), []  # None: as many as there are
        for result in self._fetcher._records.values():
            unpacking = getattr(result, "_partition_records", None)
            if unpacking is not None:
                unpacking._records.in_columns, unpacking._records.with_headers = True, self._with_headers
                unpacking._consumer_record = _raw_record
                result.getall = partial(_unpack, result, budget)
                results.append(result)
        try:
            fetched = await self._fetcher.fetched_records(
                set(partitions), timeout=0, max_records=self._max_poll_records
            )  # fmt: skip
        finally:
            for result in results:  # it would keep itself, and what was fetched, until Python looks for cycles
                del result.getall
        return {partition: RecordColumns.joined(batches) for partition, batches in fetched.items()}

    async def _arrival(self, timeout_seconds: float) -> bool:
        """Wait until the fetcher has fetched something; returns whether it has."""
        waiter = self._fetcher._create_fetch_waiter()
        try:
            await asyncio.wait([waiter], timeout=timeout_seconds)
            if not waiter.done() or self._fetcher._closed:
                return False
            waiter.result()  # raises what the coordinator refused
            return True
        finally:
            waiter.cancel()

    def failing_partition(self, among: Collection[TopicPartition]) -> TopicPartition | None:
        """Return the one of these partitions whose records have just raised while they were unpacked."""
        for partition, result in self._fetcher._records.items():
            if partition not in among:  # it may be one that raised earlier, and has stopped
                continue
            iterator = getattr(getattr(result, "_partition_records", None), "_records_iterator", None)
            if iterator is not None and iterator.gi_frame is None:
                assert isinstance(partition, TopicPartition)
                return partition
        return None

    def fetch_state(self, partition: TopicPartition) -> Any:
        """Return aiokafka's state of a partition under its present assignment; None where it is not assigned.

        A new assignment has a new state; its `position` is the offset that is delivered next.
        """
        subscription = self._subscription.subscription
        assignment = subscription.assignment if subscription is not None else None
        return assignment.state_value(partition) if assignment is not None else None

    async def partition_numbers(self, topic: str) -> list[int]:
        """Return the numbers of a topic's partitions, ascending. Raises KafkaError where it has none."""
        return sorted(await self._client._wait_on_metadata(topic))

    async def leaderships(
        self, partitions: Collection[TopicPartition], timeout_seconds: float
    ) -> dict[TopicPartition, Leadership]:
        """Return the topics' ids and the leader epochs of these partitions, as `topic_ids.leaderships` does."""
        return await leaderships(self._client, partitions, timeout_seconds)

    async def watermarks(self, partition: TopicPartition) -> Watermarks:
        """Ask a partition's leader for its first and last offsets, its epoch, and its topic's id and partition count.

        Raises KafkaError.
        """
        low = (await self.beginning_offsets([partition]))[partition]
        high = (await self.end_offsets([partition]))[partition]
        # The leader, since it has just answered; any other may be unresponsive, or behind.
        leader = self._client.cluster.leader_for_partition(partition)
        response = await self._client.send(leader, TopicIdsRequest([partition.topic]))
        for code, name, topic_id, _internal, partitions, *_ in response.topics:
            if code == 0 and name == partition.topic:
                for _, number, _leader, leader_epoch, *_ in partitions:
                    if number == partition.partition:
                        return Watermarks(low, high, len(partitions), Leadership(topic_id, leader_epoch))
        raise UnknownTopicOrPartitionError(partition.topic)


class RecordBudget:
    """How many records one fetch may still unpack."""

    def __init__(self, records: int) -> None:
        self.records = records


def _unpack(result: Any, budget: RecordBudget, _records_max: int | None = None) -> list[RecordColumns]:
    """Return batches of a fetch until the budget is spent, the last one whole; in place of FetchResult's `getall`."""
    if budget.records <= 0 or not result.check_assignment(result._topic_partition) or not result.has_more():
        return []
    unpacking = result._partition_records
    columns, iterator = FetchedColumns(unpacking.next_fetch_offset), unpacking._records_iterator
    try:
        if _add_unpacked(unpacking, columns, budget.records):
            result._partition_records = None
    except Exception:
        iterator.close()  # as if it had raised itself: `failing_partition` goes by that
        unpacking._records_iterator = iterator
        columns.read()  # what is wrong with an earlier batch comes first
        raise
    budget.records -= columns.records
    result._assignment.state_value(result._topic_partition).consumed_to(unpacking.next_fetch_offset)
    return columns.parts


def _add_unpacked(unpacking: Any, columns: FetchedColumns, records_max: int) -> bool:
    """Add what is unpacked up to so many records, and read it; returns whether nothing is left."""
    for unpacked in unpacking:
        columns.add(unpacked)
        if columns.records >= records_max:
            columns.read()
            if columns.records >= records_max:
                return False
    columns.read()
    return True


def _raw_record(_partition: TopicPartition, record: Any) -> Any:
    return record
