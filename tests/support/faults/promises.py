"""Times that the product promises after a fault: printed by every run, judged by `make faults` alone.

A machine with other work may miss them, and the tests hold nothing that depends on its pace.
"""

from __future__ import annotations

import os

JUDGE = "PLANT_FAULT_TIMES"
"""Set to 1 where nothing else runs."""


def hold_promise(what: str, took_seconds: float, promised_seconds: float) -> None:
    """Print how long something took; raise AssertionError where it is to be judged and took longer than promised."""
    print(f"{what}: {took_seconds:.2f} s, promised within {promised_seconds:g} s")
    if os.environ.get(JUDGE) == "1":
        assert took_seconds <= promised_seconds, f"{what}: {took_seconds:.2f} s, promised {promised_seconds:g} s"
