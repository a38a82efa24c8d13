"""`plant embed`: from the command line to embeddings, and how it goes on and ends."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from database.errors import DatabaseUnreachable
from devstack import sql
from operations.services import embedding
from operations.services.embedding import serve_embeddings
from tests.conftest import Database, SettingsFor
from tests.support.command_line import plant
from tests.support.waiting import wait_until_async

ENTRY = (
    "INSERT INTO marketplace_v3.marketplace_catalogue"
    " (kind, entity_id, name, description, words, retired, catalogue_offset)"
    " VALUES ('skill', '00000000-0000-0000-0000-00000000000{number}', 'Python', '', '{{}}', false, 1)"
)
EMBEDDINGS = "SELECT count(*) FROM skill_embeddings"


def test_the_command_embeds_once_and_ends(database: Database, settings_for: SettingsFor) -> None:
    """Exit code 0 and how many skills it were; a second run has nothing to do."""
    sql.execute(database.superuser_url, [ENTRY.format(number=1), ENTRY.format(number=2)])
    settings = settings_for(database)

    for count in (2, 0):
        ended = plant(settings, "embed", "--once")
        assert (ended.returncode, ended.stdout) == (0, "")
        assert f"{count} skills embedded." in ended.stderr
    assert sql.value(database.superuser_url, EMBEDDINGS) == 2


def test_a_database_that_is_away_is_named(settings_for: SettingsFor, database: Database) -> None:
    """Exit code 4, and where it was looked for."""
    ended = plant(settings_for(database, database_embedder_url="postgresql://plant_embedder@127.0.0.1:1/x"), "embed")

    assert ended.returncode == 4
    assert "127.0.0.1:1" in ended.stderr


async def test_the_service_goes_on_until_it_is_ended(
    database: Database, settings_for: SettingsFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds skills that come later, survives a database that is away for a while, and ends on SIGTERM."""
    embed_skills, away = embedding.embed_skills, [1]

    async def embed_later(*arguments: object) -> int:
        if away:
            away.pop()
            raise DatabaseUnreachable(why="It is being restarted.")
        return await embed_skills(*arguments)  # type: ignore[arg-type]  # those of the function

    monkeypatch.setattr(embedding, "embed_skills", embed_later)
    serving = asyncio.create_task(serve_embeddings(settings_for(database), once=False, poll_seconds=0.05))
    for number in (1, 2):
        await asyncio.to_thread(sql.execute, database.superuser_url, [ENTRY.format(number=number)])

        async def is_embedded(count: int = number) -> bool:
            return bool(await asyncio.to_thread(sql.value, database.superuser_url, EMBEDDINGS) == count)

        await wait_until_async(is_embedded, f"{number} skills are embedded")
    os.kill(os.getpid(), signal.SIGTERM)

    assert await serving == 2
