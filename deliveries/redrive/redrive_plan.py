"""What an order would send, before it is given: counts, examples, and how long it takes. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal
from uuid import UUID

import msgspec

RATE_PER_SECOND: Final = 200
"""Most deliveries a second of an order that names no rate."""

LeftOut = Literal["inactive", "ordered", "unlogged"]

WHY_LEFT_OUT: Final[dict[LeftOut, str]] = {
    "inactive": "their endpoint takes no deliveries now",
    "ordered": "another order has them",
    "unlogged": "events of endpoints are not in the log",
}


class PlannedGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Deliveries of one endpoint, state and event type. `state` is None where none is recorded."""

    endpoint_id: UUID
    endpoint_state: str
    state: str | None
    type: str
    left_out: LeftOut | None
    deliveries: int


class RedrivePlan:
    """The groups of an order, and some of its deliveries."""

    def __init__(self, groups: Sequence[PlannedGroup], examples: Sequence[UUID]) -> None:
        self.groups: Final = [each for each in groups if each.left_out is None]
        self.examples: Final = tuple(examples)
        self.left_out: Final[Counter[LeftOut]] = Counter()
        for each in groups:
            if each.left_out is not None:
                self.left_out[each.left_out] += each.deliveries

    @property
    def deliveries(self) -> int:
        """How many deliveries are sent."""
        return sum(each.deliveries for each in self.groups)

    def seconds(self, rate_per_second: int) -> float:
        """Return how long that takes at least."""
        return self.deliveries / rate_per_second
