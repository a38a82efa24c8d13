"""How often Postgres is asked how far the log is."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from projections import log_checkpoints
from projections.log_checkpoints import POLL_SECONDS, STILL_AFTER_SECONDS, STILL_POLL_SECONDS, LogCheckpoints, LogWaiter

ROW = (0, 5, 0, 7)


class PolledEnoughError(Exception):
    """As often as a test looks at."""


class Polls:
    """A session whose log stands still, and a clock that moves as the poller sleeps."""

    def __init__(self, polls: int) -> None:
        self.slept: list[float] = []
        self.now = 100.0
        self._polls = polls

    async def fetch(self, *_: object) -> list[tuple[int, ...]]:
        return [ROW]

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        if len(self.slept) == self._polls:
            raise PolledEnoughError


async def polled(monkeypatch: pytest.MonkeyPatch, checkpoints: LogCheckpoints, polls: Polls) -> list[float]:
    loop = SimpleNamespace(time=lambda: polls.now)
    clock = SimpleNamespace(sleep=polls.sleep, get_running_loop=lambda: loop)
    monkeypatch.setattr(log_checkpoints, "asyncio", clock)
    with pytest.raises(PolledEnoughError):
        await checkpoints._poll(polls)
    return polls.slept


async def test_a_log_that_stands_still_is_asked_for_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once two seconds have passed without progress of any partition, while somebody waits."""
    checkpoints = LogCheckpoints("", "a topic", "a consumer")
    checkpoints._waiters.append(LogWaiter(0, 9, asyncio.get_running_loop().create_future()))
    quick = int(STILL_AFTER_SECONDS / POLL_SECONDS)
    slept = await polled(monkeypatch, checkpoints, Polls(quick + 10))
    assert set(slept[: quick - 1]) == {POLL_SECONDS}
    assert set(slept[quick + 1 :]) == {STILL_POLL_SECONDS}


async def test_who_waits_after_a_quiet_time_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """While nobody waited it was not looked whether the log stood still."""
    checkpoints, polls = LogCheckpoints("", "a topic", "a consumer"), Polls(1)
    checkpoints._positions = {0: log_checkpoints.LogPosition(*ROW[1:])}

    async def somebody_waits() -> None:
        polls.now += 3600
        checkpoints._waiters.append(LogWaiter(0, 9, asyncio.get_running_loop().create_future()))

    monkeypatch.setattr(checkpoints, "_awaited", SimpleNamespace(clear=lambda: None, wait=somebody_waits))
    assert await polled(monkeypatch, checkpoints, polls) == [POLL_SECONDS]
