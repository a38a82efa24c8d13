"""`plant ingress` in an event loop whose steps are timed: `python -m tests.support.loop_steps REPORT ingress …`.

A step is one callback of the loop; its length is the processor time of the loop's own thread, which a busy machine does
not change. The process that is measured is none of the tests', so that no coverage slows it down. SIGUSR1 takes a step
of its own, to show that a long one would be found. At its end the process writes the report.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from asyncio.events import Handle
from pathlib import Path
from typing import Any

STEP_MAX_SECONDS = 0.05
NOTED_SECONDS = 0.005
"""Shorter steps are counted, and not noted one by one."""
OWN_STEP_SECONDS = 0.06
OWN_STEP = "take_a_long_step"


class Steps:
    """The steps of one loop."""

    def __init__(self) -> None:
        self.count = 0
        self.noted: list[dict[str, Any]] = []

    def measure(self) -> None:
        """Time every callback that a loop of asyncio runs from now on."""
        run = Handle._run  # type: ignore[attr-defined]  # private, and the one way to see each step

        def timed(handle: Any) -> None:
            callback, before = handle._callback, time.thread_time()
            run(handle)
            seconds = time.thread_time() - before
            self.count += 1
            if seconds > NOTED_SECONDS:
                self.noted.append({"at": time.monotonic(), "seconds": seconds, "callback": _named(callback)})

        Handle._run = timed  # type: ignore[attr-defined]

    def write(self, path: Path) -> None:
        """Write the report."""
        path.write_text(json.dumps({"count": self.count, "noted": self.noted}))


def _named(callback: Any) -> str:
    task = getattr(callback, "__self__", None)
    return repr(task.get_coro()) if isinstance(task, asyncio.Task) else repr(callback)


def take_a_long_step() -> None:
    """Work for longer than a step may take."""
    until = time.thread_time() + OWN_STEP_SECONDS
    while time.thread_time() < until:
        pass


def main() -> None:
    """Run `plant` with the rest of the arguments."""
    import uvloop

    from operations.cli.main import main as plant

    report, steps = Path(sys.argv[1]), Steps()

    def run(main: Any) -> Any:
        steps.measure()

        async def running() -> Any:
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, take_a_long_step)
            return await main

        try:
            return asyncio.run(running())
        finally:
            steps.write(report)

    uvloop.run = run  # type: ignore[assignment]  # its handles can't be timed
    sys.argv = ["plant", *sys.argv[2:]]
    plant()


if __name__ == "__main__":
    main()
