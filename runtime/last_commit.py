"""What the last commit holds of a file: checks compare with it what must never change."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Final

from runtime.errors import CheckFailed

_NOTHING_COMMITTED: Final = (
    "not a git repository",
    "but not in 'HEAD'",
    "does not exist in 'HEAD'",
    "invalid object name 'HEAD'",
)
"""What git says outside a repository, and before the first commit of the file or of all."""


class LastCommitUnreadable(CheckFailed):
    """A file can't be compared with the last commit."""


def committed_text(file: Path) -> str | None:
    """Return a file's text in the last commit; None outside a repository, or before the file's first commit.

    Raises LastCommitUnreadable where there is a repository that git can't read: the comparison would be left out.
    """
    command = ["git", "-C", str(file.parent), "show", f"HEAD:./{file.name}"]
    try:
        shown = subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=False, env={**os.environ, "LC_ALL": "C"}
        )
    except FileNotFoundError:
        return None
    if shown.returncode == 0:
        return shown.stdout
    if any(phrase in shown.stderr for phrase in _NOTHING_COMMITTED):
        return None
    raise LastCommitUnreadable(
        f"{file.name} can't be compared with the last commit.",
        why=f"git: {shown.stderr.strip()}",
        next_step=shlex.join(command),
    )
