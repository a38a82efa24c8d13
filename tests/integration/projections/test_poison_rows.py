"""Poison rows: the checkpoint of a partition's dead letters, and whose turn it is."""

from __future__ import annotations

import asyncpg

from projections.poison_rows import PoisonRows
from tests.conftest import Database


async def test_the_checkpoint_of_dead_letters_never_goes_back(database: Database) -> None:
    """A relay that was frozen, and goes on next to its successor, marks no less than that one has marked."""
    connection = await asyncpg.connect(database.writer_url)
    try:
        rows = PoisonRows(connection)
        for next_offset in (3, 9, 5):
            await rows.advance("genesis.events", 0, next_offset)
        await rows.advance("genesis.events", 1, 4)
        marks = await connection.fetch(
            "SELECT partition, next_offset FROM checkpoints WHERE consumer = 'dead_letters' ORDER BY partition"
        )
    finally:
        await connection.close()
    assert [tuple(mark) for mark in marks] == [(0, 9), (1, 4)]


async def test_partitions_take_turns(database: Database) -> None:
    """A flood of poison on one partition keeps no other waiting; each partition's come in order."""
    fill = """
        INSERT INTO log_records (topic, partition, "offset", created_at, disposition, reason, headers, hash)
        SELECT 'genesis.events', partition, 10 * number, now(), 'poison', 'no event', '', sha256('')
        FROM unnest('{0,1,2}'::int[], '{5000,3,1}'::int[]) AS flood (partition, records),
            generate_series(1, records) AS number
    """
    owners = """
        INSERT INTO partition_owners (consumer, topic, partition, token, worker, backend_pid, backend_started_at)
        SELECT 'projector', 'genesis.events', partition, 1, '', 0, '-infinity' FROM generate_series(0, 3) AS partition
    """
    superuser = await asyncpg.connect(database.superuser_url)
    connection = await asyncpg.connect(database.writer_url)
    try:
        await superuser.execute(owners)
        await superuser.execute(
            "SELECT make_log_range('genesis.events', number, 0) FROM generate_series(0, 2) AS number"
        )
        await superuser.execute(fill)
        rows = PoisonRows(connection)
        page = await rows.unsent("genesis.events", 10, size_max_bytes=1, key_max_bytes=1)
        narrow = await rows.unsent("genesis.events", 2, size_max_bytes=1, key_max_bytes=1)
        first = await rows.unsent("genesis.events", 1, size_max_bytes=1, key_max_bytes=1, first=("genesis.events", 1))
        await rows.advance("genesis.events", 1, 20)
        later = await rows.unsent("genesis.events", 1, size_max_bytes=1, key_max_bytes=1, first=("genesis.events", 1))
    finally:
        await connection.close()
        await superuser.close()
    positions = [(row.partition, row.offset) for row in page]
    assert positions == [(0, 10), (1, 10), (2, 10), (0, 20), (1, 20), (0, 30), (1, 30), (0, 40), (0, 50), (0, 60)]
    assert [(row.partition, row.offset) for row in narrow] == [(0, 10), (1, 10)]
    assert [(row.partition, row.offset) for row in (*first, *later)] == [(1, 10), (1, 20)]
