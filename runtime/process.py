"""What a process puts right around it: closed streams, a strange locale, a wide umask, texts that move a terminal."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import ReadableBuffer

STREAMS: Final = ("stdin", "stdout", "stderr")
WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


class DataStream(io.FileIO):
    """The standard output. What its reader, once gone, would have had is dropped: the exit code stays the command's."""

    reader_gone = False

    def write(self, content: ReadableBuffer, /) -> int:
        try:
            return _write_whole(super().write, content)
        except BrokenPipeError:
            self.reader_gone = True
            return memoryview(content).nbytes


class MessageStream(io.FileIO):
    """The standard error. What it can't take is dropped: a message changes nothing of what a command does."""

    def write(self, content: ReadableBuffer, /) -> int:
        try:
            return _write_whole(super().write, content)
        except OSError:
            return memoryview(content).nbytes


def _write_whole(write: Callable[[memoryview], int | None], content: ReadableBuffer) -> int:
    """Write all bytes: a disk that fills, or a signal, may let a part of them through. Raises OSError."""
    rest = memoryview(content).cast("B")
    size_bytes = len(rest)
    while rest:
        written = write(rest)
        if written is None:
            raise BlockingIOError(errno.EAGAIN, "The stream takes no more now")
        rest = rest[written:]
    return size_bytes


def prepare_process() -> frozenset[str]:
    """Open standard streams that are closed, and let nobody else write to what is made. Once a process, first of all.

    A closed stream's number would go to the next file or socket: what is printed would go to a database, and the end of
    the process would end it with SIGABRT. They read nothing and write nowhere. Texts that the locale has no characters
    for are escaped. A reader that goes away ends nothing, and an error stream that takes nothing does not either.
    Returns the names of the streams that were closed.
    """
    os.umask(os.umask(WRITABLE_BY_OTHERS) | WRITABLE_BY_OTHERS)
    closed = frozenset(name for number, name in enumerate(STREAMS) if _open(number, name))
    _write_through("stdout", 1, DataStream)
    _write_through("stderr", 2, MessageStream)
    return closed


def escaped(text: str) -> str:
    """Return a text that moves no terminal: what can't be printed stands there as Python's escape."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def shown_bytes(data: bytes | None) -> str | None:
    r"""Return bytes as text, those that are not UTF-8 as escapes.

    >>> shown_bytes(b"caf\xff")
    'caf\\xff'
    """
    return None if data is None else data.decode("utf-8", "backslashreplace")


def output_is_read() -> bool:
    """Return whether somebody may still read the standard output; without a reader a long answer can end."""
    stream = getattr(sys.stdout, "buffer", None)
    return not (isinstance(stream, DataStream) and stream.reader_gone)


def _write_through(name: str, number: int, kind: type[io.FileIO]) -> None:
    """Put a stream of this kind where Python's own one is; one that a test has put there stays."""
    stream = getattr(sys, name)
    if not isinstance(stream, io.TextIOWrapper) or _number(stream) != number:
        return
    if isinstance(stream.buffer, kind):
        return
    stream.flush()
    made: TextIO = io.TextIOWrapper(
        kind(number, "w", closefd=False),  # unbuffered, so that nothing is left to fail at the end of the process
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
    setattr(sys, name, made)
    setattr(sys, f"__{name}__", made)


def _number(stream: io.TextIOWrapper) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


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
