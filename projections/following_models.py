"""The read models that follow one partition's log: they share its transaction, until one of them is refused."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Mapping, Sequence, Set

from projections import checkpoints, model_checkpoints, stored_builds
from projections.checkpoints import PROJECTOR, Fence
from projections.errors import ModelStatementEnded, ReadModelAhead, ReadModelStopped
from projections.fold import catch_up
from projections.read_model import ReadModel
from projections.session import Session
from projections.staging import Staging
from projections.stopped_models import NOT_THE_MODELS, TRIES, is_defect, reason_of
from runtime import metrics
from runtime.errors import drop_frames
from runtime.logging import get_logger
from streams.errors import AppliedEventUnreadable, SchemaNewer

log = get_logger(__name__)

ABOUT_THE_LOG = (ReadModelAhead, AppliedEventUnreadable, SchemaNewer)
"""Errors of a model that catches up which tell that the log is not the one that this worker can go on with."""


class FollowingModels:
    """A partition's read models: those that follow its log, and those that it goes on without."""

    def __init__(self, topic: str, partition: int, release: Sequence[ReadModel]) -> None:
        """`release` are the models of this worker's release: their SQL reads nothing that it does not know."""
        self.topic = topic
        self.partition = partition
        self._release = frozenset(model.sha256 for model in release)
        self._models = release
        self._stopped: dict[str, ReadModelStopped] = {}
        self._ended: Counter[str] = Counter()
        self._follow()

    @property
    def keys(self) -> set[str]:
        """The models that there are to feed, those that were refused among them."""
        return {model.key for model in self._models}

    @property
    def usable(self) -> list[ReadModel]:
        """The models whose SQL is the one that was stored."""
        return [model for model in self._models if not model.altered]

    def feed(self, models: Sequence[ReadModel]) -> None:
        """Take these models from now on; what is known of the others is forgotten."""
        self._models = models
        gone = [self._stopped.pop(key) for key in self._stopped.keys() - self.keys]
        refused = {stopped.model.name for stopped in self._stopped.values()}
        for stopped in gone:
            if stopped.model.name not in refused:
                self._hide(stopped)
        self._follow()

    def drop(self, session: Session, token: int, keys: Set[str]) -> None:
        """Go on without these models: they stay where the log is now."""
        self.feed([model for model in self._models if model.key not in keys])
        session.begin()
        fence = checkpoints.lock_fence(session, PROJECTOR, self.topic, self.partition, token)
        session.rollback()
        model_checkpoints.keep(session, self.topic, self.partition, fence, self.keys)

    def _follow(self) -> None:
        """Work out which read models share the transaction: all but those that were refused."""
        self.following = [model for model in self.usable if model.key not in self._stopped]
        self.reads = frozenset[str]().union(*(model.reads for model in self.following))

    def catch_up(self, session: Session, staging: Staging, fence: Fence, interrupted: threading.Event) -> None:
        """Bring lagging read models up to the log's end; those that follow it share its checkpoint from then on."""
        keys = [model.key for model in self._models]
        fence = model_checkpoints.keep(session, self.topic, self.partition, fence, keys)
        for model in self._models:
            self._catch_up(session, staging, model, fence, interrupted)
        following = [model.key for model in self.following]
        if not fence.caught_up.issuperset(following):
            model_checkpoints.join(session, self.topic, self.partition, fence.token, following)

    def _catch_up(
        self, session: Session, staging: Staging, model: ReadModel, fence: Fence, interrupted: threading.Event
    ) -> None:
        """Bring a read model up to the log's end, unless it was refused here and has stayed where it was since."""
        former = self._stopped.get(model.key)
        left_behind = former is not None and fence.model_offset(model.key) <= former.next_offset
        if left_behind and model.key not in fence.caught_up:
            metrics.WORKER_STOPPED_READ_MODELS.labels(self.topic, self.partition, model.name).set(1)
            return
        self._stopped.pop(model.key, None)
        lags = fence.model_offset(model.key) < fence.next_offset
        # The slice that was given up is not looked for again from a large one on.
        careful = lags and model_checkpoints.is_stopped(session, self.topic, self.partition, model.key)
        first_slice = 1 if careful or self._ended[model.key] else None
        try:
            if model.altered or model.sha256 not in self._release:
                stored_builds.require_readable(session, model, staging.names)
            catch_up(session, staging, model, self.topic, self.partition, fence.token, interrupted, first_slice)
        except Exception as error:
            if isinstance(error, (*NOT_THE_MODELS, *ABOUT_THE_LOG)) and not isinstance(error, ModelStatementEnded):
                raise
            self.count_ended({model.key: error})
            session.rollback()
            session.begin()
            checkpoints.lock_fence(session, PROJECTOR, self.topic, self.partition, fence.token)
            stopped = self.note_stopped(session, {model.key: error})
            session.commit()
            self.leave_out(stopped)
        else:
            self._follow()

    @property
    def suspected(self) -> bool:
        """Whether some model's statement was given up with the last record that was tried."""
        return bool(self._ended)

    def count_ended(self, refused: Mapping[str, Exception]) -> None:
        """Count the models whose statement was given up. Raises ModelStatementEnded where one is to be tried again."""
        ended = {key: error for key, error in refused.items() if isinstance(error, ModelStatementEnded)}
        self._ended = Counter({key: self._ended[key] + 1 for key in ended})
        for key, error in ended.items():
            if self._ended[key] < TRIES:
                raise error

    def forget_ended(self) -> None:
        """Begin to count again: something else went wrong, or nothing did."""
        self._ended.clear()

    def note_stopped(self, session: Session, refused: Mapping[str, Exception]) -> list[ReadModelStopped]:
        """Write down why read models were refused, in the transaction that goes on without them; returns the errors."""
        return [
            self._note_stopped(session, model, refused[model.key]) for model in self._models if model.key in refused
        ]

    def _note_stopped(self, session: Session, model: ReadModel, error: Exception) -> ReadModelStopped:
        reason = reason_of(error)
        next_offset = model_checkpoints.note_stopped(session, self.topic, self.partition, model.key, reason)
        stopped = ReadModelStopped(model, self.topic, self.partition, next_offset, reason)
        stopped.__cause__ = error
        return stopped

    def leave_out(self, stopped: Sequence[ReadModelStopped]) -> None:
        """Go on without these read models, until the worker is started again or another one has brought them up."""
        for error in stopped:
            self._stopped[error.model.key] = error
            metrics.WORKER_STOPPED_READ_MODELS.labels(self.topic, self.partition, error.model.name).set(1)
            log.error(
                "model.stopped",
                model=error.model.name,
                version=error.model.version,
                topic=self.topic,
                partition=self.partition,
                next_offset=error.next_offset,
                error=type(error).__name__,
                what=error.what,
                why=error.why,
                exc_info=error.__cause__ if is_defect(error.__cause__) else None,
            )
            drop_frames(error)
        if stopped:
            self._follow()

    def close(self) -> None:
        """Take back what metrics show of the partition."""
        for stopped in self._stopped.values():
            self._hide(stopped)

    def _hide(self, stopped: ReadModelStopped) -> None:
        """Take back what metrics show of a model that was refused: of all its versions together."""
        with contextlib.suppress(KeyError):
            metrics.WORKER_STOPPED_READ_MODELS.remove(self.topic, str(self.partition), stopped.model.name)
