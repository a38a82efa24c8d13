"""The one wait of the tests: for a condition, with a deadline that a busy machine does not reach."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Final

DEADLINE_SECONDS: Final = 300.0
"""A deadline ends a test that hangs. It judges no speed: a busy machine makes a test slow, never red."""
POLL_SECONDS: Final = 0.02
SHARE_OF_ASKING: Final = 0.1
"""What a condition may take of the time that is waited; one that connects first would else keep a core busy."""
PAUSE_SECONDS_MAX: Final = 0.5

What = str | Callable[[], str]


def wait_until(condition: Callable[[], object], what: What, seconds: float = DEADLINE_SECONDS) -> float:
    """Return once the condition is true, with the seconds that took.

    Raises TimeoutError that names what was waited for and the value that the condition had last; `what` may be a
    function, which is called then.
    """
    started = asked = time.monotonic()
    while not (seen := condition()):
        if time.monotonic() - started > seconds:
            raise _late(what, seen, seconds)
        time.sleep(_pause(asked))
        asked = time.monotonic()
    return time.monotonic() - started


async def wait_until_async(
    condition: Callable[[], Awaitable[object] | object], what: What, seconds: float = DEADLINE_SECONDS
) -> float:
    """Do the same in an event loop, which goes on meanwhile; the condition may be a coroutine function."""
    started = time.monotonic()
    while True:
        asked = time.monotonic()
        seen = condition()
        if inspect.isawaitable(seen):
            seen = await seen
        if seen:
            return time.monotonic() - started
        if time.monotonic() - started > seconds:
            raise _late(what, seen, seconds)
        await asyncio.sleep(_pause(asked))


def _pause(asked: float) -> float:
    """Return how long to wait before the condition is asked again, by how long it took since `asked`."""
    took = time.monotonic() - asked
    return min(max(POLL_SECONDS, took * (1 / SHARE_OF_ASKING - 1)), PAUSE_SECONDS_MAX)


def _late(what: What, seen: object, seconds: float) -> TimeoutError:
    named = what if isinstance(what, str) else what()
    return TimeoutError(f"not within {seconds:g} s: {named}; seen last: {seen!r}")
