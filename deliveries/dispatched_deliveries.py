"""What was dispatched before a database was lost, as the topic of deliveries has it, and where deliveries go on.

Nothing is to be sent a second time. So deliverers begin at the topics' ends, as if all below were done, and the marks
of sources are made again: what a dispatcher publishes a second time, since its own checkpoint is lost as well, is known
for a copy. Tokens go on above all that were ever given, since the recorder believes no delivery's earlier owner.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import Final, NamedTuple

from deliveries.deliverer.delivery import read_deliveries
from deliveries.deliverer.delivery_process import DeliveryTopics
from deliveries.deliverer.source_marks import MarkedSource, SourceMark, SourceMarks
from deliveries.deliverer.wait_rows import mark_statements
from projections.session import sql_literal
from runtime.settings import Settings
from streams.log_reader import topic_batches
from streams.topic_watermarks import TopicWatermarks

MARKED_STREAMS: Final = ("live", "backfill")
"""The streams that a dispatcher may begin again at an offset of the log. Others have numbers of their own."""

_ADD_CHECKPOINTS: Final = """
INSERT INTO delivery_checkpoints (consumer, topic, partition, partitions, topic_id, next_offset, read_to)
VALUES {rows}
"""
_ADD_OWNERS: Final = """
INSERT INTO delivery_owners (consumer, partition, token, worker, backend_pid, backend_started_at)
SELECT 'deliverer', number, {token}, '', 0, '-infinity' FROM generate_series(0, {partitions} - 1) AS number
"""
_NUMBER_ORDERS: Final = "SELECT setval(pg_get_serial_sequence('redrives', 'number'), {number})"
_IN_USE: Final = "SELECT EXISTS (SELECT FROM delivery_checkpoints)"


class DispatchedDeliveries(NamedTuple):
    """The marks by partition of deliveries, and the last offset that was dispatched live, by partition of events."""

    marks: Mapping[int, Mapping[MarkedSource, SourceMark]]
    last_offsets: Mapping[int, int]


async def read_dispatched(settings: Settings, topic: str, watermarks: TopicWatermarks) -> DispatchedDeliveries:
    """Read a topic of deliveries from its first record to its end. Raises KafkaUnavailable."""
    marks: dict[int, SourceMarks] = defaultdict(lambda: SourceMarks({}))
    last_offsets: dict[int, int] = {}
    async with contextlib.aclosing(topic_batches(settings, topic, watermarks)) as batches:
        async for batch in batches:
            for each in read_deliveries(batch.values)[0]:
                if each.stream in MARKED_STREAMS:
                    marks[batch.partition].pass_new(each)
                if each.stream == "live":
                    last = last_offsets.get(each.source_partition, -1)
                    last_offsets[each.source_partition] = max(last, each.source_offset)
    return DispatchedDeliveries({partition: found.changed() for partition, found in marks.items()}, last_offsets)


def begin_statements(
    topics: DeliveryTopics, watermarks: Mapping[str, TopicWatermarks], dispatched: DispatchedDeliveries, now: datetime
) -> list[str]:
    """Return the statements that let deliverers begin behind all that was dispatched, on an empty database."""
    rows, partitions = [], 0
    for topic in (topics.deliveries, *topics.retries):
        known = watermarks.get(topic)
        if known is None:
            continue
        partitions = max(partitions, len(known.bounds))
        for partition, bounds in sorted(known.bounds.items()):
            end = 0 if bounds is None else int(bounds[1])
            rows.append(
                f"('deliverer', {sql_literal(topic)}, {int(partition)}, {len(known.bounds)}, '{known.topic_id}',"
                f" {end}, {end})"
            )
    if not rows:
        return []
    # More than any token that was ever given: one is given a moment after another at the earliest.
    token = int(now.timestamp())
    marks = [each for partition, found in dispatched.marks.items() for each in mark_statements(partition, found)]
    return [
        _ADD_CHECKPOINTS.format(rows=", ".join(rows)), _ADD_OWNERS.format(token=token, partitions=partitions), *marks
    ]  # fmt: skip


def number_orders_statement(actions: int) -> str:
    """Return the statement that numbers redrive orders above all that were given: each was an operator's action."""
    return _NUMBER_ORDERS.format(number=max(1, int(actions)))


def in_use_query() -> str:
    """Return the query that tells whether deliverers or recorders have begun on the database."""
    return _IN_USE
