"""The hop of a delivery's record: how often the delivery was redriven, and how many waits it has had since.

    hop = number of the redrive * 2^32 + waits

0 is the first record of a delivery. So the records of one redrive are never taken for those of another, and all that a
delivery goes through has one order.

>>> first_hop(3), redrive_of(first_hop(3)), redrive_of(first_hop(3) + 17), redrive_of(5)
(12884901888, 3, 3, 0)
"""

from __future__ import annotations

from typing import Final

WAITS_BITS: Final = 32


def first_hop(redrive: int) -> int:
    """Return the hop of the first record of a redrive's delivery; 0 for the number 0, which is none."""
    return redrive << WAITS_BITS


def redrive_of(hop: int) -> int:
    """Return the number of the redrive that a hop belongs to; 0 for a delivery that was not redriven."""
    return hop >> WAITS_BITS
