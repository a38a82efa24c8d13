"""The slots of a process's attempts: how many may be under way, and what a slow endpoint takes of them.

An attempt takes one of the quick slots. Once it has taken longer than a second it is slow: its slot is free again,
and its endpoint begins nothing new until it ends. So endpoints that hang take connections, a few each, and no slots.
Time in which the process itself had no turn, being starved or stopped, makes no attempt slow: an answer may have been
there all along.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

SLOW_SECONDS: Final = 1.0
SWEEP_MAX_SECONDS: Final = 0.25
"""What the time between two sweeps counts for at most. They are some 0.1 s apart where the process has its turns."""
SLOW_SHARE: Final = 0.5
"""The part of all connections that slow attempts may have before endpoints that never answered get no attempt."""


class AttemptSlot:
    """One attempt's slot; `ended` takes it back. `began_seconds` is of the time in which the process had its turns."""

    __slots__ = ("began_seconds", "ended", "is_slow", "on_slow")

    def __init__(self, began_seconds: float, on_slow: Callable[[], None]) -> None:
        self.began_seconds = began_seconds
        self.on_slow = on_slow
        self.is_slow = False
        self.ended = False


class AttemptSlots:
    """The slots of one process. Whoever finds none waits for its turn: one attempt each, in the order of asking."""

    def __init__(self, quick_max: int, connections_max: int) -> None:
        self._quick_max = quick_max
        self._connections_max = connections_max
        self._quick = 0
        self._slow = 0
        self._taken: deque[AttemptSlot] = deque()
        self._turns: deque[Callable[[], None]] = deque()
        self._attended_seconds = 0.0
        self._swept_at = 0.0

    @property
    def under_way(self) -> int:
        """Attempts under way."""
        return self._quick + self._slow

    @property
    def slow(self) -> int:
        """Those of them that have taken long."""
        return self._slow

    @property
    def crowded(self) -> bool:
        """Whether slow attempts have so many connections that only endpoints which are known to answer get more."""
        return self._slow >= SLOW_SHARE * self._connections_max

    @property
    def has_room(self) -> bool:
        """Whether there is a slot."""
        return self._quick < self._quick_max and self.under_way < self._connections_max

    def take(self, now_seconds: float, on_slow: Callable[[], None]) -> AttemptSlot:
        """Return a slot; `on_slow` is called when the attempt has taken long."""
        slot = AttemptSlot(self._attended(now_seconds), on_slow)
        self._quick += 1
        self._taken.append(slot)
        return slot

    def await_turn(self, turn: Callable[[], None]) -> None:
        """Call `turn` once a slot is free."""
        self._turns.append(turn)

    def give_back(self, slot: AttemptSlot) -> None:
        """Free an attempt's slot, and give the next one its turn; a second time changes nothing."""
        if slot.ended:
            return
        slot.ended = True
        if slot.is_slow:
            self._slow -= 1
        else:
            self._quick -= 1
        self._next_turn()

    def sweep(self, now_seconds: float) -> None:
        """Look which attempts are slow by now, and let others begin in their slots."""
        self._attended_seconds, self._swept_at = self._attended(now_seconds), now_seconds
        slow_from = self._attended_seconds - SLOW_SECONDS
        while self._taken and (self._taken[0].ended or self._taken[0].began_seconds <= slow_from):
            slot = self._taken.popleft()
            if slot.ended:
                continue
            slot.is_slow = True
            self._quick -= 1
            self._slow += 1
            slot.on_slow()
            self._next_turn()

    def _attended(self, now_seconds: float) -> float:
        """Return for how long this process has had its turns."""
        return self._attended_seconds + min(now_seconds - self._swept_at, SWEEP_MAX_SECONDS)

    def _next_turn(self) -> None:
        while self._turns and self.has_room:
            self._turns.popleft()()
