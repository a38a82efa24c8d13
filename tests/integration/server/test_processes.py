"""Several ingress processes on one port: shared load, a dead one replaced, an orderly end, however the parent ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest_asyncio

from devstack import processes
from runtime.settings import Settings
from tests.support.ingress_process import PLANT, Running, environ, started
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async
from tests.support.webhooks import RATED, rated

POSTS = 60


@pytest_asyncio.fixture
async def running(settings: Settings, tmp_path: Path) -> AsyncIterator[Running]:
    port = processes.choose_port(None, set())
    several = msgspec.structs.replace(settings, ingress_admin_address=f"127.0.0.1:{port}", ingress_processes=2)
    async with started(several, tmp_path) as process:
        yield process


def members(running: Running) -> set[int]:
    """Pids of the processes that serve."""
    with suppress(psutil.NoSuchProcess):
        return {child.pid for child in psutil.Process(running.process.pid).children()}
    return set()


async def post_each_anew(running: Running) -> list[int]:
    """Statuses of requests that each come over a connection of their own; a reset is sent again, as producers do."""
    statuses = []
    for _ in range(POSTS):
        body = rated()
        while True:
            try:
                statuses.append((await running.post(body)).status_code)
                break
            except httpx.TransportError:
                await asyncio.sleep(0.05)
    return statuses


async def served_by_each(running: Running) -> list[float]:
    """How many webhooks each process has counted, from its own metrics."""
    host, _, port = running.settings.ingress_admin_address.rpartition(":")
    counted = []
    async with httpx.AsyncClient(timeout=DEADLINE_SECONDS) as client:
        for number in range(2):
            text = (await client.get(f"http://{host}:{int(port) + number}/metrics")).text
            lines = [line for line in text.splitlines() if line.startswith("plant_ingress_requests_total{")]
            counted.append(sum(float(line.rpartition(" ")[2]) for line in lines if RATED in line))
    return counted


async def test_connections_are_spread_and_a_killed_process_is_replaced(running: Running) -> None:
    """Both processes answer webhooks; while one is gone the other one does, and soon there are two again."""
    assert len(members(running)) == 2
    assert await post_each_anew(running) == [200] * POSTS
    counted = await served_by_each(running)
    assert sum(counted) == POSTS
    assert min(counted) > 0

    before = members(running)
    os.kill(min(before), signal.SIGKILL)
    assert await post_each_anew(running) == [200] * POSTS
    await wait_until_async(lambda: len(members(running)) == 2 and min(before) not in members(running), "two processes")


async def test_sigterm_ends_all_in_order(running: Running) -> None:
    """Exit code 0, nothing but the announcement on stderr, and no process is left."""
    before = members(running)
    listening = f"Listening on {running.url} with 2 processes; registry and metrics on {running.admin_url}\n"
    running.process.terminate()
    _, stderr = await asyncio.wait_for(running.process.communicate(), DEADLINE_SECONDS)
    assert (running.process.returncode, stderr.decode()) == (0, listening)
    assert not any(psutil.pid_exists(pid) for pid in before)


async def test_processes_end_when_their_parent_was_killed(running: Running) -> None:
    """Nobody holds the port for a parent that is gone."""
    before = members(running)
    running.process.kill()
    await running.process.wait()
    await wait_until_async(lambda: not any(psutil.pid_exists(pid) for pid in before), "they have ended")


def test_a_wrong_setting_is_said_once(settings: Settings) -> None:
    """The first process says what is wrong, and the others are not started."""
    done = subprocess.run(
        [PLANT, "ingress", "--port", "0", "--processes", "3"],
        env={**environ(settings), "PLANT_MASTER_KEY": "short"},
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_SECONDS,
    )
    assert done.returncode == 1
    assert done.stderr.count("PLANT_MASTER_KEY is no master key") == 1
    assert "could not be started" in done.stderr
