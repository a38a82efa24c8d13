"""Tables of the log for tests: ranges that are made as the writer makes them, and records that are put into them."""

from __future__ import annotations

from devstack import sql
from tests.conftest import Database

TOPIC = "t.events"
SIZE = 1 << 20
PARENT, PARTITION, RANGE, NEXT = "log_records", 'log."t.events/0"', 'log."t.events/0/0"', f'log."t.events/0/{SIZE}"'
TABLES = (PARENT, PARTITION, RANGE)
VIEWS = ("event_stream", "audit_log")
RECORD = {
    "topic": f"'{TOPIC}'",
    "partition": "0",
    '"offset"': "7",
    "created_at": "now()",
    "event_id": "gen_random_uuid()",
    "hash": "sha256('h')",
    "headers": r"'\x00000000'",
}
OWNER = """
    INSERT INTO partition_owners (consumer, topic, partition, token, worker, backend_pid, backend_started_at)
    VALUES ('projector', {topic}, {partition}, 1, '', 0, '-infinity') ON CONFLICT DO NOTHING
"""


def own(database: Database, topic: str, *partitions: int) -> None:
    """Give partitions the rows of an owner."""
    literal = sql.literal(topic)
    sql.execute(database.owner_url, [OWNER.format(topic=literal, partition=number) for number in partitions])


def make(database: Database, topic: str, partition: int, first_offset: object) -> str:
    """Ask for a range as the writer does; return its table."""
    query = f"SELECT make_log_range({sql.literal(topic)}, {partition}, {first_offset})"
    return str(sql.value(database.writer_url, query))


def insert(database: Database, table: str = RANGE, *, url: str = "", **changes: str) -> None:
    """Append a record with some columns changed; `offset_` stands for the column "offset"."""
    record = {**RECORD, **{'"offset"' if name == "offset_" else name: value for name, value in changes.items()}}
    statement = f"INSERT INTO {table} ({', '.join(record)}) VALUES ({', '.join(record.values())})"
    sql.execute(url or database.writer_url, [statement])


def make_ranges(database: Database) -> None:
    """Make two ranges of partition 0 and one of partition 1; partitions 2 to 5 have an owner."""
    own(database, TOPIC, *range(6))
    for partition, first_offset in ((0, 0), (0, SIZE), (1, 0)):
        make(database, TOPIC, partition, first_offset)
