"""What peers may have done in one step of the event loop before any of their requests was signed.

An event loop serves all sockets that are ready before it comes to the first one again: thousands of strangers would
make a step of seconds, and a webhook needs several steps. So a connection is accepted in a turn, and one without a
signed request reads once and then waits for its next. A step has a few turns, which addresses take one after the
other: who opens many connections waits for his own, and who sends much skips turns. Bytes that wait stay in the
kernel.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.server import ServerState

TURNS_IN_STEP: Final = 4
"""Each reads 256 KB at most, so that a step has some 3 ms of this work."""
BYTES_IN_TURN: Final = 32 * 1024
"""An address skips a turn for each of these that one has read."""
SKIPPED_IN_STEP: Final = 1_000
DEBTORS_MAX: Final = 10_000

Act = Callable[[], bool]
"""What is done in a turn; returns False where there was nothing left to do, which costs no turn."""


class Turns:
    """The turns of a server's connections. Not thread-safe: one an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, turns_in_step: int = TURNS_IN_STEP) -> None:
        self._loop = loop
        self._turns_in_step = turns_in_step
        self._waiting: OrderedDict[str, deque[Act]] = OrderedDict()
        self._to_skip: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def take(self, address: str, act: Act, *, before: bool = False) -> None:
        """Call `act` in a later step, after those of the address that wait already, or before them."""
        if not self._waiting:
            self._loop.call_soon(self._step)
        acts = self._waiting.setdefault(address, deque())
        if before:
            acts.appendleft(act)
        else:
            acts.append(act)

    def charge(self, address: str, size_bytes: int) -> None:
        """Let an address skip turns for bytes that it has sent, while others wait."""
        skips = size_bytes // BYTES_IN_TURN
        if skips:
            if len(self._to_skip) >= DEBTORS_MAX:
                self._to_skip.clear()
            self._to_skip[address] = self._to_skip.get(address, 0) + skips

    def _step(self) -> None:
        left, skips_left = self._turns_in_step, SKIPPED_IN_STEP
        while self._waiting and left > 0:
            address, acts = next(iter(self._waiting.items()))
            if skips_left > 0 and self._skips(address):
                skips_left -= 1
                self._waiting.move_to_end(address)
                continue
            act = acts.popleft()
            if acts:
                self._waiting.move_to_end(address)
            else:
                del self._waiting[address]
            left -= act()
        if self._waiting:
            self._loop.call_soon(self._step)
        else:
            self._to_skip.clear()

    def _skips(self, address: str) -> bool:
        """Return whether the address has a turn to skip, which this one is then."""
        turns = self._to_skip.get(address, 0)
        if turns > 1:
            self._to_skip[address] = turns - 1
        else:
            self._to_skip.pop(address, None)
        return turns > 0


def turns_of(state: ServerState, loop: asyncio.AbstractEventLoop, turns_in_step: int = TURNS_IN_STEP) -> Turns:
    """Return the turns of a server's connections, made at the first call."""
    known = vars(state)
    if "turns" not in known:
        known["turns"] = Turns(loop, turns_in_step)
    turns: Turns = known["turns"]
    return turns


class ReadingInTurns(FlowControl):
    """uvicorn's flow control, which begins to read again when it is the connection's turn."""

    def __init__(self, transport: asyncio.Transport, turns: Turns, address: str) -> None:
        super().__init__(transport)
        self._turns = turns
        self._address = address
        self._waits = False
        self._under_way = False
        self.at_once = False
        """Set for a peer that has signed a request: it waits for no turn."""

    def wait_for_a_turn(self, size_bytes: int, *, under_way: bool) -> None:
        """Read nothing until reading is resumed; the peer's address is charged for what it has sent.

        A body that is `under_way` comes before what its address begins: it holds memory until it is whole.
        """
        self._turns.charge(self._address, size_bytes)
        self._under_way = under_way
        self.pause_reading()

    def resume_reading(self) -> None:
        if self.at_once:
            super().resume_reading()
        elif self.read_paused and not self._waits:
            self._waits = True
            self._turns.take(self._address, self._resume, before=self._under_way)

    def _resume(self) -> bool:
        self._waits = False
        if self._transport.is_closing():
            return False
        super().resume_reading()
        return True
