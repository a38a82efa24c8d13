"""The wiring of the API: what a reader's query may take."""

from __future__ import annotations

import pytest

from operations.services.api import bounded
from runtime.settings import Settings


@pytest.mark.parametrize(("seconds", "bound"), [(2, 2), (50, 9)])
def test_a_readers_query_waits_for_nothing_longer_than_its_time(seconds: int, bound: int) -> None:
    """Statements, locks and connections are bounded by it, where the database's own bounds are not shorter."""
    settings = bounded(
        Settings(
            api_query_timeout_seconds=seconds,
            database_statement_timeout_seconds=9,
            database_lock_timeout_seconds=9,
            database_pool_wait_seconds=9,
        )
    )
    bounds = (
        settings.database_statement_timeout_seconds,
        settings.database_lock_timeout_seconds,
        settings.database_pool_wait_seconds,
    )
    assert bounds == (bound,) * 3
