"""`plant ingress` as a process: readiness, a frozen broker, an orderly end, refusals to start."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import pytest_asyncio

from devstack import processes
from devstack.stack import Stack
from runtime.settings import Settings
from streams.topics import EVENTS_TOPIC
from tests.support.ingress_process import PLANT, Running, environ, started
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async
from tests.support.webhooks import RATED, rated, read_all

if TYPE_CHECKING:
    from tests.conftest import Database, SettingsFor


@pytest_asyncio.fixture
async def running(settings: Settings, tmp_path: Path) -> AsyncIterator[Running]:
    async with started(settings, tmp_path) as process:
        yield process


async def test_it_serves_and_ends_in_order(running: Running) -> None:
    """Webhooks are taken over one kept connection; SIGTERM ends the process with exit code 0 and one line on stderr."""
    async with httpx.AsyncClient(base_url=running.url, timeout=DEADLINE_SECONDS) as client:
        for _ in range(5):
            body = rated()
            answer = await client.post(RATED, content=body, headers=running.sender.headers(body))
            assert answer.status_code == 200
        assert (await client.get("/readyz")).status_code == 200
    running.process.terminate()
    _, stderr = await asyncio.wait_for(running.process.communicate(), DEADLINE_SECONDS)
    assert running.process.returncode == 0
    assert f"Listening on {running.url}" in stderr.decode()


@contextmanager
def frozen(stack: Stack) -> Iterator[None]:
    process = stack.state.kafka
    assert process is not None
    processes.freeze(process)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


@pytest.fixture
def frozen_settings(database: Database, settings_for: SettingsFor, private_stack: Stack) -> Settings:
    """Settings with a broker that may be frozen."""
    return settings_for(database, kafka_bootstrap_servers=private_stack.environ["PLANT_KAFKA_BOOTSTRAP_SERVERS"])


async def test_a_frozen_broker_means_503_and_the_retry_is_stored_once(
    frozen_settings: Settings, private_stack: Stack, tmp_path: Path
) -> None:
    """Nothing is called a success while the broker is frozen; the retry gets the first one's position."""
    async with started(frozen_settings, tmp_path) as running:
        assert (await running.post(rated())).status_code == 200
        body = rated()
        headers = running.sender.headers(body, message_id="msg_frozen")
        async with httpx.AsyncClient(base_url=running.url, timeout=DEADLINE_SECONDS) as client:
            with frozen(private_stack):
                first = await client.post(RATED, content=body, headers=headers)
                ready = await client.get("/readyz")

            async def served() -> bool:
                nonlocal again
                again = await client.post(RATED, content=body, headers=headers)
                return again.status_code != 503

            again = first
            await wait_until_async(served, "the broker answers again")
        assert (first.status_code, ready.status_code, again.status_code) == (503, 503, 200)
        assert int(first.headers["retry-after"]) >= 1
        event_id = again.json()["event_id"]
        stored = await read_all(
            frozen_settings, EVENTS_TOPIC, lambda received: str(received.event.event_id) == event_id
        )
        assert [received.position.offset for received in stored] == [again.json()["offset"]]


async def test_accepted_requests_are_answered_before_the_end(
    frozen_settings: Settings, private_stack: Stack, tmp_path: Path
) -> None:
    """SIGTERM with requests under way: they get their 200 when the broker comes back, then the process ends."""
    async with started(frozen_settings, tmp_path) as running:
        with frozen(private_stack):
            sent: list[str] = []
            waiting = [asyncio.create_task(post_traced(running, sent)) for _ in range(5)]
            await wait_until_read(running, sent, 5)
            running.process.terminate()
            await refused_connection(running)
        answers = await asyncio.gather(*waiting)
        assert {answer.status_code for answer in answers} == {200}
        assert await asyncio.wait_for(running.process.wait(), DEADLINE_SECONDS) == 0


async def post_traced(running: Running, sent: list[str]) -> httpx.Response:
    """Post an event; once the whole request is on its way, `sent` has one more."""

    async def trace(event: str, _: object) -> None:
        if event == "http11.send_request_body.complete":
            sent.append(event)

    body = rated()
    async with httpx.AsyncClient(timeout=DEADLINE_SECONDS) as client:
        headers = running.sender.headers(body)
        return await client.post(running.url + RATED, content=body, headers=headers, extensions={"trace": trace})


async def wait_until_read(running: Running, sent: list[str], count: int) -> None:
    """Wait until the process has read so many requests: one whose connection is only open may be dropped.

    Its event loop answers those that come later only after it has read what was there before.
    """
    await wait_until_async(lambda: len(sent) == count, lambda: f"{count} requests are sent, not {len(sent)}")
    for _ in range(2):
        async with httpx.AsyncClient(base_url=running.url, timeout=DEADLINE_SECONDS) as client:
            assert (await client.get("/livez")).status_code == 200


async def refused_connection(running: Running) -> None:
    """Until the process takes no more connections."""

    def refused() -> bool:
        try:
            running.connect().close()
        except OSError:
            return True
        return False

    await wait_until_async(refused, "the process takes no more connections")


async def test_a_port_in_use_is_said(running: Running) -> None:
    """The error names the address and exits with 2."""
    process = await asyncio.create_subprocess_exec(
        PLANT, "ingress", "--port", str(running.port), env=environ(running.settings), stderr=asyncio.subprocess.PIPE
    )
    _, stderr = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
    assert process.returncode == 2
    assert f"Can't listen on 127.0.0.1:{running.port}" in stderr.decode()


async def test_a_ready_file_that_could_never_appear_is_said(settings: Settings, tmp_path: Path) -> None:
    """A folder that is not there is an error at once, not a file that is waited for in vain."""
    process = await asyncio.create_subprocess_exec(
        PLANT, "ingress", "--port", "0", "--ready-file", str(tmp_path / "nowhere" / "ready.json"),
        env=environ(settings), stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        _, stderr = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 2
    assert "ready.json can't be written" in stderr.decode()


async def test_it_does_not_serve_as_a_role_with_too_many_rights(database: Database, settings: Settings) -> None:
    """As the tables' owner it refuses to start."""
    process = await asyncio.create_subprocess_exec(
        PLANT, "ingress", "--port", "0",
        env={**environ(settings), "PLANT_DATABASE_INGRESS_URL": database.owner_url}, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, stderr = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
    assert process.returncode not in (0, None)
    assert "plant_owner" in stderr.decode()
