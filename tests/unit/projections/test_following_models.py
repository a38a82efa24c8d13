"""The read models of a partition: which follow it, and when a statement that is given up is a model's fault."""

from __future__ import annotations

import gc
import itertools
import weakref
from typing import Any
from unittest.mock import Mock, call

import pytest
import structlog

from database.errors import DatabaseUnreachable
from projections import following_models
from projections.checkpoints import Fence
from projections.errors import FunctionsChanged, ModelStatementEnded, ReadModelAhead, ReadModelStopped
from projections.following_models import REJOIN_OFFSETS, REJOIN_TIMEOUT, FollowingModels
from projections.lagging_models import LaggingModels
from projections.read_model import READ_MODELS
from projections.session import DataRefused, StatementEnded
from projections.stopped_models import TRIES
from streams.errors import OwnershipLost, ReadModelsChanged

MODEL = READ_MODELS[0]


class Values(list[bytes]):
    """Values that a test sees go."""


def refused(values: Values) -> ReadModelStopped:
    """A read model's error, whose traceback holds the values."""
    try:
        raise KeyError(len(values))
    except KeyError as error:
        stopped = ReadModelStopped(MODEL, "genesis.events", 0, 7, "a defect.")
        stopped.__cause__ = error
    return stopped


@pytest.fixture
def lagging() -> LaggingModels:
    """What feeds models that lag, when it is asked to."""
    return LaggingModels("postgresql://h/d", READ_MODELS)


@pytest.fixture
def models(lagging: LaggingModels) -> FollowingModels:
    """The models of a partition, which all follow it."""
    return FollowingModels("genesis.events", 0, READ_MODELS[:1], lagging)


def test_a_read_model_that_is_left_out_holds_no_batch(models: FollowingModels) -> None:
    """Its error is kept until it follows again; a defect's traceback is logged before."""
    values = Values()
    seen = weakref.ref(values)
    stopped = refused(values)
    del values
    assert stopped.__cause__ is not None
    assert seen() is not None
    models.leave_out([stopped], 1)
    gc.collect()
    assert seen() is None
    assert (models.following, models.reads, models.keys) == ([], frozenset(), {MODEL.key})
    models.forget()


def test_a_statement_that_is_always_given_up_is_the_models(models: FollowingModels) -> None:
    """Not at once: it is tried again, and counted from the beginning after anything else."""
    given_up = StatementEnded("57014", why="canceling statement due to statement timeout")
    ended = {MODEL.key: ModelStatementEnded(MODEL, given_up)}
    assert not models.suspected
    for _ in range(TRIES - 1):
        with pytest.raises(ModelStatementEnded):
            models.count_ended(ended)
        assert models.suspected
    models.forget_ended()
    assert not models.suspected
    for _ in range(TRIES - 1):
        with pytest.raises(ModelStatementEnded):
            models.count_ended(ended)
    models.count_ended(ended)


def test_only_the_same_model_in_a_row_is_counted(models: FollowingModels) -> None:
    """Another one's statement in between begins it again, as anything else does."""
    given_up = StatementEnded("57014", why="canceling statement due to statement timeout")
    first, other = ({model.key: ModelStatementEnded(model, given_up)} for model in READ_MODELS[:2])
    for ended in (*[first] * (TRIES - 1), other, *[first] * (TRIES - 1)):
        with pytest.raises(ModelStatementEnded):
            models.count_ended(ended)
    models.count_ended(first)


OTHER, THIRD = READ_MODELS[1:3]
ENDED = StatementEnded("57014", why="timeout")
TOPIC = "genesis.events"
TOKEN = 7
END = 50_000
"""The log's end."""


class Parts:
    """What a partition's models are fed with. Each call is kept in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = Mock()
        for module, names in (
            (following_models.checkpoints, ("lock_fence",)),
            (following_models.model_checkpoints, ("keep", "lock", "join", "advance_models_statement")),
            (following_models.fold, ("fold_slice",)),
            (following_models.stored_builds, ("require_readable",)),
            (following_models, ("require_functions", "stop_model")),
        ):
            for name in names:
                monkeypatch.setattr(module, name, getattr(self.calls, name))
        self.session, self.staging, self.lagging = self.calls.session, self.calls.staging, self.calls.lagging
        self.lagging.is_stopped.return_value = False
        self.calls.lock_fence.return_value = Fence(TOKEN, END, b"head")
        self.calls.advance_models_statement.return_value = "advance"
        self.calls.stop_model.side_effect = lambda _, model, *rest: stopped_of(model)
        self.models = FollowingModels(TOPIC, 3, READ_MODELS[:2], self.lagging)
        self.models.feed(READ_MODELS[:3])

    def keep(self, caught_up: list[Any], **lagging: int) -> None:
        keys = {model.name: model.key for model in READ_MODELS}
        own = {keys[name]: offset for name, offset in lagging.items()}
        self.calls.keep.return_value = Fence(TOKEN, END, b"head", frozenset(model.key for model in caught_up), own)

    def open(self) -> list[Any]:
        fence = Fence(TOKEN, END, b"head")
        self.calls.reset_mock()
        self.models.open(self.session, self.staging, fence)
        keys = [model.key for model in READ_MODELS[:3]]
        assert self.calls.mock_calls[0] == call.keep(self.session, TOPIC, 3, fence, keys)
        return list(self.calls.mock_calls[1:])

    def readable(self, model: Any) -> Any:
        release = frozenset({MODEL.sha256, OTHER.sha256})
        return call.require_readable(self.session, model, self.staging.names, release)

    def locked(self) -> list[Any]:
        return [call.session.begin(), call.lock_fence(self.session, "projector", TOPIC, 3, TOKEN)]

    def brought_up(self, model: Any, *slices: tuple[int, int], filled: bool = False) -> list[Any]:
        """Return the steps of bringing a model up in these slices."""
        steps = [self.readable(model)]
        for start, after in (*slices, (END, END)):
            steps += [
                *self.locked(),
                call.session.later(REJOIN_TIMEOUT),
                call.lock(self.session, TOPIC, 3, TOKEN, [model.key]),
            ]
            if start == END:
                break
            steps += [
                call.fold_slice(self.session, self.staging, [model], TOPIC, 3, (start, END)),
                call.advance_models_statement(TOPIC, 3, [model.key], after),
                call.session.script("advance", "COMMIT"),
            ]
        steps.append(call.session.rollback())
        return [*steps, call.session.script(model.refresh_sql)] if filled else steps

    def stopped(self, model: Any, error: Exception) -> list[Any]:
        return [
            *self.locked(),
            call.stop_model(self.session, model, TOPIC, 3, error),
            call.session.commit(),
            call.lagging.stop(STOPPED[model.key], TOKEN),
        ]

    def joined(self, *models: Any) -> list[Any]:
        keys = [model.key for model in models]
        return [call.join(self.session, TOPIC, 3, TOKEN, keys), call.lagging.leave(TOPIC, 3, keys)]


STOPPED: dict[str, ReadModelStopped] = {}


def stopped_of(model: Any) -> ReadModelStopped:
    STOPPED[model.key] = ReadModelStopped(model, TOPIC, 3, TOKEN, "a defect.")
    return STOPPED[model.key]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    """What the models of a test are fed with."""
    return Parts(monkeypatch)


def test_models_that_share_the_logs_checkpoint_follow(parts: Parts) -> None:
    """Each is looked at whether it can be read; nothing lags."""
    parts.keep([MODEL, OTHER, THIRD])
    assert parts.open() == [*map(parts.readable, READ_MODELS[:3]), call.lagging.feed(TOPIC, 3, TOKEN, [])]
    assert (parts.models.following, parts.models.reads) == (
        list(READ_MODELS[:3]), MODEL.reads | OTHER.reads | THIRD.reads,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("lag", "stopped", "rejoins"),
    [
        (0, False, True), (0, True, True), (1, False, True), (1, True, False), (REJOIN_OFFSETS, False, True),
        (REJOIN_OFFSETS, True, False), (REJOIN_OFFSETS + 1, False, False), (END, False, False),
    ],
)  # fmt: skip
def test_a_model_a_little_behind_is_brought_up_and_others_are_fed(
    parts: Parts, lag: int, stopped: bool, rejoins: bool
) -> None:
    """One that was stopped is left to be tried later, unless it lacks nothing."""
    start = END - lag
    parts.keep([MODEL, THIRD], **{OTHER.name: start} if lag < END else {})
    parts.lagging.is_stopped.return_value = stopped
    parts.calls.lock.side_effect = [({OTHER.key: each}, None) for each in ((start, END) if lag else (END,))]
    parts.calls.fold_slice.return_value = END
    asked = [call.lagging.is_stopped(TOPIC, 3, OTHER)] if 0 < lag <= REJOIN_OFFSETS else []
    up = [*parts.brought_up(OTHER, *([(start, END)] if lag else [])), *parts.joined(OTHER)] if rejoins else []
    fed = call.lagging.feed(TOPIC, 3, TOKEN, [] if rejoins else [OTHER])
    with structlog.testing.capture_logs() as lines:
        assert parts.open() == [parts.readable(MODEL), *asked, parts.readable(THIRD), fed, *up]
    following = [MODEL, OTHER, THIRD] if rejoins else [MODEL, THIRD]
    assert (parts.models.following, parts.models.keys) == (following, {MODEL.key, OTHER.key, THIRD.key})
    joined = {"event": "models.joined", "log_level": "info", "models": [OTHER.key], "topic": TOPIC, "partition": 3}
    assert lines == [joined] * rejoins


def test_a_model_ahead_of_the_log_is_named(parts: Parts) -> None:
    """With both checkpoints; one offset is enough."""
    parts.keep([MODEL], **{OTHER.name: END + 1})
    with pytest.raises(ReadModelAhead) as ahead:
        parts.open()
    assert ahead.value.what == f"The read model {OTHER.name} is ahead of the log on {TOPIC}/3."
    assert ahead.value.why == (f"Its checkpoint is {END + 1}, the log's {END}: it holds records that the log has lost.")
    assert ahead.value.next_step == "plant audit verify"


REFUSED: list[Exception] = [DataRefused("23505", "refused"), KeyError("a defect")]


@pytest.mark.parametrize("error", [*REFUSED, ENDED, DatabaseUnreachable(why="away"), OwnershipLost(why="lost")])
def test_a_model_that_can_not_be_read_is_left_out(parts: Parts, error: Exception) -> None:
    """Its partition goes on without it; that the database is away says nothing about it."""
    parts.keep([MODEL, OTHER])
    parts.models.feed(READ_MODELS[:2])
    parts.calls.require_readable.side_effect = [error, None]
    if error not in REFUSED:
        with pytest.raises(type(error)):
            parts.models.open(parts.session, parts.staging, Fence(TOKEN, END, b"head"))
        return
    parts.models.open(parts.session, parts.staging, Fence(TOKEN, END, b"head"))
    fed = call.lagging.feed(TOPIC, 3, TOKEN, [MODEL])
    steps = [parts.readable(MODEL), *parts.stopped(MODEL, error), parts.readable(OTHER), fed]
    assert parts.calls.mock_calls[1:] == steps
    assert parts.models.following == [OTHER]


def test_models_are_brought_up_in_slices(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each moves the checkpoint to its own end; tables that were filled from the first record are looked at then."""
    monkeypatch.setattr(following_models, "REJOIN_OFFSETS", END)
    starts = [0, 6_000, 9_000, END]
    for filled, slices in ((True, starts), (False, starts[1:])):
        parts.calls.reset_mock()
        parts.calls.lock_fence.return_value = Fence(TOKEN, END, b"head")
        parts.calls.lock.side_effect = [({OTHER.key: each}, None) for each in slices]
        parts.calls.fold_slice.side_effect = slices[1:]
        assert parts.models.rejoin(parts.session, parts.staging, TOKEN, [OTHER]) == [OTHER]
        pairs = list(itertools.pairwise(slices))
        steps = [*parts.brought_up(OTHER, *pairs, filled=filled), *parts.joined(OTHER)]
        assert parts.calls.mock_calls == steps


@pytest.mark.parametrize("error", [*REFUSED, ENDED, DatabaseUnreachable(why="away"), OwnershipLost(why="lost")])
def test_a_model_that_can_not_be_brought_up_holds_up_no_other(parts: Parts, error: Exception) -> None:
    """Given up it is fed apart, refused it is stopped; that the database is away says nothing about it."""
    parts.models.feed(READ_MODELS[:2])
    parts.calls.lock.side_effect = [({MODEL.key: END - 5}, None), ({OTHER.key: END}, None)]
    parts.calls.fold_slice.side_effect = error
    if error not in (*REFUSED, ENDED):
        with pytest.raises(type(error)):
            parts.models.rejoin(parts.session, parts.staging, TOKEN, READ_MODELS[:2])
        return
    assert parts.models.rejoin(parts.session, parts.staging, TOKEN, READ_MODELS[:2]) == [OTHER]
    failed = parts.stopped(MODEL, error) if error in REFUSED else [call.lagging.give(TOPIC, 3, TOKEN, MODEL)]
    tried = parts.brought_up(MODEL, (END - 5, END))[:6]
    assert parts.calls.mock_calls == [
        *tried, call.session.rollback(), *failed, *parts.brought_up(OTHER), *parts.joined(OTHER),
    ]  # fmt: skip


def test_a_model_that_lags_by_much_again_goes_on_apart(parts: Parts) -> None:
    """None joins then, and nothing is folded."""
    parts.calls.lock.return_value = ({OTHER.key: END - REJOIN_OFFSETS - 1}, None)
    assert parts.models.rejoin(parts.session, parts.staging, TOKEN, [OTHER]) == []
    assert parts.calls.mock_calls == [*parts.brought_up(OTHER), call.lagging.go_on(TOPIC, 3, OTHER)]


def test_models_that_are_dropped_stay_where_they_are(parts: Parts) -> None:
    """Under the token, and the others' checkpoints are kept."""
    parts.models.drop(parts.session, TOKEN, {OTHER.key})
    rest = {MODEL.key, THIRD.key}
    assert parts.calls.mock_calls == [
        call.lagging.leave(TOPIC, 3, {OTHER.key}),
        *parts.locked(),
        call.session.rollback(),
        call.keep(parts.session, TOPIC, 3, parts.calls.lock_fence.return_value, rest),
    ]
    assert (parts.models.following, parts.models.keys) == ([MODEL, THIRD], rest)


def test_functions_of_models_that_follow_are_compared(parts: Parts) -> None:
    """Of no other one; where they have changed, the partition is acquired again, which stops that model."""
    parts.models.leave_out([stopped_of(MODEL)], TOKEN)
    parts.calls.reset_mock()
    parts.models.require_functions(parts.session)
    asked = [call.require_functions(parts.session, model) for model in (OTHER, THIRD)]
    assert parts.calls.mock_calls == asked
    changed = FunctionsChanged(OTHER, {"f": None})
    parts.calls.require_functions.side_effect = changed
    with pytest.raises(ReadModelsChanged) as raised:
        parts.models.require_functions(parts.session)
    assert (raised.value.why, raised.value.__cause__) == (changed.why, changed)


def test_refused_models_are_noted_and_left_out(parts: Parts) -> None:
    """Those that are refused alone, with their errors; the others go on."""
    errors = {THIRD.key: REFUSED[0], MODEL.key: REFUSED[1]}
    noted = parts.models.note_stopped(parts.session, errors)
    assert [each.model for each in noted] == [MODEL, THIRD]
    assert parts.calls.mock_calls == [
        call.stop_model(parts.session, MODEL, TOPIC, 3, REFUSED[1]),
        call.stop_model(parts.session, THIRD, TOPIC, 3, REFUSED[0]),
    ]
    parts.calls.reset_mock()
    parts.models.leave_out(noted, TOKEN)
    assert parts.calls.mock_calls == [call.lagging.stop(each, TOKEN) for each in noted]
    assert parts.models.following == [OTHER]
    parts.calls.reset_mock()
    parts.models.leave_out([], TOKEN)
    assert parts.calls.mock_calls == []


def test_what_lags_of_a_partition_is_suspended_and_forgotten_with_it(parts: Parts) -> None:
    """And asked for by its name."""
    near = parts.models.near()
    parts.models.close()
    parts.models.forget()
    assert near is parts.lagging.near.return_value
    assert parts.calls.mock_calls == [
        call.lagging.near(TOPIC, 3), call.lagging.suspend(TOPIC, 3), call.lagging.forget(TOPIC, 3),
    ]  # fmt: skip
