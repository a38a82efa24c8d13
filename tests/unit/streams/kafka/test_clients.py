"""The factory of Kafka clients: every repair on every client, and a look at whether the repairs fit."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from types import ModuleType
from typing import Any

import msgspec
import pytest
import structlog
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer import fetcher
from aiokafka.consumer.consumer import AIOKafkaConsumer
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import KafkaError
from aiokafka.protocol.group import LeaveGroupRequest

from runtime.settings import Settings
from streams.agents import Worker
from streams.errors import RepairMisfit
from streams.kafka import clients
from streams.kafka import consumer as kafka_consumer
from streams.kafka.clients import REPAIRS, check_repairs, make_admin, make_consumer, make_producer
from streams.kafka.lenient_records import LenientRecords
from streams.kafka.repair import Repair, check, misfits
from streams.producer import EventProducer
from tests.support.waiting import DEADLINE_SECONDS

SETTINGS = Settings(kafka_bootstrap_servers="127.0.0.1:1")
FAKE = "tests_fake_client"
REPAIR = Repair(name="a", needed_by="a 1", reason="a", until="a", touches=())


class Client:
    """A client of a library that does not exist."""

    limit = 1

    def __init__(self) -> None:
        self._task: object = None

    async def _connect(self, node_id: int, *, hint: bool = False) -> None:
        self.node_id = node_id


@pytest.fixture(autouse=True)
def _look_again() -> Iterator[None]:
    """A process looks once; each test begins and ends without that."""
    check_repairs.cache_clear()
    yield
    check_repairs.cache_clear()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that has a client."""
    module = ModuleType(FAKE)
    module.Client = Client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, FAKE, module)
    return module


@asynccontextmanager
async def closing(client: Any) -> AsyncIterator[Any]:
    """A client that was not started, and is stopped in the end."""
    try:
        yield client
    finally:
        await client.stop()


def touching(*parts: str) -> Repair:
    return msgspec.structs.replace(REPAIR, touches=tuple(f"{FAKE}:{part}" for part in parts))


def test_the_repairs_fit_the_installed_version() -> None:
    """Each part of aiokafka that a repair touches is there, with the parameters that it takes."""
    assert [problem for repair in REPAIRS for problem in misfits(repair)] == []


@pytest.mark.parametrize("repair", REPAIRS, ids=lambda repair: repair.name)
def test_each_repair_names_the_installed_version(repair: Repair) -> None:
    """A new version of aiokafka asks for a look at each repair (`until`); one that stays then names that version."""
    assert repair.needed_by == f"aiokafka {version('aiokafka')}"
    assert repair.reason
    assert repair.until
    assert repair.touches


def test_parts_that_are_there_fit(fake: ModuleType) -> None:
    """Methods, attributes of the class, and attributes that methods assign."""
    repair = touching("Client", "Client.limit", "Client._task", "Client.node_id", "Client._connect(node_id, hint)")
    assert list(misfits(repair)) == []


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ("Client._sender", f"{FAKE}.Client has no _sender"),
        ("Client._connect(node_id, group)", f"{FAKE}.Client._connect takes no group"),
        ("Consumer.limit", f"there is no class {FAKE}.Consumer"),
        ("records", f"{FAKE} has no records"),
    ],
)
def test_parts_that_are_missing_are_named(fake: ModuleType, part: str, problem: str) -> None:
    """The error says which repair and which part, and gives the command that installs the version that fits."""
    with pytest.raises(RepairMisfit) as caught:
        check([REPAIR, touching(part)])
    assert caught.value.why == f"a: {problem}."
    assert caught.value.next_step == "uv sync"


def test_a_module_that_is_missing_is_named() -> None:
    """As where aiokafka has moved it."""
    assert list(misfits(touching("Client.limit"))) == [f"there is no module {FAKE}"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_producer(SETTINGS),
        lambda: make_consumer(SETTINGS),
        lambda: make_admin(SETTINGS),
        lambda: EventProducer(SETTINGS),
        lambda: Worker(SETTINGS, ["t"], lambda topic, partition: pytest.fail("nothing is assigned")),
    ],
    ids=["producer", "consumer", "admin", "EventProducer", "Worker"],
)
async def test_whatever_makes_clients_looks_first(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that makes clients ends with the named error before it connects."""
    monkeypatch.setattr(clients, "REPAIRS", [touching("Client.limit")])
    check_repairs.cache_clear()
    with pytest.raises(RepairMisfit):
        make()


async def test_every_client_skips_unresponsive_brokers() -> None:
    """Producer, consumer and admin client alike, with the settings' address."""
    async with closing(make_producer(SETTINGS)) as producer, closing(make_consumer(SETTINGS)) as consumer:
        for client in (producer.client, consumer.client, make_admin(SETTINGS).client):
            assert client.get_random_node.__self__._client is client
            assert [host[:2] for host in client.hosts] == [("127.0.0.1", 1)]


async def test_consumers_read_leniently() -> None:
    """The parser is the lenient one as soon as a consumer has been made."""
    async with closing(make_consumer(SETTINGS)):
        pass
    assert fetcher.MemoryRecords is LenientRecords


@pytest.mark.parametrize("make", [make_producer, make_consumer, make_admin])
async def test_every_client_expects_connections_that_close(
    make: Callable[[Settings], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may run in uvloop's loop."""
    send = inspect.unwrap(AIOKafkaConnection.send)
    monkeypatch.setattr(AIOKafkaConnection, "send", send)
    made = make(SETTINGS)
    await (made.close if make is make_admin else made.stop)()
    assert AIOKafkaConnection.send is not send


async def test_a_consumer_restarts_its_fetcher_before_it_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """`getmany` does so too, which aiokafka's own consumer does not."""
    calls: list[str] = []

    async def getmany(_consumer: AIOKafkaConsumer, **_: object) -> dict[object, object]:
        calls.append("getmany")
        return {}

    async with closing(make_consumer(SETTINGS)) as consumer:
        monkeypatch.setattr(AIOKafkaConsumer, "getmany", getmany)
        monkeypatch.setattr("streams.kafka.consumer.restart_fetcher", lambda _: calls.append("restart"))
        assert await consumer.getmany() == {}
    assert calls == ["restart", "getmany"]


async def test_a_consumer_stops_while_a_fetch_fails() -> None:
    """A fetch that waits after its error is cancelled, and that ends neither the stop nor who asked for it."""
    consumer = make_consumer(SETTINGS)
    failing = asyncio.create_task(asyncio.Event().wait())
    await asyncio.sleep(0)
    consumer._fetcher = fetcher.Fetcher.__new__(fetcher.Fetcher)
    consumer._fetcher._fetch_task = asyncio.create_task(asyncio.Event().wait())
    consumer._fetcher._fetch_waiters = set()
    consumer._fetcher._pending_tasks = {failing, asyncio.create_task(asyncio.Event().wait())}

    await consumer.stop()

    assert failing.cancelled()
    assert all(task.cancelled() for task in consumer._fetcher._pending_tasks)


async def fail() -> None:
    raise KafkaError("seen in aiokafka")


async def test_a_consumer_stops_whose_fetcher_has_failed() -> None:
    """Its connections are closed, what was under way is ended, and why is in the log."""
    consumer = make_consumer(SETTINGS)
    closed: list[bool] = []

    async def close() -> None:
        closed.append(True)

    consumer._fetcher = fetcher.Fetcher.__new__(fetcher.Fetcher)
    consumer._fetcher._fetch_task = asyncio.create_task(fail())
    consumer._fetcher._fetch_waiters = set()
    consumer._fetcher._pending_tasks = {asyncio.create_task(asyncio.Event().wait())}
    consumer._client.close = close
    await asyncio.sleep(0)

    with structlog.testing.capture_logs() as lines:
        await consumer.stop()

    assert closed == [True]
    assert all(task.cancelled() for task in consumer._fetcher._pending_tasks)
    assert "seen in aiokafka" in str(lines)


class Connection:
    """A connection of a consumer."""

    closed = False

    def close(self, reason: object) -> Awaitable[None]:
        self.closed = True
        return asyncio.sleep(0)


class Member:
    """A consumer, in a group whose coordinator does this, with what there is to end at its stop."""

    def __init__(self, coordination: Coroutine[Any, Any, object], **options: Any) -> None:
        self.consumer = make_consumer(SETTINGS, **options)
        self.sent: list[object] = []
        self.connection = self.consumer._client._conns["a broker"] = Connection()
        self.consumer._client.send = self._send
        coordinator = GroupCoordinator(self.consumer._client, self.consumer._subscription, group_id="g")
        coordinator._coordination_task.cancel()
        coordinator._coordination_task = asyncio.create_task(coordination)
        coordinator._heartbeat_task = asyncio.create_task(asyncio.Event().wait())
        coordinator._commit_refresh_task = asyncio.create_task(asyncio.Event().wait())
        coordinator.generation, coordinator.member_id, coordinator.coordinator_id = 3, "m", 1
        self.tasks = [coordinator._coordination_task, coordinator._heartbeat_task, coordinator._commit_refresh_task]
        self.coordinator = self.consumer._coordinator = coordinator

    async def _send(self, _node: int, request: object, **_: object) -> None:
        self.sent.append(request)


async def fail_later(waited: asyncio.Future[None]) -> None:
    await waited
    await fail()


@pytest.mark.parametrize("before", [True, False], ids=["before", "while it stops"])
async def test_a_consumer_leaves_its_group_whose_coordinator_fails(before: bool) -> None:
    """No heartbeat goes on, nor is a connection left; why is in the log, once."""
    failing = asyncio.get_running_loop().create_future()
    member = Member(fail() if before else fail_later(failing))
    await asyncio.sleep(0)
    with structlog.testing.capture_logs() as lines:
        stopping = asyncio.create_task(member.consumer.stop())
        await asyncio.sleep(0)
        if not before:
            failing.set_result(None)
        await stopping
        await member.consumer.stop()

    assert [task.done() for task in member.tasks] == [True] * 3
    assert [type(request) for request in member.sent] == [LeaveGroupRequest]
    assert member.connection.closed
    assert str(lines).count("seen in aiokafka") == 1


async def test_a_consumer_leaves_its_group_whose_coordinator_does_not_end() -> None:
    """It is waited for as long as a request may take, and cancelled."""
    member = Member(asyncio.Event().wait(), request_timeout_ms=10)  # type: ignore[arg-type]
    with structlog.testing.capture_logs() as lines:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await member.consumer.stop()
    assert [task.cancelled() for task in member.tasks] == [True] * 3
    assert [type(request) for request in member.sent] == [LeaveGroupRequest]
    assert member.connection.closed
    assert "longer than a request may" in str(lines)


async def swallow(ended: asyncio.Event) -> None:
    while not ended.is_set():
        with contextlib.suppress(asyncio.CancelledError):
            await ended.wait()


async def test_a_consumer_leaves_its_group_whose_coordinator_swallows_its_cancellation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is left alone."""
    monkeypatch.setattr(kafka_consumer, "CANCELLED_SECONDS", 0.01)
    ended = asyncio.Event()
    member = Member(swallow(ended), request_timeout_ms=10)
    async with asyncio.timeout(DEADLINE_SECONDS):
        await member.consumer.stop()
    assert [type(request) for request in member.sent] == [LeaveGroupRequest]
    assert member.connection.closed
    assert not member.tasks[0].done()
    ended.set()
    await member.tasks[0]


async def test_a_consumer_disconnects_whose_metadata_task_has_failed() -> None:
    """That task is the first that aiokafka's client waits for as it closes."""
    consumer, connection = make_consumer(SETTINGS), Connection()
    consumer._client._conns["a broker"] = connection
    consumer._client._sync_task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    with structlog.testing.capture_logs() as lines:
        await consumer.stop()
    assert connection.closed
    assert str(lines).count("seen in aiokafka") == 1


async def test_a_consumer_disconnects_whose_reader_was_cancelled() -> None:
    """Parts that end by a cancellation of their own do not end the stop for one more."""
    member, reading = Member(asyncio.Event().wait()), asyncio.Event()  # type: ignore[arg-type]
    member.tasks[0].cancel()
    member.consumer._client._sync_task = asyncio.create_task(asyncio.Event().wait())

    async def read() -> None:
        try:
            reading.set()
            await asyncio.Event().wait()
        finally:
            await member.consumer.stop()

    reader = asyncio.create_task(read())
    await reading.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert [type(request) for request in member.sent] == [LeaveGroupRequest]
    assert member.connection.closed


async def test_a_consumer_whose_stop_is_cancelled_ends() -> None:
    """Whoever gives up waiting is not held."""
    consumer = make_consumer(SETTINGS)
    consumer._fetcher = fetcher.Fetcher.__new__(fetcher.Fetcher)
    entered = asyncio.Event()

    async def close() -> None:
        entered.set()
        await asyncio.Event().wait()

    consumer._fetcher.close = close
    stopping = asyncio.create_task(consumer.stop())
    await entered.wait()
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    await consumer.client.close()
