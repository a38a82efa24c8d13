"""Every read model against its oracle: however the sequence is cut into batches, and whichever way they go."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from projections import engine, fold, following_models, inline_folds, lagging_models, staging
from projections.engine import PartitionProjector
from projections.install import install
from projections.lagging_models import LaggingModels
from projections.read_model import READ_MODELS, ReadModel
from projections.session import Session
from schemas import field_limits
from schemas.binary import block
from schemas.events import Event
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS, Record, batch_of
from tests.support.edge_records import EdgeRecords
from tests.support.long_form import sized
from tests.support.mixed_events import MixedEvents
from tests.support.model_tables import ENTITY_TABLES, entity_rows, log_rows, model_tables, whole_log
from tests.support.parked_streams import ParkedStream, Row
from tests.support.read_model_folds import FOLDS, Applied, Tables, entities

PARTITIONS = 2
EMPTIED = ("event_stream", "audit_log", "partition_owners", "checkpoints", "model_checkpoints", *ENTITY_TABLES)


class Step(NamedTuple):
    """A batch: the next records of a partition, and whether they go to Postgres within the statement."""

    partition: int
    records: int
    inline: bool


class PoisonedStep(NamedTuple):
    """The same, and whether new owners have acquired all partitions before it."""

    partition: int
    records: int
    inline: bool
    taken_over: bool


class Run(NamedTuple):
    """Batches of both partitions; read models are fed from the log with the first ones, and then follow it."""

    seed: int
    steps: Sequence[Step | PoisonedStep]
    fed: int


steps = st.builds(Step, st.integers(0, PARTITIONS - 1), st.sampled_from([1, 1, 2, 5, 30]), st.booleans())
runs = st.builds(Run, st.integers(1, 2**32), st.lists(steps, min_size=6, max_size=12), st.sampled_from([0, 0, 4]))


class Scene:
    """An empty log and empty read models, and what is applied to them."""

    def __init__(self, database: Database, superuser: Session) -> None:
        self._url = database.writer_url
        self._superuser = superuser
        self._projectors: list[PartitionProjector] = []

    def clear(self) -> None:
        """Begin again with nothing."""
        self.close()
        tables = [f"{model.schema}.{table}" for model in READ_MODELS for table in model.tables]
        self._superuser.script(
            "SET session_replication_role = replica", "SET timezone = 'UTC'",
            *(f"DELETE FROM {table}" for table in (*EMPTIED, *tables)),
        )  # fmt: skip

    def acquire(self, *, paused: bool) -> None:
        """Have new owners of all partitions; read models follow their logs unless all are paused."""
        self.close()
        self._superuser.script(f"UPDATE read_model_builds SET paused = {paused}")
        self._lagging = LaggingModels(self._url, READ_MODELS)
        self._projectors = [
            PartitionProjector(self._url, TOPIC, number, READ_MODELS, lagging=self._lagging)
            for number in range(PARTITIONS)
        ]
        self._tokens = [projector.acquire(WATERMARKS).token for projector in self._projectors]

    def project(self, partition: int, events: Sequence[Event | Record], start: int) -> None:
        """Apply a batch."""
        batch = batch_of(events, token=self._tokens[partition], start=start, partition=partition)
        self._projectors[partition].project(batch)
        self._lagging.feed_next()

    def catch_up(self) -> None:
        """Feed all that lags, and let it follow."""
        while self._lagging.feed_next() == 0.0:
            pass
        for projector in self._projectors:
            projector.idle()
        ((lagging,),) = self._superuser.query("SELECT count(*) AS n FROM model_checkpoints")
        assert lagging == 0

    def log(self, partition: int) -> list[Row]:
        """What the log says of each record of a partition."""
        return log_rows(self._superuser, TOPIC, partition)

    def tables(self, model: ReadModel) -> Tables:
        """The rows of a read model's tables, by primary key."""
        return model_tables(self._superuser, model)

    def entities(self) -> list[dict[str, object]]:
        """The entities with their states and the number of their versions, by id; none came into the outbox."""
        return entity_rows(self._superuser)

    def everything(self) -> dict[str, object]:
        """All rows of the log, of each read model's tables and of the entities, by table."""
        tables = {f"{model.schema}.{name}": rows for model in READ_MODELS for name, rows in self.tables(model).items()}
        return {"log_records": whole_log(self._superuser), "entities": self.entities(), **tables}

    def close(self) -> None:
        for projector in self._projectors:
            projector.close()
        if self._projectors:
            self._lagging.close()
        self._projectors = []


@pytest.fixture
def scene(database: Database, superuser: Session) -> Iterator[Scene]:
    install(database.owner_url)
    made = Scene(database, superuser)
    yield made
    made.close()


@settings(
    max_examples=sized(10, 60),
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(run=runs)
def test_any_split_and_interleaving_gives_the_tables_of_the_oracle(scene: Scene, run: Run) -> None:
    """Followed or fed from the log, before or next to live batches, in statements or by COPY, one record at a time or
    many: each model's rows are those that its events make one after another.
    """
    scene.clear()
    with pytest.MonkeyPatch.context() as patched:
        feed_apart(patched, run)
        applied = play(scene, run, patched)

    for model in READ_MODELS:
        assert scene.tables(model) == FOLDS[model.name](applied), model.name
    assert scene.entities() == entities(applied)


def feed_apart(patched: pytest.MonkeyPatch, run: Run) -> None:
    """Let half of the runs feed what lags next to live batches, a slice after each, rather than before them.

    And two thirds prepare statements for fewer sets of tables than there are.
    """
    patched.setattr(inline_folds, "SETS_MAX", (0, 2, inline_folds.SETS_MAX)[run.seed % 3])
    if run.seed % 2:
        patched.setattr(following_models, "REJOIN_OFFSETS", 4)
        patched.setattr(lagging_models, "NEAR_OFFSETS", 3)
        patched.setattr(fold, "FOLD_RECORDS", 7)


def play(scene: Scene, run: Run, patched: pytest.MonkeyPatch) -> list[Applied]:
    """Apply a run's batches; returns its records in the order in which they were applied."""
    made = MixedEvents(run.seed)
    queues: list[list[Event]] = [[] for _ in range(PARTITIONS)]
    ends = [0] * PARTITIONS
    applied: list[Applied] = []
    scene.acquire(paused=run.fed > 0)
    for number, step in enumerate(run.steps):
        if number == run.fed > 0:
            scene.acquire(paused=False)
        queue = queues[step.partition]
        while len(queue) < step.records:  # an entity has one partition
            (event,) = made.take(1)
            queues[event.entity_id.int % PARTITIONS].append(event)
        events, start = queue[: step.records], ends[step.partition]
        del queue[: step.records]
        ends[step.partition] += len(events)
        patched.setattr(engine, "INLINE_RECORDS_MAX", 100 if step.inline else 0)
        scene.project(step.partition, events, start)
        applied += [Applied(step.partition, start + index, event) for index, event in enumerate(events)]
    scene.catch_up()
    return applied


poisoned_steps = st.builds(
    PoisonedStep, st.integers(0, PARTITIONS - 1), st.sampled_from([1, 1, 3, 10, 40]), st.booleans(),
    st.sampled_from([False, False, True]),
)  # fmt: skip
poisoned_runs = st.builds(
    Run, st.integers(1, 2**32), st.lists(poisoned_steps, min_size=6, max_size=12), st.sampled_from([0, 5])
)


@settings(
    max_examples=sized(8, 40),
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(run=poisoned_runs)
def test_poison_and_control_records_give_the_tables_of_the_oracle(scene: Scene, run: Run) -> None:
    """Events that wait, are released, redriven and skipped: each row of the log, and each model's rows, followed or
    fed from the log in slices, with owners that take over in the middle.
    """
    scene.clear()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fold, "FOLD_RECORDS", 7)
        feed_apart(patched, run)
        streams, applied = play_poisoned(scene, run, patched)

    for stream, logged in zip(streams, map(scene.log, range(PARTITIONS)), strict=True):
        assert logged == stream.rows
    for model in READ_MODELS:
        assert scene.tables(model) == FOLDS[model.name](applied), model.name
    assert scene.entities() == entities(applied)


def play_poisoned(scene: Scene, run: Run, patched: pytest.MonkeyPatch) -> tuple[list[ParkedStream], list[Applied]]:
    """Apply a run's batches; returns the partitions, and the events in the order in which they took effect."""
    made = MixedEvents(run.seed)

    def next_event(partition: int) -> Event:
        while True:
            (event,) = made.take(1)
            if event.entity_id.int % PARTITIONS == partition:
                return event

    streams = [
        ParkedStream(number, random.Random(run.seed + number), partial(next_event, number))
        for number in range(PARTITIONS)
    ]
    applied: list[Applied] = []
    scene.acquire(paused=run.fed > 0)
    for number, step in enumerate(run.steps):
        if number == run.fed > 0 or getattr(step, "taken_over", False):
            scene.acquire(paused=number < run.fed)
        stream = streams[step.partition]
        start, before = len(stream.rows), len(stream.applied)
        records = [stream.take() for _ in range(step.records)]
        patched.setattr(engine, "INLINE_RECORDS_MAX", 100 if step.inline else 0)
        scene.project(step.partition, records, start)
        applied += stream.applied[before:]
    scene.catch_up()
    return streams, applied


edge_seeds = st.integers(1, 2**32)
EDGE_RECORDS = 60


@settings(
    max_examples=sized(3, 40),
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=edge_seeds)
def test_records_of_any_shape_give_the_same_in_any_batches(scene: Scene, seed: int) -> None:
    """Odd texts, times, lists, keys and bytes, repeats and control records, in one batch by COPY, one by one in
    statements, in a mix of both with owners that take over, or fed from the log: equal rows of the log with equal
    hashes, and equal tables.
    """
    records = [EdgeRecords(seed, number, PARTITIONS).take(EDGE_RECORDS) for number in range(PARTITIONS)]
    chance = random.Random(seed)
    ways: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
        "copied": lambda patched: in_batches(
            scene, records, patched, itertools.repeat((EDGE_RECORDS, False)), in_columns=True
        ),
        "one by one": lambda patched: in_batches(scene, records, patched, itertools.repeat((1, True))),
        "mixed": lambda patched: in_batches(
            scene, records, patched,
            iter(lambda: (chance.choice((1, 2, 5, 30)), chance.random() < 0.5), None), taken_over=chance,
        ),
        "fed": lambda patched: in_batches(
            scene, records, patched, itertools.repeat((EDGE_RECORDS, False)), fed=True
        ),
    }  # fmt: skip
    outcomes = {}
    for name, way in ways.items():
        scene.clear()
        with pytest.MonkeyPatch.context() as patched:
            way(patched)
        outcomes[name] = scene.everything()
    expected = outcomes.pop("one by one")
    for name, outcome in outcomes.items():
        for table, rows in outcome.items():
            assert rows == expected[table], (name, table)


def in_batches(
    scene: Scene,
    records: Sequence[Sequence[Record]],
    patched: pytest.MonkeyPatch,
    cuts: Iterator[tuple[int, bool]],
    *,
    taken_over: random.Random | None = None,
    fed: bool = False,
    in_columns: bool = False,
) -> None:
    """Apply the records of the partitions in turn, in batches of these sizes, each within the statement or not.

    With `in_columns` the few records of a batch are read, checked and staged as many are.
    """
    patched.setattr(fold, "FOLD_RECORDS", 7)
    if in_columns:
        for module, name in ((block, "BLOCK_ROWS_MIN"), (field_limits, "FEW_ROWS"), (staging, "LISTS_ONE_BY_ONE_MAX")):
            patched.setattr(module, name, 0)
    scene.acquire(paused=fed)
    ends = [0] * len(records)
    while any(end < len(those) for end, those in zip(ends, records, strict=True)):
        for partition, those in enumerate(records):
            size, inline = next(cuts)
            patched.setattr(engine, "INLINE_RECORDS_MAX", 100 if inline else 0)
            if taken_over is not None and taken_over.random() < 0.1:
                scene.acquire(paused=False)
            start = ends[partition]
            if batch := those[start : start + size]:
                scene.project(partition, batch, start)
                ends[partition] += len(batch)
    if fed:
        scene.acquire(paused=False)
    scene.catch_up()
