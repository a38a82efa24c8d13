"""The read models of a partition: which follow it, and when a statement that is given up is a model's fault."""

from __future__ import annotations

import gc
import weakref

import pytest

from projections.errors import ModelStatementEnded, ReadModelStopped
from projections.following_models import FollowingModels
from projections.lagging_models import LaggingModels
from projections.read_model import READ_MODELS
from projections.session import StatementEnded
from projections.stopped_models import TRIES

MODEL = READ_MODELS[0]


class Values(list[bytes]):
    """Values that a test sees go."""


def refused(values: Values) -> ReadModelStopped:
    """A read model's error, whose traceback holds the values."""
    try:
        raise KeyError(len(values))
    except KeyError as error:
        stopped = ReadModelStopped(MODEL, "genesis.events", 0, 7, "a defect.")
        stopped.__cause__ = error
    return stopped


@pytest.fixture
def lagging() -> LaggingModels:
    """What feeds models that lag, when it is asked to."""
    return LaggingModels("postgresql://h/d", READ_MODELS)


@pytest.fixture
def models(lagging: LaggingModels) -> FollowingModels:
    """The models of a partition, which all follow it."""
    return FollowingModels("genesis.events", 0, READ_MODELS[:1], lagging)


def test_a_read_model_that_is_left_out_holds_no_batch(models: FollowingModels) -> None:
    """Its error is kept until it follows again; a defect's traceback is logged before."""
    values = Values()
    seen = weakref.ref(values)
    stopped = refused(values)
    del values
    assert stopped.__cause__ is not None
    assert seen() is not None
    models.leave_out([stopped], 1)
    gc.collect()
    assert seen() is None
    assert (models.following, models.reads, models.keys) == ([], frozenset(), {MODEL.key})
    models.forget()


def test_a_statement_that_is_always_given_up_is_the_models(models: FollowingModels) -> None:
    """Not at once: it is tried again, and counted from the beginning after anything else."""
    given_up = StatementEnded("57014", why="canceling statement due to statement timeout")
    ended = {MODEL.key: ModelStatementEnded(MODEL, given_up)}
    assert not models.suspected
    for _ in range(TRIES - 1):
        with pytest.raises(ModelStatementEnded):
            models.count_ended(ended)
        assert models.suspected
    models.forget_ended()
    assert not models.suspected
    for _ in range(TRIES - 1):
        with pytest.raises(ModelStatementEnded):
            models.count_ended(ended)
    models.count_ended(ended)


def test_only_the_same_model_in_a_row_is_counted(models: FollowingModels) -> None:
    """Another one's statement in between begins it again, as anything else does."""
    given_up = StatementEnded("57014", why="canceling statement due to statement timeout")
    first, other = ({model.key: ModelStatementEnded(model, given_up)} for model in READ_MODELS[:2])
    for ended in (*[first] * (TRIES - 1), other, *[first] * (TRIES - 1)):
        with pytest.raises(ModelStatementEnded):
            models.count_ended(ended)
    models.count_ended(first)
