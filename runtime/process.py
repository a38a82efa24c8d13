"""What a process puts right around it at its start: closed standard streams, a strange locale, a wide umask."""

from __future__ import annotations

import io
import os
import stat
import sys
from typing import Final, TextIO

STREAMS: Final = ("stdin", "stdout", "stderr")
WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


def prepare_process() -> frozenset[str]:
    """Open standard streams that are closed, and let nobody else write to what is made. Once a process, first of all.

    A closed stream's number would go to the next file or socket: what is printed would go to a database, and the end of
    the process would end it with SIGABRT. They read nothing and write nowhere. Texts that the locale has no characters
    for are escaped. Returns the names of the streams that were closed.
    """
    os.umask(os.umask(WRITABLE_BY_OTHERS) | WRITABLE_BY_OTHERS)
    closed = frozenset(name for number, name in enumerate(STREAMS) if _open(number, name))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return closed


def _open(number: int, name: str) -> bool:
    """Return whether the stream was closed."""
    try:
        os.fstat(number)
        closed = False
    except OSError:
        opened = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
        os.set_inheritable(number, True)
        closed = True
    if closed or getattr(sys, name) is None:
        stream: TextIO = open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    return closed
