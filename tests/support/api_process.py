"""`plant api` as a process, and what a raw socket says to it."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import dataclass
from pathlib import Path

import httpx

from runtime.settings import Settings
from tests.support.ingress_process import PLANT, environ
from tests.support.reading import add_token
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async


@dataclass
class RunningApi:
    """A `plant api` process with 150 agents to read."""

    url: str
    admin_url: str
    port: int
    process: asyncio.subprocess.Process
    token: str

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_SECONDS)

    def request(self, path: str, *, method: str = "GET", more: str = "") -> bytes:
        return f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self.token}\r\n{more}\r\n".encode()


async def start(settings: Settings, folder: Path) -> RunningApi:
    ready, log = folder / "ready.json", (folder / "api.log").open("wb")
    with log:
        process = await asyncio.create_subprocess_exec(
            PLANT, "api", "--port", "0", "--ready-file", str(ready), env=environ(settings), stderr=log
        )
    await wait_until_async(lambda: ready.exists() or process.returncode is not None, "plant api is ready")
    assert process.returncode is None, (folder / "api.log").read_text()
    address = json.loads(ready.read_text())
    token = await add_token(settings)
    running = RunningApi(address["url"], address["admin_url"], address["port"], process, token.text)
    async with httpx.AsyncClient(verify=False, timeout=DEADLINE_SECONDS) as client:

        async def known() -> bool:
            headers = {"authorization": f"Bearer {token.text}"}
            return (await client.get(f"{running.url}/agents", headers=headers)).status_code == 200

        await wait_until_async(known, "the token is known")
    return running


async def waits(running: RunningApi, count: int) -> bool:
    """Whether so many requests wait, as the metrics say."""
    async with httpx.AsyncClient(verify=False, timeout=DEADLINE_SECONDS) as client:
        text = (await client.get(f"{running.admin_url}/metrics")).text
    return f"\nplant_api_waiters {count}.0\n" in text
