"""The read models of a partition: which follow it, which are tried again, and what is kept of one that is left out."""

from __future__ import annotations

import dataclasses
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY

from database.errors import DatabaseUnreachable
from projections import following_models
from projections.checkpoints import PROJECTOR, Fence
from projections.errors import ModelStatementEnded, ReadModelStopped
from projections.following_models import FollowingModels
from projections.read_model import READ_MODELS
from projections.session import Session, StatementEnded
from projections.staging import Staging
from projections.stopped_models import TRIES
from streams.errors import OwnershipLost


class Values(list[bytes]):
    """Values that a test sees go."""


def refused(values: Values) -> ReadModelStopped:
    """A read model's error, whose traceback holds the values."""
    try:
        raise KeyError(len(values))
    except KeyError as error:
        stopped = ReadModelStopped(READ_MODELS[0], "genesis.events", 0, 7, "a defect.")
        stopped.__cause__ = error
    return stopped


def test_a_read_model_that_is_left_out_holds_no_batch() -> None:
    """It is kept until the worker is started again; a defect's traceback is logged before."""
    models = FollowingModels("genesis.events", 0, READ_MODELS)
    values = Values()
    seen = weakref.ref(values)
    stopped = refused(values)
    del values
    assert stopped.__cause__ is not None
    assert seen() is not None
    models.leave_out([stopped])
    gc.collect()
    assert seen() is None
    models.close()


MODEL = READ_MODELS[0]


class Log:
    """A session, and what `catch_up` and the checkpoints are asked for through it."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, stopped: bool = False, fails: Exception | None = None
    ) -> None:
        self.asked: list[Any] = []
        self.first_slices: list[int | None] = []
        self.fails = fails

        def caught_up(*arguments: Any) -> None:
            assert arguments[:6] == (self, "staging", MODEL, "genesis.events", 3, 7)
            self.first_slices.append(arguments[7])
            if self.fails is not None:
                raise self.fails

        def note(name: str, answer: Any = None) -> Callable[..., Any]:
            def called(*arguments: Any) -> Any:
                assert arguments[:3] == (self, "genesis.events", 3)
                self.asked.append((name, *arguments[3:]))
                return answer

            return called

        def kept(*arguments: Any) -> Fence:
            *partition, fence, keys = arguments
            assert (partition, keys) == ([self, "genesis.events", 3], [MODEL.key])
            return cast(Fence, fence)

        def lock_fence(session: object, *arguments: Any) -> None:
            assert session is self
            self.asked.append(("lock_fence", *arguments))

        monkeypatch.setattr(following_models, "catch_up", caught_up)
        monkeypatch.setattr(following_models.checkpoints, "lock_fence", lock_fence)
        monkeypatch.setattr(following_models.model_checkpoints, "keep", kept)
        for name, answer in (("is_stopped", stopped), ("note_stopped", 5), ("join", None)):
            monkeypatch.setattr(following_models.model_checkpoints, name, note(name, answer))

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.asked.append(name)

    def let(self, models: FollowingModels, *, at: int = 5, end: int = 9, shared: bool = False) -> None:
        fence = Fence(7, end, bytes(32), lagging={MODEL.key: at})
        if shared:
            fence = Fence(7, end, bytes(32), caught_up=frozenset([MODEL.key]))
        models.catch_up(cast(Session, self), cast(Staging, "staging"), fence, threading.Event())


@pytest.fixture
def models() -> Iterator[FollowingModels]:
    made = FollowingModels("genesis.events", 3, READ_MODELS[:1])
    yield made
    made.close()


def stopped_gauge() -> float | None:
    labels = {"topic": "genesis.events", "partition": "3", "model": MODEL.name}
    return REGISTRY.get_sample_value("plant_worker_stopped_read_models", labels)


def ended() -> ModelStatementEnded:
    return ModelStatementEnded(MODEL, StatementEnded("57014", why="canceling statement due to statement timeout"))


@pytest.mark.parametrize(
    ("stopped", "at", "first"), [(False, 5, None), (True, 5, 1), (True, 9, None)], ids=["follows", "stopped", "level"]
)
def test_a_model_that_was_refused_is_tried_with_one_record(
    models: FollowingModels, monkeypatch: pytest.MonkeyPatch, stopped: bool, at: int, first: int | None
) -> None:
    """The slice that was given up is not looked for again from a large one on."""
    log = Log(monkeypatch, stopped=stopped)
    log.let(models, at=at)
    assert log.first_slices == [first]
    assert log.asked[-1] == ("join", 7, [MODEL.key])
    assert models.following == [MODEL]


def test_a_model_that_is_refused_while_it_catches_up_is_left_out(
    models: FollowingModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reason is written under the fence, the log goes on, and it stays out while nobody has moved it."""
    log = Log(monkeypatch, fails=KeyError("a defect"))
    log.let(models)
    assert [each if isinstance(each, str) else each[0] for each in log.asked] == [
        *("is_stopped", "rollback", "begin", "lock_fence", "note_stopped", "commit")
    ]
    assert log.asked[3] == ("lock_fence", PROJECTOR, "genesis.events", 3, 7)
    assert log.asked[4][1] == MODEL.key
    assert (models.following, models.reads) == ([], frozenset())
    assert stopped_gauge() == 1

    log.fails = None
    log.let(models, at=5)
    assert len(log.first_slices) == 1
    assert (models.following, stopped_gauge()) == ([], 1)
    log.let(models, at=6)  # another worker has brought it up
    assert len(log.first_slices) == 2
    assert models.following == [MODEL]


def test_a_model_that_shares_the_logs_checkpoint_is_never_left_out(
    models: FollowingModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint moves with the log, so what it does not fold would be lost to it, wherever it was refused."""
    log = Log(monkeypatch, fails=KeyError("a defect"))
    log.let(models)
    assert models.following == []
    log.fails = None
    log.let(models, end=5, shared=True)
    assert models.following == [MODEL]
    assert log.asked[-1] == "commit", "there is nothing to join"


@pytest.mark.parametrize("error", [DatabaseUnreachable(why="gone"), OwnershipLost(why="another")])
def test_what_says_nothing_about_a_model_is_raised(
    models: FollowingModels, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The partition is acquired again, and the model follows it still."""
    log = Log(monkeypatch, fails=error)
    with pytest.raises(type(error)):
        log.let(models)
    assert models.following == [MODEL]


def test_a_statement_that_is_always_given_up_is_the_models(
    models: FollowingModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at once: it is tried again, with one record, and counted from the beginning after anything else."""
    log = Log(monkeypatch, fails=ended())
    assert not models.suspected
    for _ in range(TRIES - 1):
        with pytest.raises(ModelStatementEnded):
            log.let(models)
        assert models.suspected
    models.forget_ended()
    assert not models.suspected
    for _ in range(TRIES - 1):
        with pytest.raises(ModelStatementEnded):
            log.let(models)
    log.let(models)
    assert models.following == []
    assert log.first_slices == [None, *[1] * (TRIES - 2), None, *[1] * (TRIES - 1)]


def test_a_model_that_is_fed_no_more_leaves_the_metric_with_its_last_version() -> None:
    """Its name alone is shown there: while another version of it is refused, it stays."""
    second = dataclasses.replace(MODEL, version=2)
    labels = {"topic": "genesis.events", "partition": "5", "model": MODEL.name}
    models = FollowingModels("genesis.events", 5, [MODEL, second])
    models.leave_out([ReadModelStopped(each, "genesis.events", 5, 7, "a defect.") for each in (MODEL, second)])
    models.feed([second])
    assert REGISTRY.get_sample_value("plant_worker_stopped_read_models", labels) == 1
    assert (models.keys, models.following) == ({second.key}, [])
    models.feed([])
    assert REGISTRY.get_sample_value("plant_worker_stopped_read_models", labels) is None
