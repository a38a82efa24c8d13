"""The engine's log lines, and what it keeps of a refused batch."""

from __future__ import annotations

import gc
import weakref

import pytest
import structlog

from projections import engine
from projections.engine import LOG_LINES_PER_SECOND, PartitionProjector
from projections.errors import ReadModelStopped
from projections.read_model import READ_MODELS


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_a_flood_of_repeats_in_small_batches_writes_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next line says how many were left out; they are there at the level `debug`."""
    clock = Clock()
    monkeypatch.setattr(engine, "time", clock)
    projector = PartitionProjector("postgresql://h/d", "genesis.events", 0, [])
    with structlog.testing.capture_logs() as lines:
        for number in range(300):
            projector._log_batch({"applied": 1}, number, 0.001)
            projector._log_batch({"repeat": 1}, number, 0.001)
        clock.now += 1
        projector._log_batch({"poison": 1}, 300, 0.001)

    usual = [line for line in lines if line["log_level"] == "info"]
    assert len(usual) == LOG_LINES_PER_SECOND + 1
    assert [line.get("left_out", 0) for line in usual] == [0] * LOG_LINES_PER_SECOND + [300 - LOG_LINES_PER_SECOND]
    assert len(lines) == 601


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
    projector = PartitionProjector("postgresql://h/d", "genesis.events", 0, READ_MODELS)
    values = Values()
    seen = weakref.ref(values)
    stopped = refused(values)
    del values
    assert stopped.__cause__ is not None
    assert seen() is not None
    projector._leave_out([stopped])
    gc.collect()
    assert seen() is None
    projector.close()
