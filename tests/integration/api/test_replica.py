"""Reads on a replica: another database stands for one that is behind, or that is away."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import msgspec

from projections.engine import PartitionProjector
from projections.read_model import READ_MODELS
from runtime.settings import Settings
from tests.conftest import Database, SettingsFor
from tests.support.batches import TOPIC, WATERMARKS, batch_of
from tests.support.reading import onboarded, problem, reading_of


def project(database: Database, *numbers: int) -> None:
    projector = PartitionProjector(database.writer_url, TOPIC, 0, READ_MODELS)
    try:
        token = projector.acquire(WATERMARKS).token
        projector.project(batch_of([onboarded(number) for number in numbers], token=token))
    finally:
        projector.close()


async def test_reads_and_waits_go_to_the_replica(
    make_database: Callable[[], Database], settings_for: SettingsFor
) -> None:
    """Rows and positions are the replica's, tokens the primary's: what the replica lacks is waited for."""
    primary, replica = make_database(), make_database()
    project(primary, 1, 2)
    project(replica, 3)
    settings = settings_for(primary, database_api_replica_url=replica.api_url)
    async with reading_of(settings) as reading:
        items = (await reading.get("/agents")).json()["items"]
        assert [UUID(each["agent_id"]).int for each in items] == [3]
        assert (await reading.get(f"/agents?at-least={TOPIC}/0/0")).status_code == 200
        behind = await reading.get(f"/agents?at-least={TOPIC}/0/1", prefer="wait=1")
        assert problem(behind) == (503, "not-caught-up")
        assert behind.json()["positions"][0]["next_offset"] == 1


async def test_without_the_replica_the_primary_answers(settings: Settings, database: Database) -> None:
    """Rows and positions are the primary's then."""
    project(database, 1, 2)
    away = msgspec.structs.replace(settings, database_api_replica_url="postgresql://plant_api:p@127.0.0.1:1/plant")
    async with reading_of(away) as reading:
        answer = await reading.get(f"/agents?at-least={TOPIC}/0/1")
        assert answer.status_code == 200
        assert len(answer.json()["items"]) == 2
