"""Deliveries of a partition from the moment on at which they may be attempted: in order, to their end.

Each is let in by who has judged that its record is no copy (`partition_intake.py`). What came of it is kept for the
next round (`partition_rounds.py`); until that is written down the delivery counts as active.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from itertools import count
from typing import Any, Final

from deliveries.deliverer.attempt_lines import AttemptLines
from deliveries.deliverer.attempt_records import EndedDelivery, Postponed
from deliveries.deliverer.delivery import Delivery
from deliveries.deliverer.delivery_process import DeliveryProcess
from deliveries.deliverer.endpoint_queues import EndpointQueues
from deliveries.deliverer.entity_order import EntityOfEndpoint, EntityOrder, held_by
from deliveries.deliverer.recorded_attempts import RecordedAttempts, end_of
from deliveries.schedule import RetryAt


class PartitionDeliveries:
    """The deliveries of a partition that are under way or wait in memory, and those that ended since the last round."""

    def __init__(
        self, process: DeliveryProcess, held: set[EntityOfEndpoint], recorded: RecordedAttempts, log: Any
    ) -> None:
        """Begin with the entities of which deliveries wait in rows, and with what Kafka knows of attempts."""
        self.active: Final[set[bytes]] = set()
        """Deliveries that are under way, or whose end is not written down."""
        self.taken: Final[set[bytes]] = set()
        """Those of them that are in rows, too."""
        self.left_in_rows: dict[bytes, None] = {}
        """Endpoints whose rows are not looked for as they fall due, the longest first: an ordered set."""
        self.ended: list[EndedDelivery] = []
        """What the next round writes down, in the order in which it ended."""
        self.recorded: Final = recorded
        self.queues: Final = EndpointQueues(process, self._note_end, self._put_back)
        self.work: Final = asyncio.Event()
        """Set where there is something for a round."""
        self.due_changed: Final = asyncio.Event()
        """Set where another delivery waits in memory."""
        self._process = process
        self._order = EntityOrder(held)
        self._released: set[EntityOfEndpoint] = set()
        self._timers: list[tuple[datetime, int, Delivery]] = []
        self._sequence = count()
        self._lines = AttemptLines(log, process.clock)

    @property
    def waiting(self) -> int:
        """How many deliveries wait in memory for their time."""
        return len(self._timers)

    def begin(self, delivery: Delivery) -> None:
        """Let a delivery be attempted that is new, unless an earlier one of its entity has to be done before."""
        self.active.add(delivery.delivery_id)
        if self._note_recorded(delivery):
            return
        if not self._process.endpoints.is_ordered(delivery.endpoint_id):
            self.queues.enqueue(delivery)
            return
        match self._order.enter(delivery):
            case "go":
                self.queues.enqueue(delivery)
            case "row":
                self._keep_behind(delivery)
            case "behind":
                pass

    def begin_at_due_time(self, delivery: Delivery) -> None:
        """Let a delivery of a retry topic wait for its time."""
        self.active.add(delivery.delivery_id)
        if not self._note_recorded(delivery):
            due_at = delivery.due_at or datetime.min.replace(tzinfo=UTC)
            heapq.heappush(self._timers, (due_at, next(self._sequence), delivery))
            self.due_changed.set()

    def begin_again(self, delivery: Delivery) -> None:
        """Let a delivery be attempted that has waited in a row."""
        self.active.add(delivery.delivery_id)
        self.taken.add(delivery.delivery_id)
        if not self._note_recorded(delivery):
            self._resume(delivery)

    def resume_due(self, now: datetime) -> float | None:
        """Let those go whose time has come; return the seconds until that of the next one, if one waits."""
        while self._timers and self._timers[0][0] <= now:
            self._resume(heapq.heappop(self._timers)[2])
        return (self._timers[0][0] - now).total_seconds() if self._timers else None

    def take_ended(self) -> Sequence[EndedDelivery]:
        """Return what ended since the last round."""
        ended, self.ended = self.ended, []
        return ended

    def take_released(self, ended: Sequence[EndedDelivery]) -> set[EntityOfEndpoint]:
        """Return the entities of which the first delivery that waits in a row may be due: none of them is under way."""
        released, self._released = self._released, set()
        released |= {
            held_by(each.delivery) for each in ended if isinstance(each.end, Postponed) and each.end.until is None
        }
        return {held for held in released if not self._order.is_going(held)}

    def note_written(
        self, ended: Sequence[EndedDelivery], released: Collection[EntityOfEndpoint],
        with_rows: Collection[EntityOfEndpoint],
    ) -> None:  # fmt: skip
        """Note that a round was written; of the released entities only `with_rows` have deliveries in rows still."""
        kept = set(with_rows) | {held_by(each.delivery) for each in self.ended if each.ordered}
        self._order.note_empty(set(released) - kept)
        written = {each.delivery.delivery_id for each in ended}
        self.active.difference_update(written)
        self.taken.difference_update(written)
        self.queues.note_written(sum(each.attempted for each in ended))

    def _note_recorded(self, delivery: Delivery) -> bool:
        """Take what came of a delivery from the record of its attempt, if there is one; return whether there is.

        Where an entity's order counts the attempt is made again: what comes behind it has to go through its end.
        """
        if self._process.endpoints.is_ordered(delivery.endpoint_id):
            return False
        recorded = self.recorded.take(delivery)
        if recorded is None:
            return False
        if recorded.outcome == "gone":
            self.queues.note_gone(delivery.endpoint_id)
        self._keep(
            EndedDelivery(delivery=delivery, end=end_of(recorded), began_at=recorded.attempted_at, recorded=True)
        )
        return True

    def _resume(self, delivery: Delivery) -> None:
        if not self._process.endpoints.is_ordered(delivery.endpoint_id) or self._order.resume(delivery):
            self.queues.enqueue(delivery)

    def _keep_behind(self, delivery: Delivery) -> None:
        """Let a delivery wait in Postgres behind another one of its entity."""
        behind = Postponed(None, "An earlier event of its entity waits.")
        self._keep(EndedDelivery(delivery=delivery, end=behind, began_at=self._process.clock.now(), ordered=True))

    def _put_back(self, delivery: Delivery) -> None:
        """Forget a delivery whose row says all of it: it is read again once its endpoint gets attempts."""
        self.active.discard(delivery.delivery_id)
        self.taken.discard(delivery.delivery_id)
        self.left_in_rows[delivery.endpoint_id] = None

    def _note_end(self, ended: EndedDelivery) -> None:
        """Keep what came of a delivery for the next round; let the next one of its entity go."""
        self._keep(ended)
        self._lines.write(ended)
        if not ended.ordered:
            return
        if isinstance(ended.end, Postponed | RetryAt) or ended.blocks:
            for behind in self._order.wait(ended.delivery):
                self._keep_behind(behind)
            return
        following = self._order.end(ended.delivery)
        if following is not None:
            self.queues.enqueue(following)
        elif self._order.has_rows(held := held_by(ended.delivery)):
            self._released.add(held)

    def _keep(self, ended: EndedDelivery) -> None:
        self.ended.append(ended)
        self.work.set()
