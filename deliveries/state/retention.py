"""How long deliveries are kept: tables of days that are made ahead, and dropped once they are old.

A delivery goes so many days after its event, and no less after its state has changed. Those of events from before the
days that were made, and of times to come, are in a table of their own, whose rows are deleted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from projections.session import Session, StatementEnded
from runtime.logging import get_logger
from streams.errors import OwnershipLost

log = get_logger(__name__)

DAYS_AHEAD: Final = 3
EVERY_SECONDS: Final = 3600.0
"""How often it is looked at: a day that begins has its table for three days by then."""

AGAIN_SECONDS: Final = 60.0
"""The same after a table could not be locked: whoever reads deliveries holds it up."""

DELETED_ROWS: Final = 10_000
"""Rows that are deleted at a time."""

STATEMENT_TIMEOUT_SECONDS: Final = 600


class DeliveryRetention:
    """Makes and drops the tables of days, when that is due; the functions that it calls check what it may."""

    def __init__(self, keep_days: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._keep_days = keep_days
        self._monotonic = monotonic
        self._due_at = 0.0

    def run_due(self, session: Session, interrupted: threading.Event) -> None:
        """Do what is due, in transactions of its own. Raises OwnershipLost between two of them once interrupted."""
        now = self._monotonic()
        if now < self._due_at:
            return
        self._due_at = now + AGAIN_SECONDS
        try:
            self._run(session, interrupted)
        except StatementEnded as error:
            session.rollback()
            log.warning("retention.put_off", why=error.why)
        else:
            self._due_at = now + EVERY_SECONDS

    def _run(self, session: Session, interrupted: threading.Event) -> None:
        made = int(_call(session, f"add_delivery_days({DAYS_AHEAD})") or 0)
        if made:
            log.info("delivery_days.made", count=made)
        while (day := _call(session, f"drop_delivery_day({self._keep_days})")) is not None:
            log.info("delivery_day.dropped", day=day)
            _check(interrupted)
        while int(_call(session, f"delete_other_deliveries({self._keep_days}, {DELETED_ROWS})") or 0) == DELETED_ROWS:
            _check(interrupted)


def _call(session: Session, call: str) -> str | None:
    """Return what a function returns, as text."""
    session.script("BEGIN", f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT_SECONDS}s'")
    ((result,),) = session.query(f"SELECT {call}::text AS result")
    session.commit()
    return None if result is None else str(result)


def _check(interrupted: threading.Event) -> None:
    if interrupted.is_set():
        raise OwnershipLost(why="The partition was given up while old deliveries were dropped.")
