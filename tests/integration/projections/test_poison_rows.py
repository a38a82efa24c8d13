"""Poison rows: the checkpoint of a partition's dead letters."""

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
            "SELECT partition, next_offset FROM checkpoints WHERE projection = 'dead_letters' ORDER BY partition"
        )
    finally:
        await connection.close()
    assert [tuple(mark) for mark in marks] == [(0, 9), (1, 4)]
