"""`plant ingress` as a process, which a module's tests share (fixture `running`), and what a raw socket says to it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import msgspec
import pytest
import pytest_asyncio

from runtime.settings import Settings
from streams.topics import apply
from tests.conftest import Database, SettingsFor
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async
from tests.support.webhooks import RATED, Sender, add_key

PLANT = str(Path(sys.executable).with_name("plant"))


@dataclass
class Running:
    """A `plant ingress` process."""

    url: str
    admin_url: str
    port: int
    process: asyncio.subprocess.Process
    settings: Settings
    sender: Sender

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_SECONDS)

    async def post(self, body: bytes, **options: object) -> httpx.Response:
        # Without `verify` each client reads all of the certificate authorities, for a connection that has no TLS.
        async with httpx.AsyncClient(timeout=DEADLINE_SECONDS, verify=False) as client:
            return await client.post(self.url + RATED, content=body, headers=self.sender.headers(body))


def environ(settings: Settings) -> dict[str, str]:
    values = {f"PLANT_{name.upper()}": str(value) for name, value in msgspec.structs.asdict(settings).items()}
    return {**os.environ, **values}


@asynccontextmanager
async def started(
    settings: Settings,
    folder: Path,
    *arguments: str,
    program: tuple[str, ...] = (PLANT,),
    log: IO[bytes] | int = asyncio.subprocess.PIPE,
) -> AsyncIterator[Running]:
    await apply(settings)
    _, sender = await add_key(settings)
    ready = folder / "ready.json"
    process = await asyncio.create_subprocess_exec(
        *program, "ingress", "--port", "0", "--ready-file", str(ready), *arguments,
        env=environ(settings), stderr=log,
    )  # fmt: skip
    try:
        await wait_until_async(lambda: ready.exists() or process.returncode is not None, "plant ingress is ready")
        assert process.returncode is None, "plant ingress ended"
        address = json.loads(ready.read_text())
        assert address["pid"] == process.pid
        yield Running(address["url"], address["admin_url"], address["port"], process, settings, sender)
    finally:
        await ended(process)


@pytest_asyncio.fixture(scope="module")
async def running(
    module_database: Database, settings_for: SettingsFor, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    """One process for a module, whose tests change none of its settings. Its log is a file: nobody reads a pipe."""
    folder = tmp_path_factory.mktemp("ingress")
    with (folder / "ingress.log").open("wb") as log:
        async with started(settings_for(module_database), folder, log=log) as process:
            yield process


async def ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
    except TimeoutError:
        process.kill()
        await process.communicate()


def received_until_closed(peer: socket.socket) -> bytes:
    pieces = []
    try:
        while piece := peer.recv(65536):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


def request_head(sender: Sender, length: int) -> bytes:
    headers = {**sender.headers(b""), "host": "x", "content-length": str(length)}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {RATED} HTTP/1.1\r\n{lines}\r\n".encode()


def request(sender: Sender, body: bytes, more: bytes = b"") -> bytes:
    """A whole signed request; `more` are header lines."""
    headers = {**sender.headers(body), "host": "x", "content-length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {RATED} HTTP/1.1\r\n{lines}".encode() + more + b"\r\n" + body


def answer_to(running: Running, *pieces: bytes) -> bytes:
    """Send the pieces and return what is answered until the process closes the connection, even while they are sent."""
    with closing(running.connect()) as peer:
        try:
            for piece in pieces:
                peer.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        return received_until_closed(peer)
