"""A worker's process: what it asks before it joins the group, and its gauges."""

from __future__ import annotations

from typing import Any, cast

import pytest
from faust.types import TP
from prometheus_client import REGISTRY

from database.errors import BadDatabaseAddress, DatabaseUnreachable
from operations.services import worker
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

    def positions(self) -> dict[TP, tuple[int, int]]:
        return {TP("genesis.events", partition): (10, 20) for partition in range(3)}

    def stopped_partitions(self) -> dict[TP, PartitionStopped]:
        return {
            TP("genesis.events", 0): SchemaNewer("genesis.events", 0, 10, 99),
            TP("genesis.events", 1): CheckpointOutOfLog("genesis.events", 1, 10),
        }


def test_partitions_that_wait_for_a_later_release_are_counted() -> None:
    """They are stopped ones, with a state of their own besides."""
    worker.observe(cast(Worker, StoppedWorker()))
    states = {state: REGISTRY.get_sample_value("plant_worker_partitions", {"state": state}) for state in
              ("owned", "stopped", "schema_newer")}  # fmt: skip
    assert states == {"owned": 3, "stopped": 2, "schema_newer": 1}
