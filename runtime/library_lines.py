"""Log lines of libraries in a command, which sets up no log: a user gets its error, in words of Plant's, alone."""

from __future__ import annotations

import logging
import sys

from runtime.redaction import redact


def leave_out_library_lines(*, debug: bool) -> None:
    """Drop the warnings that Python would print for libraries; with `debug` print them, without secrets.

    A service's `runtime.logging.configure` replaces this: there they are lines of its log.
    """
    handler = logging.StreamHandler(sys.stderr) if debug else logging.NullHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_RedactedFormatter())
    logging.getLogger().handlers = [handler]


class _RedactedFormatter(logging.Formatter):
    """The message and its traceback, with known secrets taken out."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))
