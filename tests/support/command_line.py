"""`plant …` run to its end with a test's settings, and what it recorded."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import msgspec

from operations.cli import main
from runtime.settings import Settings
from schemas.events import OperationRecorded
from streams.topics import OPERATIONS_TOPIC
from tests.support import secret_logs
from tests.support.waiting import DEADLINE_SECONDS
from tests.support.webhooks import read_all


def plant(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end, in this process: a process of its own would import all that is imported here.

    In a thread, where the command's event loop is the only one. `tests/unit/operations/cli/test_main.py` and the
    end-to-end tests hold the process around a command.
    """
    out, errors = _Stream(), _Stream()
    with (
        mock.patch.dict(os.environ, environ_with(settings)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
        ThreadPoolExecutor(1) as pool,
    ):
        code = pool.submit(main.run, list(arguments)).result(DEADLINE_SECONDS)
    secret_logs.look_at(f"plant {' '.join(arguments)}", errors.text)
    return subprocess.CompletedProcess(["plant", *arguments], code, out.text, errors.text)


class _Stream(io.TextIOWrapper):
    """A standard stream that is no terminal, and what was written to it."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    @property
    def text(self) -> str:
        self.seek(0)
        return self.read()


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
