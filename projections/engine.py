"""The engine: one partition's batches into the event log, the audit chain and the read models, exactly once.

A batch is one transaction:

    lock the fencing token, read checkpoints and chain head
    COPY event_stream and audit_log; COPY the decoded events to the staging tables
    run each read model's apply.sql
    advance the checkpoints

The repeat check costs no look-up while there are no repeats: every record goes in as `applied`, and the unique index
on applied event ids refuses a batch that holds a repeat. That batch is then rolled back and looked up first, as are
the next ones for a while (docs/decisions/0002).
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import structlog

from audit.chain import extend
from projections import checkpoints
from projections.checkpoints import LOG, Fence
from projections.fold import catch_up
from projections.prepared import PreparedBatch, prepare
from projections.read_model import ReadModel
from projections.session import DataRefused, Session, literal
from projections.staging import Staging
from runtime import metrics
from schemas.columns import polars as pl
from streams.batch import EventBatch
from streams.errors import DatabaseAway, LogRefused, OwnershipLost
from streams.ownership import Taken
from streams.transport import LogBounds

log = structlog.get_logger(__name__)

APPLIED_ONCE = "event_stream_applied_once"
LOG_CONSTRAINTS = ("event_stream", "audit_log", "checkpoints", "partition_owners")

LOOK_UP_BATCHES = 64
"""After a repeat, this many batches look up their event ids first: repeats come in bursts."""

# LIMIT keeps this a look-up in the index for each id; as a plain join the planner may read the whole log.
SEEN = """
SELECT s.event_id FROM staged_event_ids AS s CROSS JOIN LATERAL (
    SELECT FROM event_stream AS e WHERE e.event_id = s.event_id AND e.partition = {partition} AND e.topic = {topic}
    AND e.disposition = 'applied' LIMIT 1
) AS seen
"""


class PartitionProjector:
    """Postgres's side of one partition (`streams.ownership.PartitionWriter`). One thread calls it."""

    def __init__(self, url: str, topic: str, partition: int, models: Sequence[ReadModel]) -> None:
        self.topic = topic
        self.partition = partition
        self._url = url
        self._models = models
        self._session: Session | None = None
        self._names = [LOG, *(model.key for model in models)]
        self._staging = Staging()
        self._look_ups_left = 0

    def take(self, bounds: LogBounds) -> Taken:
        """Open a fresh connection, fence off former owners, and bring lagging read models level with the log."""
        self.close()
        session = self._session = Session(self._url)
        with self._closing_on_error():
            taken = checkpoints.take(
                session, self.topic, self.partition, bounds.partitions, bounds.topic_id, self._names
            )
            self._staging.open(session)
            for model in self._models:
                catch_up(session, self._staging, model, self.topic, self.partition, taken.token)
        return taken

    def project(self, batch: EventBatch) -> int:
        """Apply a batch and advance the checkpoints; returns the next offset.

        Raises OwnershipLost (the fence is gone, or records before this batch are missing), DatabaseAway, or a named
        stop. After any of them the connection is closed and the partition has to be taken again.
        """
        started = time.perf_counter()
        with self._closing_on_error():
            after = self._project(batch)
        metrics.WORKER_BATCH_SECONDS.observe(time.perf_counter() - started)
        metrics.WORKER_BATCH_RECORDS.observe(len(batch))
        return after

    def close(self) -> None:
        """Drop the connection; the server rolls back what was open."""
        if self._session is not None:
            self._session.close()
            self._session = None

    @contextlib.contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except DataRefused as error:
            self.close()
            raise LogRefused(why=str(error)) from error
        except BaseException:
            self.close()
            raise

    def _project(self, batch: EventBatch) -> int:
        try:
            return self._write(prepare(batch))
        except DataRefused as error:
            if error.about(*LOG_CONSTRAINTS):
                raise
            self._require_session().rollback()
            if len(batch) == 1:
                return self._write(prepare(batch).refused(f"refused by the database: {error.sqlstate}"))
            # The last resort: the checks let something through that Postgres does not take. Halve until it is found.
            log.warning(
                "batch.bisected", topic=self.topic, partition=self.partition, records=len(batch), why=str(error)
            )
            middle = len(batch) // 2
            self._project(batch.between(0, middle))
            return self._project(batch.between(middle, len(batch)))

    def _write(self, prepared: PreparedBatch) -> int:
        """The transaction; a second time, with look-ups, where the first met a repeat."""
        if self._look_ups_left == 0:
            try:
                return self._transaction(prepared, look_up=False)
            except DataRefused as error:
                if not error.about(APPLIED_ONCE):
                    raise
                self._require_session().rollback()
                self._look_ups_left = LOOK_UP_BATCHES
        self._look_ups_left -= 1
        return self._transaction(prepared, look_up=True)

    def _transaction(self, prepared: PreparedBatch, *, look_up: bool) -> int:
        session, batch = self._require_session(), prepared.batch
        session.begin()
        fence = checkpoints.fence(session, self.topic, self.partition, batch.token)
        done = fence.checkpoints[LOG]
        if done >= batch.next_offset:
            session.rollback()
            return done
        if done < batch.fetched_from:
            raise OwnershipLost(why=f"Offsets {done} to {batch.fetched_from} were not read; reading resumes there.")
        prepared = prepared.from_offset(done)
        prepared = prepared.settle(self._seen(session, prepared) if look_up else None)
        self._write_log(session, prepared, fence)
        staged = self._staging.fill(session, prepared.events, prepared.batch.offsets)
        folds = [model.apply_sql for model in self._models if model.reads & staged]
        advance = checkpoints.advance(self.topic, self.partition, self._names, batch.next_offset)
        session.script(*folds, advance, "COMMIT")
        for disposition, count in Counter(prepared.rows["disposition"].to_list()).items():
            metrics.WORKER_RECORDS.labels(self.topic, disposition).inc(count)
        return batch.next_offset

    def _seen(self, session: Session, prepared: PreparedBatch) -> pl.Series:
        ids = prepared.rows["event_id"].drop_nulls()
        session.copy("staged_event_ids", pl.DataFrame({"event_id": ids}), temporary=True)
        seen = session.frame(SEEN.format(topic=literal(self.topic), partition=literal(self.partition)))
        return seen["event_id"].cast(pl.Binary)

    def _write_log(self, session: Session, prepared: PreparedBatch, fence: Fence) -> None:
        batch = prepared.batch
        if not len(batch):
            return
        hashes = extend(
            self.topic, self.partition, fence.head,
            batch.offsets, batch.timestamps_ms, batch.keys, batch.values, prepared.headers,
        )  # fmt: skip
        # Frames are put together from whole columns: an expression costs 50 us however few the rows.
        rows, count = prepared.rows, len(batch)
        place = [
            pl.Series("topic", [self.topic]).new_from_index(0, count),
            pl.Series("partition", [self.partition], dtype=pl.Int32).new_from_index(0, count),
            pl.Series("offset", batch.offsets, dtype=pl.Int64),
            pl.Series("created_at", [ms * 1000 for ms in batch.timestamps_ms], dtype=pl.Datetime("us", "UTC")),
        ]
        stream = [
            rows["disposition"],
            rows["event_id"],
            pl.Series("key", batch.keys, dtype=pl.Binary),
            pl.Series("value", batch.values, dtype=pl.Binary),
            pl.Series("headers", prepared.headers, dtype=pl.Binary),
            rows["reason"],
        ]
        session.copy("event_stream", pl.DataFrame(place + stream))
        audit = [
            rows["entity_type"],
            rows["entity_id"],
            rows["event_type"],
            pl.Series("previous_hash", [fence.head, *hashes[:-1]], dtype=pl.Binary),
            pl.Series("hash", hashes, dtype=pl.Binary),
        ]
        session.copy("audit_log", pl.DataFrame(place + audit))

    def _require_session(self) -> Session:
        if self._session is None:
            raise DatabaseAway(why="The connection was closed.")
        return self._session
