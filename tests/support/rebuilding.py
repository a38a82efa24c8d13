"""A log of events, poison, repeats, parked and control records that workers have projected, and rebuilds of it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from functools import partial

import pytest

from projections import engine
from projections.engine import PartitionProjector
from projections.install import install
from projections.lagging_models import LaggingModels
from projections.read_model import READ_MODELS, ReadModel
from projections.rebuild import choice, rebuilds
from projections.rebuild.fill import Filler
from projections.rebuild.pace import RebuildPace
from projections.rebuild.rebuilds import KnownBuild
from projections.session import Session
from projections.stored_builds import StoredBuild
from schemas.events import Event
from streams.errors import ReadModelsChanged
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS, batch_of
from tests.support.mixed_events import MixedEvents
from tests.support.parked_streams import ParkedStream
from tests.support.read_model_folds import Applied

PARTITIONS = 2
REBUILT = tuple(model for model in READ_MODELS if not model.starts_paused)
"""The models that have builds: the registry folds into tables of their own."""


class ProjectedLog:
    """Two partitions' owners, each with what feeds its lagging models, and the records that they are given.

    `releases` has the read models of the release that each belongs to.
    """

    def __init__(self, database: Database, seed: int = 1) -> None:
        self._url = database.writer_url
        self._made = MixedEvents(seed)
        self._streams = [
            ParkedStream(number, random.Random(seed + number), partial(self._next_event, number))
            for number in range(PARTITIONS)
        ]
        self.releases: list[Sequence[ReadModel]] = [READ_MODELS] * PARTITIONS
        self._lagging: list[LaggingModels] = []
        self.owners: list[PartitionProjector] = []
        self.applied: list[Applied] = []

    def acquire(self) -> None:
        """Have new owners of both partitions."""
        self.close()
        self._lagging = [LaggingModels(self._url, release) for release in self.releases]
        self.owners = [
            PartitionProjector(self._url, TOPIC, number, release, lagging=self._lagging[number])
            for number, release in enumerate(self.releases)
        ]
        self._tokens = [each.acquire(WATERMARKS).token for each in self.owners]

    def project(self, count: int) -> None:
        """Project so many records more on each partition."""
        for number, stream in enumerate(self._streams):
            start, before = len(stream.rows), len(stream.applied)
            records = [stream.take() for _ in range(count)]
            batch = batch_of(records, token=self._tokens[number], start=start, partition=number)
            self.owners[number].project(batch)
            self.applied += stream.applied[before:]

    def look(self) -> None:
        """Let owners look which builds there are, acquire their partitions again if need be, and feed what lags."""
        try:
            for each in self.owners:
                each._look()
        except ReadModelsChanged:
            self.acquire()
        for lagging in self._lagging:
            while lagging.feed_next() == 0.0:
                pass
        for each in self.owners:
            each.idle()

    def close(self) -> None:
        """End all connections."""
        for each in self.owners:
            each.forget()
        for lagging in self._lagging:
            lagging.close()
        self.owners, self._lagging = [], []

    def _next_event(self, partition: int) -> Event:
        while True:
            (event,) = self._made.take(1)
            if event.entity_id.int % PARTITIONS == partition:
                return event


@pytest.fixture
def projected_log(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProjectedLog]:
    """A log with a few hundred records, projected by workers that still own it and look when they are told to."""
    monkeypatch.setattr(engine, "LOOK_EVERY_SECONDS", 3_600.0)
    install(database.owner_url)
    made = ProjectedLog(database)
    made.acquire()
    made.project(150)
    yield made
    made.close()


@pytest.fixture
def owner(database: Database) -> Iterator[Session]:
    """The session of an operator who rebuilds."""
    session = Session(database.owner_url)
    session.script("SET timezone = 'UTC'")
    yield session
    session.close()


def begun(owner: Session, name: str = "agents", version: int | None = None) -> StoredBuild:
    """Begin a rebuild of a version, or of the build that readers see."""
    known = choice.sharing_views(rebuilds.builds_of(owner, name), version)
    return rebuilds.begin(owner, rebuilds.source_of(known, name, version), "an operator", "a test")


def fill(database: Database, owner: Session, *models: ReadModel) -> int:
    """Fill rebuilds in one pass, and hand them to the workers; returns how many offsets were folded."""
    read: list[int] = []
    Filler(database.owner_url, models, lambda _, count: read.append(count), jobs=2, pace=RebuildPace(None)).run(owner)
    for model in models:
        rebuilds.finish(owner, model)
    return sum(read)


def rebuilt(database: Database, owner: Session, name: str = "agents") -> StoredBuild:
    """Rebuild a read model, up to where workers take it."""
    model = begun(owner, name)
    fill(database, owner, model)
    return model


def known(owner: Session, key: str) -> KnownBuild:
    """Return a build as operators' commands know it."""
    name = StoredBuild(key.partition("/")[0], 1, "", "").name_of_model
    return next(each for each in rebuilds.builds_of(owner, name) if each.key == key)


@contextlib.contextmanager
def session_of(url: str) -> Iterator[Session]:
    """A session of its own."""
    session = Session(url)
    try:
        yield session
    finally:
        session.close()
