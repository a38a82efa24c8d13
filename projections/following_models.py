"""The read models that follow one partition's log, in its transaction; one that does not is left to `LaggingModels`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Final

from projections import checkpoints, fold, model_checkpoints, stored_builds
from projections.checkpoints import PROJECTOR, Fence
from projections.errors import FunctionsChanged, ModelStatementEnded, ReadModelAhead, ReadModelStopped
from projections.fold_functions import require_functions
from projections.lagging_models import LaggingModels
from projections.read_model import ReadModel
from projections.session import Session, StatementEnded
from projections.staging import Staging
from projections.stopped_models import NOT_THE_MODELS, TRIES, stop_model
from runtime.logging import get_logger
from streams.errors import ReadModelsChanged

log = get_logger(__name__)

REJOIN_OFFSETS: Final = 10_000
"""A model that lags by no more than this is folded into and taken back while its partition waits."""

REJOIN_TIMEOUT: Final = "SET LOCAL statement_timeout = '5s'"
"""So long may it wait for one statement of a model; one that takes longer is fed next to it."""


class FollowingModels:
    """A partition's read models: those that follow its log, and those that lag behind it and are fed apart."""

    def __init__(self, topic: str, partition: int, release: Sequence[ReadModel], lagging: LaggingModels) -> None:
        """`release` are the models of this worker's release: their SQL reads nothing that it does not know."""
        self.topic = topic
        self.partition = partition
        self._release = frozenset(model.sha256 for model in release)
        self._models = release
        self._lagging = lagging
        self._behind: set[str] = set()
        self._ended: Counter[str] = Counter()
        self._follow()

    @property
    def keys(self) -> set[str]:
        """The models that there are to feed, those that lag among them."""
        return {model.key for model in self._models}

    @property
    def usable(self) -> list[ReadModel]:
        """The models whose SQL is the one that was stored."""
        return [model for model in self._models if not model.altered]

    def feed(self, models: Sequence[ReadModel]) -> None:
        """Take these models from now on."""
        self._models = models
        self._follow()

    def drop(self, session: Session, token: int, keys: Set[str]) -> None:
        """Go on without these models: they stay where the log is now, or where they have come to."""
        self.feed([model for model in self._models if model.key not in keys])
        self._lagging.leave(self.topic, self.partition, keys)
        session.begin()
        fence = checkpoints.lock_fence(session, PROJECTOR, self.topic, self.partition, token)
        session.rollback()
        model_checkpoints.keep(session, self.topic, self.partition, fence, self.keys)

    def _follow(self) -> None:
        """Work out which read models share the transaction: all but those that lag, or must not be run."""
        self.following = [model for model in self.usable if model.key not in self._behind]
        self.reads = frozenset[str]().union(*(model.reads for model in self.following))

    def open(self, session: Session, staging: Staging, fence: Fence) -> None:
        """Find out which models follow the log. One that is a little behind is brought up, any other is fed apart.

        Raises ReadModelAhead where one holds records that the log has lost.
        """
        keys = [model.key for model in self._models]
        fence = model_checkpoints.keep(session, self.topic, self.partition, fence, keys)
        self._behind = set(keys) - fence.caught_up
        rejoining = []
        for model in self._models:
            lag = fence.next_offset - fence.model_offset(model.key)
            if lag < 0:
                raise ReadModelAhead(
                    f"The read model {model.name} is ahead of the log on {self.topic}/{self.partition}.",
                    why=f"Its checkpoint is {fence.next_offset - lag}, the log's {fence.next_offset}: it holds records"
                    " that the log has lost.",
                    next_step="plant audit verify",
                )
            if model.key not in self._behind:
                self._require_readable(session, staging, model, fence.token)
            elif not lag or (lag <= REJOIN_OFFSETS and not self._lagging.is_stopped(self.topic, self.partition, model)):
                rejoining.append(model)
        lagging = [model for model in self._models if model.key in self._behind and model not in rejoining]
        self._lagging.feed(self.topic, self.partition, fence.token, lagging)
        self.rejoin(session, staging, fence.token, rejoining)
        self._follow()

    def near(self) -> list[ReadModel]:
        """Return the models that lag so little that :meth:`rejoin` may take them back."""
        return self._lagging.near(self.topic, self.partition)

    def rejoin(self, session: Session, staging: Staging, token: int, models: Sequence[ReadModel]) -> list[ReadModel]:
        """Bring models up to the log's end, and let them follow it; returns those that do.

        Nothing is appended to the log meanwhile, since its owner is here. A model that still lags by much, or whose
        statement is given up, is fed apart again; one that is refused is stopped.
        """
        level = [model for model in models if self._bring_up(session, staging, token, model)]
        if level:
            keys = [model.key for model in level]
            model_checkpoints.join(session, self.topic, self.partition, token, keys)
            self._lagging.leave(self.topic, self.partition, keys)
            self._behind.difference_update(keys)
            self._follow()
            log.info("models.joined", models=keys, topic=self.topic, partition=self.partition)
        return level

    def _bring_up(self, session: Session, staging: Staging, token: int, model: ReadModel) -> bool:
        """Fold what a model lacks; returns whether it is at the log's end then."""
        filled = False
        try:
            stored_builds.require_readable(session, model, staging.names, self._release)
            while True:
                session.begin()
                fence = checkpoints.lock_fence(session, PROJECTOR, self.topic, self.partition, token)
                session.later(REJOIN_TIMEOUT)  # a slice of before the partition was acquired may still have the row
                offsets, _ = model_checkpoints.lock(session, self.topic, self.partition, token, [model.key])
                start, stop = offsets[model.key], fence.next_offset
                if start == stop or stop - start > REJOIN_OFFSETS:
                    session.rollback()
                    if filled:  # until then Postgres takes the tables for empty
                        session.script(model.refresh_sql)
                    break
                after = fold.fold_slice(session, staging, [model], self.topic, self.partition, (start, stop))
                advance = model_checkpoints.advance_models_statement(self.topic, self.partition, [model.key], after)
                session.script(advance, "COMMIT")
                filled = filled or start == 0
        except Exception as error:
            if isinstance(error, NOT_THE_MODELS) and not isinstance(error, StatementEnded):
                raise
            session.rollback()
            if isinstance(error, StatementEnded):
                self._lagging.give(self.topic, self.partition, token, model)
            else:
                self._stop(session, token, {model.key: error})
            return False
        if start != stop:
            self._lagging.go_on(self.topic, self.partition, model)
        return start == stop

    def require_functions(self, session: Session) -> None:
        """Raise ReadModelsChanged where the database has other functions than a model that follows was locked with.

        When its partition is acquired again it is stopped by name.
        """
        for model in self.following:
            try:
                require_functions(session, model)
            except FunctionsChanged as error:
                raise ReadModelsChanged(why=error.why) from error

    def _require_readable(self, session: Session, staging: Staging, model: ReadModel, token: int) -> None:
        """Leave a model out whose SQL this worker can't run, or must not."""
        try:
            stored_builds.require_readable(session, model, staging.names, self._release)
        except NOT_THE_MODELS:
            raise
        except Exception as error:
            self._stop(session, token, {model.key: error})

    def _stop(self, session: Session, token: int, refused: Mapping[str, Exception]) -> None:
        session.begin()
        checkpoints.lock_fence(session, PROJECTOR, self.topic, self.partition, token)
        stopped = self.note_stopped(session, refused)
        session.commit()
        self.leave_out(stopped, token)

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
            stop_model(session, model, self.topic, self.partition, refused[model.key])
            for model in self._models
            if model.key in refused
        ]

    def leave_out(self, stopped: Sequence[ReadModelStopped], token: int) -> None:
        """Go on without these read models, until they have been brought up apart."""
        for error in stopped:
            self._behind.add(error.model.key)
            self._lagging.stop(error, token)
        if stopped:
            self._follow()

    def close(self) -> None:
        """Feed the models that lag no more until the partition is opened again."""
        self._lagging.suspend(self.topic, self.partition)

    def forget(self) -> None:
        """Drop what is known of the models that lag: the partition has moved to another worker."""
        self._lagging.forget(self.topic, self.partition)
