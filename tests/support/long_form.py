"""The two forms of tests that repeat: a short one in every run, and a long one in `make faults`.

Both show the same. The long form has more examples, kills and load, so it meets states that the short one seldom does.
"""

from __future__ import annotations

import os
from typing import Final, TypeVar

Size = TypeVar("Size")

ASKED: Final = "PLANT_FAULT_LONG"
"""Set to 1 by `make faults`."""


def sized(short: Size, long: Size) -> Size:
    """Return the value of the form that is run."""
    return long if os.environ.get(ASKED) == "1" else short
