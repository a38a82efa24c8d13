"""Three brokers, under a load of webhooks: killed, led away, two gone, out of space, frozen.

After each fault every event that got its 200 is on the topic at the offset that the 200 named, and is applied exactly
once. `PLANT_FAULT_ROUNDS` (1) says how often each fault is repeated.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from aiokafka.client import AIOKafkaClient

from devstack import processes
from devstack.stack import Stack
from operations.diagnosis import replicas_in_sync
from streams.kafka import unresponsive_brokers
from streams.kafka.connection import connection_options
from streams.kafka.unresponsive_brokers import skip_unresponsive_brokers
from streams.producer import EventProducer
from streams.topics import EVENTS_TOPIC
from tests.support.faults.brokers import (
    BROKERS,
    PARTITIONS,
    SMALL,
    assert_where_they_said,
    config_of,
    data_of,
    leaders,
    move_leader,
    partitions,
    three_brokers,
    wait_until_whole,
    want_in_sync,
    without_space,
)
from tests.support.faults.evidence import applied, assert_exactly_once, wait_until_caught_up
from tests.support.faults.scene import PLANT, Process, Scene, private_scene
from tests.support.faults.webhook_load import WebhookLoad
from tests.support.waiting import DEADLINE_SECONDS, wait_until
from tests.support.webhooks import add_key

ROUNDS = int(os.environ.get("PLANT_FAULT_ROUNDS", "1"))
CONNECTIONS = 4
WARM_EVENTS = 100


@pytest.fixture(scope="module")
def cluster() -> Iterator[Stack]:
    with three_brokers() as stack:
        yield stack


@pytest.fixture(scope="module")
def scene(cluster: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with private_scene(cluster, tmp_path_factory.mktemp("brokers")) as made:
        yield made


@pytest.fixture(scope="module")
def system(scene: Scene, cluster: Stack) -> System:
    return System(scene, cluster)


class System:
    """Three brokers, a worker, an ingress, and what is checked after a fault."""

    def __init__(self, scene: Scene, stack: Stack) -> None:
        self.scene = scene
        self.stack = stack
        self.worker: Process = scene.worker()
        _, self.sender = asyncio.run(add_key(scene.settings))
        self.ingress, self.port = scene.ingress()
        self._seed = 0

    @contextmanager
    def load(self, what: str) -> Iterator[WebhookLoad]:
        """Webhooks all the while; what they left is checked at the end, when every replica is in sync again."""
        self._seed += 1
        before = applied(self.scene)
        load = WebhookLoad(self.sender, self.port, connections=CONNECTIONS, seed=self._seed)
        with load.running():
            wait_until(lambda: load.accepted_count >= WARM_EVENTS, lambda: f"webhooks are taken: {dict(load.answers)}")
            yield load
        whole = wait_until_whole(self.scene)
        level = wait_until_caught_up(self.scene)

        assert self.worker.alive
        assert self.ingress.alive
        assert load.answers.keys() <= {"200", "503"}
        assert all(seconds is not None and int(seconds) >= 1 for seconds in load.retry_after)
        assert_where_they_said(self.scene, load.accepted)
        found = assert_exactly_once(self.scene, load.accepted)
        assert found["poison"] == 0
        assert found["applied"] - before >= load.accepted_count
        print(
            f"{what}: {load.accepted_count} accepted, answers {dict(load.answers)}, Retry-After {load.retry_after}; "
            f"applied {before} before and {found['applied']} after, repeats {found['repeat']}; "
            f"in sync {whole:.1f} s and level {level:.1f} s after the load"
        )

    def goes_on(self, load: WebhookLoad, what: str) -> float:
        """Wait until events that are accepted from now on are, on every partition, and applied; the seconds."""
        known = set(load.accepted)
        rows = applied(self.scene)

        def fresh() -> set[int]:
            # Threads add to it; a copy is made in one step, and a list of its items is not.
            return {at[0] for event_id, at in load.accepted.copy().items() if event_id not in known}

        wanted = set(leaders(self.scene))
        seconds = wait_until(
            lambda: fresh() >= wanted and applied(self.scene) > rows, lambda: f"{what}: {load.answers}"
        )
        print(f"{what}: {seconds:.1f} s")
        return seconds


def verdicts(scene: Scene) -> list[str]:
    """Return what `plant doctor` finds of the replicas in sync."""
    return [finding.verdict for finding in replicas_in_sync(scene.settings)]


def test_three_brokers_are_one_stack(system: System) -> None:
    """One cluster; each topic, the internal ones too, on all three, two to hold a record; operators see each broker."""
    stack, scene = system.stack, system.scene
    ids = {
        (data_of(stack.home, number) / "meta.properties").read_text().split("cluster.id=")[1][:22] for number in BROKERS
    }
    assert len(ids) == 1
    assert scene.environ["PLANT_KAFKA_BOOTSTRAP_SERVERS"].count("127.0.0.1:") == 3
    wait_until(lambda: "__consumer_offsets" in partitions(scene), "the worker's group has its topic")
    found = partitions(scene)
    assert {EVENTS_TOPIC, "__consumer_offsets"} <= found.keys()
    assert {len(partition.replicas) for topic in found.values() for partition in topic.values()} == {3}
    for topic in found:
        wait_until(lambda topic=topic: config_of(scene, topic), f"{topic} is known")  # type: ignore[misc]
        config = config_of(scene, topic)
        assert (config["min.insync.replicas"], config["unclean.leader.election.enable"]) == ("2", "false")
    environ = {**os.environ, **scene.environ, "PLANT_HOME": str(stack.home)}
    said = subprocess.run([PLANT, "status", "--output", "json"], env=environ, capture_output=True, check=True).stdout
    names = [f"kafka-{number}" for number in BROKERS]
    shown = [row["service"] for row in json.loads(said) if row["kind"] == "service"]
    assert shown == [*names, "postgres"]
    said = subprocess.run([PLANT, "doctor", "--output", "json"], env=environ, capture_output=True).stdout
    good = [finding["check"] for finding in json.loads(said) if finding["verdict"] == "good"]
    assert {*(f"local {name}" for name in names), "topics"} <= set(good)


def test_the_leader_of_each_partition_is_killed_and_restarted(system: System) -> None:
    """One cycle for each partition, in turn. Its partitions get other leaders and webhooks go on; it comes back,
    catches up, and nothing is missing.

    Should two in-sync replicas be too few meanwhile, Kafka refuses what it could not keep, and ingress answers 503.
    """
    for number in range(ROUNDS):
        partition = number % PARTITIONS
        killed = leaders(system.scene)[partition]
        with system.load(f"broker {killed} killed, which led partition {partition}") as load:
            system.stack.kill_broker(killed)
            system.goes_on(load, f"with broker {killed} gone, all partitions take events after")
            # The broker that answers may hear of it later than the leaders themselves.
            wait_until(lambda: killed not in leaders(system.scene).values(), "it leads nothing")  # noqa: B023
            wait_until(lambda: verdicts(system.scene) == ["wrong"], "an operator is told")
            want_in_sync(system.scene, 3)
            try:
                wait_until(lambda: "NotEnoughReplicas" in system.ingress.log.read_text(), "Kafka refuses")
                refused = load.answers["503"]
                wait_until(lambda: load.answers["503"] >= refused + CONNECTIONS, "ingress says so")  # noqa: B023
            finally:
                want_in_sync(system.scene, 2)
            system.goes_on(load, "with two in-sync replicas enough again")
            system.stack.start_broker(killed)
            wait_until_whole(system.scene)
            system.goes_on(load, f"with broker {killed} back")


def test_the_leader_of_each_partition_moves_in_turn(system: System) -> None:
    """Elections cost no event, and a batch that was on its way to the former leader is written once."""
    with system.load("every leader moved") as load:
        for _ in range(ROUNDS):
            for number, former in leaders(system.scene).items():
                leader = asyncio.run(move_leader(system.scene, number))
                assert leader != former
                system.goes_on(load, f"partition {number} went from broker {former} to {leader}")


def test_two_brokers_down_are_503_until_they_are_back(system: System) -> None:
    """What one broker alone holds is not acknowledged: 503 with Retry-After, and the retry is stored once."""
    for number in range(ROUNDS):
        first, second = BROKERS[number % 3], BROKERS[(number + 1) % 3]
        with system.load(f"brokers {first} and {second} down") as load:
            system.stack.kill_broker(first)
            system.stack.kill_broker(second)
            before = load.answers["503"]  # some may be of the time between

            def refuses(times: int, load: WebhookLoad = load, before: int = before) -> bool:
                return load.answers["503"] >= before + times * CONNECTIONS

            refused = wait_until(lambda: refuses(1), "ingress says so")
            accepted = load.accepted_count
            wait_until(lambda: refuses(2), "ingress goes on saying so")
            assert load.accepted_count == accepted
            assert load.retry_after
            system.stack.start_kafka()
            system.goes_on(load, f"{CONNECTIONS} refused after {refused:.1f} s; with both back")


def test_a_full_disk_of_a_broker_costs_no_event(system: System) -> None:
    """The broker gives up; the others go on, and it catches up when it has room again."""
    for _ in range(ROUNDS):
        with system.load(f"broker {SMALL} out of space") as load:
            with without_space(system.stack) as how:
                gone = wait_until(
                    lambda: not processes.is_running(system.stack.state.broker(SMALL).process),
                    f"broker {SMALL} gives up",
                )
                system.goes_on(load, f"gave up after {gone:.1f} s for {how}; all partitions take events after")
            wait_until_whole(system.scene)
            system.goes_on(load, "with room again")


def test_a_frozen_broker_is_skipped_and_comes_back(system: System) -> None:
    """Frozen, it is voted out and webhooks go on; awake again, it follows, and writes nothing of its own."""
    for number in range(ROUNDS):
        frozen = BROKERS[(number + 2) % 3]
        with system.load(f"broker {frozen} frozen") as load:
            system.stack.pause_broker(frozen)
            try:
                system.goes_on(load, f"with broker {frozen} frozen, all partitions take events after")
                wait_until(lambda: frozen not in leaders(system.scene).values(), "it leads nothing")  # noqa: B023
            finally:
                system.stack.continue_broker(frozen)
            wait_until_whole(system.scene)
            system.goes_on(load, f"with broker {frozen} awake")


def test_clients_skip_a_frozen_broker(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is voted out, a frozen broker holds up neither a readiness check nor a connection to another.

    A connection to it stays open longer than any deadline here, so nothing that waits for it would end in time.
    """
    monkeypatch.setattr(unresponsive_brokers, "CONNECT_TIMEOUT_SECONDS", 2 * DEADLINE_SECONDS)

    async def look() -> None:
        async with EventProducer(system.scene.settings) as producer:
            client = AIOKafkaClient(**connection_options(system.scene.settings), request_timeout_ms=600_000)
            skip_unresponsive_brokers(client)
            await client.bootstrap()
            await client.force_metadata_update()
            connected = {node_id for node_id, _ in client._conns}
            frozen, other = [number for number in BROKERS if number not in connected][:2]
            system.stack.pause_broker(frozen)
            try:
                opening = asyncio.create_task(client.ready(frozen))
                async with asyncio.timeout(DEADLINE_SECONDS):
                    assert await client.ready(other)
                assert not opening.done()
                for _ in range(10):
                    await producer.ping()
                async with asyncio.timeout(DEADLINE_SECONDS):
                    assert await client.force_metadata_update()
            finally:
                system.stack.continue_broker(frozen)
            await opening
            await client.close()

    asyncio.run(look())
    wait_until_whole(system.scene)
