"""What is kept of a read model that its partition goes on without."""

from __future__ import annotations

import gc
import weakref

from projections.errors import ReadModelStopped
from projections.following_models import FollowingModels
from projections.read_model import READ_MODELS


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
