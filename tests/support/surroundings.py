"""Every command of `plant` in one process, among surroundings that a person or an orchestrator may give it.

Run as a program it reads `{"commands": [[…], …], "result": file}` from its argument, and writes the exit codes.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Final

import click

from operations.cli import main as frame

LEFT_OUT: Final = {
    ("up",): "starts a stack; tests/integration/devstack/test_odd_folders.py",
    ("demo",): "starts a stack",
    ("schemas", "generate"): "writes into the checkout",
    ("schemas", "lock"): "writes into the checkout",
    ("schemas", "docs"): "writes into the checkout",
}

ARGUMENTS: Final = {
    ("completion",): ["bash"],
    ("relay",): ["--once", "--lock-seconds", "0.1"],
    ("ingress",): ["--port", "0"],
    ("keys", "add"): ["surrounded"],
    ("keys", "rotate"): ["surrounded", "--execute"],
    ("keys", "revoke"): ["18fc4262-74cb-426e-acee-7c95908b01c1", "--execute"],
    ("producers", "set"): ["surrounded", "--rate", "100"],
    ("producers", "enable"): ["surrounded"],
    ("producers", "disable"): ["surrounded", "--execute"],
    ("producers", "show"): ["surrounded"],
    ("producers", "delete"): ["surrounded", "--execute"],
    ("consume",): ["--limit", "1"],
}
"""What a command needs to get to its work; others run with none."""

_CAPBSET_DROP: Final = 24
_DAC: Final = (1, 2)
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: what lets root read every folder."""


def commands() -> list[list[str]]:
    """Return every command that has no subcommands, with its arguments."""
    context = click.Context(frame.cli)
    found: list[list[str]] = []
    for name in frame.COMMANDS:
        command = frame.cli.get_command(context, name)
        leaves = [(name, each) for each in command.commands] if isinstance(command, click.Group) else [(name,)]
        found += [[*leaf, *ARGUMENTS.get(leaf, [])] for leaf in leaves if leaf not in LEFT_OUT]
    return found


def give_up_reading_everything() -> None:
    """Let root be refused by folders that it may not enter, from the next `exec` on."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in _DAC:
        if libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def main() -> None:
    asked = json.loads(sys.argv[1])
    if asked.pop("unprivileged", False):
        give_up_reading_everything()
        os.execv(sys.executable, [sys.executable, "-m", __spec__.name, json.dumps(asked)])
    from operations.services import api, ingress

    for service in (api, ingress):
        service.DATABASE_TIMEOUT_SECONDS = 0.1  # type: ignore[attr-defined]  # nothing comes up later here
    codes: dict[str, object] = {}
    for arguments in asked["commands"]:
        try:
            frame.main(arguments)
        except SystemExit as error:
            codes[" ".join(arguments)] = error.code
    Path(asked["result"]).write_text(json.dumps(codes), encoding="utf-8")


if __name__ == "__main__":
    main()
