"""Three brokers as the fault tests see them: who leads what, who is in sync, moving leaders, what the topic holds."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import psutil
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import CompactArray, CompactString, Int16, Int32, Schema, TaggedFields
from confluent_kafka import Consumer, ElectionType, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from devstack.stack import Stack
from schemas import codec
from tests.support.faults.scene import PLANT, Scene
from tests.support.services import runs_folder
from tests.support.waiting import DEADLINE_SECONDS, wait_until

BROKERS = (1, 2, 3)
PARTITIONS = 4
SMALL = 2
SMALL_BYTES = 192 * 1024 * 1024
ASK_SECONDS = 5.0


@contextmanager
def three_brokers() -> Iterator[Stack]:
    """What `plant up --brokers 3` starts, in a folder where the next run finds and ends it should this one be killed.

    Broker SMALL has a file system of its own with little room, where mounting one is permitted.
    """
    own = runs_folder() / str(os.getpid())
    home = own / f"three-{secrets.token_hex(4)}"
    data = data_of(home, SMALL)
    data.mkdir(parents=True)
    _unmount_abandoned(own.parent)
    for folder in (own, home):
        folder.chmod(0o755)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_BYTES}", "tmpfs", str(data)]
    mounted = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True).returncode == 0
    stack = Stack(home, brokers=3)
    environ = {**os.environ, "PLANT_HOME": str(home), "PLANT_TOPIC_PARTITIONS": str(PARTITIONS)}
    try:
        subprocess.run([PLANT, "up", "--brokers", "3"], env=environ, check=True)
        yield stack
    finally:
        admin_of.cache_clear()
        stack.kill_kafka()  # a clean end of three takes 5 s, and the data goes anyway
        stack.down()
        if mounted:
            subprocess.run(["umount", data], check=True)
        stack.down(delete_data=True)
        with suppress(OSError):
            own.rmdir()


def _unmount_abandoned(base: Path) -> None:
    """Runs that were killed leave a file system behind, which nobody else can remove with their folders."""
    for mounted in {Path(partition.mountpoint) for partition in psutil.disk_partitions(all=True)}:
        if mounted.is_relative_to(base) and not psutil.pid_exists(int(mounted.relative_to(base).parts[0])):
            subprocess.run(["umount", "--lazy", mounted], check=True)
            shutil.rmtree(base / mounted.relative_to(base).parts[0], ignore_errors=True)


def data_of(home: Path, number: int) -> Path:
    """Return a broker's data folder."""
    return home / "kafka" / str(number) / "data"


@contextmanager
def without_space(stack: Stack) -> Iterator[str]:
    """No room for the broker SMALL until the block ends, where it is started again; how that was done.

    Its file system is full, where it has one of its own; otherwise it may write no file longer than the longest one is.
    """
    data, record = data_of(stack.home, SMALL), stack.state.broker(SMALL).process
    assert record is not None
    if data.is_mount():
        filler, how = data / "filler", "a full file system"
        # Unbuffered, piece by piece: the broker takes its share of the room all the while.
        with suppress(OSError), filler.open("ab", buffering=0) as file:
            while shutil.disk_usage(data).free > 0:
                file.write(bytes(65536))
    else:
        filler, how = None, "a limit on the size of files"
        longest = max(file.stat().st_size for file in data.rglob("*.log"))
        psutil.Process(record.pid).rlimit(psutil.RLIMIT_FSIZE, (longest, longest))
    try:
        yield how
    finally:
        stack.kill_broker(SMALL)
        if filler is not None:
            filler.unlink()
        stack.start_broker(SMALL)


class Partition:
    """A partition's leader (-1: none), replicas and those in sync, by broker number."""

    def __init__(self, leader: int, replicas: list[int], in_sync: list[int]) -> None:
        self.leader = leader
        self.replicas = replicas
        self.in_sync = in_sync

    def __repr__(self) -> str:
        return f"leader {self.leader}, in sync {self.in_sync}"


def partitions(scene: Scene) -> dict[str, dict[int, Partition]]:
    """Every topic's partitions, internal topics included; empty while no broker answers."""
    try:
        metadata = admin_of(scene.settings.kafka_address()).list_topics(timeout=ASK_SECONDS)
    except KafkaException:
        return {}
    return {
        name: {
            number: Partition(partition.leader, list(partition.replicas), list(partition.isrs))
            for number, partition in topic.partitions.items()
        }
        for name, topic in metadata.topics.items()
    }


def known_partitions(scene: Scene) -> dict[int, Partition]:
    """Return the scene's partitions, once a broker has answered: a busy one takes its time."""
    known: dict[int, Partition] = {}

    def answered() -> bool:
        known.update(partitions(scene).get(scene.topic, {}))
        return len(known) == PARTITIONS

    wait_until(answered, "a broker knows the topic's partitions")
    return known


def leaders(scene: Scene) -> dict[int, int]:
    """Return the leader of each of the scene's partitions, as a broker knows them; it may be behind for a moment."""
    return {number: partition.leader for number, partition in known_partitions(scene).items()}


def wait_until_whole(scene: Scene) -> float:
    """Wait until every partition has all its replicas in sync; the seconds it took."""

    def behind() -> dict[str, Partition]:
        return {
            f"{topic}/{number}": partition
            for topic, numbered in partitions(scene).items()
            for number, partition in numbered.items()
            if len(partition.in_sync) < len(BROKERS) or partition.leader < 0
        }

    return wait_until(lambda: bool(partitions(scene)) and not behind(), lambda: f"all in sync: {behind()}")


def client_of(address: str) -> dict[str, object]:
    """Options of librdkafka: it is to find out soon who is away."""
    return {"bootstrap.servers": address, "socket.timeout.ms": 3000, "log_level": 0}


@lru_cache
def admin_of(address: str) -> AdminClient:
    """One client for all questions: they are asked again and again."""
    return AdminClient(client_of(address))


def stored_events(scene: Scene) -> dict[str, list[tuple[int, int]]]:
    """Event id to the partitions and offsets where the topic holds it, read from the first record to the last."""
    consumer = Consumer(
        {
            **client_of(scene.settings.kafka_address()),
            "group.id": secrets.token_hex(4),
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    positions: dict[str, list[tuple[int, int]]] = {}
    try:
        numbers = consumer.list_topics(scene.topic, timeout=DEADLINE_SECONDS).topics[scene.topic].partitions
        consumer.assign([TopicPartition(scene.topic, number, 0) for number in numbers])
        left = set(numbers)
        while left:
            message = consumer.poll(DEADLINE_SECONDS)
            if message is None:
                raise TimeoutError(f"partitions {left} were not read to their end")
            if message.error() is not None:
                if message.error().code() == KafkaError._PARTITION_EOF:
                    left.discard(message.partition())
                continue  # librdkafka tries again what a slow broker did not answer
            event = codec.decode(message.value(), scene.topic)
            positions.setdefault(str(event.event_id), []).append((message.partition(), message.offset()))
    finally:
        consumer.close()
    return positions


def assert_where_they_said(scene: Scene, accepted: Mapping[str, tuple[int, int]]) -> None:
    """Each acknowledged event is on the topic at the partition and offset of its 200, and logged from there."""
    stored = stored_events(scene)
    lost = {event_id: at for event_id, at in accepted.items() if at not in stored.get(event_id, [])}
    assert not lost, f"{len(lost)} of {len(accepted)} acknowledged events are not where their 200 says: {_few(lost)}"
    rows = scene.query('SELECT event_id::text, partition, "offset" FROM event_stream WHERE topic = $1', (scene.topic,))
    logged = {(str(event_id), int(str(partition)), int(str(offset))) for event_id, partition, offset in rows}
    missing = {event_id: at for event_id, at in accepted.items() if (event_id, *at) not in logged}
    assert not missing, f"{len(missing)} acknowledged events are not logged from there: {_few(missing)}"


def _few(positions: Mapping[str, tuple[int, int]]) -> list[tuple[str, tuple[int, int]]]:
    return list(positions.items())[:5]


async def move_leader(scene: Scene, number: int) -> int:
    """Make another replica the partition's preferred leader, and elect it; its broker number."""
    partition = known_partitions(scene)[number]
    at = partition.replicas.index(partition.leader) + 1
    replicas = [*partition.replicas[at:], *partition.replicas[:at]]
    client = AIOKafkaAdminClient(bootstrap_servers=scene.settings.kafka_address())
    await client.start()
    try:
        answer = await client._send_request(ReassignRequest(scene.topic, number, replicas))
        assert answer.error_code == 0, answer
    finally:
        await client.close()
    wanted, admin = TopicPartition(scene.topic, number), admin_of(scene.settings.kafka_address())

    def elected() -> bool:
        with suppress(KafkaException):  # a broker that did not answer in time is asked again
            admin.elect_leaders(ElectionType.PREFERRED, [wanted]).result(DEADLINE_SECONDS)
        return leaders(scene).get(number) == replicas[0]

    wait_until(elected, lambda: f"broker {replicas[0]} leads {wanted}; {partitions(scene)}")
    return replicas[0]


def want_in_sync(scene: Scene, replicas: int) -> None:
    """Change how many in-sync replicas must hold a record of the scene's topic before it is acknowledged."""
    entry = ConfigEntry("min.insync.replicas", str(replicas), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, scene.topic, incremental_configs=[entry])
    admin = admin_of(scene.settings.kafka_address())

    def changed() -> bool:
        (done,) = admin.incremental_alter_configs([resource]).values()
        try:
            done.result(DEADLINE_SECONDS)
        except KafkaException:  # no answer in time: whether it was changed is not known
            return False
        return True

    wait_until(changed, f"{replicas} in-sync replicas are asked for")


def config_of(scene: Scene, topic: str) -> dict[str, str]:
    """A topic's configuration, defaults included; empty while the broker that is asked does not know the topic."""
    admin = admin_of(scene.settings.kafka_address())
    (config,) = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
    try:
        return {name: entry.value for name, entry in config.result(DEADLINE_SECONDS).items()}
    except KafkaException:
        return {}


class ReassignResponse_v0(Response):  # type: ignore[misc]  # noqa: N801 (the protocol's own spelling)
    API_KEY = 45
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("error_message", CompactString("utf-8")),
        (
            "responses",
            CompactArray(
                ("name", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition_index", Int32),
                        ("error_code", Int16),
                        ("error_message", CompactString("utf-8")),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class ReassignRequest_v0(RequestStruct):  # type: ignore[misc]  # noqa: N801
    API_KEY = 45
    API_VERSION = 0
    RESPONSE_TYPE = ReassignResponse_v0
    FLEXIBLE_VERSION = True
    SCHEMA = Schema(
        ("timeout_ms", Int32),
        (
            "topics",
            CompactArray(
                ("name", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(("partition_index", Int32), ("replicas", CompactArray(Int32)), ("tags", TaggedFields)),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class ReassignRequest(Request[ReassignRequest_v0]):  # type: ignore[misc]
    """AlterPartitionReassignments: an order of replicas; the first is the preferred leader.

    Fields: https://kafka.apache.org/protocol#The_Messages_AlterPartitionReassignments
    """

    API_KEY = 45

    def __init__(self, topic: str, partition: int, replicas: list[int]) -> None:
        self._fields = 30_000, [(topic, [(partition, replicas, {})], {})], {}

    def build(self, request_struct_class: type[ReassignRequest_v0]) -> ReassignRequest_v0:
        return request_struct_class(*self._fields)
