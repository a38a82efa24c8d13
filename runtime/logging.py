"""Structured logs on stderr: one wide line for each unit of work, JSON unless a person is looking.

A line is never a payload and never a secret: what names a secret is masked, and known secrets are taken out of every
text (redaction.py), whoever logged it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from runtime.redaction import MASK, redact, redact_values
from runtime.settings import Settings

SECRET_PARTS = ("secret", "password", "master_key", "authorization", "webhook-signature", "webhook_signature")

QUIET_LOGGERS = {"aiokafka": "WARNING", "faust": "WARNING", "mode": "WARNING", "httpx": "WARNING", "alembic": "WARNING"}
"""Libraries that write a line a step; ours says the same in one."""


get_logger: Final = structlog.get_logger
"""Every logger is made by this: a module that logs has thereby set where its lines go."""


def _to_stderr() -> None:
    """Send records to stderr for people, until `configure`: structlog itself would put them on stdout, among data."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            mask_secrets,
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
            redact_line,
        ],
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


def writes_level(level: int) -> bool:
    """Return whether lines of a level are written: whoever makes one for each event asks before."""
    return logging.getLogger().isEnabledFor(level)


def configure(settings: Settings) -> None:
    """Send structlog's and the standard library's records to stderr in one format. Once a process, at its start."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        mask_secrets,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(as_json)],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name, quiet in QUIET_LOGGERS.items():
        logging.getLogger(name).setLevel(max(level, logging.getLevelNamesMapping()[quiet]))


def _rendering(as_json: bool) -> list[Processor]:
    # Tracebacks come without local variables: those hold payloads and secrets.
    if as_json:
        frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        rendered: list[Processor] = [structlog.processors.ExceptionRenderer(frames), redact_fields]
        return [*rendered, structlog.processors.JSONRenderer(default=str)]
    return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback), redact_line]


def redact_fields(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Take secrets out of the values, not out of names: the line stays JSON with the fields that it has."""
    return {name: redact_values(value) for name, value in event.items()}


def redact_line(_: WrappedLogger, __: str, line: Any) -> str:
    """Take secrets out of a line that is written as text, its traceback included."""
    return redact(str(line))


def mask_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Replace the values of fields whose name says that they are secret.

    >>> mask_secrets(None, "info", {"event": "key.added", "secret": "whsec_x"})["secret"]
    '********'
    """
    for name in event:
        if any(part in name.lower() for part in SECRET_PARTS):
            event[name] = MASK
    return event


@contextmanager
def unit_of_work(logger: Any, event: str, **fields: Any) -> Iterator[dict[str, Any]]:
    """Log one line when the block ends, with `duration_ms` and `outcome` (`ok`, or the error's class name).

        with unit_of_work(log, "batch.projected", topic=topic) as line:
            line["rows"] = await project(batch)

    An error is logged at level error with its message, and raised on.
    """
    line: dict[str, Any] = dict(fields)
    started = time.perf_counter()
    try:
        yield line
    except BaseException as error:
        line["duration_ms"] = round((time.perf_counter() - started) * 1000, 3)
        logger.error(event, outcome=type(error).__name__, error=str(error), **line)
        raise
    line["duration_ms"] = round((time.perf_counter() - started) * 1000, 3)
    logger.info(event, outcome="ok", **line)


_to_stderr()
