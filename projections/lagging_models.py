"""Read models that lag behind the log, fed from it next to live projection: one thread and one connection a worker.

A model that is new, was paused or was refused does not share its partition's transaction. It is brought up here, slice
by slice: the one that is furthest behind first, up to where the next one stands, so that models at one offset are
decoded once. Once a model is near the log's end, the partition's owner folds the rest and takes it back
(projections/following_models.py): only the owner moves the log, so it alone can tell that both are equal.

What makes a slice count once is the model's own checkpoint row, locked for the transaction that writes the rows. The
partition's token says who may begin one, and whoever acquires the partition ends the session that feeds it.

A slice that fails is halved, down to one record. A model that is refused with one record stays where it is, under a
named error, and is tried again ever less often: what refused it may have been mended.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from database.errors import DatabaseUnreachable
from projections import fold, model_checkpoints, stored_builds
from projections.errors import BuildUnusable, ModelStatementEnded, ReadModelStopped
from projections.fold_functions import require_functions
from projections.read_model import ReadModel
from projections.session import Session
from projections.staging import Staging
from projections.stopped_models import NOT_THE_MODELS, TRIES, is_defect, stop_model
from runtime import metrics
from runtime.errors import drop_frames
from runtime.logging import get_logger
from streams.errors import OwnershipLost
from streams.ownership import RETRY_DELAYS_SECONDS, STOPPED_DELAYS_SECONDS, delay_after

log = get_logger(__name__)

NEAR_OFFSETS: Final = 2_000
"""A model that lags by no more than this is left to the partition's owner, who takes it back."""

QUICK_SECONDS: Final = 5.0
"""A slice that took no longer than this lets the next one grow, after one that was halved."""


@dataclass(eq=False)
class _Lagging:
    """A model of one partition, and how it fared."""

    model: ReadModel
    records_max: int = field(default_factory=lambda: fold.FOLD_RECORDS)
    next_offset: int = 0
    near: bool = False
    """The partition's owner has been asked to take it back."""
    taken_back_max: int | None = None
    """It could not be taken back once: it is fed until it lags by no more than some quick slice since has brought."""
    alone: bool = False
    """Something went wrong in a slice that it shared: it is fed by itself, until its slices are large again."""
    folded: bool = False
    checked: bool = False
    ended: int = 0
    stops: int = 0
    stop_reason: str | None = None
    due_at: float = 0.0


@dataclass(eq=False)
class _Partition:
    topic: str
    partition: int
    token: int | None = None
    """Its owner's; None: it is being acquired again, or the connection is gone."""
    registered: bool = False
    models: dict[str, _Lagging] = field(default_factory=dict)


class LaggingModels:
    """The models that lag on some partition of this worker. Owners of partitions call it from threads of their own."""

    def __init__(self, url: str, release: Sequence[ReadModel], now: Callable[[], float] = time.monotonic) -> None:
        """`release` are the models of this worker's release: their SQL reads nothing that it does not know."""
        self._url = url
        self._release = frozenset(model.sha256 for model in release)
        self._now = now
        self._partitions: dict[tuple[str, int], _Partition] = {}
        self._changed = threading.Condition()
        self._session: Session | None = None
        self._staging = Staging(())
        self._staged: frozenset[str] = frozenset()
        self._changes = 0
        self._failures = 0
        self._last_fed: tuple[str, int] = ("", 0)
        self._closing = False
        self._thread: threading.Thread | None = None
        self.backend_pid = 0
        """The process of the connection, for its own worker is not to end it; 0: there is none."""

    def start(self) -> None:
        """Feed in a thread from now on, until :meth:`close`."""
        self._thread = threading.Thread(target=self._run, name="lagging-models", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Feed no more; a slice that runs ends first."""
        with self._changed:
            self._closing = True
            self._wake()
        if self._thread is not None:
            self._thread.join()
        self._disconnect()

    def feed(self, topic: str, partition: int, token: int, models: Iterable[ReadModel]) -> None:
        """Feed these models on a partition under its owner's token, and no others; what is known of them is kept."""
        with self._changed:
            fed = self._partitions.setdefault((topic, partition), _Partition(topic, partition))
            kept = {model.key: _kept(fed.models.get(model.key), model) for model in models}
            gone = [each for key, each in fed.models.items() if key not in kept]
            fed.token, fed.registered, fed.models = token, False, kept
            for each in kept.values():
                each.near = False
            for each in gone:
                self._hide(fed, each)
            for each in kept.values():
                self._show(fed, each)
            self._wake()

    def is_stopped(self, topic: str, partition: int, model: ReadModel) -> bool:
        """Return whether a model was refused here, and is to be tried again later."""
        with self._changed:
            fed = self._partitions.get((topic, partition))
            each = fed.models.get(model.key) if fed is not None else None
            return each is not None and each.stop_reason is not None

    def near(self, topic: str, partition: int) -> list[ReadModel]:
        """Return the models that the partition's owner may take back now."""
        fed = self._partitions.get((topic, partition))
        if fed is None or not fed.models:
            return []
        with self._changed:
            return [each.model for each in fed.models.values() if each.near]

    def leave(self, topic: str, partition: int, keys: Collection[str]) -> None:
        """Feed these models no more: the partition's owner has taken them back."""
        with self._changed:
            if (fed := self._partitions.get((topic, partition))) is not None:
                for each in [fed.models.pop(key) for key in keys if key in fed.models]:
                    self._hide(fed, each)

    def go_on(self, topic: str, partition: int, model: ReadModel) -> None:
        """Go on feeding a model that was near the log's end and is not any more."""
        with self._changed:
            fed = self._partitions.get((topic, partition))
            if fed is not None and (each := fed.models.get(model.key)) is not None:
                each.near = False
                self._wake()

    def give(self, topic: str, partition: int, token: int, model: ReadModel) -> None:
        """Feed one more model, or go on with one that could not be taken back: by itself, from small slices on."""
        with self._changed:
            fed = self._partitions.setdefault((topic, partition), _Partition(topic, partition))
            each = fed.models.setdefault(model.key, _Lagging(model))
            fed.token, each.near, each.taken_back_max, each.alone, each.records_max = token, False, 0, True, 1
            self._wake()

    def stop(self, stopped: ReadModelStopped, token: int) -> None:
        """Try a model again later that was refused, and say why it was."""
        self.give(stopped.topic, stopped.partition, token, stopped.model)
        with self._changed:
            fed = self._partitions[stopped.topic, stopped.partition]
            self._note_stopped(fed, fed.models[stopped.model.key], stopped)

    def suspend(self, topic: str, partition: int) -> None:
        """Begin no more slices on a partition until it is acquired again."""
        with self._changed:
            if (fed := self._partitions.get((topic, partition))) is not None:
                fed.token = None

    def forget(self, topic: str, partition: int) -> None:
        """Feed nothing on a partition: it has moved to another worker."""
        with self._changed:
            if (fed := self._partitions.pop((topic, partition), None)) is not None:
                for each in [fed.models.pop(key) for key in list(fed.models)]:
                    self._hide(fed, each)

    def feed_next(self) -> float | None:
        """Fold one slice; returns the seconds until there is something to do, None for nothing in sight.

        One thread calls it.
        """
        with self._changed:
            fed, wait_seconds = self._next()
            token = fed.token if fed is not None else None
        if fed is None or token is None:
            if wait_seconds is None:
                self._disconnect()
            return wait_seconds
        try:
            self._feed(fed, token)
        except OwnershipLost as error:
            log.info("models.not_fed", topic=fed.topic, partition=fed.partition, why=error.why)
            self._disconnect()
            with self._changed:
                if fed.token == token:  # a later one may be here by now
                    fed.token = None
        except DatabaseUnreachable as error:
            self._disconnect()
            delay = delay_after(self._failures, RETRY_DELAYS_SECONDS)
            self._failures += 1
            log.warning("models.waiting", why=error.why, retry_seconds=delay)
            return delay
        self._failures = 0
        return 0.0

    def _wake(self) -> None:
        self._changes += 1
        self._changed.notify()

    def _run(self) -> None:
        while not self._closing:
            changes = self._changes
            try:
                wait_seconds = self.feed_next()
            except Exception:
                # A defect. The slice is rolled back with its connection, and trying again is safe.
                self._disconnect()
                log.exception("models.failed")
                wait_seconds = RETRY_DELAYS_SECONDS[-1]
            with self._changed:
                if not self._closing and wait_seconds != 0.0 and changes == self._changes:
                    self._changed.wait(wait_seconds)

    def _next(self) -> tuple[_Partition | None, float | None]:
        """Return a partition with a model that is due, by turns, or None and the seconds until one is."""
        now, due_later = self._now(), []
        for key in sorted(self._partitions, key=lambda key: (key <= self._last_fed, key)):
            fed = self._partitions[key]
            times = [each.due_at for each in fed.models.values() if not each.near]
            if fed.token is None or not times:
                continue
            if min(times) <= now:
                self._last_fed = key
                return fed, 0.0
            due_later.append(min(times))
        return None, min(due_later) - now if due_later else None

    def _feed(self, fed: _Partition, token: int) -> None:
        """Fold a slice of one partition, under its owner's token, into the models that are furthest behind."""
        session = self._connected()
        with self._changed:
            now = self._now()
            due = {key: each for key, each in fed.models.items() if not each.near and each.due_at <= now}
        if fed.token != token or not due:
            return
        if not fed.registered:
            model_checkpoints.register_feeder(session, fed.topic, fed.partition, token)
            fed.registered = True
        session.begin()
        next_offsets, log_end = model_checkpoints.lock(session, fed.topic, fed.partition, token, due)
        lagging = [due[key] for key in next_offsets]
        for each in lagging:
            each.next_offset = next_offsets[each.model.key]
            self._show_lag(fed, each, log_end)
        near = [each for each in lagging if log_end - each.next_offset <= _near_offsets(each)]
        if near:
            session.rollback()
            self._finish(session, fed, near)
            return
        models, stop = _furthest_behind(lagging, log_end)
        self._fold(session, fed, token, models, stop)

    def _finish(self, session: Session, fed: _Partition, near: Sequence[_Lagging]) -> None:
        """Leave models to the partition's owner. Their tables are analysed: Postgres takes them for small before."""
        for each in near:
            if each.folded:
                session.script(each.model.refresh_sql)
                each.folded = False
        with self._changed:
            for each in near:
                each.near = True

    def _fold(self, session: Session, fed: _Partition, token: int, models: Sequence[_Lagging], stop: int) -> None:
        """Fold a slice into models at one offset, in the transaction that has locked their checkpoints."""
        for each in models:
            if (unusable := self._unusable(session, each)) is not None:
                session.rollback()
                self._stop(session, fed, token, each, unusable)
                return
        start, started_at = models[0].next_offset, time.monotonic()
        records_max = min(each.records_max for each in models)
        try:
            after = fold.fold_slice(
                session, self._staging, [each.model for each in models], fed.topic, fed.partition, (start, stop),
                records_max,
            )  # fmt: skip
            keys = [each.model.key for each in models]
            advance = model_checkpoints.advance_models_statement(fed.topic, fed.partition, keys, after)
            session.script(advance, "COMMIT")
        except Exception as error:
            if isinstance(error, OwnershipLost):
                raise
            session.rollback()  # raises as well where the connection is gone
            self._count_failure(session, fed, token, models, records_max, error)
            return
        quick = time.monotonic() - started_at < QUICK_SECONDS
        for each in models:
            each.next_offset, each.folded, each.ended = after, True, 0
            if quick:
                if each.taken_back_max is not None:
                    each.taken_back_max = max(each.taken_back_max, after - start)
                each.records_max = min(fold.FOLD_RECORDS, records_max * 2)
                each.alone = each.alone and each.records_max < fold.FOLD_RECORDS
            if each.stop_reason is not None:
                self._note_going_on(fed, each)
        log.info(
            "models.folded", models=keys, topic=fed.topic, partition=fed.partition, next_offset=after, log_end=stop
        )

    def _count_failure(
        self, session: Session, fed: _Partition, token: int, models: Sequence[_Lagging], records_max: int,
        error: Exception,
    ) -> None:  # fmt: skip
        """Halve what failed, and feed its models one by one; stop a model that fails by itself with one record."""
        about_the_model = not isinstance(error, NOT_THE_MODELS) or isinstance(error, ModelStatementEnded)
        if len(models) > 1 or records_max > 1:
            log.warning(
                "models.slice_halved", models=[each.model.key for each in models], topic=fed.topic,
                partition=fed.partition, records=records_max, why=getattr(error, "why", None) or type(error).__name__,
            )  # fmt: skip
            for each in models:
                each.alone, each.records_max = True, max(1, records_max // 2)
            return
        (each,) = models
        if not about_the_model:
            raise error
        each.ended = each.ended + 1 if isinstance(error, ModelStatementEnded) else TRIES
        if each.ended >= TRIES:
            self._stop(session, fed, token, each, error)

    def _stop(self, session: Session, fed: _Partition, token: int, each: _Lagging, error: Exception) -> None:
        """Write down why a model is refused, and try it again later."""
        each.ended = 0
        session.begin()
        model_checkpoints.lock(session, fed.topic, fed.partition, token, [each.model.key])
        stopped = stop_model(session, each.model, fed.topic, fed.partition, error)
        session.commit()
        with self._changed:
            self._note_stopped(fed, each, stopped)

    def _unusable(self, session: Session, each: _Lagging) -> BuildUnusable | None:
        """Return why a build is not one that this worker can run; None where it is."""
        try:
            if not each.checked:
                stored_builds.require_readable(session, each.model, self._staging.names, self._release)
            else:  # a migration may change them at any time
                require_functions(session, each.model)
        except BuildUnusable as error:
            return error
        each.checked = True
        return None

    def _note_stopped(self, fed: _Partition, each: _Lagging, stopped: ReadModelStopped) -> None:
        """Show that a model was refused, and set the time of the next try."""
        delay = delay_after(each.stops, STOPPED_DELAYS_SECONDS)
        known = each.stop_reason == stopped.reason
        each.stop_reason, each.stops, each.due_at = stopped.reason, each.stops + 1, self._now() + delay
        each.checked = False
        self._show(fed, each)
        (log.warning if known else log.error)(
            "model.still_stopped" if known else "model.stopped",
            model=stopped.model.name,
            version=stopped.model.version,
            topic=fed.topic,
            partition=fed.partition,
            next_offset=stopped.next_offset,
            error=type(stopped).__name__,
            what=stopped.what,
            why=stopped.why,
            retry_seconds=delay,
            exc_info=stopped.__cause__ if is_defect(stopped.__cause__) else None,
        )
        drop_frames(stopped)

    def _note_going_on(self, fed: _Partition, each: _Lagging) -> None:
        """Show that a model that was stopped is fed again; its checkpoint row says so since the slice."""
        with self._changed:
            each.stop_reason, each.stops = None, 0
            self._show(fed, each)
        log.warning("model.resumed", model=each.model.name, version=each.model.version, topic=fed.topic,
                    partition=fed.partition)  # fmt: skip

    def _connected(self) -> Session:
        """Return the connection, with staging tables for all models that lag."""
        with self._changed:
            lagging = [each.model for fed in self._partitions.values() for each in fed.models.values()]
            models = {model.key: model for model in lagging if not model.altered}
        if self._session is not None and not self._staged.issuperset(models):
            self._disconnect()
        if self._session is None:
            session = Session(self._url)
            try:
                self._staging = Staging(list(models.values()))
                self._staging.open(session)
                self.backend_pid = int(session.query("SELECT pg_backend_pid() AS pid")[0][0])
            except BaseException:
                session.close()
                raise
            self._session, self._staged = session, frozenset(models)
        return self._session

    def _disconnect(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session, self.backend_pid = None, 0
        with self._changed:
            for fed in self._partitions.values():
                fed.registered = False

    def _show(self, fed: _Partition, each: _Lagging) -> None:
        """Set the gauge of stopped models: that of a model's versions together."""
        stopped = any(
            other.stop_reason is not None for other in fed.models.values() if other.model.name == each.model.name
        )
        labels = (fed.topic, str(fed.partition), each.model.name)
        if stopped:
            metrics.WORKER_STOPPED_READ_MODELS.labels(*labels).set(1)
        else:
            with contextlib.suppress(KeyError):
                metrics.WORKER_STOPPED_READ_MODELS.remove(*labels)

    def _show_lag(self, fed: _Partition, each: _Lagging, log_end: int) -> None:
        labels = (fed.topic, fed.partition, each.model.name, each.model.version)
        with self._changed:
            if fed.models.get(each.model.key) is each:  # it may have been taken back, or its partition have moved
                metrics.WORKER_READ_MODEL_LAG.labels(*labels).set(log_end - each.next_offset)

    def _hide(self, fed: _Partition, each: _Lagging) -> None:
        """Take back what metrics show of a model that does not lag here any more; it is not among `fed.models`."""
        self._show(fed, each)
        with contextlib.suppress(KeyError):
            metrics.WORKER_READ_MODEL_LAG.remove(
                fed.topic, str(fed.partition), each.model.name, str(each.model.version)
            )


def _kept(known: _Lagging | None, model: ReadModel) -> _Lagging:
    """Return what is known of a model, unless its build is another one by now."""
    return known if known is not None and known.model == model else _Lagging(model)


def _near_offsets(each: _Lagging) -> int:
    """Return the lag at which a model is left to its partition's owner."""
    return NEAR_OFFSETS if each.taken_back_max is None else min(NEAR_OFFSETS, each.taken_back_max)


def _furthest_behind(models: Iterable[_Lagging], log_end: int) -> tuple[list[_Lagging], int]:
    """Return the models to fold together, at one offset, and the offset to stop at: where the next one stands."""
    ordered = sorted(models, key=lambda each: each.next_offset)
    first = ordered[0]
    together = [first] if first.alone else [
        each for each in ordered if each.next_offset == first.next_offset and not each.alone
    ]  # fmt: skip
    ahead = [each.next_offset for each in ordered if each.next_offset > first.next_offset]
    return together, min(ahead, default=log_end)
