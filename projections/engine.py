"""The engine: one partition's batches into the event log, the audit chain and the read models, exactly once.

Before anything is decoded, a batch's token and offsets are compared with what this owner has committed itself, and
what is applied already is cut off. Then it is one transaction:

    lock the fencing token, and compare the log's end
    look up the event ids that the log may hold already
    let events wait whose entity is parked, and do what control records say (projections/partition_parking.py)
    COPY the records to their range of the log; COPY the decoded events to the staging tables
    run each read model's apply.sql
    advance the checkpoint

A small batch is the same in one round trip, its rows written out in the statements. Checkpoints and chain head are read
when the partition is acquired; after that nobody else can move them.

The repeat check costs no look-up while there are no repeats: the owner knows which event ids the log holds, exactly or
with false positives, and asks Postgres about those alone (`projections/log_ranges.py`, docs/decisions/0025).

A read model that is refused does not hold up the others: the batch is written without it, and it stays where it was
(projections/stopped_models.py). No record's disposition depends on a read model.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from database.errors import DatabaseUnreachable
from projections import builds, checkpoints, stored_builds
from projections.checkpoints import PROJECTOR, Fence
from projections.errors import ModelStatementEnded
from projections.following_models import FollowingModels
from projections.id_budget import IdBudget
from projections.inline_folds import InlineFolds, InlineRows
from projections.lagging_models import LaggingModels
from projections.log_ranges import LogRanges
from projections.log_writer import LogWriter
from projections.partition_parking import DEFAULT_LIMITS, ParkingLimits, PartitionParking
from projections.prepared import PreparedBatch, prepare
from projections.read_model import ReadModel
from projections.session import DataRefused, Session, StatementEnded
from projections.staged_changes import changes_of
from projections.staging import Staging
from projections.stopped_models import NOT_THE_MODELS, fold_apart
from runtime import metrics
from runtime.log_budget import LogBudget
from runtime.logging import get_logger
from streams.batch import EventBatch
from streams.control_search import NamedPoison
from streams.errors import LogRefused, OwnershipLost, ReadModelsChanged, SchemaNewer
from streams.ownership import Acquired
from streams.watermarks import Watermarks

log = get_logger(__name__)

INLINE_RECORDS_MAX = 100
"""Batches up to this size go to Postgres as text; past it COPY is cheaper (measured)."""

INLINE_BYTES_MAX = 1024 * 1024
"""The same in bytes of values and headers, which text doubles."""

LOOK_EVERY_SECONDS = 2.0
"""How often a worker looks which builds there are to feed, and asks again for views that readers hold."""

LOG_LINES_PER_SECOND = 2
"""Lines at the usual level of one partition: a flood of repeats in small batches would write hundreds."""


class PartitionProjector:
    """The Postgres side of one partition (`streams.ownership.PartitionWriter`). One thread calls it."""

    def __init__(
        self, url: str, topic: str, partition: int, models: Sequence[ReadModel], id_budget: IdBudget | None = None,
        *, parking_limits: ParkingLimits = DEFAULT_LIMITS, lagging: LaggingModels | None = None,
    ) -> None:  # fmt: skip
        """`models` are those of the worker's release; what is fed is what the database keeps (`stored_builds`).

        `id_budget` bounds what all partitions of a worker know of event ids, `lagging` feeds the models that lag on any
        of them; by default this one has its own of both, and its lagging models are fed when they are asked to.
        """
        self.topic = topic
        self.partition = partition
        self._url = url
        self._session: Session | None = None
        self._fence: Fence | None = None
        self._release = models
        self._staging = Staging(())
        self._inline_folds = InlineFolds(self._staging)
        self._log = LogWriter(topic, partition)
        self.lagging = lagging or LaggingModels(url, models)
        self._models = FollowingModels(topic, partition, models, self.lagging)
        self._ranges = LogRanges(topic, partition, id_budget or IdBudget())
        self._parking = PartitionParking(topic, partition, parking_limits)
        self._newer: SchemaNewer | None = None
        self._skipped: dict[int, str] = {}
        self._token: int | None = None
        self._interrupted = threading.Event()
        self._log_budget = LogBudget(LOG_LINES_PER_SECOND)
        self._unpublished: list[ReadModel] = []
        self._look_at = 0.0

    def acquire(self, watermarks: Watermarks, interrupted: threading.Event | None = None) -> Acquired:
        """Open a fresh connection, fence off former owners, and find out which read models follow the log."""
        self.close()
        self._token = None  # the former one is out of date where another worker has owned the partition meanwhile
        self._interrupted = interrupted or threading.Event()
        with self._closing_on_error():
            session = self._session = Session(self._url)
            fence = self._fence = checkpoints.acquire(
                session, PROJECTOR, self.topic, self.partition, watermarks.partition_count,
                watermarks.leadership.topic_id,
            )  # fmt: skip
            self._token = fence.token
            checkpoints.terminate_feeder(session, self.topic, self.partition, self.lagging.backend_pid)
            log_end = checkpoints.log_end(session, self.topic, self.partition, fence)
            self._models.feed(stored_builds.load_builds(session, self._release))
            self._staging = Staging(self._models.usable)
            self._inline_folds = InlineFolds(self._staging)
            self._staging.open(session)
            self._log.open(session)
            self._ranges.open(session, log_end.next_offset, self._interrupted)
            self._parking.open(session, log_end.next_offset)
            self._models.open(session, self._staging, fence)
            self._publish(caught_up=True)
        return Acquired(fence.token, log_end)

    def project(self, batch: EventBatch) -> int:
        """Apply a batch, advance the checkpoints and return the next offset.

        Raises OwnershipLost (the fence is gone, or records before this batch are missing), DatabaseUnreachable,
        ReadModelsChanged, or a named stop. After any of them the connection is closed and the partition has to be
        acquired again.
        """
        started = time.perf_counter()
        self._newer = None
        with self._closing_on_error():
            dispositions = self._project(batch)
            self._ranges.load_more(self._require_session())
            self._take_back()
            if started >= self._look_at:
                self._look()
        seconds, next_offset = time.perf_counter() - started, self._require_fence().next_offset
        metrics.WORKER_BATCH_SECONDS.observe(seconds)
        metrics.WORKER_BATCH_RECORDS.observe(len(batch))
        self._log_batch(dispositions, next_offset, seconds)
        if self._skipped and next_offset > max(self._skipped):
            self._skipped = {}
        if self._newer is not None:
            self.close()
            raise self._newer
        return next_offset

    def _log_batch(self, dispositions: Mapping[str, int], next_offset: int, seconds: float) -> None:
        """Log a line: at the usual level where one needs a look, for repeats in small batches come by the hundred."""
        unusual = not dispositions.keys() <= {"applied"}
        left_out = self._log_budget.consume(time.monotonic()) if unusual else 0
        (log.info if unusual and left_out is not None else log.debug)(
            "batch.projected",
            topic=self.topic,
            partition=self.partition,
            next_offset=next_offset,
            duration_ms=round(seconds * 1000, 3),
            **({"left_out": left_out} if left_out else {}),
            **dispositions,
        )

    def skip(self, offset: int, reason: str) -> None:
        """Log the record at an offset as poison, for this reason, if its schema is not known when it comes again."""
        self._skipped = {offset: reason}

    def make_room(self, named: Collection[NamedPoison]) -> None:
        """Keep more of parked entities for a while, since control records further on name these poison records."""
        self._parking.make_room(named)

    def idle(self) -> None:
        """Read what is left of known event ids, let readers see builds that had to wait, and look for other builds.

        Raises DatabaseUnreachable, RepeatApplied and ReadModelsChanged.
        """
        if self._session is None:
            return
        with self._closing_on_error():
            self._ranges.load_more(self._session)
            self._take_back()
            if time.perf_counter() >= self._look_at:
                self._look()

    def note_stop(self, reason: str) -> None:
        """Write down why the partition is stopped, where `plant status` finds it; acquiring it clears that."""
        with contextlib.suppress(DatabaseUnreachable), contextlib.closing(Session(self._url)) as session:
            checkpoints.note_stop(session, PROJECTOR, self.topic, self.partition, self._token, reason)

    def close(self) -> None:
        """Drop the connection; the server rolls back what was open."""
        if self._session is not None:
            self._session.close()
        self._session = self._fence = None
        self._models.close()
        self._parking.close()

    def forget(self) -> None:
        """Drop the connection and what is known of event ids: the partition has moved to another worker."""
        self.close()
        self._models.forget()
        self._ranges.forget()

    def _publish(self, *, caught_up: bool) -> None:
        """Let readers see the release's builds that have caught up on every partition; ask again later if need be."""
        own = {model.key for model in self._release}
        models = [each for each in self._models.following if each.key in own] if caught_up else self._unpublished
        self._unpublished = builds.publish_all(self._require_session(), models, caught_up=caught_up)
        self._look_at = time.perf_counter() + LOOK_EVERY_SECONDS

    def _take_back(self) -> None:
        """Let models follow the log again that have been brought near its end; readers see what is whole by that."""
        near = self._models.near()
        token = self._require_fence().token
        if near and self._models.rejoin(self._require_session(), self._staging, token, near):
            self._publish(caught_up=True)

    def _look(self) -> None:
        """Publish what had to wait, and feed the builds that there are now. Raises ReadModelsChanged for a new one.

        And where the functions that one calls have changed.
        """
        session = self._require_session()
        if self._unpublished:
            self._publish(caught_up=False)
        self._look_at = time.perf_counter() + LOOK_EVERY_SECONDS
        self._models.require_functions(session)
        keys = stored_builds.fed_keys(session, self._release)
        if new := keys - self._models.keys:
            raise ReadModelsChanged(why=f"{', '.join(sorted(new))} is to be fed from now on.")
        if left := self._models.keys - keys:
            self._models.drop(session, self._require_fence().token, left)

    @contextlib.contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except DataRefused as error:
            self._models.forget_ended()
            self.close()
            raise LogRefused(why=str(error)) from error
        except BaseException as error:
            if not isinstance(error, ModelStatementEnded):
                self._models.forget_ended()
            self.close()
            raise

    def _project(self, batch: EventBatch) -> Counter[str]:
        """Apply what is new of a batch, range by range; returns how many records have each disposition."""
        if self._interrupted.is_set():
            raise OwnershipLost(why="The partition was given up before its batch was applied.")
        remainder = checkpoints.remainder(batch, self._require_fence())
        if remainder is None:
            return Counter()
        first, rest = self._ranges.split(remainder)
        dispositions = self._project_range(first)
        return dispositions + self._project(rest) if rest is not None and self._newer is None else dispositions

    def _project_range(self, batch: EventBatch) -> Counter[str]:
        """Apply records of one range of the log."""
        try:
            prepared = prepare(batch, self._skipped)
            if prepared.batch.offsets:  # outside of `_write`: what is wrong with a range is no model's refusal
                self._ranges.advance_to(self._require_session(), prepared.batch.offsets[0])
            return self._write(prepared)
        except SchemaNewer as newer:
            if newer.offset not in batch.offsets:  # an event that waits, and is to be released
                raise
            self._newer, before = newer, batch.offsets.index(newer.offset)
            return self._project_range(batch.between(0, before)) if before else Counter()

    def _write(self, prepared: PreparedBatch) -> Counter[str]:
        """Run the transaction; again model by model where one was refused.

        So it is with a single record where Postgres ended some statement, and from then on at once.
        """
        alone = len(prepared.batch) == 1 and bool(self._models.following)
        apart = alone and self._models.suspected
        try:
            return self._transaction(prepared, apart=apart)
        except SchemaNewer:
            self._require_session().rollback()
            raise
        except Exception as error:  # a defect in making a model's rows is the model's too
            ended = isinstance(error, StatementEnded) and alone
            if apart or (isinstance(error, NOT_THE_MODELS) and not ended):
                raise
            self._require_session().rollback()
            self._inline_folds.prepare_again(self._require_session())
            if not self._models.following:
                raise
        return self._transaction(prepared, apart=True)

    def _transaction(self, prepared: PreparedBatch, *, apart: bool = False) -> Counter[str]:
        """Write log, chain and read models; each model by itself with `apart`, and without those that are refused."""
        session, fence = self._require_session(), self._require_fence()
        began_seconds = time.monotonic()
        lock = checkpoints.lock_statement(PROJECTOR, self.topic, self.partition, fence.token, fence.next_offset)
        session.later("BEGIN", lock)
        hashes, candidates = self._ranges.candidates(prepared.rows["event_id"].drop_nulls())
        seen = self._ranges.look_up(session, candidates)
        prepared = self._parking.judge(session, prepared.with_dispositions(seen), seen)
        inline = goes_inline(prepared)
        head = self._log.write(session, prepared, fence.head, self._ranges.table, inline=inline)
        refused: dict[str, Exception] = {}
        if apart:
            refused = fold_apart(session, self._staging, self._models.following, prepared, began_seconds=began_seconds)
            self._models.count_ended(refused)
        stopped = self._models.note_stopped(session, refused)
        folds = [] if apart else self._folds(session, prepared, inline)
        next_offset = prepared.batch.next_offset
        dispositions = Counter(prepared.rows["disposition"].to_list())
        advance = checkpoints.advance_statement(
            PROJECTOR, self.topic, self.partition, next_offset, all_applied=dispositions.keys() <= {"applied"}
        )
        session.script(*folds, advance, "COMMIT")
        self._fence = Fence(fence.token, next_offset, head)
        self._log.note_committed(prepared)
        self._parking.commit()
        self._ranges.add(*prepared.first_occurrences(hashes), next_offset)
        self._models.forget_ended()
        self._models.leave_out(stopped, fence.token)
        for disposition, count in dispositions.items():
            metrics.WORKER_RECORDS.labels(self.topic, disposition).inc(count)
        return dispositions

    def _folds(self, session: Session, prepared: PreparedBatch, inline: bool) -> list[str]:
        """Return the statements of the read models that have something to fold, their rows staged or inline."""
        if inline:
            rows = InlineRows(
                self._staging, prepared.events, prepared.staged_offsets, partition=self.partition,
                effective_offsets=prepared.effective_offsets, changes=changes_of(session, prepared),
            )  # fmt: skip
            return self._inline_folds.statements(self._models.following, rows)
        frames = self._staging.frames(
            prepared.events, prepared.staged_offsets, self._models.reads, partition=self.partition,
            effective_offsets=prepared.effective_offsets, changes=changes_of(session, prepared),
        )  # fmt: skip
        self._staging.fill(session, frames)
        return [fold for model in self._models.following for fold in model.folds(frames.keys())]

    def _require_fence(self) -> Fence:
        if self._fence is None:
            raise DatabaseUnreachable(why="The connection was closed.")
        return self._fence

    def _require_session(self) -> Session:
        if self._session is None:
            raise DatabaseUnreachable(why="The connection was closed.")
        return self._session


def goes_inline(prepared: PreparedBatch) -> bool:
    """Return whether the batch is small enough to go to Postgres as text."""
    values, headers = prepared.batch.values, prepared.batch.headers
    if len(values) + len(prepared.released) > INLINE_RECORDS_MAX:
        return False
    values_bytes = sum(len(value) for value in values if value is not None) + prepared.released_bytes
    return values_bytes + sum(map(len, headers)) <= INLINE_BYTES_MAX
