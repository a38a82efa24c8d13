"""A deliverer on real Kafka and Postgres: each delivery is sent, and what failed is sent again or dead."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import MutableMapping
from typing import Any

import msgspec
import pytest
import structlog
from aiohttp import web

from database.errors import DatabaseUnreachable
from deliveries.deliverer.delivery_process import DeliveryTopics
from deliveries.deliverer.round_writer import DeliveryRound, RoundAnswer, RoundWriter
from deliveries.endpoints import EndpointId, new_endpoint_id
from devstack import sql
from runtime.settings import Settings
from signing.signatures import sign
from streams import ownership
from streams.partitioning import partition_of
from tests.conftest import Database
from tests.support.delivering import (
    PARTITIONS,
    SECRET,
    add_endpoint,
    attempts_of,
    dead_letters_of,
    delivering,
    publish,
    queued,
)
from tests.support.receivers import receiver
from tests.support.waiting import wait_until_async


async def test_deliveries_are_sent_signed(local: Settings, topics: DeliveryTopics) -> None:
    """Each is one request that its receiver can verify, and one record of an attempt."""
    async with receiver() as there:
        endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/hooks")
        sent = [queued(endpoint_id, offset) for offset in range(30)]
        await publish(local, topics.deliveries, sent)
        async with delivering(local, topics):
            await wait_until_async(lambda: len(there.requests) >= len(sent), "all are sent")
    ids = Counter(headers["webhook-id"] for _, _, headers, _ in there.requests)
    assert ids == Counter(str(each.delivery_id) for each in sent)
    for _, path, headers, body in there.requests:
        signed = headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body
        assert headers["webhook-signature"].encode() == sign(SECRET, *signed)
        assert (path, msgspec.json.decode(body)["type"]) == ("/hooks", "genesis.agent.available")
    attempts = await attempts_of(local, topics)
    assert Counter((str(each.delivery_id), each.state) for each in attempts) == {(each, "delivered"): 1 for each in ids}


async def test_a_failed_delivery_is_sent_again(local: Settings, topics: DeliveryTopics) -> None:
    """With the same id and body, once a second is over."""
    async with receiver() as there:
        endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/")
        answers = iter([503, 500])
        there.answer = lambda: web.Response(status=next(answers, 204))  # type: ignore[assignment]
        await publish(local, topics.deliveries, [queued(endpoint_id, 1)])
        async with delivering(local, topics):
            await wait_until_async(lambda: len(there.requests) == 3, "it is sent three times")
    assert len({(headers["webhook-id"], body) for _, _, headers, body in there.requests}) == 1
    attempts = await attempts_of(local, topics)
    assert [(each.attempt, each.status_code, each.outcome, each.state) for each in attempts] == [
        (1, 503, "throttled", "waiting"), (2, 500, "failed", "waiting"), (3, 204, "delivered", "delivered")
    ]  # fmt: skip
    for earlier, later in itertools.pairwise(attempts):
        assert earlier.next_attempt_at is not None
        assert later.attempted_at >= earlier.next_attempt_at


async def test_a_delivery_that_always_fails_is_dead(local: Settings, topics: DeliveryTopics) -> None:
    """After six attempts, with waits of 1, 2, 4, 8 and 16 seconds."""
    async with receiver() as there:
        endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/")
        there.answer = lambda: web.Response(status=500)  # type: ignore[assignment]
        record = queued(endpoint_id, 1)
        await publish(local, topics.deliveries, [record])
        async with delivering(local, topics):

            async def is_dead() -> bool:
                return len(there.requests) == 6 and bool(await dead_letters_of(local, topics))

            await wait_until_async(is_dead, "it is dead")
    (dead,) = await dead_letters_of(local, topics)
    assert (dead.delivery_id, dead.attempt, dead.hop) == (record.delivery_id, 6, 5)
    attempts = await attempts_of(local, topics)
    assert [each.state for each in attempts] == ["waiting"] * 5 + ["dead"]
    waits = [
        (each.next_attempt_at - each.attempted_at).total_seconds() - each.duration_us / 1_000_000
        for each in attempts
        if each.next_attempt_at is not None
    ]
    assert [int(wait) for wait in waits] == [1, 2, 4, 8, 16]


async def test_attempts_that_kafka_has_a_record_of_are_not_made_again(
    local: Settings, topics: DeliveryTopics, monkeypatch: pytest.MonkeyPatch, database: Database
) -> None:
    """A round that was published and not written down: what came of its attempts is taken from their records."""
    write, failures = RoundWriter.write, iter([True] * 2)

    async def fail_first(self: RoundWriter, work: DeliveryRound) -> RoundAnswer:
        if work.ended and next(failures, False):
            raise DatabaseUnreachable(why="For tests.")
        return await write(self, work)

    monkeypatch.setattr(RoundWriter, "write", fail_first)
    async with receiver() as there:
        answers = iter([500, 410])
        good = await add_endpoint(local, f"http://127.0.0.1:{there.port}/")
        there.answer = lambda: web.Response(status=next(answers, 204))  # type: ignore[assignment]
        await publish(local, topics.deliveries, [queued(good, offset) for offset in range(1)])
        async with delivering(local, topics):
            await wait_until_async(lambda: len(there.requests) == 2, "the failed one is sent again")

            async def are_recorded() -> bool:
                return len(await attempts_of(local, topics)) == 2

            await wait_until_async(are_recorded, "both attempts are recorded")
    attempts = await attempts_of(local, topics)
    assert [(each.attempt, each.outcome) for each in attempts] == [(1, "failed"), (2, "gone")]
    assert sql.value(database.superuser_url, "SELECT state FROM endpoints") == "disabled"
    assert sql.value(database.superuser_url, "SELECT count(*) FROM delivery_waits") == 0


STOP_REASON = "SELECT max(stop_reason) FROM delivery_owners WHERE consumer = 'deliverer'"
LAST_RECORDED = "SELECT count(*) FROM delivery_checkpoints WHERE consumer = 'recorder' AND last_offset = 2"
OTHER_RECORD = (
    "UPDATE delivery_checkpoints SET last_digest = sha256('other') WHERE last_offset = 2 AND consumer = 'recorder'"
)
LOST_RECORD = "UPDATE delivery_checkpoints SET last_offset = 7 WHERE consumer = 'recorder' AND last_offset = 2"
PAST_THE_END = """
UPDATE delivery_checkpoints SET next_offset = 7, read_to = 7
WHERE consumer = 'deliverer' AND topic LIKE '%attempts%' AND next_offset = 3
"""


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (OTHER_RECORD, "a record at offset 2 that is not the one that was recorded"),
        (LOST_RECORD, "no record at offset 7 any more"),
        (PAST_THE_END, "ends at 3, below 7"),
        ("", ""),
    ],
    ids=["another record", "none there", "an end below the checkpoint", "the one that was recorded"],
)
async def test_attempts_whose_topic_lost_its_tail_stop_their_partition(
    local: Settings, topics: DeliveryTopics, database: Database, change: str, why: str
) -> None:
    """By what recorders have read of it: nothing of the partition is sent. Where it is the same, deliveries go on."""
    async with receiver() as there:
        endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/")
        await publish(local, topics.deliveries, [queued(endpoint_id, offset) for offset in range(3)])

        async def recorded() -> bool:
            return bool(sql.value(database.superuser_url, LAST_RECORDED) == 1)

        async with delivering(local, topics):
            await wait_until_async(recorded, "the attempts are recorded")
        if change:
            sql.execute(database.superuser_url, [change])
        await publish(local, topics.deliveries, [queued(endpoint_id, 3)])
        with structlog.testing.capture_logs() as lines:
            async with delivering(local, topics):

                def stopped() -> list[MutableMapping[str, Any]]:
                    return [
                        each for each in lines
                        if each["event"] == "partition.stopped" and "attempts" in each["what"]
                        and each["topic"] == topics.deliveries
                    ]  # fmt: skip

                await wait_until_async(lambda: bool(stopped() or len(there.requests) == 4), "it stops, or goes on")
                if change:

                    async def noted() -> bool:
                        return why in str(sql.value(database.superuser_url, STOP_REASON))

                    await wait_until_async(noted, "operators see why")
    assert len(there.requests) == (3 if change else 4)
    assert [(each["error"], why in each["why"]) for each in stopped()] == [("LogTruncated", True)] * bool(change)


REMADE = "UPDATE delivery_checkpoints SET topic_id = gen_random_uuid() WHERE topic = '{}' AND partition = 0"
TOPIC_ID = "SELECT topic_id FROM delivery_checkpoints WHERE topic = '{}' AND partition = 1"
MADE_GOOD = "UPDATE delivery_checkpoints SET topic_id = '{}' WHERE topic = '{}'"
OWNER = "SELECT {} FROM delivery_owners WHERE consumer = 'deliverer' AND partition = 0"
END_OWNER = OWNER.format("pg_terminate_backend(backend_pid)")
CHECKPOINTS = "SELECT count(*) FROM delivery_checkpoints WHERE consumer = 'deliverer'"


def _partition_of(endpoint_id: EndpointId) -> int:
    return partition_of(str(endpoint_id).encode(), PARTITIONS)


async def test_a_stopped_topic_is_told_until_it_is_opened(
    local: Settings, topics: DeliveryTopics, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while other topics of its partition begin anew; then nothing is said to be stopped."""
    url = database.superuser_url
    retry = topics.retries[2]
    opened = 2 * (len(topics.retries) + 2)

    async def are_known() -> bool:
        return bool(sql.value(url, CHECKPOINTS) == opened)

    async with delivering(local, topics):
        await wait_until_async(are_known, "all topics were opened")
    topic_id = sql.value(url, TOPIC_ID.format(retry))
    sql.execute(url, [REMADE.format(retry)])
    monkeypatch.setattr(ownership, "STOPPED_DELAYS_SECONDS", (3600.0,))
    token = sql.value(url, OWNER.format("token"))

    async def is_told_again(after: int) -> bool:
        row = sql.value(url, OWNER.format("(token > " + str(after) + " AND stop_reason LIKE 'TopicRecreated%')"))
        return bool(row)

    async with delivering(local, topics):
        await wait_until_async(lambda: is_told_again(token), "the topic is stopped")
        token = sql.value(url, OWNER.format("token"))
        sql.execute(url, [END_OWNER])
        # An owner with nothing to write does not notice that its session has ended: nobody knows this endpoint.
        unknown = next(each for each in iter(new_endpoint_id, None) if _partition_of(each) == 0)
        await publish(local, topics.deliveries, [queued(unknown, 0)])
        await wait_until_async(lambda: is_told_again(token), "the topic is still stopped")
    monkeypatch.setattr(ownership, "STOPPED_DELAYS_SECONDS", (0.2,))
    token = sql.value(url, OWNER.format("token"))
    async with delivering(local, topics):
        await wait_until_async(lambda: is_told_again(token), "the topic is stopped once more")
        sql.execute(url, [MADE_GOOD.format(topic_id, retry)])

        async def is_not_told() -> bool:
            return sql.value(url, OWNER.format("stop_reason")) is None

        await wait_until_async(is_not_told, "nothing is stopped")
