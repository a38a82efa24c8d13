"""The writing of a round: what came of deliveries into Postgres, in one transaction under the partition's fence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from deliveries.deliverer import streak_rows, throttle_rows, wait_rows
from deliveries.deliverer.attempt_records import EndedDelivery, wait_row_of
from deliveries.deliverer.endpoint_streaks import NO_CHANGES, StreakChanges
from deliveries.deliverer.entity_order import EntityOfEndpoint
from deliveries.deliverer.source_marks import MarkedSource, SourceMark
from deliveries.deliverer.wait_rows import NO_ROWS, DeliveryInRow
from deliveries.delivery_fence import DeliveryFence, TopicOffsets
from projections.session import Session


class DeliveryRound(msgspec.Struct, frozen=True, kw_only=True):
    """What a round writes, and what it asks for."""

    ended: Sequence[EndedDelivery] = ()
    offsets: Mapping[str, TopicOffsets] = {}
    marks: Mapping[MarkedSource, SourceMark] = {}
    released: Collection[EntityOfEndpoint] = ()
    """Entities of which the first delivery that waits in a row may be due now."""
    gone: Mapping[bytes, str] = {}
    """Endpoints that are to be disabled, and why."""
    unverified: Collection[bytes] = ()
    """Deliveries whose rows are asked for."""
    due_max: int = 0
    """How many deliveries that are due are asked for; 0 asks for none."""
    taken: Collection[bytes] = frozenset()
    """Deliveries in memory whose records are in rows; none where nothing is asked."""
    aside: Collection[bytes] = frozenset()
    """Endpoints whose deliveries are left out of what is due."""
    wanted: Mapping[bytes, int] = {}
    """Endpoints whose deliveries are asked for beside what is due, and how many of each."""
    probed: Collection[bytes] = frozenset()
    """Those of them of which one delivery is to tell whether they are well."""
    streaks: StreakChanges = NO_CHANGES

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write and nothing to ask."""
        return not (
            self.ended
            or self.offsets
            or self.marks
            or self.released
            or self.gone
            or self.unverified
            or self.due_max
            or self.wanted
            or self.streaks
        )


class RoundAnswer(NamedTuple):
    """What Postgres says after a round."""

    hops: Mapping[bytes, int]
    """Of the deliveries that were asked for and wait."""
    due: Sequence[DeliveryInRow]
    """Deliveries whose records are in rows, and due."""
    next_due_at: datetime | None
    """When a delivery in a row is due that is not yet; None where none waits for a time, or nothing was asked."""
    with_rows: Collection[EntityOfEndpoint]
    """Those of the released entities that have deliveries in rows still."""
    more_due: bool = False
    """Whether as many were read of what is due as were asked for, so that there may be more."""
    with_more: Collection[bytes] = ()
    """Those of the wanted endpoints of which as many were read as were asked for: they may have more."""
    without_rows: Collection[bytes] = ()
    """Those of the wanted endpoints of which nothing waits here, but for what is under way."""


class RoundWriter:
    """A session that holds the fence of a partition, and the thread that its calls run in."""

    def __init__(self, fence: DeliveryFence, session: Session, thread: ThreadPoolExecutor, partition: int) -> None:
        self.fence: Final = fence
        self._session = session
        self._thread = thread
        self._partition = partition

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call something of the session's in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def write(self, work: DeliveryRound) -> RoundAnswer:
        """Write a round, all or nothing. Raises OwnershipLost, DatabaseUnreachable."""
        answer: RoundAnswer = await self.call(self._write, work)
        return answer

    def _write(self, work: DeliveryRound) -> RoundAnswer:
        session = self._session
        if statements := self._statements(work):
            session.script("BEGIN", self.fence.lock_statement, *statements, "COMMIT")
        hops = wait_rows.find_hops(session, work.unverified)
        with_rows = wait_rows.find_held(session, self._partition).intersection(work.released) if work.released else ()
        due = wanted = NO_ROWS
        if work.due_max:
            due = wait_rows.find_due(session, self._partition, work.taken, work.aside, work.due_max)
        if work.wanted:
            wanted = wait_rows.find_wanted(session, self._partition, work.taken, work.wanted, work.probed)
        times = [each.next_due_at for each in (due, wanted) if each.next_due_at is not None]
        return RoundAnswer(
            hops=hops,
            due=[*due.due, *wanted.due],
            next_due_at=min(times, default=None),
            with_rows=with_rows,
            more_due=0 < work.due_max <= len(due.due),
            with_more=wanted.with_more,
            without_rows=wanted.without_rows,
        )

    def _statements(self, work: DeliveryRound) -> list[str]:
        rows = [row for each in work.ended if (row := wait_row_of(each, self.fence.token)) is not None]
        waiting = {row.delivery_id for row in rows}
        over = [
            each.delivery.delivery_id
            for each in work.ended
            if each.delivery.hop > 0 and each.delivery.delivery_id not in waiting
        ]
        return [
            *wait_rows.wait_statements(self._partition, rows, over),
            *(wait_rows.release_statement(self._partition, held) for held in sorted(work.released)),
            *(wait_rows.disable_statement(endpoint_id, why) for endpoint_id, why in sorted(work.gone.items())),
            *streak_rows.streak_statements(self._partition, work.streaks),
            *throttle_rows.throttle_statements(self._partition, work.ended),
            *(self.fence.advance_statement(topic, each) for topic, each in sorted(work.offsets.items())),
            *wait_rows.mark_statements(self._partition, work.marks),
        ]
