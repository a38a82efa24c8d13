"""Files that a command reads twice: it checks all of one before it acts."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Final

from runtime.errors import ConfigurationError

STDIN: Final = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")


@contextmanager
def opened(file: str, *, copied: bool = False) -> Iterator[IO[bytes]]:
    """Open a file that is read twice; a pipe, stdin say, is copied to a temporary file for that.

    With `copied` a file is too, so that nobody can change it in between.
    """
    from operations.cli.main import CLOSED_STREAMS

    if file in STDIN and "stdin" in CLOSED_STREAMS:
        raise ConfigurationError(
            "There is nothing to read.", why="The standard input is closed.", next_step="plant publish FILE"
        )
    with contextlib.ExitStack() as stack:
        lines: IO[bytes] = sys.stdin.buffer if file == "-" else stack.enter_context(open(file, "rb"))
        if copied or not lines.seekable() or file in STDIN:
            copy = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(lines, copy)
            copy.seek(0)
            lines = copy
        yield lines
