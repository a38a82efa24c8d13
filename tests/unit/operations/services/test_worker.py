"""A worker's process: what it asks before it joins the group, and its gauges."""

from __future__ import annotations

from typing import Any, cast

import pytest
from faust.types import TP
from prometheus_client import REGISTRY

from database.errors import BadDatabaseAddress, DatabaseUnreachable
from operations.services import worker
from operations.services.worker import PartitionGauges
from runtime.settings import Settings
from streams.agents import Worker
from streams.errors import CheckpointOutOfLog, PartitionStopped, SchemaNewer

ADDRESS = "postgresql://u:topsecret@h/d"


async def test_an_address_that_libpq_alone_can_not_use_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2 before the group is joined: a worker that waits there would hold partitions that it can't write."""
    asked: list[Any] = []

    async def good(*arguments: Any) -> None:
        asked.append(arguments)

    def refuse(_: str) -> None:
        raise DatabaseUnreachable(why="private key file has group or world access")

    monkeypatch.setattr(worker, "require_least_privilege", good)
    monkeypatch.setattr(worker, "Session", refuse)
    with pytest.raises(BadDatabaseAddress, match="group or world access") as error:
        await worker.require_writer_session(Settings(database_writer_url=ADDRESS))

    assert error.value.exit_code == 2
    assert "topsecret" not in str(error.value)
    assert len(asked) == 1, "asyncpg was asked again, so the database had not gone away"


class StoppedWorker:
    """A worker of three partitions, two of them stopped."""

    waiting_bytes = 0

    def positions(self) -> dict[TP, tuple[int, int]]:
        return {TP("genesis.events", partition): (10, 20) for partition in range(3)}

    def assigned_partitions(self) -> set[TP]:
        return set(self.positions())

    def stopped_partitions(self) -> dict[TP, PartitionStopped]:
        return {
            TP("genesis.events", 0): SchemaNewer("genesis.events", 0, 10, 99),
            TP("genesis.events", 1): CheckpointOutOfLog("genesis.events", 1, 10),
        }


def test_partitions_that_wait_for_a_later_release_are_counted() -> None:
    """They are stopped ones, with a state of their own besides."""
    PartitionGauges().update(cast(Worker, StoppedWorker()))
    states = {state: REGISTRY.get_sample_value("plant_worker_partitions", {"state": state}) for state in
              ("owned", "stopped", "schema_newer")}  # fmt: skip
    assert states == {"owned": 3, "stopped": 2, "schema_newer": 1}


FIRST, SECOND = TP("gauges", 0), TP("gauges", 1)


class Partitions:
    """The parts of a worker that are shown."""

    waiting_bytes = 42

    def __init__(self) -> None:
        self.assigned = {FIRST, SECOND}
        self.open = {FIRST: (3, 5), SECOND: (7, 7)}

    def positions(self) -> dict[TP, tuple[int, int]]:
        return self.open

    def assigned_partitions(self) -> set[TP]:
        return self.assigned

    def stopped_partitions(self) -> dict[TP, Exception]:
        return {}


def shown() -> dict[int, tuple[float | None, ...]]:
    names = ("plant_worker_next_offset", "plant_worker_high_watermark")
    return {
        tp.partition: tuple(
            REGISTRY.get_sample_value(name, {"topic": tp.topic, "partition": str(tp.partition)}) for name in names
        )
        for tp in (FIRST, SECOND)
    }


def test_gauges_of_partitions_that_moved_go() -> None:
    """Two workers would else report one partition; one that only waits for Postgres keeps its last values."""
    shown_worker, gauges = Partitions(), PartitionGauges()
    gauges.update(cast(Worker, shown_worker))
    assert shown() == {0: (3, 5), 1: (7, 7)}

    shown_worker.open = {FIRST: (4, 5)}
    gauges.update(cast(Worker, shown_worker))
    assert shown() == {0: (4, 5), 1: (7, 7)}

    shown_worker.assigned = {FIRST}
    gauges.update(cast(Worker, shown_worker))
    assert shown() == {0: (4, 5), 1: (None, None)}

    shown_worker.open, shown_worker.assigned = {}, set()
    gauges.update(cast(Worker, shown_worker))
    assert shown() == {0: (None, None), 1: (None, None)}
