"""A log of slow statements, and the translation of errors that statements raise."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, Literal

from sqlalchemy import event
from sqlalchemy.engine import Engine, ExceptionContext
from sqlalchemy.engine.interfaces import DBAPICursor

from database.error_translation import translate_error
from runtime import metrics
from runtime.logging import get_logger
from runtime.settings import DatabaseRole

log = get_logger(__name__)

STATEMENT_SHOWN_CHARACTERS: Final = 500


class StatementLog:
    """A listener to an engine's statements. It never reads their parameters."""

    def __init__(self, role: DatabaseRole, application_name: str, where: str, slow_seconds: float) -> None:
        """Set up; `where` is the server's address without secrets; with `slow_seconds` 0 no statement is slow."""
        self._role = role
        self._application_name = application_name
        self._where = where
        self._slow_seconds = slow_seconds

    def listen(self, engine: Engine) -> None:
        """Listen to this engine from now on."""
        # Events of the dialect only: with one of the engine, each connection joins all its events again, which costs a
        # tenth of a small transaction.
        if self._slow_seconds:
            event.listen(engine, "do_execute", self._execute)
            event.listen(engine, "do_executemany", self._execute_many)
        event.listen(engine, "handle_error", self._translate)

    def translate(self, error: BaseException) -> BaseException | None:
        """Return the error to raise instead of a driver's; None: raise it as it is."""
        return translate_error(error, self._where)

    def note(self, statement: str, seconds: float) -> None:
        """Log a statement if it was slow."""
        if not self._slow_seconds or seconds < self._slow_seconds:
            return
        metrics.DATABASE_SLOW_QUERIES.labels(self._role).inc()
        log.warning(
            "query.slow",
            seconds=round(seconds, 3),
            statement=" ".join(statement.split())[:STATEMENT_SHOWN_CHARACTERS],
            role=self._role,
            application_name=self._application_name,
        )

    def _execute(self, cursor: DBAPICursor, statement: str, parameters: Any, _: object) -> Literal[True]:
        return self._timed(cursor.execute, statement, parameters)

    def _execute_many(self, cursor: DBAPICursor, statement: str, parameters: Any, _: object) -> Literal[True]:
        return self._timed(cursor.executemany, statement, parameters)

    def _timed(self, execute: Callable[[str, Any], Any], statement: str, parameters: Any) -> Literal[True]:
        """Execute instead of SQLAlchemy; True means that it was done."""
        started = time.perf_counter()
        try:
            execute(statement, parameters)
        finally:
            self.note(statement, time.perf_counter() - started)
        return True

    def _translate(self, context: ExceptionContext) -> BaseException | None:
        return self.translate(context.sqlalchemy_exception or context.original_exception)
