"""Broken requests by the million, through all that reads a request before its event is published."""

from __future__ import annotations

import time
from typing import Final

from tests.support.fuzzing import fuzz

REQUESTS: Final = 1_000_000


def run(count: int = REQUESTS, seed: int = 1) -> list[dict[str, object]]:
    """Count those read, and refused with which status; requests a second of one core."""
    started = time.process_time()
    found = fuzz(count, seed)
    seconds = time.process_time() - started
    return [{"requests": count, "seed": seed, **dict(sorted(found.items())), "per_second": round(count / seconds)}]
