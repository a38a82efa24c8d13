"""How far the log is in each partition of a topic: one poller for all of a process that wait for it.

It asks only while somebody waits: every few milliseconds, and less often while the log stands still.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable
from typing import Final

from database.errors import DatabaseUnreachable
from projections.checkpoints import PROJECTOR
from projections.session import Session
from runtime.logging import get_logger
from streams.errors import OwnershipLost, PartitionStopped

log = get_logger(__name__)

POLL_SECONDS: Final = 0.005
STILL_POLL_SECONDS: Final = 0.05
STILL_AFTER_SECONDS: Final = 2.0
"""After this without progress of any partition the poller asks less often."""
INTERRUPTION_SECONDS: Final = 0.1
"""How soon a wait ends whose partition was given up."""
RECONNECT_SECONDS: Final = 0.5

_CHECKPOINTS: Final = "SELECT partition, next_offset FROM checkpoints WHERE consumer = $1 AND topic = $2"


class LogWaiter:
    """One that waits for the log to be past an offset of a partition. It alone is woken when that is so."""

    def __init__(self, partition: int, offset: int, asked: int) -> None:
        self.partition: Final = partition
        self.offset: Final = offset
        self.asked: Final = asked
        """How often Postgres had been asked before it waited: a failure of before is no failure of its wait."""
        self.woken: Final = threading.Event()


class LogCheckpoints:
    """The checkpoints of the log in one topic. Thread-safe; close it at the end."""

    def __init__(self, url: str, topic: str) -> None:
        self._url = url
        self._topic = topic
        self._changed = threading.Condition()
        self._next_offsets: dict[int, int] = {}
        self._waiters: list[LogWaiter] = []
        self._closed = False
        self._failure: Exception | None = None
        self._asked = 0
        self._thread: threading.Thread | None = None

    def next_offset(self, partition: int) -> int:
        """Return the log's checkpoint in a partition as it was last read; 0 before that."""
        with self._changed:
            return self._next_offsets.get(partition, 0)

    def wait_past(self, partition: int, offset: int, interrupted: threading.Event) -> int:
        """Return the log's checkpoint in a partition once it is above an offset.

        Raises OwnershipLost once `interrupted` is set or the poller is closed, DatabaseUnreachable where Postgres can't
        be asked, and a named stop.
        """
        with self._changed:
            if (known := self._next_offsets.get(partition, 0)) > offset:
                return known
            self._start()
            waiter = LogWaiter(partition, offset, self._asked)
            self._waiters.append(waiter)
            self._changed.notify_all()
        try:
            while (reached := self._reached(waiter, interrupted)) is None:
                waiter.woken.wait(INTERRUPTION_SECONDS)
                waiter.woken.clear()
            return reached
        finally:
            with self._changed:
                self._waiters.remove(waiter)

    def _reached(self, waiter: LogWaiter, interrupted: threading.Event) -> int | None:
        """Return the checkpoint where it is past what is waited for; None where it is not. Raises as `wait_past`."""
        with self._changed:
            known = self._next_offsets.get(waiter.partition, 0)
            if known > waiter.offset:
                return known
            if interrupted.is_set() or self._closed:
                raise OwnershipLost(why="The partition was given up before the log had its records.")
            if self._failure is not None and self._asked > waiter.asked:
                raise self._failure.with_traceback(None)  # one error of all who wait
            return None

    def close(self) -> None:
        """End the poller, and every wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._wake(self._waiters)
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._run, name="log-checkpoints", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._closed:
            try:
                with contextlib.closing(Session(self._url)) as session:
                    self._poll(session)
            except (DatabaseUnreachable, PartitionStopped) as error:
                self._fail(error)
            except Exception as error:  # a defect: who waits tries again, and so does this
                log.exception("log_checkpoints.failed")
                self._fail(error)

    def _poll(self, session: Session) -> None:
        progressed_at = time.monotonic()
        while self._wait_for_waiters():
            rows = dict(session.query(_CHECKPOINTS, (PROJECTOR, self._topic)))
            now = time.monotonic()
            with self._changed:
                self._asked, self._failure = self._asked + 1, None
                if rows != self._next_offsets:
                    self._next_offsets, progressed_at = rows, now
                    self._wake(each for each in self._waiters if rows.get(each.partition, 0) > each.offset)
            time.sleep(POLL_SECONDS if now - progressed_at < STILL_AFTER_SECONDS else STILL_POLL_SECONDS)

    def _wait_for_waiters(self) -> bool:
        """Return True once somebody waits, False once the poller is closed."""
        with self._changed:
            while not self._waiters and not self._closed:
                self._changed.wait()
            return not self._closed

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._asked, self._failure = self._asked + 1, error
            self._wake(self._waiters)
            self._changed.wait(RECONNECT_SECONDS)

    @staticmethod
    def _wake(waiters: Iterable[LogWaiter]) -> None:
        for waiter in waiters:
            waiter.woken.set()
