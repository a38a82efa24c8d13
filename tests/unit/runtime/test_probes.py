"""The probes of a service that serves no requests: its loop answers them, or does not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping

import pytest

from runtime import probes
from runtime.lifecycle import serve_metrics
from runtime.probes import Probes
from tests.support.waiting import DEADLINE_SECONDS


class Service:
    """A service with faults of the test's choice."""

    def __init__(self) -> None:
        self.missing: dict[str, str] = {"group": "It has not joined its group yet."}
        self.asked = 0

    async def faults(self) -> Mapping[str, str]:
        self.asked += 1
        return dict(self.missing)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the service each time."""
    monkeypatch.setattr(probes, "CHECK_EVERY_SECONDS", 0.0)


@contextlib.contextmanager
def served(service: Service) -> Iterator[str]:
    server = serve_metrics("127.0.0.1:0", probes=Probes(service))
    assert server is not None
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=DEADLINE_SECONDS) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


async def test_a_service_is_ready_once_nothing_is_missing() -> None:
    """Until then it is alive, and says what it waits for; metrics are served next to both."""
    service = Service()
    with served(service) as url:
        assert (await asyncio.to_thread(get, f"{url}/livez"))[0] == 200
        status, body = await asyncio.to_thread(get, f"{url}/readyz")
        assert (status, json.loads(body)) == (503, service.missing)
        service.missing.clear()
        assert (await asyncio.to_thread(get, f"{url}/readyz"))[0] == 200
        assert b"plant_" in (await asyncio.to_thread(get, f"{url}/metrics"))[1]


async def test_a_loop_that_is_stuck_is_neither_ready_nor_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that serves answers for it."""
    monkeypatch.setattr(probes, "LIVE_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(probes, "READY_TIMEOUT_SECONDS", 0.05)
    service = Service()
    service.missing.clear()
    answers = list[tuple[int, bytes]]()
    with served(service) as url:
        asking = threading.Thread(target=lambda: answers.extend(get(f"{url}/{path}") for path in ("livez", "readyz")))
        asking.start()
        asking.join()  # the loop does not turn meanwhile
    assert [status for status, _ in answers] == [503, 503]


async def test_a_service_is_asked_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who probes often makes no sessions in Postgres by it."""
    monkeypatch.setattr(probes, "CHECK_EVERY_SECONDS", 300.0)
    service = Service()
    with served(service) as url:
        for _ in range(3):
            await asyncio.to_thread(get, f"{url}/readyz")
    assert service.asked == 1


def test_a_loop_that_has_ended_is_not_alive() -> None:
    """A process that hangs at its end is restarted."""

    async def begin() -> Probes:
        return Probes(Service())

    ended = asyncio.run(begin())
    statuses = list[str]()
    ended({"PATH_INFO": "/livez"}, lambda status, _headers: statuses.append(status))  # type: ignore[arg-type,return-value]
    assert statuses == ["503 Service Unavailable"]
