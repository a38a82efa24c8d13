"""`plant api` as a process: it serves, cuts off, ends in order, refuses too many rights; the examples read from it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from uuid import UUID

import httpx
import msgspec
import pytest
import pytest_asyncio

from api.token_cache import STALE_SECONDS
from devstack.processes import choose_port
from projections.engine import PartitionProjector
from projections.read_model import READ_MODELS
from runtime.settings import Settings
from streams.topics import apply
from tests.conftest import Database, SettingsFor
from tests.support import ROOT
from tests.support.api_process import RunningApi, start, waits
from tests.support.batches import TOPIC, WATERMARKS, batch_of
from tests.support.ingress_process import PLANT, ended, environ, received_until_closed
from tests.support.reading import add_token, onboarded, revoke
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async

ROWS = 150


@pytest.fixture(scope="module")
def module_settings(module_database: Database, settings_for: SettingsFor) -> Settings:
    return settings_for(module_database)


@pytest_asyncio.fixture(scope="module")
async def running_api(module_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningApi]:
    settings = module_settings
    projector = PartitionProjector(settings.database_writer_url, TOPIC, 0, READ_MODELS)
    events = [onboarded(number) for number in range(1, ROWS + 1)]
    projector.project(batch_of(events, token=projector.acquire(WATERMARKS).token))
    projector.close()
    running = await start(settings, tmp_path_factory.mktemp("api"))
    try:
        yield running
    finally:
        await ended(running.process)


async def example(running: RunningApi, *command: str) -> str:
    """What an example prints."""
    process = await asyncio.create_subprocess_exec(
        *command, running.url, f"{TOPIC}/0/{ROWS - 1}",
        env={**os.environ, "PLANT_READ_TOKEN": running.token},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    printed, wrong = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
    assert process.returncode == 0, wrong.decode()
    return printed.decode()


async def test_the_python_example_reads_all_pages(running_api: RunningApi) -> None:
    """A line a row, on two pages, once the read model shows the position."""
    lines = (await example(running_api, sys.executable, str(ROOT / "examples" / "read.py"))).splitlines()
    assert [UUID(json.loads(line)["agent_id"]).int for line in lines] == list(range(1, ROWS + 1))


async def test_the_shell_example_reads_all_pages(running_api: RunningApi) -> None:
    """A line a page; the token is on no command line."""
    missing = [tool for tool in ("bash", "curl", "sed") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    pages = (await example(running_api, "bash", str(ROOT / "examples" / "read.sh"))).splitlines()
    assert [len(json.loads(page)["items"]) for page in pages] == [100, 50]


async def test_the_lines_of_the_page_work(settings: Settings) -> None:
    """The first lines of docs/how-to/read.md make a token, start the API, and read with it."""
    missing = [tool for tool in ("bash", "curl") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    await apply(settings)
    port = choose_port(None, set())
    page = (ROOT / "docs" / "how-to" / "read.md").read_text("utf-8")
    lines = page.partition("```bash\n")[2].partition("```")[0]
    assert "8082" in lines
    process = await asyncio.create_subprocess_exec(
        "bash", "-ec", f'{lines.replace("8082", str(port))}\nkill $!; wait',
        env=environ(msgspec.structs.replace(settings, api_port=port, api_admin_address="127.0.0.1:0"))
        | {"PATH": f"{Path(PLANT).parent}:{os.environ['PATH']}"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    printed, wrong = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
    assert json.loads(printed) == {"items": [], "next": None}, wrong.decode()


async def test_a_revoked_token_is_refused_within_two_seconds(
    running_api: RunningApi, module_settings: Settings
) -> None:
    """No request that begins so long after the revocation is answered, and one is refused in the end.

    On a slow machine requests begin later, and have to be refused all the more.
    """
    token = await add_token(module_settings)
    headers = {"authorization": f"Bearer {token.text}"}
    answers: list[tuple[float, int]] = []
    async with httpx.AsyncClient(verify=False, timeout=DEADLINE_SECONDS) as client:

        async def asked() -> int:
            begun = time.monotonic()
            answer = await client.get(f"{running_api.url}/agents", headers=headers)
            answers.append((begun, answer.status_code))
            return answer.status_code

        async def is_known() -> bool:
            return await asked() == 200

        async def is_refused() -> bool:
            return await asked() == 401

        await wait_until_async(is_known, "the token is known")
        await revoke(module_settings, token)
        revoked = time.monotonic()
        await wait_until_async(is_refused, "the token is refused")
    late = [status for begun, status in answers if begun >= revoked + STALE_SECONDS]
    assert 200 not in late
    assert answers[-1][1] == 401


async def test_a_change_that_is_refused_keeps_its_connection(
    running_api: RunningApi, module_settings: Settings
) -> None:
    """Its body was read, so the next request may follow."""
    token = await add_token(module_settings, "endpoints")
    headers = {"authorization": f"Bearer {token.text}"}
    async with httpx.AsyncClient(verify=False, headers=headers, timeout=DEADLINE_SECONDS) as client:
        answers: list[httpx.Response] = []

        async def is_refused() -> bool:
            answers.append(await client.post(f"{running_api.url}/endpoints", json={}))
            return answers[-1].status_code == 422

        await wait_until_async(is_refused, "the token is known")
    assert "connection" not in answers[-1].headers


async def test_requests_follow_each_other_on_a_connection(running_api: RunningApi) -> None:
    """Two requests sent ahead are answered in order; HEAD has no body, and the same entity tag."""
    path = f"/agents/{UUID(int=1)}"
    with closing(running_api.connect()) as peer:
        peer.sendall(running_api.request(path) + running_api.request(path, method="HEAD", more="connection: close\r\n"))
        whole = await asyncio.to_thread(received_until_closed, peer)
    first, second = [f"HTTP/1.1 {part}" for part in whole.decode().split("HTTP/1.1 ")[1:]]
    assert first.startswith("HTTP/1.1 200")
    assert second.startswith("HTTP/1.1 200")
    assert '"agent_id"' in first
    assert '"agent_id"' not in second
    tags = {line for part in (first, second) for line in part.splitlines() if line.startswith("etag: ")}
    assert len(tags) == 1


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /agents HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello", b"413"),
        ("GET /agents HTTP/1.1\r\n\r\n", b"400"),
        ("GET /agents HTTP/1.1\r\nhost: x\r\n" + "x: y\r\n" * 9_000, b"431"),
        ("nonsense\r\n\r\n", b"400"),
        ("GET /%2e%2e/agents HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b"404"),
        ("GET /agents%2F1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b"404"),
        ("GET /agents?%zz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b"401"),
    ],
)
async def test_strangers_get_problems(running_api: RunningApi, head: str, status: bytes) -> None:
    """Whatever a stranger sends is a problem of the 4xx kind; the process answers others all the same."""
    with closing(running_api.connect()) as peer:
        peer.sendall(head.encode())
        peer.shutdown(socket.SHUT_WR)
        answer = await asyncio.to_thread(received_until_closed, peer)
    assert answer.startswith(b"HTTP/1.1 " + status), answer[:200]
    assert b"application/problem+json" in answer


async def test_a_waiter_that_leaves_is_forgotten(running_api: RunningApi) -> None:
    """Its connection closes, and the process no longer waits for it."""

    peers = [running_api.connect() for _ in range(20)]
    for peer in peers:
        peer.sendall(running_api.request(f"/agents?at-least={TOPIC}/0/99999", more="prefer: wait=30\r\n"))
    await wait_until_async(lambda: waits(running_api, 20), "all wait")
    for peer in peers:
        peer.close()
    await wait_until_async(lambda: waits(running_api, 0), "nobody waits")


async def test_it_ends_in_order(settings: Settings, tmp_path: Path) -> None:
    """SIGTERM ends it with exit code 0, and a request that waits is answered with a problem."""
    running = await start(settings, tmp_path)
    with closing(running.connect()) as peer:
        peer.sendall(running.request(f"/agents?at-least={TOPIC}/0/99999", more="prefer: wait=50\r\n"))
        await wait_until_async(lambda: waits(running, 1), "it waits")
        running.process.terminate()
        answer = await asyncio.to_thread(received_until_closed, peer)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"The process is ending." in answer
    assert await asyncio.wait_for(running.process.wait(), DEADLINE_SECONDS) == 0
    assert f"Listening on {running.url}" in (tmp_path / "api.log").read_text()


@pytest.mark.parametrize(
    ("usual", "role"),
    [
        ("api", "owner"),
        ("api", "operator"),
        *[("endpoints", role) for role in ("operator", "writer", "deliverer", "owner")],
    ],
)
async def test_too_many_rights_are_refused_at_the_start(settings: Settings, usual: str, role: str) -> None:
    """Exit code 2, and an error that names the address to use; endpoints are changed by a role of one tenant."""
    address = getattr(settings, f"database_{role}_url")
    process = await asyncio.create_subprocess_exec(
        PLANT, "api", "--port", "0", stderr=asyncio.subprocess.PIPE,
        env=environ(msgspec.structs.replace(settings, **{f"database_{usual}_url": address})),
    )  # fmt: skip
    _, wrong = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
    assert process.returncode == 2, wrong.decode()
    assert f"PLANT_DATABASE_{usual.upper()}_URL=postgresql://plant_{usual}".encode() in wrong


async def test_changing_endpoints_needs_the_master_key(settings: Settings) -> None:
    """Without it the process does not start; one that only reads does not ask for it."""
    process = await asyncio.create_subprocess_exec(
        PLANT, "api", "--port", "0", stderr=asyncio.subprocess.PIPE,
        env=environ(msgspec.structs.replace(settings, master_key="")),
    )  # fmt: skip
    _, wrong = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
    assert process.returncode == 2, wrong.decode()
    assert b"PLANT_MASTER_KEY" in wrong


async def test_what_stands_behind_a_refused_request_is_no_request(running_api: RunningApi) -> None:
    """A body that was not read is dropped with its connection, whoever sent it: none of it is answered."""
    hidden = b"GET /agents HTTP/1.1\r\nhost: x\r\nauthorization: Bearer " + running_api.token.encode() + b"\r\n\r\n"
    head = "POST /endpoints HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    for more in ("", f"authorization: Bearer {running_api.token}\r\n"):
        with closing(running_api.connect()) as peer:
            peer.sendall(f"{head}{more}content-length: {len(hidden)}\r\n\r\n".encode() + hidden)
            whole = (await asyncio.to_thread(received_until_closed, peer)).decode()
        assert whole.count("HTTP/1.1 ") == 1
        assert whole.startswith(("HTTP/1.1 401", "HTTP/1.1 403"))
        assert "connection: close" in whole.lower()


async def test_a_taken_port_is_an_error_of_three_lines(running_api: RunningApi, settings: Settings) -> None:
    """It names the command that would work."""
    process = await asyncio.create_subprocess_exec(
        PLANT, "api", "--port", str(running_api.port), env=environ(settings), stderr=asyncio.subprocess.PIPE
    )
    _, wrong = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
    assert process.returncode == 2
    assert b"next: plant api --port 0" in wrong
