"""The recorder: writes what came of each attempt to Postgres, batch by batch, exactly once.

A batch is one transaction under the partition's fence: its rows are copied to a staging table, folded into the tables
of attempts and deliveries, and the checkpoint advances. A delivery that is in a batch several times is folded record by
record, in their order, so any division of the records into batches gives the same tables.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection, Iterator
from importlib import resources
from typing import Final

import msgspec

from database.errors import DatabaseUnreachable
from deliveries.delivery_fence import DeliveryFence, TopicOffsets
from deliveries.state.attempt_rows import (
    ATTEMPT_COLUMNS,
    COLUMNS,
    AttemptRows,
    attempt_rows,
    halves,
    known_part,
    new_deliveries,
)
from deliveries.state.retention import DeliveryRetention
from projections.checkpoints import remainder
from projections.session import DataRefused, Session
from runtime import metrics
from runtime.clock import SystemClock
from runtime.log_budget import LogBudget
from runtime.logging import get_logger
from runtime.settings import Settings
from schemas.errors import UnknownSchema
from streams.agents import WriterFactory
from streams.batch import EventBatch
from streams.control_search import NamedPoison
from streams.errors import OwnershipLost, PartitionStopped
from streams.log_end import record_digest, record_of
from streams.ownership import Acquired
from streams.watermarks import Watermarks

log = get_logger(__name__)

_RECORD: Final = resources.files(__package__).joinpath("record_attempts.sql").read_text("utf-8")
_STAGING: Final = "CREATE TEMPORARY TABLE staged_attempts ({}) ON COMMIT DELETE ROWS".format(
    ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
)

GATHER_SECONDS: Final = 1.0
"""How long attempts are left to gather on their topic after few of them: a batch of a few records takes half as long as
one of hundreds, and a fetch of one as long as one of thousands."""

RETAINING_PARTITION: Final = 0
"""The partition whose owner makes and drops the tables of days."""


class RecordedTo(msgspec.Struct, frozen=True):
    """The token of a partition's owner, and the offset that it records next."""

    token: int
    next_offset: int


class AttemptRecorder:
    """The Postgres side of one partition of attempts (`streams.ownership.PartitionWriter`). One thread calls it."""

    def __init__(self, url: str, topic: str, partition: int, retention: DeliveryRetention) -> None:
        """`url` is that of plant_deliverer."""
        self._url = url
        self._topic = topic
        self._partition = partition
        self._retention = retention
        self._session: Session | None = None
        self._fence: DeliveryFence | None = None
        self._recorded_to = RecordedTo(0, 0)
        self._interrupted = threading.Event()
        self._log = log.bind(topic=topic, partition=partition)
        self._log_budget = LogBudget()

    def acquire(self, watermarks: Watermarks, interrupted: threading.Event | None = None) -> Acquired:
        """Open a fresh connection, end the former owner's session, and read the checkpoint.

        A partition that was never recorded begins at the first record that the topic has kept.
        """
        self.close()
        self._interrupted = interrupted or threading.Event()
        with self._closing_on_error():
            self._session = session = Session(self._url)
            self._fence = fence = DeliveryFence(session, "recorder", self._partition)
            offsets = fence.open_topic(self._topic, watermarks)
            next_offset = offsets.next_offset or watermarks.low
            self._recorded_to = RecordedTo(fence.token, next_offset)
            session.script(_STAGING)
            self._keep()
        return Acquired(fence.token, msgspec.structs.replace(offsets, next_offset=next_offset).log_end)

    def project(self, batch: EventBatch) -> int:
        """Record a batch and return the next offset.

        Raises OwnershipLost, DatabaseUnreachable, or SchemaNewer once the records before it are recorded. After any of
        them the partition has to be acquired again.
        """
        if self._interrupted.is_set():
            raise OwnershipLost(why="The partition was given up before its batch was recorded.")
        with self._closing_on_error():
            rest = remainder(batch, self._recorded_to)
            if rest is not None:
                self._record(rest)
            self._keep()
        return self._recorded_to.next_offset

    def skip(self, offset: int, reason: str) -> None:
        """Do nothing: no control record stands on a topic of attempts."""

    def make_room(self, named: Collection[NamedPoison]) -> None:
        """Do nothing: nothing is parked on a topic of attempts."""

    def idle(self) -> None:
        """Make and drop the tables of days, where that is due. Raises DatabaseUnreachable."""
        if self._session is not None:
            with self._closing_on_error():
                self._keep()

    def note_stop(self, reason: str) -> None:
        """Write down why the partition is stopped, while it is acquired; acquiring it again clears that."""
        if self._fence is not None:
            with contextlib.suppress(DatabaseUnreachable):
                self._fence.note_stop(reason)

    def close(self) -> None:
        """Drop the connection; the server rolls back what was open."""
        if self._session is not None:
            self._session.close()
        self._session = self._fence = None

    def forget(self) -> None:
        """Drop the connection: nothing else is kept."""
        self.close()

    def _record(self, batch: EventBatch) -> None:
        """Record a batch; one with values that Postgres refuses is divided until these are alone, and skipped."""
        try:
            rows = attempt_rows(batch)
        except UnknownSchema:
            known, newer = known_part(batch)
            if len(known):
                self._record(known)
            assert newer is not None
            raise newer from None
        try:
            try:
                self._write(batch, rows, staged=False)
            except DataRefused:  # most likely a delivery that is not new, or a copy
                self._open_session.rollback()
                self._write(batch, rows, staged=True)
        except DataRefused as error:
            self._open_session.rollback()
            self._divide(batch, error)
            return
        for each in rows.skipped:
            self._note_skipped(batch.offsets[each.row], each.reason)
        self._count(batch, rows)

    def _divide(self, batch: EventBatch, error: DataRefused) -> None:
        """Record both halves of a batch that was refused; a record by itself is skipped."""
        if len(batch) > 1:
            for half in halves(batch):
                self._record(half)
            return
        self._write(batch, None)
        self._note_skipped(batch.offsets[0], str(error))

    def _write(self, batch: EventBatch, rows: AttemptRows | None, *, staged: bool = False) -> None:
        """Run the transaction; without rows the checkpoint alone advances.

        Unless all rows are `staged`, first attempts are copied straight into the tables, which is refused where one of
        them, or its delivery, is there already.
        """
        session, fence = self._open_session, self._fence
        assert fence is not None, "a session has its fence"
        session.later("BEGIN", fence.lock_statement)
        statements: list[str] = []
        if rows is not None and rows.rounds:
            first, others = (rows.frame.clear(), rows.frame) if staged else rows.divided()
            if first.height:
                session.copy("webhook_attempts", first.select(ATTEMPT_COLUMNS))
                session.copy("webhook_deliveries", new_deliveries(first))
            if others.height:
                session.copy("staged_attempts", others, temporary=True)
                statements = [_RECORD.replace(":round", str(number)) for number in range(rows.rounds)]
        last = record_digest(record_of(batch, -1)) if len(batch) else None
        advance = fence.advance_statement(self._topic, TopicOffsets(batch.next_offset, last=last))
        session.script(*statements, advance, "COMMIT")
        self._recorded_to = RecordedTo(fence.token, batch.next_offset)

    def _count(self, batch: EventBatch, rows: AttemptRows) -> None:
        if rows.rounds:
            for outcome, count in rows.frame["outcome"].value_counts().iter_rows():
                metrics.RECORDER_ATTEMPTS.labels(outcome).inc(count)
        seconds = SystemClock().now().timestamp() - batch.timestamps_ms[-1] / 1000 if len(batch) else 0.0
        metrics.RECORDER_DELAY_SECONDS.observe(max(0.0, seconds))
        self._log.debug("attempts.recorded", count=len(batch), next_offset=batch.next_offset)

    def _note_skipped(self, offset: int, reason: str) -> None:
        metrics.RECORDER_SKIPPED.inc()
        if (left_out := self._log_budget.consume(time.monotonic())) is not None:
            self._log.warning("attempt.skipped", offset=offset, reason=reason, left_out=left_out)

    def _keep(self) -> None:
        if self._partition == RETAINING_PARTITION:
            self._retention.run_due(self._open_session, self._interrupted)

    @property
    def _open_session(self) -> Session:
        if self._session is None:
            raise DatabaseUnreachable(why="The connection was closed.")
        return self._session

    @contextlib.contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        """Close the connection after an error; after a named stop it is needed to note that."""
        try:
            yield
        except PartitionStopped:
            with contextlib.suppress(DatabaseUnreachable):
                self._open_session.rollback()
            raise
        except BaseException:
            self.close()
            raise


def build_recorder(settings: Settings) -> WriterFactory:
    """Return what makes the recorder of each partition of attempts, for `streams.agents.Worker`."""
    url = settings.database_address("deliverer")
    retention = DeliveryRetention(settings.deliveries_keep_days)

    def writer_for(topic: str, partition: int) -> AttemptRecorder:
        return AttemptRecorder(url, topic, partition, retention)

    return writer_for
