"""Two partitions' owners in one process, and read models that lag on them until they are told to feed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from prometheus_client import REGISTRY

from projections import fold, following_models, lagging_models
from projections.engine import PartitionProjector
from projections.install import install
from projections.lagging_models import LaggingModels
from projections.session import Session
from schemas.events import AgentAvailable, Event
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS, batch_of
from tests.support.load import some_events
from tests.support.made_models import BOTH, available_agents

MODELS = (*BOTH, available_agents("others"))
NEW = "availabilities"
OFFSETS = "SELECT projection, next_offset FROM projection_checkpoints WHERE partition = {} ORDER BY projection"
ROWS = 'SELECT "offset" FROM {0}_v1.{0} ORDER BY "offset"'
REFUSE_ONE = 'ALTER TABLE {0}_v1.{0} ADD CONSTRAINT refused CHECK ("offset" <> {1}) NOT VALID'
PAUSE = "UPDATE read_model_builds SET paused = {} WHERE projection = '{}'"


class Clock:
    """The time that the feeding of models sees."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Worker:
    """Two partitions' owners in one process, and what feeds their lagging models when it is told to."""

    def __init__(self, database: Database, clock: Clock | None = None) -> None:
        self.lagging = LaggingModels(database.writer_url, MODELS, clock or Clock())
        self.owners = [
            PartitionProjector(database.writer_url, TOPIC, number, MODELS, lagging=self.lagging) for number in (0, 1)
        ]
        self.tokens = [0, 0]
        self.ends = [0, 0]

    def acquire(self, partition: int = 0) -> None:
        acquired = self.owners[partition].acquire(WATERMARKS)
        self.tokens[partition], self.ends[partition] = acquired.token, acquired.log_end.next_offset

    def project(self, events: Sequence[Event], partition: int = 0) -> None:
        start = self.ends[partition]
        batch = batch_of(events, token=self.tokens[partition], start=start, partition=partition)
        self.ends[partition] = self.owners[partition].project(batch)

    def feed(self) -> None:
        """Feed until there is nothing left to do at this time."""
        while self.lagging.feed_next() == 0.0:
            pass

    def close(self) -> None:
        for owner in self.owners:
            owner.forget()
        self.lagging.close()


MakeWorker = Callable[[], Worker]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_worker(database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeWorker]:
    """Workers who leave what lags to be fed, however little it is."""
    install(database.owner_url, MODELS)
    monkeypatch.setattr(following_models, "REJOIN_OFFSETS", 0)
    monkeypatch.setattr(lagging_models, "NEAR_OFFSETS", 0)
    monkeypatch.setattr(fold, "FOLD_RECORDS", 16)
    made: list[Worker] = []

    def make() -> Worker:
        made.append(Worker(database, clock))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def worker(make_worker: MakeWorker) -> Worker:
    return make_worker()


def lag(superuser: Session, worker: Worker, *names: str, partition: int = 0, count: int = 40) -> list[Event]:
    """Let the log have records that these models lack; returns them."""
    superuser.script(*(PAUSE.format("true", name) for name in names))
    worker.acquire(partition)
    worker.project(events := some_events(count, seed=partition + 1), partition)
    superuser.script(*(PAUSE.format("false", name) for name in names))
    worker.acquire(partition)
    return events


def available(events: Sequence[Event], start: int = 0) -> list[int]:
    return [start + number for number, event in enumerate(events) if isinstance(event, AgentAvailable)]


def offsets(superuser: Session, partition: int = 0) -> dict[str, int]:
    return dict(superuser.query(OFFSETS.format(partition)))


def rows(superuser: Session, name: str = NEW) -> list[int]:
    return [offset for (offset,) in superuser.query(ROWS.format(name))]


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"topic": TOPIC, "partition": "0", **labels})
