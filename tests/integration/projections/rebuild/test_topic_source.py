"""Rebuilds whose records are read from Kafka's topic: what they are is what the log says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest
import pytest_asyncio
from aiokafka.admin import RecordsToDelete
from aiokafka.structs import TopicPartition

from operations.services.worker import build_worker
from projections.install import install
from projections.rebuild import rebuilds
from projections.rebuild.errors import TopicUnusable
from projections.rebuild.fill import Filler
from projections.rebuild.pace import RebuildPace
from projections.rebuild.topic_source import TopicSource
from projections.session import Session
from projections.stored_builds import StoredBuild
from runtime.settings import Settings
from streams.topics import admin
from tests.conftest import Database, MakeTopic
from tests.support.faults.published_streams import PublishedStreams
from tests.support.made_models import AGENTS, RATINGS
from tests.support.model_tables import model_tables
from tests.support.rebuilding import begun, session_of
from tests.support.waiting import wait_until_async

PARTITIONS = 2
RECORDS = 70
MODELS = (AGENTS, RATINGS)
READ = "SELECT coalesce(sum(next_offset), 0)::bigint AS n FROM model_checkpoints WHERE projection = $1"


@pytest_asyncio.fixture
async def topic(settings: Settings, database: Database, make_topic: MakeTopic) -> AsyncIterator[str]:
    """A topic with events, poison, repeats, parked and control records, which a worker has projected."""
    install(database.owner_url)
    name = await make_topic(PARTITIONS)
    streams = PublishedStreams(settings, name, PARTITIONS, seed=3, entities=6)
    for number in range(PARTITIONS):
        streams.publish(number, RECORDS)
    worker = build_worker(settings, [name])
    with session_of(database.superuser_url) as session:

        def done() -> bool:
            return session.query("SELECT count(*) AS n FROM log_records") == [(PARTITIONS * RECORDS,)]

        try:
            await worker.start()
            await wait_until_async(done, "all is projected")
        finally:
            await worker.stop()
    yield name


def fill_from_topic(settings: Settings, owner: Session, models: list[StoredBuild]) -> int:
    """Fill rebuilds from the topic, and hand them to workers; returns how many offsets were folded."""
    read: list[int] = []
    filler = Filler(
        settings.database_address("owner"), models, lambda _, count: read.append(count), jobs=2,
        pace=RebuildPace(None), make_source=partial(TopicSource, settings),
    )  # fmt: skip
    filler.run(owner)
    for model in models:
        rebuilds.finish(owner, model)
    return sum(read)


@pytest.mark.parametrize("chunk_records", [200_000, 13])
async def test_a_rebuild_from_the_topic_obeys_what_the_log_says(
    settings: Settings, topic: str, owner: Session, superuser: Session, monkeypatch: pytest.MonkeyPatch,
    chunk_records: int,
) -> None:  # fmt: skip
    """Poison and repeats have no effect, parked events where they were released, in chunks of any size."""
    monkeypatch.setattr("projections.rebuild.pace.CHUNK_RECORDS", chunk_records)
    made = [begun(owner, model.name) for model in MODELS]
    read = await asyncio.to_thread(fill_from_topic, settings, owner, made)
    assert read == len(MODELS) * PARTITIONS * RECORDS
    for model, rebuild in zip(MODELS, made, strict=True):
        assert model_tables(superuser, rebuild) == model_tables(superuser, model)


async def test_nothing_past_the_checkpoint_of_the_log_is_read(
    settings: Settings, topic: str, owner: Session, superuser: Session
) -> None:
    """Although the topic has it: no disposition of it is known."""
    superuser.script("UPDATE checkpoints SET next_offset = 20")
    made = begun(owner)
    assert await asyncio.to_thread(fill_from_topic, settings, owner, [made]) == PARTITIONS * 20


async def test_a_topic_whose_start_has_passed_retention_is_refused_by_name(
    settings: Settings, topic: str, owner: Session, superuser: Session
) -> None:
    """The partition is named, and where its topic begins; from the log the same rebuild goes on."""
    made = begun(owner)
    async with admin(settings) as client:
        await client.delete_records({TopicPartition(topic, 1): RecordsToDelete(before_offset=3)})
    with pytest.raises(TopicUnusable, match=f"{topic}/1 can't be the source") as refused:
        await asyncio.to_thread(fill_from_topic, settings, owner, [made])
    assert "The log holds offsets 3 to" in refused.value.why
    Filler(settings.database_address("owner"), [made], lambda _model, _count: None).run(owner)
    rebuilds.finish(owner, made)
    assert model_tables(superuser, made) == model_tables(superuser, AGENTS)


async def test_a_topic_that_was_truncated_behind_the_log_is_refused_by_name(
    settings: Settings, topic: str, owner: Session, superuser: Session
) -> None:
    """It ends before the log does: what it holds from there on would be other records, if any."""
    superuser.script("UPDATE checkpoints SET next_offset = 1000 WHERE partition = 0")
    assert "and the log has records up to 1000" in await refusal_of(settings, owner, f"{topic}/0")


async def test_another_topic_of_the_same_name_is_refused_by_name(
    settings: Settings, topic: str, owner: Session, superuser: Session
) -> None:
    """Its records are at the same offsets, and others."""
    superuser.script("UPDATE partition_owners SET topic_id = gen_random_uuid() WHERE partition = 1")
    assert "another topic of this name" in await refusal_of(settings, owner, f"{topic}/1")


async def refusal_of(settings: Settings, owner: Session, partition: str) -> str:
    """Return why a partition is refused as source of a rebuild."""
    made = begun(owner)
    with pytest.raises(TopicUnusable, match=f"{partition} can't be the source") as refused:
        await asyncio.to_thread(fill_from_topic, settings, owner, [made])
    return refused.value.why


async def test_a_topic_that_loses_its_begin_while_it_is_read_costs_no_record(
    settings: Settings, topic: str, owner: Session, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks that were folded stay, the next one is refused by name, and the log has the rest."""
    monkeypatch.setattr("projections.rebuild.pace.CHUNK_RECORDS", 10)
    made, applied, deleted = begun(owner), TopicSource.applied, []

    def deleting(source: TopicSource, *arguments: object) -> object:
        rows = applied(source, *arguments)  # type: ignore[arg-type]  # passed on as they are
        if not deleted:
            deleted.append(asyncio.run(delete()))
        return rows

    async def delete() -> None:
        async with admin(settings) as client:
            bounds = RecordsToDelete(before_offset=30)
            await client.delete_records({TopicPartition(topic, number): bounds for number in range(PARTITIONS)})

    monkeypatch.setattr(TopicSource, "applied", deleting)
    with pytest.raises(TopicUnusable):
        await asyncio.to_thread(fill_from_topic, settings, owner, [made])
    ((read,),) = superuser.query(READ, (made.name,))
    assert read > 0
    Filler(settings.database_address("owner"), [made], lambda _model, _count: None).run(owner)
    rebuilds.finish(owner, made)
    assert model_tables(superuser, made) == model_tables(superuser, AGENTS)
