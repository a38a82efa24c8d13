"""Kafka loses the ends of topics of deliveries that were read, and they grow again: named, and nothing is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from deliveries.endpoints import EndpointId, new_endpoint_id
from devstack.stack import Stack
from schemas.delivery_records import ATTEMPTS_TOPIC, DELIVERIES_TOPIC
from streams.partitioning import partition_of
from streams.producer import EventProducer
from streams.topics import RETRY_TOPICS
from tests.support.delivering import add_endpoint
from tests.support.faults.evidence import log_ends
from tests.support.faults.scene import Scene, private_scene
from tests.support.faults.segments import cut_log
from tests.support.faults.subscribers import subscribers
from tests.support.load import events, fill
from tests.support.waiting import wait_until

KEPT, LOST, GROWN = 40, 20, 40
PARTITIONS = 4
DELIVERED = "SELECT count(*) FROM webhook_deliveries WHERE state = 'delivered'"
READ_TO = """
SELECT next_offset FROM delivery_checkpoints WHERE consumer = $1 AND topic = $2 AND partition = $3
"""


@pytest.fixture(scope="module")
def scene(private_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with private_scene(private_stack, tmp_path_factory.mktemp("delivery-tails")) as made:
        yield made


def endpoint_in(partition: int) -> EndpointId:
    """Return a new endpoint's id whose deliveries are in a partition."""
    while partition_of(str(made := new_endpoint_id()).encode(), PARTITIONS) != partition:
        pass
    return made


def read_to(scene: Scene, consumer: str, topic: str, partition: int) -> int:
    """Return the offset that a consumer of deliveries reads next."""
    return int(str(scene.query(READ_TO, (consumer, topic, partition))[0][0]))


def retried_to(scene: Scene, count: int) -> int:
    """Return the end of the retry topic once so many events are delivered to both endpoints, and all is recorded.

    What is delivered may be recorded before the deliverer has written down how far it is.
    """

    def all_done() -> bool:
        done = scene.query(DELIVERED)[0][0] == 2 * count
        ends = {topic: log_ends(scene, topic)[0] for topic in (DELIVERIES_TOPIC, RETRY_TOPICS[0])}
        return done and all(read_to(scene, "deliverer", topic, 0) == end for topic, end in ends.items())

    wait_until(all_done, lambda: f"{count} events are delivered: {scene.query(DELIVERED)}")
    assert log_ends(scene, DELIVERIES_TOPIC)[0] == count
    return log_ends(scene, RETRY_TOPICS[0])[0]


def grow(scene: Scene, topic: str, endpoint_id: EndpointId) -> None:
    """Publish records on a topic that nobody has read."""

    async def publish() -> None:
        async with EventProducer(scene.settings, topics=(topic,)) as producer:
            for number in range(GROWN):
                made = producer.submit_record(topic, str(endpoint_id).encode(), b"other %d" % number, [])
                await producer.await_acknowledgement(made)

    asyncio.run(publish())


def test_topics_of_deliveries_that_lost_their_tails_and_grew_again_are_not_read_on(
    scene: Scene, private_stack: Stack
) -> None:
    """Of one partition those of deliveries and of a retry topic; of another one that of attempts, which stops both."""
    first, second = endpoint_in(0), endpoint_in(1)
    with subscribers(seed=1, failing_share=0.3, failures_max=1) as there:
        for path, endpoint_id in (("failing", first), ("good", second)):
            url = f"http://127.0.0.1:{there.port}/{path}"
            asyncio.run(add_endpoint(scene.settings, url, endpoint_id=endpoint_id))
        processes = [scene.worker(), scene.dispatcher(), scene.deliverer()]
        fill(scene.settings, scene.topic, events(KEPT, seed=1))
        retried = retried_to(scene, KEPT)
        fill(scene.settings, scene.topic, events(LOST, seed=2))
        retried_end = retried_to(scene, KEPT + LOST)
        assert 0 < retried < retried_end
        for process in reversed(processes):
            process.stop()
        came = there.came.total()

        private_stack.kill_broker(1)
        cut_log(private_stack.home, DELIVERIES_TOPIC, 0, KEPT)
        cut_log(private_stack.home, RETRY_TOPICS[0], 0, retried)
        cut_log(private_stack.home, ATTEMPTS_TOPIC, 1, KEPT)
        private_stack.start_broker(1)
        for topic, endpoint_id in ((DELIVERIES_TOPIC, first), (RETRY_TOPICS[0], first), (ATTEMPTS_TOPIC, second)):
            grow(scene, topic, endpoint_id)
        deliverer = scene.deliverer()

        def stops() -> set[tuple[str, int, str]]:
            return {
                (str(each["topic"]), int(str(each["partition"])), str(each["error"]))
                for each in deliverer.logged("partition.stopped")
            }

        truncated = {
            *((topic, 0, "LogTruncated") for topic in (DELIVERIES_TOPIC, RETRY_TOPICS[0])),
            *((topic, 1, "LogTruncated") for topic in (DELIVERIES_TOPIC, *RETRY_TOPICS, ATTEMPTS_TOPIC)),
        }
        wait_until(lambda: truncated <= stops(), lambda: f"they stop: {stops()}")
        assert stops() == truncated
        whys = {(str(each["topic"]), int(str(each["partition"]))): str(each["why"])
                for each in deliverer.logged("partition.stopped")}  # fmt: skip
        assert f"offset {retried_end - 1} " in whys.pop((RETRY_TOPICS[0], 0))
        assert all(f"offset {KEPT + LOST - 1} " in why for why in whys.values()), whys
        deliverer.kill()
    assert there.came.total() == came
    assert there.accepted.total() == 2 * (KEPT + LOST)
