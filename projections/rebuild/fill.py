"""Filling rebuilds from the log: a partition at a time in each of some threads, a chunk a transaction.

A chunk is read, decoded in columns and staged once, for all read models that are at its first offset. Where each that
reads a table says that only the last row of a key matters, the others are left out before they are staged, and the
models' own statements fold the rest: what is made is what workers make, since a fold of the sequence is the same
however the sequence is cut. The dispositions that the log holds are obeyed, none is judged again, and nothing is read
past the log's checkpoint.

The checkpoint row of each rebuild, locked in the transaction that writes the rows, makes each chunk count once: a
rebuild that was killed goes on from there, whoever else still runs. One that is behind the others is brought up to them
first.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from projections import fold, model_checkpoints
from projections.read_model import ReadModel
from projections.rebuild.end_offsets import EndOffsets
from projections.rebuild.errors import RebuildRefused
from projections.rebuild.pace import RebuildPace
from projections.rebuild.reduction import last_records, last_rows
from projections.rebuild.topic_source import ChunkSource, MakeSource
from projections.session import Session
from projections.staging import Staging

ROUND_OFFSETS: Final = 10_000
"""Rounds end once a partition lags by no more than this: what is left is quick."""

JOBS_MAX: Final = 4
"""Threads where nobody says how many: each keeps a processor of the database busy as well."""

_SESSION: Final = (
    "SET synchronous_commit = off",  # rows and checkpoint are lost together, if at all
    "SET statement_timeout = '30min'",
    "SET idle_in_transaction_session_timeout = '10min'",
    "SET temp_buffers = '128MB'",
    "SET work_mem = '64MB'",
    "SET application_name = 'plant-rebuild'",
)

# Parameters are keys of builds, separated by commas.
_PARTITIONS = """
SELECT c.topic, c.partition, min(coalesce(m.next_offset, 0)) AS next_offset, c.next_offset AS log_end,
       sum(c.next_offset - coalesce(m.next_offset, 0))::bigint AS lag
FROM checkpoints AS c CROSS JOIN unnest(string_to_array($1, ',')) AS key
LEFT JOIN model_checkpoints AS m
    ON (m.projection || '/' || m.version, m.topic, m.partition) = (key, c.topic, c.partition)
WHERE c.consumer = 'projector' GROUP BY c.topic, c.partition, c.next_offset ORDER BY lag DESC, c.topic, c.partition
"""

_ADD_CHECKPOINTS = """
INSERT INTO model_checkpoints (projection, version, topic, partition, next_offset)
SELECT split_part(key, '/', 1), split_part(key, '/', 2)::int, topic, partition, 0
FROM checkpoints CROSS JOIN unnest(string_to_array($1, ',')) AS key WHERE consumer = 'projector' ON CONFLICT DO NOTHING
"""

_LOCK = """
SELECT m.projection || '/' || m.version AS key, m.next_offset, c.next_offset AS log_end FROM model_checkpoints AS m
JOIN checkpoints AS c ON c.consumer = 'projector' AND c.topic = m.topic AND c.partition = m.partition
WHERE m.projection || '/' || m.version = ANY (string_to_array($1, ',')) AND m.topic = $2 AND m.partition = $3
  AND EXISTS (SELECT FROM read_model_builds AS b
              WHERE (b.projection, b.version) = (m.projection, m.version) AND b.phase = 'filling')
ORDER BY m.projection, m.version FOR UPDATE OF m
"""


class UnfilledPartition(NamedTuple):
    """A partition of the log, how far the rebuild is that has least of it, and where the log ends."""

    topic: str
    partition: int
    next_offset: int
    log_end: int
    lag: int
    """Offsets that the rebuilds lack, all of them together."""


def unfilled(session: Session, models: Sequence[ReadModel], ends: EndOffsets | None = None) -> list[UnfilledPartition]:
    """Return the partitions of which some rebuild lacks something, the largest rest first.

    Those of the log up to a time lack nothing that comes after their `ends`.
    """
    partitions = [UnfilledPartition(*row) for row in session.query(_PARTITIONS, (_keys(models),))]
    if ends is not None:
        partitions = [_up_to(each, ends.get((each.topic, each.partition), 0), len(models)) for each in partitions]
    return [each for each in partitions if each.lag > 0]


def _up_to(each: UnfilledPartition, end: int, models: int) -> UnfilledPartition:
    beyond = max(0, each.log_end - end)
    return each._replace(log_end=each.log_end - beyond, lag=each.lag - beyond * models)


def _keys(models: Iterable[ReadModel]) -> str:
    return ",".join(model.key for model in models)


def jobs_for(partitions: int, jobs: int | None) -> int:
    """Return how many threads fill so many partitions."""
    return max(1, min(partitions, jobs or min(JOBS_MAX, os.cpu_count() or 1)))


class Filler:
    """Fills rebuilds in one pass. `advance` is told of each model's offsets as they are done, from any thread."""

    def __init__(
        self, url: str, models: Sequence[ReadModel], advance: Callable[[ReadModel, int], None], *,
        jobs: int | None = None, pace: RebuildPace | None = None, ends: EndOffsets | None = None,
        make_source: MakeSource | None = None,
    ) -> None:  # fmt: skip
        self._url = url
        self._models = models
        self._advance = advance
        self._jobs = jobs
        self._pace = pace or RebuildPace(None)
        self._ends = ends
        self._make_source = make_source
        self._stopping = threading.Event()
        self._refreshed: set[str] = set()

    def run(self, session: Session) -> None:
        """Fill every partition up to the log's end, in rounds: the log grows while one is filled.

        Raises the first error of a thread, when all of them have ended the chunk that they were at.
        """
        while True:
            session.execute(_ADD_CHECKPOINTS, (_keys(self._models),))
            partitions = unfilled(session, self._models, self._ends)
            if partitions:
                self._round(partitions)
            if all(each.log_end - each.next_offset <= ROUND_OFFSETS for each in partitions):
                return

    def _round(self, partitions: Sequence[UnfilledPartition]) -> None:
        todo: queue.SimpleQueue[UnfilledPartition] = queue.SimpleQueue()
        for each in partitions:
            todo.put(each)
        jobs = jobs_for(len(partitions), self._jobs)
        with ThreadPoolExecutor(jobs, thread_name_prefix="rebuild") as pool:
            running = [pool.submit(self._work, todo) for _ in range(jobs)]
            try:
                for thread in running:
                    thread.result()
            except BaseException:
                self._stopping.set()
                raise

    def _work(self, todo: queue.SimpleQueue[UnfilledPartition]) -> None:
        session, staging = Session(self._url), Staging(self._models)
        try:
            if self._make_source is not None:
                with self._make_source() as source:
                    self._take(session, staging, todo, source)
            else:
                self._take(session, staging, todo, None)
        finally:
            session.close()

    def _take(
        self, session: Session, staging: Staging, todo: queue.SimpleQueue[UnfilledPartition],
        source: ChunkSource | None,
    ) -> None:  # fmt: skip
        """Fill one partition after another, until none is left or the rebuild is to stop."""
        session.script(*_SESSION)
        staging.open(session)
        while not self._stopping.is_set():
            try:
                each = todo.get_nowait()
            except queue.Empty:
                return
            while not self._stopping.is_set() and self._chunk(session, staging, each, source):
                pass

    def _chunk(self, session: Session, staging: Staging, each: UnfilledPartition, source: ChunkSource | None) -> bool:
        """Fold a chunk, up to where the log ended as the round began; returns whether there is more.

        The models that are furthest behind have it, up to where the next one stands.
        """
        started_at = time.monotonic()
        session.begin()
        offsets, log_end = self._lock(session, each)
        start, end = min(offsets.values()), min(each.log_end, log_end)
        if start >= end:
            session.rollback()
            return False
        models = [model for model in self._models if offsets[model.key] == start]
        stop = min(
            [
                end,
                start + (self._pace.chunk_records if source else self._pace.chunk_offsets),
                *(each for each in offsets.values() if each > start),
            ]
        )
        after = fold.fold_slice(
            session, staging, models, each.topic, each.partition, (start, stop), self._pace.chunk_records,
            reduce=lambda frames: last_rows(frames, models), only_types_read=True,
            reduce_records=lambda records: last_records(records, models),
            applied=source.applied if source else None,
        )  # fmt: skip
        keys = [model.key for model in models]
        session.script(model_checkpoints.advance_models_statement(each.topic, each.partition, keys, after), "COMMIT")
        for model in models:
            if start == 0 and model.key not in self._refreshed:  # until then Postgres plans for empty tables
                self._refreshed.add(model.key)
                session.script(model.refresh_sql)
            self._advance(model, after - start)
        self._stopping.wait(max(0.0, self._pace.wait_seconds(after - start) - (time.monotonic() - started_at)))
        return after < end or len(models) < len(self._models)

    def _lock(self, session: Session, each: UnfilledPartition) -> tuple[dict[str, int], int]:
        """Lock the rebuilds' checkpoints for this transaction; returns their offsets by key, and the log's."""
        rows = session.query(_LOCK, (_keys(self._models), each.topic, each.partition))
        offsets = {key: int(next_offset) for key, next_offset, _ in rows}
        if gone := [model.key for model in self._models if model.key not in offsets]:
            session.rollback()
            raise RebuildRefused(
                f"{', '.join(gone)} is not being filled any more.",
                why="It was retired, or another operator has finished it.",
                next_step="plant projections list",
            )  # fmt: skip
        return offsets, min(int(log_end) for _, _, log_end in rows)
