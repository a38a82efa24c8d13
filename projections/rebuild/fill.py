"""Filling a rebuild from the log: a partition at a time in each of some threads, a chunk a transaction.

A chunk is read and decoded in columns. Where the read model says that only the last row of a key matters, the others
are left out before they are staged, and its own statements fold the rest: what is made is what workers make, since a
fold of the sequence is the same however the sequence is cut. The dispositions that the log holds are obeyed, none is
judged again, and nothing is read past the log's checkpoint.

The rebuild's own checkpoint row, locked in the transaction that writes the rows, makes each chunk count once: a rebuild
that was killed goes on from there, whoever else still runs.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from projections import fold, model_checkpoints
from projections.read_model import ReadModel
from projections.rebuild.errors import RebuildRefused
from projections.rebuild.pace import RebuildPace
from projections.session import Session
from projections.staging import OFFSET, Staging
from schemas.polars_import import polars as pl

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

_PARTITIONS = """
SELECT c.topic, c.partition, coalesce(m.next_offset, 0) AS next_offset, c.next_offset AS log_end
FROM checkpoints AS c
LEFT JOIN model_checkpoints AS m
    ON (m.projection, m.version, m.topic, m.partition) = ($1, $2::int, c.topic, c.partition)
WHERE c.consumer = 'projector' ORDER BY c.next_offset - coalesce(m.next_offset, 0) DESC, c.topic, c.partition
"""

_ADD_CHECKPOINTS = """
INSERT INTO model_checkpoints (projection, version, topic, partition, next_offset)
SELECT $1, $2::int, topic, partition, 0 FROM checkpoints WHERE consumer = 'projector' ON CONFLICT DO NOTHING
"""

_LOCK = """
SELECT m.next_offset, c.next_offset AS log_end FROM model_checkpoints AS m
JOIN checkpoints AS c ON c.consumer = 'projector' AND c.topic = m.topic AND c.partition = m.partition
WHERE m.projection = $1 AND m.version = $2 AND m.topic = $3 AND m.partition = $4
  AND EXISTS (SELECT FROM read_model_builds AS b WHERE b.projection = $1 AND b.version = $2 AND b.phase = 'filling')
FOR UPDATE OF m
"""


class UnfilledPartition(NamedTuple):
    """A partition of the log, how far a rebuild has it, and where the log ends."""

    topic: str
    partition: int
    next_offset: int
    log_end: int

    @property
    def lag(self) -> int:
        """Offsets that the rebuild lacks."""
        return self.log_end - self.next_offset


def unfilled(session: Session, model: ReadModel) -> list[UnfilledPartition]:
    """Return the partitions of which a rebuild lacks something, the largest rest first."""
    rows = session.query(_PARTITIONS, (model.name, model.version))
    return [each for each in (UnfilledPartition(*row) for row in rows) if each.lag > 0]


def jobs_for(partitions: int, jobs: int | None) -> int:
    """Return how many threads fill so many partitions."""
    return max(1, min(partitions, jobs or min(JOBS_MAX, os.cpu_count() or 1)))


class Filler:
    """Fills one rebuild. `advance` is told of offsets as they are done, from any of the threads."""

    def __init__(
        self, url: str, model: ReadModel, advance: Callable[[int], None], *, jobs: int | None = None,
        pace: RebuildPace | None = None,
    ) -> None:  # fmt: skip
        self._url = url
        self._model = model
        self._advance = advance
        self._jobs = jobs
        self._pace = pace or RebuildPace(None)
        self._stopping = threading.Event()

    def run(self, session: Session) -> None:
        """Fill every partition up to the log's end, in rounds: the log grows while one is filled.

        Raises the first error of a thread, when all of them have ended the chunk that they were at.
        """
        while True:
            session.execute(_ADD_CHECKPOINTS, (self._model.name, self._model.version))
            partitions = unfilled(session, self._model)
            if partitions:
                self._round(partitions)
            if all(each.lag <= ROUND_OFFSETS for each in partitions):
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
        session, staging = Session(self._url), Staging([self._model])
        try:
            session.script(*_SESSION)
            staging.open(session)
            while not self._stopping.is_set():
                try:
                    each = todo.get_nowait()
                except queue.Empty:
                    return
                while not self._stopping.is_set() and self._chunk(session, staging, each):
                    pass
        finally:
            session.close()

    def _chunk(self, session: Session, staging: Staging, each: UnfilledPartition) -> bool:
        """Fold a chunk, up to where the log ended as the round began; returns whether there is more."""
        model, started_at = self._model, time.monotonic()
        session.begin()
        rows = session.query(_LOCK, (model.name, model.version, each.topic, each.partition))
        if not rows:
            session.rollback()
            raise RebuildRefused(
                f"{model.key} is not being filled any more.",
                why="It was retired, or another operator has finished it.",
                next_step="plant projections list",
            )  # fmt: skip
        start, log_end = map(int, rows[0])
        stop = min(each.log_end, log_end)
        if start >= stop:
            session.rollback()
            return False
        after = fold.fold_slice(
            session, staging, [model], each.topic, each.partition, (start, stop), self._pace.chunk_records,
            reduce=lambda frames: last_rows(frames, model),
        )  # fmt: skip
        advance = model_checkpoints.advance_models_statement(each.topic, each.partition, [model.key], after)
        session.script(advance, "COMMIT")
        if start == 0:  # until then Postgres takes the tables for empty, and plans so
            session.script(model.refresh_sql)
        self._advance(after - start)
        self._stopping.wait(max(0.0, self._pace.wait_seconds(after - start) - (time.monotonic() - started_at)))
        return after < stop


def last_rows(frames: dict[str, pl.DataFrame], model: ReadModel) -> dict[str, pl.DataFrame]:
    """Return staged rows without those that a read model says do not matter: earlier ones of a key."""
    return {
        table: frame
        if (key := model.last_of.get(table)) is None
        else frame.sort(OFFSET).unique(subset=list(key), keep="last", maintain_order=True)
        for table, frame in frames.items()
    }
