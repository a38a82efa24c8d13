"""What a worker that was taken over can do to the log with its role: which tables it makes, closes and adds rows to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from database import migrate
from devstack import sql
from operations.services.worker import TOPICS
from projections.checkpoints import KNOWN_REVISION
from streams.topics import CATALOGUE
from tests.conftest import Database
from tests.support import log_rows
from tests.support.made_ranges import NEXT, PARTITION, RANGE, SIZE, TOPIC, insert, make, own
from tests.support.services import Services

REFUSED = asyncpg.InsufficientPrivilegeError


@pytest.fixture
def database(stack: Services, template_database: str) -> Iterator[Database]:
    """A migrated database of one test."""
    with log_rows.migrated_database(stack, template_database) as made:
        yield made


def add_owners(topic: str, partitions: int, consumer: str = "projector") -> str:
    """The statement with which a worker adds owners of a topic."""
    return f"SELECT add_partition_owners('{consumer}', {sql.literal(topic)}, {partitions}, NULL, {KNOWN_REVISION})"


def owners(database: Database) -> int:
    return int(sql.value(database.owner_url, "SELECT count(*) FROM partition_owners"))


def call(database: Database, name: str, partition: int, first_offset: int) -> bool:
    """Call a function on a range, as the writer."""
    query = f"SELECT {name}_log_range('{TOPIC}', {partition}, {first_offset})"
    return bool(sql.value(database.writer_url, query))


def close(database: Database, partition: int, first_offset: int) -> bool:
    """Index a range and close it, as the writer; return whether it is closed."""
    call(database, "index", partition, first_offset)
    return call(database, "close", partition, first_offset)


def log_table(partition: int, first_offset: int) -> str:
    return f'log."{TOPIC}/{partition}/{first_offset}"'


def fill(database: Database, partition: int, *offsets: int) -> None:
    """Make the ranges of some offsets, in their order, and append a record at each."""
    own(database, TOPIC, partition)
    for offset in offsets:
        make(database, TOPIC, partition, offset - offset % SIZE)
        insert(database, log_table(partition, offset - offset % SIZE), partition=str(partition), offset_=str(offset))


@pytest.mark.parametrize(
    "topic",
    [
        *(topic.name for topic in CATALOGUE if topic.name not in TOPICS),
        "no.such.topic", "genesis.eventsx", "genesis.events-", "genesis_events", "x-genesis.events",
        "genesis.events-2\n", "genesis.events-" + "2" * 240, "",
    ],
)  # fmt: skip
def test_a_topic_that_is_not_logged_has_no_owners(database: Database, topic: str) -> None:
    """So no ranges either."""
    with pytest.raises(REFUSED, match="no topic of the log"):
        sql.execute(database.writer_url, [add_owners(topic, 1)])
    assert owners(database) == 0


@pytest.mark.parametrize("topic", [*TOPICS, *(f"{topic}-2" for topic in TOPICS)])
def test_what_workers_read_is_logged(database: Database, topic: str) -> None:
    """Each topic of a worker, in any generation."""
    sql.execute(database.writer_url, [add_owners(topic, 3), f"SELECT make_log_range('{topic}', 2, 0)"])
    assert owners(database) == 3


def test_a_consumer_owns_a_bounded_number_of_partitions(database: Database) -> None:
    """All generations together; a topic that has its owners is left as it is."""
    too_many = "more than 1,024 partitions"
    with pytest.raises(REFUSED, match=too_many):
        sql.execute(database.writer_url, [add_owners("genesis.events", 1025)])
    sql.execute(database.writer_url, [add_owners("genesis.events", 1000)])
    with pytest.raises(REFUSED, match=too_many):
        sql.execute(database.writer_url, [add_owners("genesis.events-2", 25)])
    sql.execute(database.writer_url, [add_owners("genesis.events", 5000), add_owners("genesis.events-2", 24)])
    assert owners(database) == 1024


def test_two_sessions_do_not_pass_the_bound_together(database: Database) -> None:
    """The second waits until the first one's owners count."""

    async def while_added(connection: Any) -> None:
        async with connection.transaction():
            await connection.execute(add_owners("genesis.events", 1000))
            with pytest.raises(asyncpg.LockNotAvailableError):
                sql.execute(database.writer_url, ["SET lock_timeout = '200ms'", add_owners("genesis.events-2", 1000)])

    log_rows.on_connection(database.writer_url, while_added)
    assert owners(database) == 1000


@pytest.mark.parametrize("change", ["topic = 'no.such.topic'", "partition = 5000", "consumer = 'projector'"])
def test_an_owners_row_stays_with_its_partition(database: Database, change: str) -> None:
    """The writer moves the fence, and not the row."""
    sql.execute(database.writer_url, [add_owners("genesis.events", 1, "dispatcher")])
    with pytest.raises(REFUSED):
        sql.execute(database.writer_url, [f"UPDATE partition_owners SET {change}"])
    sql.execute(database.writer_url, ["UPDATE partition_owners SET token = token + 1"])


def test_a_range_far_ahead_keeps_no_partition_from_going_on(database: Database) -> None:
    """There may be four that are empty; the one behind the last record can be made all the same."""
    own(database, TOPIC, 0)
    for number in range(4):
        make(database, TOPIC, 0, (1_000_000 + number) * SIZE)
    with pytest.raises(asyncpg.PostgresError, match="not the next one, and there are 4 empty ones"):
        make(database, TOPIC, 0, 3_000_000 * SIZE)
    fill(database, 0, 7, SIZE + 7)
    with pytest.raises(asyncpg.PostgresError, match="not the next one"):
        make(database, TOPIC, 0, 3 * SIZE)
    assert make(database, TOPIC, 0, 2 * SIZE) == f"{TOPIC}/0/{2 * SIZE}"


@pytest.mark.parametrize("reached", ["by a record", "by the checkpoint"])
def test_a_range_is_closed_once_the_log_has_gone_on(database: Database, reached: str) -> None:
    """Before that it takes rows yet, index or not: Kafka may lose the records for which the next one was made."""
    fill(database, 0, 7)
    make(database, TOPIC, 0, SIZE)
    assert call(database, "index", 0, 0) is True
    assert close(database, 0, 0) is False
    insert(database, RANGE, offset_="8")
    if reached == "by a record":
        insert(database, NEXT, offset_=str(SIZE))
    else:
        checkpoint = f"INSERT INTO checkpoints VALUES ('projector', '{TOPIC}', 0, {{}}) ON CONFLICT (consumer, topic,"
        checkpoint += " partition) DO UPDATE SET next_offset = excluded.next_offset"
        sql.execute(database.writer_url, [checkpoint.format(SIZE - 1)])
        assert close(database, 0, 0) is False
        sql.execute(database.writer_url, [checkpoint.format(SIZE)])
    assert call(database, "close", 0, 0) is False
    assert close(database, 0, 0) is True


def test_ranges_are_closed_in_their_order(database: Database) -> None:
    """A later one is asked against closed ones alone."""
    fill(database, 0, 7, SIZE, 2 * SIZE)
    assert [close(database, 0, first) for first in (SIZE, 0, SIZE, 2 * SIZE - SIZE)] == [False, True, True, True]


def test_nobody_adds_a_row_to_a_closed_range(database: Database) -> None:
    """Neither by its table nor by the partition's or the log's; the open range takes rows."""
    fill(database, 0, 7, SIZE)
    assert close(database, 0, 0)
    for table in (RANGE, PARTITION, "log_records"):
        with pytest.raises(REFUSED):
            insert(database, table, offset_="9")
    with pytest.raises(REFUSED):
        sql.execute(database.writer_url, [f"COPY {RANGE} FROM STDIN"])
    insert(database, NEXT, offset_=str(SIZE + 1))
    logged = 'SELECT array_agg("offset" ORDER BY 1) FROM log_records'
    assert sql.value(database.owner_url, logged) == [7, SIZE, SIZE + 1]


@pytest.mark.parametrize("indexed", [False, True])
def test_a_row_that_is_not_committed_yet_is_waited_for(database: Database, indexed: bool) -> None:
    """Else it would come into the range after its ids were asked for."""
    fill(database, 0, 7)
    make(database, TOPIC, 0, SIZE)
    if indexed:
        call(database, "index", 0, 0)
    insert(database, NEXT, offset_=str(SIZE))
    append = f"""INSERT INTO {RANGE} ("offset", created_at, event_id, hash, headers)
        VALUES (9, now(), gen_random_uuid(), sha256('h'), '')"""
    index = ["SET lock_timeout = '200ms'", f"SELECT index_log_range('{TOPIC}', 0, 0)"]

    async def while_appended(connection: Any) -> None:
        async with connection.transaction():
            await connection.execute(append)
            with pytest.raises(asyncpg.LockNotAvailableError):
                sql.execute(database.writer_url, index)
            assert call(database, "close", 0, 0) is False

    log_rows.on_connection(database.writer_url, while_appended)
    assert close(database, 0, 0) is True


def test_ranges_that_were_closed_before_take_no_rows_either(database: Database) -> None:
    """The migration ends the right on each; one that the log has not gone on behind is open again."""
    migrate.downgrade(database.owner_url, "045")
    fill(database, 0, 7, SIZE)
    fill(database, 1, 7)
    make(database, TOPIC, 1, SIZE)
    assert close(database, 0, 0) is close(database, 1, 0) is True
    insert(database, RANGE, offset_="8")
    migrate.upgrade(database.owner_url)
    for table in (RANGE, PARTITION):
        with pytest.raises(REFUSED):
            insert(database, table, offset_="9")
    insert(database, NEXT, offset_=str(SIZE + 1))
    insert(database, log_table(1, 0), partition="1", offset_="9")
    insert(database, log_table(1, SIZE), partition="1", offset_=str(SIZE))
    assert close(database, 1, 0) is True
    migrate.downgrade(database.owner_url, "045")
    for table in (RANGE, PARTITION):
        insert(database, table, offset_="9" if table == RANGE else "10")
