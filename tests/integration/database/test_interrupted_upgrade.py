"""An upgrade of the log's migrations whose session ends at some statement, at one after the other.

In 018, which is in no transaction, that is each one; of the others one in twelve from one of the first on, which chance
chooses, and each in the long form.
What runs inside 018 and 020, slice by slice, is interrupted in `test_migration_020.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from database import migrate
from database.errors import DatabaseUnreachable
from database.migrations import log_records
from devstack import sql
from projections.statements import split_statements
from tests.conftest import Database
from tests.support import former_log
from tests.support.former_log import ROWS
from tests.support.log_tables import set_range_offsets
from tests.support.long_form import sized
from tests.support.schema_shape import shape

TOPIC = "genesis.events"
PARTITIONS = 2
STEP = sized(12, 1)
FIRST_STATEMENTS = 6
"""Each migration has more, with what alembic sends before and after."""
END = "SELECT pg_terminate_backend(pg_backend_pid())"


class Interruption:
    """Ends the session in the place of the statement with a number, as the migration's connection counts them."""

    def __init__(self) -> None:
        self.at = 0
        """0: nothing is interrupted."""
        self.count = 0

    def next_ones(self, statements: list[str]) -> str | None:
        """Count statements that are sent together; return what to send instead, if one of them is not to run."""
        first, self.count = self.count + 1, self.count + len(statements)
        if not self.at or not first <= self.at <= self.count:
            return None
        return "; ".join([*statements[: self.at - first], END])


@pytest.fixture
def interruption(monkeypatch: pytest.MonkeyPatch) -> Iterator[Interruption]:
    made = Interruption()
    connection = asyncpg.connection.Connection
    execute, prepare = connection.execute, connection.prepare

    async def executed(self: Any, query: str, *arguments: Any, **options: Any) -> Any:
        return await execute(self, made.next_ones(split_statements(query)) or query, *arguments, **options)

    async def prepared(self: Any, query: str, **options: Any) -> Any:
        if (instead := made.next_ones([query])) is not None:
            await execute(self, instead)
        return await prepare(self, query, **options)

    monkeypatch.setattr(connection, "execute", executed)
    monkeypatch.setattr(connection, "prepare", prepared)
    yield made
    made.at = 0


def interrupted(url: str, revision: str, interruption: Interruption, step: int) -> int:
    """Upgrade until nothing is left to interrupt; returns how often the session ended."""
    first = random.randint(1, min(step, FIRST_STATEMENTS))
    before, ended = migrate.current(url), 0
    while True:
        interruption.at, interruption.count = first + ended * step, 0
        try:
            migrate.upgrade(url, revision)
        except DatabaseUnreachable:
            ended += 1
        else:
            assert interruption.count < interruption.at
            return ended
        finally:
            interruption.at = 0
        assert migrate.current(url) in (before, (revision,))


def test_an_upgrade_that_is_interrupted_ends_right(
    database: Database, interruption: Interruption, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on when it is run again; every record and the schema are as after an upgrade that went through."""
    monkeypatch.setattr(log_records, "RECORDS_MAX", 100)
    url = database.owner_url
    expected = shape(url)
    migrate.downgrade(url, "016")
    for partition in range(PARTITIONS):
        former_log.fill(database.writer_url, TOPIC, partition, 250 - partition)
    rows = sql.value(url, ROWS)
    revisions = [each.revision for each in migrate.history(url) if not each.applied]
    assert revisions[:4] == ["017", "018", "019", "020"]
    for revision in revisions:
        ended = interrupted(url, revision, interruption, 1 if revision == "018" else STEP)
        assert ended > 6 // STEP, revision
        assert migrate.current(url) == (revision,)
        assert sql.value(url, ROWS) == rows, revision
        if revision == "017":
            set_range_offsets(url, 128)
    assert former_log.chains_hold(url, PARTITIONS)
    set_range_offsets(url, 1 << 20)
    assert shape(url) == expected
