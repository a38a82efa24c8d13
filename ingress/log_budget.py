"""So many log lines a second and no more: whoever sends bad requests must not fill the disk."""

from __future__ import annotations

from typing import Final

LINES_PER_SECOND: Final = 20


class LogBudget:
    """Says whether a line may be written now, and how many were left out since the last one that was."""

    def __init__(self, lines_per_second: int = LINES_PER_SECOND) -> None:
        self._lines_per_second = lines_per_second
        self._second = -1
        self._written = 0
        self._left_out = 0

    def take(self, now_seconds: float) -> int | None:
        """None: leave this line out. Else write it; the number is that of lines left out before it.

        >>> budget = LogBudget(1)
        >>> budget.take(0.0), budget.take(0.5), budget.take(1.0)
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
