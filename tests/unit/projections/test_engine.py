"""The engine's log lines."""

from __future__ import annotations

import pytest
import structlog

from projections import engine
from projections.engine import LOG_LINES_PER_SECOND, PartitionProjector


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
