"""The local stack's folder, and the file of addresses in it (`stack.env`), which `plant up` writes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from runtime.errors import ConfigurationError

DEFAULT_HOME: Final = ".plant"
STACK_FILE: Final = "stack.env"
REPOSITORY: Final = ".git"


def find_home(environ: Mapping[str, str], folder: Path | None = None) -> str:
    """Return the stack's folder: PLANT_HOME, or `.plant` in the current folder or the nearest one above that has it.

    The search ends at the root of a repository, at the home folder, and before a folder of another user, whose
    addresses nobody should connect to. Raises ConfigurationError for a `~` that names nobody.
    """
    if chosen := environ.get("PLANT_HOME", "").strip():
        return _expanded(chosen)
    try:
        folder = folder or Path.cwd()
    except FileNotFoundError:
        raise ConfigurationError("The current folder is gone.", why="It was removed.", next_step="cd") from None
    end = environ.get("HOME", "")
    for above in (folder, *folder.parents):
        if above != folder and _has_own_stack(above):
            return str(above / DEFAULT_HOME)
        if above == folder and _exists(above / DEFAULT_HOME):
            break
        if str(above) == end or _exists(above / REPOSITORY):
            break
    return DEFAULT_HOME


def read_stack_file(home: Path) -> dict[str, str]:
    """Return the file's `NAME=value` lines, white space and quotes around values dropped; empty without a file.

    Raises ConfigurationError where the file can't be read.
    """
    path = home / STACK_FILE
    try:
        # Some editors begin a file with a byte order mark.
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "It is not UTF-8"
        raise ConfigurationError(
            f"{path} can't be read.", why=f"{why}.", next_step="export PLANT_HOME=…    # the folder of your own stack"
        ) from error
    pairs = (line.partition("=") for line in lines if line.strip() and not line.lstrip().startswith("#"))
    return {name.strip().removeprefix("export "): _unquoted(value.strip()) for name, _, value in pairs}


def _expanded(home: str) -> str:
    try:
        return str(Path(home).expanduser())
    except RuntimeError as error:
        raise ConfigurationError(
            "PLANT_HOME can't be used.", why=f"{home} names no home folder.", next_step="unset PLANT_HOME"
        ) from error


def _has_own_stack(folder: Path) -> bool:
    try:
        return (folder / DEFAULT_HOME / STACK_FILE).stat().st_uid == os.geteuid()
    except OSError:
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
