"""The engine's log lines, and which batches go to Postgres as text."""

from __future__ import annotations

from dataclasses import replace

import pytest
import structlog

from database.errors import DatabaseUnreachable
from projections import engine
from projections.engine import LOG_LINES_PER_SECOND, PartitionProjector, goes_inline
from projections.prepared import prepare
from schemas import codec
from schemas.examples import examples
from tests.support.batches import batch_of


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


def test_a_line_says_what_became_of_a_batch() -> None:
    """How many records have each disposition, where reading goes on, and how long it took."""
    projector = PartitionProjector("postgresql://h/d", "genesis.events", 3, [])
    with structlog.testing.capture_logs() as lines:
        projector._log_batch({"applied": 2}, 7, 0.0123456)
        projector._log_batch({"applied": 1, "repeat": 4}, 12, 1.0)
    same = {"event": "batch.projected", "topic": "genesis.events", "partition": 3}
    assert lines == [
        {**same, "next_offset": 7, "duration_ms": 12.346, "applied": 2, "log_level": "debug"},
        {**same, "next_offset": 12, "duration_ms": 1000.0, "applied": 1, "repeat": 4, "log_level": "info"},
    ]


def test_a_partition_that_was_not_acquired_has_no_connection() -> None:
    """It is an outage, after which the partition is acquired, and no defect."""
    projector = PartitionProjector("postgresql://h/d", "genesis.events", 0, [])
    with pytest.raises(DatabaseUnreachable, match="connection was closed"):
        projector.project(batch_of([examples()["genesis.agent.rated"]], token=1))


def test_small_batches_go_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """By records, and by bytes of values and headers; each bound is included."""
    event = examples()["genesis.agent.rated"]
    two = prepare(batch_of([event, (None, None)], token=1))
    size_bytes = len(codec.encode(event)) + sum(map(len, two.batch.headers))
    for records, bound_bytes, expected in ((2, size_bytes, True), (1, size_bytes, False), (2, size_bytes - 1, False)):
        monkeypatch.setattr(engine, "INLINE_RECORDS_MAX", records)
        monkeypatch.setattr(engine, "INLINE_BYTES_MAX", bound_bytes)
        assert goes_inline(two) == expected


def test_events_that_a_batch_releases_count_among_its_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """They go with it, and a control record of a few bytes may release many, or large ones."""
    one = prepare(batch_of([examples()["genesis.agent.rated"]], token=1))
    monkeypatch.setattr(engine, "INLINE_RECORDS_MAX", 2)
    released = replace(one, released=[(0, 9)], released_bytes=engine.INLINE_BYTES_MAX // 2)
    assert goes_inline(released)
    assert not goes_inline(replace(released, released=[(0, 9), (1, 9)]))
    assert not goes_inline(replace(released, released_bytes=engine.INLINE_BYTES_MAX))
