"""Poison rows for operators: page by page, in statements that stay short however large the log is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from database.connector import connect
from projections import dead_letter_rows
from projections.dead_letter_rows import DeadLetterRows, RowFilter
from runtime.settings import Settings
from schemas.events import AgentRated
from tests.conftest import Database
from tests.support.made_dead_letters import MadeLog

AGENT = UUID(int=1)


@pytest_asyncio.fixture
async def rows(settings: Settings) -> AsyncIterator[DeadLetterRows]:
    database = connect(settings, "auditor")
    yield DeadLetterRows(database)
    await database.close()


def rated() -> AgentRated:
    now = datetime(2026, 11, 27, tzinfo=UTC)
    return AgentRated(event_id=uuid4(), agent_id=AGENT, occurred_at=now, rater_id=AGENT, rating=3)


async def test_a_page_says_which_of_its_rows_are_asked_for(
    database: Database, rows: DeadLetterRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rare reason costs no long statement: the page ends after so many rows, asked for or not."""
    monkeypatch.setattr(dead_letter_rows, "_PAGE", dead_letter_rows._PAGE.replace("LIMIT 500", "LIMIT 4"))
    log = MadeLog()
    for offset in range(10):
        log.poison(0, offset, AGENT, reason="rare" if offset == 6 else "common")
    log.store(database)
    asked = RowFilter(cause="RARE")
    pages = [await rows.page(log.topic, 0, asked, first=first, until=9) for first in (0, 4, 8, 9)]
    assert [[entry.offset for entry in page] for page in pages] == [[0, 1, 2, 3], [4, 5, 6, 7], [8], []]
    assert [entry.offset for page in pages for entry in page if entry.asked] == [6]


async def test_parked_events_are_counted_up_to_a_bound(
    database: Database, rows: DeadLetterRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies behind it makes the count a lower bound; rows that park nothing are not counted for."""
    monkeypatch.setattr(dead_letter_rows, "_PARKED", dead_letter_rows._PARKED.replace("LIMIT 100000", "LIMIT 5"))
    monkeypatch.setattr(dead_letter_rows, "PARKED_READ_MAX", 5)
    log = MadeLog()
    log.poison(0, 0, AGENT)
    log.poison(0, 1, AGENT, parks=False)
    for offset in range(2, 7):
        log.parked(0, offset, rated())
    log.poison(0, 7, AGENT)
    log.store(database)
    poison = await rows.records(log.topic, 0, [0, 1, 7], whole=False)
    counts = await rows.parked(poison)
    assert {offset: (count.events, count.at_least) for offset, count in counts.items()} == {
        0: (5, False),
        7: (0, False),
    }
    assert counts[0].first_offsets == (2, 3, 4, 5, 6)
    log.parked(0, 8, rated())
    log.store(database)
    assert {count.at_least for count in (await rows.parked(poison)).values()} == {True}
