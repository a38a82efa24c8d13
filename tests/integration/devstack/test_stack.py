"""The local stack, with real processes: found again, killed, restarted, moved, refused."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaTimeoutError, UnknownTopicOrPartitionError

from database import migrate
from devstack import processes, sql
from devstack import stack as stack_module
from devstack.errors import OtherBrokerCount, OtherVersion, StartFailed
from devstack.kafka import BrokerCount
from devstack.postgres import ROLES, Postgres, address, prepare_cluster
from devstack.postgres_binaries import PUBLIC_FOLDER, system_user
from devstack.processes import ProcessRecord
from devstack.stack import ROLES_SQL, Stack
from tests.support.services import make_whole
from tests.support.waiting import wait_until


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A home for one more stack; whatever runs there ends with the test."""
    home = tmp_path / "home"
    yield home
    Stack(home).down(delete_data=True)


def superuser_url(stack: Stack) -> str:
    return stack.environ["PLANT_DATABASE_SUPERUSER_URL"]


def states(stack: Stack) -> dict[str, str]:
    return {service.name: service.state for service in stack.status()}


async def write_record(stack: Stack, topic: str, value: bytes) -> None:
    servers = stack.environ["PLANT_KAFKA_BOOTSTRAP_SERVERS"]
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1)])
    await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=servers, acks="all") as producer:
        await producer.send_and_wait(topic, value)


async def read_record(stack: Stack, topic: str) -> bytes:
    servers = stack.environ["PLANT_KAFKA_BOOTSTRAP_SERVERS"]
    async with AIOKafkaConsumer(topic, bootstrap_servers=servers, auto_offset_reset="earliest") as consumer:
        record = await consumer.getone()
        return record.value or b""


def test_second_up_finds_the_first(private_stack: Stack) -> None:
    """A second `up` starts nothing and changes no address."""
    state, environ = private_stack.state, private_stack.environ

    again = Stack(private_stack.home)
    again.up()

    assert again.state == state
    assert again.environ == environ


def test_two_folders_each_have_a_stack(private_stack: Stack, folder: Path) -> None:
    """Stacks of two folders run side by side at different addresses."""
    with Stack(folder) as other:
        assert states(other) == states(private_stack) == {"kafka": "running", "postgres": "running"}
        ports = [
            getattr(stack.state, name)
            for stack in (other, private_stack)
            for name in ("kafka_port", "controller_port", "postgres_port")
        ]

    assert len(set(ports)) == 6
    assert not folder.exists()


def test_address_file_is_readable_by_its_owner_alone(private_stack: Stack) -> None:
    """Passwords are in a file of mode 0600, and differ between roles."""
    file = private_stack.home / "stack.env"

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    urls = [value for name, value in private_stack.environ.items() if name.startswith("PLANT_DATABASE_")]
    assert len({url.split(":")[2].split("@")[0] for url in urls}) == 10


@pytest.mark.parametrize("role", ["owner", "writer", "ingress", "operator", "api", "auditor", "embedder"])
def test_roles_connect_with_their_own_rights(private_stack: Stack, role: str) -> None:
    """Each role logs in by password, is no superuser, and finds pgvector in the database."""
    url = private_stack.environ[f"PLANT_DATABASE_{role.upper()}_URL"]

    assert sql.value(url, "SELECT current_user") == f"plant_{role}"
    assert sql.value(url, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
    assert sql.value(url, "SELECT '[1,2]'::vector <-> '[1,2]'::vector") == 0.0


def test_postgres_keeps_what_it_confirmed(private_stack: Stack) -> None:
    """Durability settings are on, and passwords never cross as anything but SCRAM."""
    shown = {
        name: sql.value(superuser_url(private_stack), f"SHOW {name}")
        for name in ("fsync", "synchronous_commit", "full_page_writes", "data_checksums", "password_encryption")
    }

    assert shown == {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "data_checksums": "on",
        "password_encryption": "scram-sha-256",
    }
    assert sql.server_answers(superuser_url(private_stack).replace("postgres:", "postgres:not-")) is False


async def test_topics_are_made_on_purpose_only(private_stack: Stack) -> None:
    """Writing to a topic that does not exist does not make it."""
    servers = private_stack.environ["PLANT_KAFKA_BOOTSTRAP_SERVERS"]
    async with AIOKafkaProducer(bootstrap_servers=servers, request_timeout_ms=1000) as producer:
        with pytest.raises((UnknownTopicOrPartitionError, KafkaTimeoutError)):
            await producer.send_and_wait("never.made", b"")
        assert "never.made" not in (await producer.client.fetch_all_metadata()).topics()


async def test_killed_services_come_back_with_their_data(private_stack: Stack) -> None:
    """After kill -9 of both, `up` restarts both at the same addresses with what they had confirmed."""
    environ = private_stack.environ
    sql.execute(superuser_url(private_stack), ["CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)"])
    await write_record(private_stack, "kept.kill", b"seven")

    private_stack.kill_kafka()
    private_stack.kill_postgres()
    assert states(private_stack) == {"kafka": "stopped", "postgres": "stopped"}
    private_stack.up()

    assert private_stack.environ == environ
    assert sql.value(superuser_url(private_stack), "SELECT n FROM kept") == 7
    assert await read_record(private_stack, "kept.kill") == b"seven"


async def test_data_survives_a_restart(private_stack: Stack) -> None:
    """`down` and `up` keep tables, topics, ports and passwords."""
    environ = private_stack.environ
    sql.execute(superuser_url(private_stack), ["CREATE TABLE restarted (n int)", "INSERT INTO restarted VALUES (8)"])
    await write_record(private_stack, "kept.restart", b"eight")

    assert private_stack.down() == ["kafka", "postgres"]
    assert private_stack.down() == []
    private_stack.up()

    assert private_stack.environ == environ
    assert sql.value(superuser_url(private_stack), "SELECT n FROM restarted") == 8
    assert await read_record(private_stack, "kept.restart") == b"eight"


def test_one_service_is_killed_and_started_alone(private_stack: Stack) -> None:
    """The fault hooks restart one service and leave the other alone."""
    before = private_stack.state

    private_stack.kill_kafka()
    private_stack.start_kafka()
    private_stack.kill_postgres()
    between = private_stack.state
    private_stack.start_postgres()

    assert between.kafka != before.kafka
    assert between.kafka_port == before.kafka_port
    assert private_stack.state.postgres_port == before.postgres_port
    assert states(private_stack) == {"kafka": "running", "postgres": "running"}


def test_what_a_failed_test_has_ended_is_there_for_the_next(private_stack: Stack) -> None:
    """The tests' own: a stack that a module shares has all its services at each test's begin."""
    broker = private_stack.state.kafka
    private_stack.kill_postgres()

    make_whole(private_stack)

    assert states(private_stack) == {"kafka": "running", "postgres": "running"}
    assert private_stack.state.kafka == broker


def test_frozen_backend_of_a_killed_server_does_not_block_the_next(private_stack: Stack) -> None:
    """A backend that was stopped when its server was killed holds shared memory; the next start ends it."""
    server = psutil.Process(private_stack.state.postgres.pid)  # type: ignore[union-attr]
    frozen = server.children()[0]
    frozen.send_signal(signal.SIGSTOP)

    private_stack.kill_postgres()
    private_stack.start_postgres()

    assert not frozen.is_running() or frozen.status() == psutil.STATUS_ZOMBIE
    assert states(private_stack)["postgres"] == "running"


def test_an_unresponsive_broker_is_replaced(private_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is there but answers nothing is `unresponsive`, and `up` starts another."""
    monkeypatch.setattr(stack_module, "UNRESPONSIVE_TIMEOUT_SECONDS", 0.5)
    record = private_stack.state.kafka
    processes.send(record, signal.SIGSTOP)
    # Its threads stop one after the other.
    wait_until(lambda: states(private_stack)["kafka"] == "unresponsive", "the stopped broker does not answer")

    private_stack.up()

    assert not processes.is_running(record)
    assert states(private_stack)["kafka"] == "running"


def test_a_lost_address_file_is_written_again(private_stack: Stack) -> None:
    """Without `stack.env` a stopped stack gets new passwords, and its data stays."""
    sql.execute(superuser_url(private_stack), ["CREATE TABLE still_here ()"])
    private_stack.down()
    (private_stack.home / "stack.env").unlink()

    private_stack.up()

    assert sql.value(superuser_url(private_stack), "SELECT to_regclass('still_here')::text") == "still_here"
    assert sql.value(private_stack.environ["PLANT_DATABASE_API_URL"], "SELECT 1") == 1


def test_unwritten_processes_are_ended_before_new_ones_start(private_stack: Stack) -> None:
    """Where `stack.json` was lost, the processes that work in this folder are found by it and replaced."""
    orphans = [private_stack.state.kafka, private_stack.state.postgres]
    (private_stack.home / "stack.json").unlink()

    private_stack.up()

    assert [processes.is_running(orphan) for orphan in orphans] == [False, False]
    assert states(private_stack) == {"kafka": "running", "postgres": "running"}


def test_recycled_pid_is_never_signalled(folder: Path) -> None:
    """A pid in `stack.json` that now belongs to another program (here: this test) is left alone."""
    folder.mkdir()
    recycled = {"pid": os.getpid(), "started_at": 1_000_000_000.0}
    written = {"kafka_version": "4.1.1", "postgres_version": "18", "kafka": recycled, "postgres": recycled}
    (folder / "stack.json").write_bytes(msgspec.json.encode(written))
    stack = Stack(folder)

    assert states(stack) == {"kafka": "stopped", "postgres": "stopped"}
    assert stack.down() == []
    stack.kill_kafka()


def test_failed_start_ends_what_was_started(folder: Path) -> None:
    """When the broker can't start, Postgres is ended too, and the error names the log file."""
    (folder / "kafka" / "data").mkdir(parents=True)
    (folder / "kafka" / "data" / "meta.properties").write_text("version=1\ncluster.id=\nnode.id=99\n")
    stack = Stack(folder)

    with pytest.raises(StartFailed) as failure:
        stack.up()

    assert str(stack.home / "logs" / "kafka.log") in str(failure.value)
    assert not processes.is_running(stack.state.kafka)
    assert not processes.is_running(stack.state.postgres)


def test_failed_preparation_ends_what_was_started(private_stack: Stack) -> None:
    """When migrations or topics fail, what this `up` started is ended; what ran before is left alone."""

    def refuse(_: object) -> None:
        raise LookupError("no such revision")

    private_stack.kill_postgres()
    with pytest.raises(LookupError, match="no such revision"):
        private_stack.up(refuse)

    assert states(private_stack) == {"kafka": "running", "postgres": "stopped"}
    private_stack.start_postgres()


def test_postgres_16_runs_the_migrations_and_refuses_to_be_18(folder: Path) -> None:
    """The older version works, and its data folder is only opened by it."""
    folder.mkdir()
    server, note, port = Postgres(folder, 16), list[ProcessRecord](), processes.choose_port(None, set())
    server.start(port, "secret", note.append)
    try:
        prepare_cluster(port, "secret", dict.fromkeys(ROLES, "role-secret"), ROLES_SQL)
        owner_url = address("plant_owner", "role-secret", port)
        assert migrate.upgrade(owner_url) == migrate.heads()
        assert sql.value(owner_url, "SHOW server_version").startswith("16.")
        assert sql.value(owner_url, "SELECT '[1,2]'::vector <-> '[1,2]'::vector") == 0.0
    finally:
        server.stop(note[0])

    assert Stack(folder).status()[1].version == "16"
    with pytest.raises(OtherVersion, match="made by Postgres 16"):
        Stack(folder, postgres_major=18).up()


@pytest.mark.parametrize(("made", "asked", "data"), [(1, 3, "kafka/data"), (3, 1, "kafka/2/data")])
def test_a_home_keeps_its_number_of_brokers(folder: Path, made: int, asked: BrokerCount, data: str) -> None:
    """Another number than it was made with is refused, with what to run; without one, its own is taken."""
    (folder / data).mkdir(parents=True)

    with pytest.raises(OtherBrokerCount, match=f"made with {made} broker") as refused:
        Stack(folder, brokers=asked).up()

    assert refused.value.next_step.startswith(f"plant up --brokers {made} ")
    assert refused.value.exit_code == 2
    assert Stack(folder).broker_count == made


def test_a_state_file_from_before_there_were_several_brokers_is_read(folder: Path) -> None:
    """The one broker's process and ports are found in it, so that it can be stopped."""
    folder.mkdir()
    record = {"pid": 7, "started_at": 8.0}
    written = {"kafka_version": "4.1.1", "postgres_version": "18", "kafka": record}
    (folder / "stack.json").write_bytes(msgspec.json.encode({**written, "kafka_port": 9092, "controller_port": 9093}))

    state = Stack(folder).state

    assert (state.kafka, state.kafka_port, state.controller_port) == (ProcessRecord(7, 8.0), 9092, 9093)


def test_private_folder_keeps_its_permissions(folder: Path) -> None:
    """A folder that others can't enter stays so; as root its tables go where the system user can reach them."""
    folder.parent.chmod(0o700)
    folder.mkdir()
    server, note = Postgres(folder, 18), list[ProcessRecord]()
    server.start(processes.choose_port(None, set()), "secret", note.append)
    try:
        assert server.has_data
        assert server.data.is_relative_to(folder if system_user() is None else PUBLIC_FOLDER)
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    finally:
        server.stop(note[0])

    Stack(folder).down(delete_data=True)
    assert not server.data.exists()
    assert not folder.exists()
