"""The start of a worker: what it asks before it joins the group."""

from __future__ import annotations

from typing import Any

import pytest

from database.errors import BadDatabaseAddress, DatabaseUnreachable
from operations.services import worker
from runtime.settings import Settings

ADDRESS = "postgresql://u:topsecret@h/d"


async def test_an_address_that_libpq_alone_can_not_use_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2 before the group is joined: a worker that waits there would hold partitions that it can't write."""
    asked: list[Any] = []

    async def good(*arguments: Any) -> None:
        asked.append(arguments)

    def refuse(_: str) -> None:
        raise DatabaseUnreachable(why="private key file has group or world access")

    monkeypatch.setattr(worker, "require_least_privilege", good)
    monkeypatch.setattr(worker, "Session", refuse)
    with pytest.raises(BadDatabaseAddress, match="group or world access") as error:
        await worker.require_writer_session(Settings(database_writer_url=ADDRESS))

    assert error.value.exit_code == 2
    assert "topsecret" not in str(error.value)
    assert len(asked) == 1, "asyncpg was asked again, so the database had not gone away"
