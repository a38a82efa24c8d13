"""A limit on the log lines of one kind."""

from __future__ import annotations

from typing import Final

LOG_LINES_PER_SECOND: Final = 20


class LogBudget:
    """A limit on log lines, so that a sender of bad requests can't fill the disk. It counts the lines left out."""

    def __init__(self, lines_per_second: int = LOG_LINES_PER_SECOND) -> None:
        self._lines_per_second = lines_per_second
        self._second = -1
        self._written = 0
        self._left_out = 0

    def consume(self, now_seconds: float) -> int | None:
        """Count a line. Return None where it is to be left out, else the number of lines left out before it.

        >>> budget = LogBudget(1)
        >>> budget.consume(0.0), budget.consume(0.5), budget.consume(1.0)
        (0, None, 1)
        """
        second = int(now_seconds)
        if second != self._second:
            self._second, self._written = second, 0
        if self._written >= self._lines_per_second:
            self._left_out += 1
            return None
        self._written += 1
        left_out, self._left_out = self._left_out, 0
        return left_out
