"""`plant …` run to its end with a test's settings, and what it recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec

from runtime.settings import Settings
from schemas.events import OperationRecorded
from streams.topics import OPERATIONS_TOPIC
from tests.support.waiting import DEADLINE_SECONDS
from tests.support.webhooks import read_all

PLANT = str(Path(sys.executable).with_name("plant"))


def plant(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    command, environ = [PLANT, *arguments], {**os.environ, **environ_with(settings)}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)


def environ_with(settings: Settings) -> dict[str, str]:
    """Return the variables that give these settings."""
    return {f"PLANT_{name.upper()}": str(value) for name, value in msgspec.structs.asdict(settings).items()}


async def operations(settings: Settings, target: str) -> list[OperationRecorded]:
    """Read the operator actions that were recorded about a target."""
    return [
        received.event
        for received in await read_all(settings, OPERATIONS_TOPIC)
        if isinstance(received.event, OperationRecorded) and received.event.target.startswith(target)
    ]


async def keys_of(settings: Settings) -> list[dict[str, str]]:
    """List every key, as `plant keys list` does."""
    listed: list[dict[str, str]] = json.loads(plant(settings, "keys", "list", "--output", "json").stdout)
    return listed
