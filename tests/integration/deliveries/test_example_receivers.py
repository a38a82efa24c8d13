"""The examples for subscribers run as they stand: they take what Plant signs, once, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from deliveries.attempts import send_attempt
from deliveries.guard.connections import DeliveryClient
from deliveries.signed_request import AttemptRequest, EndpointKeys, outgoing_event, sign_attempt
from runtime.settings import Settings
from schemas.examples import examples
from signing.ed25519 import encode_public_key, new_private_key
from signing.hmac_secrets import encode_secret, new_secret
from tests.support import ROOT
from tests.support.waiting import DEADLINE_SECONDS

EXAMPLES = ROOT / "examples"
EVENT = outgoing_event(examples()["genesis.agent.rated"], source="plant")
SECRET, PAIR = new_secret(), new_private_key()
KEYS = EndpointKeys(secrets=(new_secret(), SECRET), private_keys=(PAIR,))
SHELL_TOOLS = ("bash", "openssl", "od", "base64", "timeout")


def signed(delivery_id: str, *, keys: EndpointKeys = KEYS, age: timedelta = timedelta(0)) -> AttemptRequest:
    return sign_attempt(EVENT, "standard", keys, delivery_id=delivery_id, now=datetime.now(UTC) - age)


async def statuses_of(port: int) -> list[int | None]:
    """What a receiver answers to a delivery, the same again, and four that nobody signed."""
    good = signed("dlv_1")
    client = DeliveryClient(
        Settings(deliveries_schemes="http", deliveries_ports="1-65535", deliveries_allowed_networks="127.0.0.1")
    )
    wrong = [
        msgspec.structs.replace(good, body=good.body.replace(b"rating", b"Rating")),
        msgspec.structs.replace(good, headers={**good.headers, "webhook-id": "dlv_2"}),
        signed("dlv_3", keys=EndpointKeys(secrets=(new_secret(),), private_keys=(new_private_key(),))),
        signed("dlv_4", age=timedelta(minutes=6)),
    ]
    try:
        attempts = [
            await send_attempt(
                client, f"http://127.0.0.1:{port}/", request, timeout_seconds=DEADLINE_SECONDS, now=datetime.now(UTC)
            )
            for request in (good, signed("dlv_1"), *wrong)
        ]
    finally:
        await client.close()
    return [attempt.outcome.status_code for attempt in attempts]


@asynccontextmanager
async def receiving(*command: str, secret: str) -> AsyncIterator[tuple[int, list[str]]]:
    """Run a receiver on a port of its own; yields the port, and the lines that it has printed once it has ended."""
    process = await asyncio.create_subprocess_exec(
        *command, "0", env={**os.environ, "PLANT_WEBHOOK_SECRET": secret},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    lines: list[str] = []
    try:
        assert process.stderr is not None
        assert process.stdout is not None
        address = (await asyncio.wait_for(process.stderr.readline(), DEADLINE_SECONDS)).decode()
        assert "receiving at http://127.0.0.1:" in address, address
        yield int(address.rsplit(":", 1)[1]), lines
    finally:
        process.kill()
        printed, _ = await process.communicate()
        lines += printed.decode().splitlines()


@pytest.mark.parametrize("secret", [encode_secret(SECRET), encode_public_key(PAIR.public_key)], ids=["v1", "v1a"])
async def test_javascript_receiver(secret: str) -> None:
    """Node.js alone verifies with a shared secret, and with a public key."""
    if shutil.which("node") is None:
        pytest.skip("needs node")
    async with receiving("node", str(EXAMPLES / "receiver.mjs"), secret=secret) as (port, lines):
        assert await statuses_of(port) == [204, 204, 401, 401, 401, 401]
    assert [json.loads(line) for line in lines] == [{"id": "dlv_1", "type": EVENT.type}]


async def test_python_receiver() -> None:
    """The public package verifies what Plant signs; a repeat is answered, and handled once."""
    command = (sys.executable, str(EXAMPLES / "receiver.py"))
    async with receiving(*command, secret=encode_secret(SECRET)) as (port, lines):
        assert await statuses_of(port) == [204, 204, 401, 401, 401, 401]
    assert [json.loads(line) for line in lines] == [{"id": "dlv_1", "type": EVENT.type}]


@pytest.mark.parametrize("command", [(sys.executable, "receiver.py"), ("bash", "receiver.sh")], ids=["Python", "shell"])
async def test_receivers_that_take_no_public_key_say_so(command: tuple[str, str], tmp_path: Path) -> None:
    """In one line, as they start: they read no request."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    process = await asyncio.create_subprocess_exec(
        command[0], str(EXAMPLES / command[1]), cwd=tmp_path,
        env={**os.environ, "PLANT_WEBHOOK_SECRET": encode_public_key(PAIR.public_key)},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        answer, why = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    (line,) = why.decode().splitlines()
    assert (process.returncode, answer) == (1, b"")
    assert "whpk_" in line
    assert "takes a shared secret (whsec_)" in line


async def test_shell_receiver(tmp_path: Path) -> None:
    """bash and openssl are enough to verify a delivery; each is a line with its id."""
    missing = [tool for tool in SHELL_TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        process = await asyncio.create_subprocess_exec(
            str(EXAMPLES / "receiver.sh"),
            cwd=tmp_path,
            env={**os.environ, "PLANT_WEBHOOK_SECRET": encode_secret(SECRET)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        head = await reader.readuntil(b"\r\n\r\n")
        (length,) = re.findall(rb"content-length: *([0-9]+)", head.lower())
        answer, _ = await process.communicate(head + await reader.readexactly(int(length)))
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(run, "127.0.0.1", 0)
    try:
        assert await statuses_of(server.sockets[0].getsockname()[1]) == [204, 204, 401, 401, 401, 401]
    finally:
        server.close()
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(line["id"], line["event"]["type"]) for line in lines] == [("dlv_1", EVENT.type)] * 2
