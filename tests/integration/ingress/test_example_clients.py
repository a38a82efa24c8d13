"""The examples for producers and consumers run as they stand, against a real ingress and a real broker."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from database.connector import connect
from ingress.keys import KeyStore, new_key_id
from runtime.settings import Settings
from signing.ed25519 import encode_private_key, new_private_key
from signing.master_key import MasterKeys
from tests.support import ROOT
from tests.support.ingress_process import Running, started
from tests.support.waiting import DEADLINE_SECONDS

EXAMPLES = ROOT / "examples"
SHELL_TOOLS = ("bash", "curl", "openssl", "od", "base64")


async def produced(running: Running, *command: str, secret: str = "") -> dict[str, Any]:
    """What a producer says of the event that it sent."""
    secret = secret or "whsec_" + base64.b64encode(running.sender.secret).decode()
    process = await asyncio.create_subprocess_exec(
        *command, running.url,
        env={**os.environ, "PLANT_WEBHOOK_SECRET": secret},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, wrong = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
    assert process.returncode == 0, wrong.decode()
    stored: dict[str, Any] = json.loads(said)
    return stored


async def consumed(running: Running, example: str, event_id: str) -> dict[str, Any]:
    """The line that a consumer prints of this event; Ctrl-C then ends the consumer in order."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLES / example), running.settings.kafka_bootstrap_servers, running.admin_url,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, limit=1 << 20,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            async for line in process.stdout:
                found: dict[str, Any] = json.loads(line)
                if found["event_id"] == event_id:
                    break
            else:
                raise AssertionError("the consumer ended")
            process.send_signal(signal.SIGINT)
            await process.communicate()
        assert process.returncode == 0
        return found
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_python_producer_and_both_consumers(running: Running) -> None:
    """What the Python producer sent, confluent-kafka and aiokafka read, the same and at the same place."""
    stored = await produced(running, sys.executable, str(EXAMPLES / "producer.py"))
    first = await consumed(running, "consumer_confluent.py", stored["event_id"])
    second = await consumed(running, "consumer_aiokafka.py", stored["event_id"])
    assert first == second
    assert (first["type"], first["name"]) == ("genesis.agent.onboarded", "Example agent")
    assert first["position"] == f"{stored['topic']}[{stored['partition']}]@{stored['offset']}"


async def test_shell_producer(running: Running) -> None:
    """curl and openssl are enough to sign and send an event."""
    missing = [tool for tool in SHELL_TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    stored = await produced(running, "bash", str(EXAMPLES / "producer.sh"))
    found = await consumed(running, "consumer_aiokafka.py", stored["event_id"])
    assert (found["type"], found["skill_ids"]) == ("genesis.agent.onboarded", [])


async def test_javascript_producer(settings: Settings, tmp_path: Path) -> None:
    """Node.js alone signs with a shared secret, and with a private key."""
    if shutil.which("node") is None:
        pytest.skip("needs node")
    private_key, database = new_private_key(), connect(settings, "operator")
    await KeyStore(database, MasterKeys(settings)).add(
        new_key_id(), "genesis", private_key.public_key, None, scheme="v1a"
    )
    await database.close()
    command = ("node", str(EXAMPLES / "producer.mjs"))
    async with started(settings, tmp_path) as running:
        for secret in ("", encode_private_key(private_key)):
            stored = await produced(running, *command, secret=secret)
            found = await consumed(running, "consumer_aiokafka.py", stored["event_id"])
            assert (found["type"], found["name"]) == ("genesis.agent.onboarded", "Example agent")
        with pytest.raises(AssertionError, match="urn:plant:problem:signature"):
            await produced(running, *command, secret=encode_private_key(new_private_key()))
