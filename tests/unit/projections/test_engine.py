"""The engine: its steps in their order, its log lines, and which batches go to Postgres as text."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import Mock, call

import pytest
import structlog
from prometheus_client import REGISTRY

from database.errors import DatabaseUnreachable
from projections import engine
from projections.checkpoints import Fence
from projections.engine import LOG_LINES_PER_SECOND, LOOK_EVERY_SECONDS, PartitionProjector, goes_inline
from projections.errors import ModelStatementEnded
from projections.prepared import prepare
from projections.read_model import READ_MODELS
from projections.session import DataRefused, StatementEnded
from schemas import codec
from schemas.examples import examples
from schemas.polars_import import polars as pl
from streams.errors import LogRefused, OwnershipLost, ReadModelsChanged, SchemaNewer
from streams.ownership import Acquired
from tests.support.batches import TOPIC, TOPIC_ID, WATERMARKS, batch_of


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_a_flood_of_repeats_in_small_batches_writes_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next line says how many were left out; they are there at the level `debug`."""
    clock = Clock()
    monkeypatch.setattr(engine, "time", clock)
    projector = PartitionProjector("postgresql://h/d", "genesis.events", 0, [])
    with structlog.testing.capture_logs() as lines:
        for number in range(300):
            projector._log_batch({"applied": 1}, number, 0.001)
            projector._log_batch({"repeat": 1}, number, 0.001)
        clock.now += 1
        projector._log_batch({"poison": 1}, 300, 0.001)

    usual = [line for line in lines if line["log_level"] == "info"]
    assert len(usual) == LOG_LINES_PER_SECOND + 1
    assert [line.get("left_out", 0) for line in usual] == [0] * LOG_LINES_PER_SECOND + [300 - LOG_LINES_PER_SECOND]
    assert len(lines) == 601


def test_a_line_says_what_became_of_a_batch() -> None:
    """How many records have each disposition, where reading goes on, and how long it took."""
    projector = PartitionProjector("postgresql://h/d", "genesis.events", 3, [])
    with structlog.testing.capture_logs() as lines:
        projector._log_batch({"applied": 2}, 7, 0.0123456)
        projector._log_batch({"applied": 1, "repeat": 4}, 12, 1.0)
    same = {"event": "batch.projected", "topic": "genesis.events", "partition": 3}
    assert lines == [
        {**same, "next_offset": 7, "duration_ms": 12.346, "applied": 2, "log_level": "debug"},
        {**same, "next_offset": 12, "duration_ms": 1000.0, "applied": 1, "repeat": 4, "log_level": "info"},
    ]


def test_a_partition_that_was_not_acquired_has_no_connection() -> None:
    """It is an outage, after which the partition is acquired, and no defect."""
    projector = PartitionProjector("postgresql://h/d", "genesis.events", 0, [])
    with pytest.raises(DatabaseUnreachable, match="connection was closed"):
        projector.project(batch_of([examples()["genesis.agent.rated"]], token=1))


def test_small_batches_go_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """By records, and by bytes of values and headers; each bound is included."""
    event = examples()["genesis.agent.rated"]
    two = prepare(batch_of([event, (None, None)], token=1))
    size_bytes = len(codec.encode(event)) + sum(map(len, two.batch.headers))
    for records, bound_bytes, expected in ((2, size_bytes, True), (1, size_bytes, False), (2, size_bytes - 1, False)):
        monkeypatch.setattr(engine, "INLINE_RECORDS_MAX", records)
        monkeypatch.setattr(engine, "INLINE_BYTES_MAX", bound_bytes)
        assert goes_inline(two) == expected


def test_events_that_a_batch_releases_count_among_its_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """They go with it, and a control record of a few bytes may release many, or large ones."""
    one = prepare(batch_of([examples()["genesis.agent.rated"]], token=1))
    monkeypatch.setattr(engine, "INLINE_RECORDS_MAX", 2)
    released = replace(one, released=[(0, 9)], released_bytes=engine.INLINE_BYTES_MAX // 2)
    assert goes_inline(released)
    assert not goes_inline(replace(released, released=[(0, 9), (1, 9)]))
    assert not goes_inline(replace(released, released_bytes=engine.INLINE_BYTES_MAX))


URL = "postgresql://h/d"
MODEL, OTHER_MODEL = READ_MODELS[:2]
FENCE = Fence(7, 12, b"head")
RATED = examples()["genesis.agent.rated"]
BATCH = batch_of([RATED, (None, None)], token=7, start=12, partition=3)
ONE = batch_of([RATED], token=7, start=12, partition=3)


class Parts:
    """What a projector is made of. Each call is kept in order; each thing that is made is one and the same."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = calls = Mock()
        for name in (
            "Session", "Staging", "InlineFolds", "InlineRows", "LogWriter", "FollowingModels", "LogRanges",
            "PartitionParking",
        ):  # fmt: skip
            monkeypatch.setattr(engine, name, getattr(calls, name))
        for module, names in (
            (engine.checkpoints, ("acquire", "terminate_feeder", "log_end", "note_stop")),
            (engine.stored_builds, ("load_builds", "fed_keys")),
            (engine.builds, ("publish_all",)),
            (engine, ("prepare", "goes_inline", "changes_of", "fold_apart")),
        ):
            for name in names:
                monkeypatch.setattr(module, name, getattr(calls, name))
        self.session, self.staging, self.log = (
            calls.Session.return_value, calls.Staging.return_value, calls.LogWriter.return_value,
        )  # fmt: skip
        self.models, self.ranges = calls.FollowingModels.return_value, calls.LogRanges.return_value
        self.parking, self.lagging = calls.PartitionParking.return_value, Mock(backend_pid=17)
        self.models.following, self.models.near.return_value = [MODEL, OTHER_MODEL], []
        self.models.keys, self.models.suspected = {MODEL.key, OTHER_MODEL.key}, False
        self.models.note_stopped.return_value = []
        calls.acquire.return_value, calls.log_end.return_value = FENCE, Mock(next_offset=12)
        calls.fed_keys.return_value = {MODEL.key, OTHER_MODEL.key}
        calls.publish_all.return_value = []
        self.ranges.split.side_effect = lambda batch: (batch, None)
        self.ranges.candidates.return_value = ("hashes", "candidates")
        self.judged = self.parking.judge.return_value
        self.judged.rows = pl.DataFrame({"disposition": ["applied", "repeat"]})
        self.judged.batch = BATCH
        self.judged.first_occurrences.return_value = ("first hashes", "first offsets")
        self.log.write.return_value = b"new head"
        self.staging.frames.return_value = {"staged_agent_rated": "rows"}
        calls.InlineFolds.return_value.statements.return_value = ["inline fold"]
        self.prepared = calls.prepare.return_value
        self.prepared.batch = BATCH
        self.prepared.rows = {"event_id": pl.Series(["a", None])}

        class Time:
            now = 100.0
            step = 0.0

            def perf_counter(self) -> float:
                self.now += self.step
                return self.now

            monotonic = perf_counter

        self.time = Time()
        monkeypatch.setattr(engine, "time", self.time)

    def since(self, act: Callable[[], object]) -> list[Any]:
        """Return the calls that an act makes."""
        self.calls.reset_mock()
        act()
        return list(self.calls.mock_calls)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    """What the projectors of a test are made of."""
    return Parts(monkeypatch)


def projector_of(parts: Parts, *, acquire: bool = True) -> PartitionProjector:
    made = PartitionProjector(URL, TOPIC, 3, [MODEL], lagging=parts.lagging)
    if acquire:
        made.acquire(WATERMARKS)
    return made


def test_a_projector_is_made_for_its_partition(parts: Parts) -> None:
    """Each part has topic and partition, and what the worker's partitions share, or one of its own."""
    budget, limits, lagging = Mock(), Mock(), parts.lagging
    made = PartitionProjector(URL, TOPIC, 3, [MODEL], budget, parking_limits=limits, lagging=lagging)
    assert parts.calls.mock_calls == [
        call.Staging(()),
        call.InlineFolds(parts.staging),
        call.LogWriter(TOPIC, 3),
        call.FollowingModels(TOPIC, 3, [MODEL], lagging),
        call.LogRanges(TOPIC, 3, budget),
        call.PartitionParking(TOPIC, 3, limits),
    ]
    assert (made.topic, made.partition, made.lagging) == (TOPIC, 3, lagging)
    PartitionProjector(URL, TOPIC, 3, [MODEL])
    assert parts.calls.PartitionParking.call_args == call(TOPIC, 3, engine.DEFAULT_LIMITS)
    assert isinstance(parts.calls.LogRanges.call_args.args[2], engine.IdBudget)
    assert isinstance(parts.calls.FollowingModels.call_args.args[3], engine.LaggingModels)


@pytest.mark.parametrize("interrupted", [None, threading.Event()])
def test_a_partition_is_acquired_step_by_step(parts: Parts, interrupted: threading.Event | None) -> None:
    """The former connection is dropped first; models follow once staging, log and queues are open; then readers see."""
    made = projector_of(parts)
    parts.models.usable = Mock()
    steps = parts.since(lambda: made.acquire(WATERMARKS, interrupted))
    flag = made._interrupted
    assert flag is interrupted or (interrupted is None and not flag.is_set())
    calls, session = call, parts.session
    assert steps == [
        calls.Session().close(),
        calls.FollowingModels().close(),
        calls.PartitionParking().close(),
        calls.Session(URL),
        calls.acquire(session, "projector", TOPIC, 3, WATERMARKS.partition_count, TOPIC_ID),
        calls.terminate_feeder(session, TOPIC, 3, 17),
        calls.log_end(session, TOPIC, 3, FENCE),
        calls.load_builds(session, [MODEL]),
        calls.FollowingModels().feed(parts.calls.load_builds.return_value),
        calls.Staging(parts.models.usable),
        calls.InlineFolds(parts.staging),
        calls.Staging().open(session),
        calls.LogWriter().open(session),
        calls.LogRanges().open(session, 12, flag),
        calls.PartitionParking().open(session, 12),
        calls.FollowingModels().open(session, parts.staging, FENCE),
        calls.publish_all(session, [MODEL], caught_up=True),
    ]
    assert made.acquire(WATERMARKS) == Acquired(7, parts.calls.log_end.return_value)


def before_folds(parts: Parts, inline: bool) -> list[Any]:
    session = parts.session
    begin = call.Session().later("BEGIN", engine.checkpoints.lock_statement("projector", TOPIC, 3, 7, 12))
    seen = parts.ranges.look_up.return_value
    return [
        call.LogRanges().split(BATCH),
        call.prepare(BATCH, {}),
        call.LogRanges().advance_to(session, 12),
        begin,
        call.LogRanges().candidates(parts.ranges.candidates.call_args.args[0]),
        call.LogRanges().look_up(session, "candidates"),
        call.prepare().with_dispositions(seen),
        call.PartitionParking().judge(session, parts.prepared.with_dispositions.return_value, seen),
        call.goes_inline(parts.judged),
        call.LogWriter().write(session, parts.judged, b"head", parts.ranges.table, inline=inline),
    ]


def after_folds(parts: Parts) -> list[Any]:
    return [
        call.LogWriter().note_committed(parts.judged),
        call.PartitionParking().commit(),
        call.PartitionParking().judge().first_occurrences("hashes"),
        call.LogRanges().add("first hashes", "first offsets", 14),
        call.FollowingModels().forget_ended(),
        call.FollowingModels().leave_out(parts.models.note_stopped.return_value, 7),
        call.LogRanges().load_more(parts.session),
        call.FollowingModels().near(),
    ]


ADVANCE = "SELECT advance_checkpoint('projector', 'genesis.events', 3, 14, false)"


@pytest.mark.parametrize("inline", [False, True], ids=["copied", "inline"])
def test_a_batch_is_these_steps_in_this_order(parts: Parts, inline: bool) -> None:
    """Lock, look up, judge, write, fold, advance and commit; only then is anything remembered of it."""
    parts.calls.goes_inline.return_value = inline
    made = projector_of(parts)
    steps = parts.since(lambda: made.project(BATCH))
    assert parts.ranges.candidates.call_args.args[0].to_list() == ["a"]
    judged, session = parts.judged, parts.session
    passed = {
        "partition": 3, "effective_offsets": judged.effective_offsets, "changes": parts.calls.changes_of.return_value,
    }  # fmt: skip
    staged = {"staged_agent_rated": "rows"}
    if inline:
        folds, rows = ["inline fold"], parts.calls.InlineRows.return_value
        made_of_rows = [
            call.InlineRows(parts.staging, judged.events, judged.staged_offsets, **passed),
            call.InlineFolds().statements([MODEL, OTHER_MODEL], rows),
        ]
    else:
        folds = [*MODEL.folds(staged.keys()), *OTHER_MODEL.folds(staged.keys())]
        made_of_rows = [
            call.Staging().frames(judged.events, judged.staged_offsets, parts.models.reads, **passed),
            call.Staging().fill(session, staged),
        ]
    assert steps == [
        *before_folds(parts, inline),
        call.FollowingModels().note_stopped(session, {}),
        call.changes_of(session, judged),
        *made_of_rows,
        call.Session().script(*folds, ADVANCE, "COMMIT"),
        *after_folds(parts),
    ]
    assert made._fence == Fence(7, 14, b"new head")


@pytest.mark.parametrize(
    ("dispositions", "all_applied"),
    [(["applied", "applied"], "true"), (["applied", "control"], "false"), (["parked"], "false"), ([], "true")],
)
def test_a_checkpoint_says_where_all_that_it_passes_is_applied(
    parts: Parts, dispositions: list[str], all_applied: str
) -> None:
    """Who follows the log does not ask it then. Of a gap there is nothing to ask."""
    parts.judged.rows = pl.DataFrame({"disposition": dispositions}, schema={"disposition": pl.String})
    made = projector_of(parts)
    made.project(BATCH)
    advances = [each for each in parts.session.script.call_args.args if "advance_checkpoint" in each]
    assert advances == [ADVANCE.replace("false", all_applied)]


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_batch_is_measured(parts: Parts) -> None:
    """Its seconds, its records, and what became of them."""
    made = projector_of(parts)
    parts.time.step = 1.0
    dispositions = {"applied": 1, "repeat": 1, "poison": 0}
    names = [("plant_worker_records_total", {"topic": TOPIC, "disposition": each}) for each in dispositions]
    sums = ("plant_worker_batch_duration_seconds_sum", "plant_worker_batch_records_sum")
    before = [*(counted(name, **labels) for name, labels in names), *map(counted, sums)]
    with structlog.testing.capture_logs() as lines:
        assert made.project(BATCH) == 14
    after = [*(counted(name, **labels) for name, labels in names), *map(counted, sums)]
    seconds = lines[0]["duration_ms"] / 1000
    assert [now - then for now, then in zip(after, before, strict=True)] == pytest.approx([1, 1, 0, seconds, 2])
    assert 1 <= seconds <= 10
    assert (lines[0]["next_offset"], lines[0]["applied"], lines[0]["repeat"]) == (14, 1, 1)


def test_a_range_after_the_other_is_projected(parts: Parts) -> None:
    """Each with a transaction of its own, and the counts are those of both."""
    rest = BATCH.between(1, 2)
    parts.ranges.split.side_effect = [(BATCH.between(0, 1), rest), (rest, None)]
    parts.judged.batch = BATCH.between(0, 1)
    made = projector_of(parts)
    with structlog.testing.capture_logs() as lines:
        made.project(BATCH)
    assert [each.args[0].offsets for each in parts.calls.prepare.call_args_list] == [[12], [13]]
    assert (lines[0]["applied"], lines[0]["repeat"]) == (2, 2)


def test_a_given_up_partition_applies_nothing(parts: Parts) -> None:
    """And is closed, as after any error."""
    interrupted = threading.Event()
    made = projector_of(parts)
    made.acquire(WATERMARKS, interrupted)
    interrupted.set()
    with pytest.raises(OwnershipLost, match="given up"):
        made.project(BATCH)
    assert (parts.calls.prepare.called, made._session, made._fence) == (False, None, None)


ENDED = StatementEnded("57014", why="timeout")
DEFECT = KeyError("a defect")
ALL = [DEFECT, DataRefused("23505", "refused"), ENDED, DatabaseUnreachable(why="away"), OwnershipLost(why="lost")]


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("following", [False, True])
@pytest.mark.parametrize("suspected", [False, True])
@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_a_transaction_that_fails_is_tried_model_by_model(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, error: Exception, suspected: bool, following: bool, alone: bool
) -> None:
    """Where a model may be to blame: after a refusal or a defect, and for one record after a statement that ended."""
    tried: list[bool] = []

    def transaction(_: object, _prepared: object, *, apart: bool = False) -> Any:
        tried.append(apart)
        if apart:
            return "apart"
        raise error

    monkeypatch.setattr(PartitionProjector, "_transaction", transaction)
    parts.prepared.batch = ONE if alone else BATCH
    parts.models.suspected, parts.models.following = suspected, [MODEL] if following else []
    made = projector_of(parts)
    may_be_a_models = error in ALL[:2] or (error is ENDED and alone and following)
    at_once = suspected and alone and following
    done: list[Any] = []
    steps = parts.since(lambda: done.append(outcome_of(lambda: made._write(parts.prepared))))
    again = [call.Session().rollback(), call.InlineFolds().prepare_again(parts.session)]
    if at_once:
        assert (done, tried, steps) == (["apart"], [True], [])
    elif may_be_a_models and following:
        assert (done, tried, steps) == (["apart"], [False, True], again)
    else:
        assert (done, tried, steps) == ([error], [False], again if may_be_a_models else [])


def outcome_of(act: Callable[[], Any]) -> Any:
    """Return what an act returns, or its error."""
    try:
        return act()
    except Exception as error:
        return error


def test_what_fails_again_model_by_model_fails(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at once; a schema of a later release is rolled back and tried no second time."""
    tried: list[bool] = []
    errors: list[Exception] = [DEFECT]

    def transaction(_: object, _prepared: object, *, apart: bool = False) -> Any:
        tried.append(apart)
        raise errors[0]

    monkeypatch.setattr(PartitionProjector, "_transaction", transaction)
    parts.prepared.batch, parts.models.following = ONE, [MODEL]
    made = projector_of(parts)
    assert (outcome_of(lambda: made._write(parts.prepared)), tried) == (DEFECT, [False, True])
    parts.models.suspected = True
    assert (outcome_of(lambda: made._write(parts.prepared)), tried) == (DEFECT, [False, True, True])
    errors[0] = SchemaNewer(TOPIC, 3, 12, 99)
    parts.models.suspected = False
    steps = parts.since(lambda: outcome_of(lambda: made._write(parts.prepared)))
    assert (tried[3:], steps) == ([False], [call.Session().rollback()])


def test_models_are_folded_apart_behind_the_log(parts: Parts) -> None:
    """None is folded with the others then. Those that are refused are noted in the transaction, and then left out."""
    parts.calls.goes_inline.return_value = False
    made = projector_of(parts)
    refused = {MODEL.key: DEFECT}
    parts.calls.fold_apart.return_value = refused
    parts.time.now = 123.0
    steps = parts.since(lambda: made._transaction(parts.prepared, apart=True))
    session = parts.session
    apart = call.fold_apart(session, parts.staging, [MODEL, OTHER_MODEL], parts.judged, began_seconds=123.0)
    assert steps == [
        *before_folds(parts, inline=False)[3:],
        apart,
        call.FollowingModels().count_ended(refused),
        call.FollowingModels().note_stopped(session, refused),
        call.Session().script(ADVANCE, "COMMIT"),
        *after_folds(parts)[:-2],
    ]


def newer_at(offset: int) -> SchemaNewer:
    return SchemaNewer(TOPIC, 3, offset, 99)


@pytest.mark.parametrize(("offset", "prepared"), [(12, [[12, 13]]), (13, [[12, 13], [12]]), (11, [[12, 13]])])
def test_what_stands_before_a_schema_of_a_later_release_is_applied(
    parts: Parts, offset: int, prepared: list[list[int]]
) -> None:
    """Then the partition is closed and stops. An event that waits and can't be decoded stops it at once."""
    parts.calls.prepare.side_effect = [newer_at(offset), parts.prepared]
    parts.judged.batch = BATCH.between(0, 1)
    made = projector_of(parts)
    stopped = outcome_of(lambda: made.project(BATCH))
    assert isinstance(stopped, SchemaNewer)
    assert stopped.offset == offset
    assert [each.args[0].offsets for each in parts.calls.prepare.call_args_list] == prepared
    assert (made._session, parts.log.write.called) == (None, offset == 13)


def test_a_reason_to_skip_a_record_is_kept_until_it_is_passed(parts: Parts) -> None:
    """A later reason replaces it."""
    made = projector_of(parts)
    for offset, kept in ((14, {14: "why"}), (13, {})):
        made.acquire(WATERMARKS)
        made.skip(99, "replaced")
        made.skip(offset, "why")
        made.project(BATCH)
        assert parts.calls.prepare.call_args == call(BATCH, {offset: "why"})
        assert made._skipped == kept


@pytest.mark.parametrize("idle", [False, True])
@pytest.mark.parametrize(("seconds", "looks"), [(-0.5, False), (0.0, True), (0.5, True)])
def test_a_worker_looks_for_builds_now_and_then(parts: Parts, seconds: float, looks: bool, idle: bool) -> None:
    """So many seconds after it last looked, whether records come or not."""
    made = projector_of(parts)
    parts.time.now += LOOK_EVERY_SECONDS + seconds
    act = made.idle if idle else lambda: made.project(BATCH)
    session = parts.session
    looked = [call.FollowingModels().require_functions(session), call.fed_keys(session, [MODEL])] if looks else []
    more = [call.LogRanges().load_more(session), call.FollowingModels().near()]
    assert parts.since(act)[0 if idle else -len(more) - len(looked) :] == [*more, *looked]
    assert parts.since(made.idle) == more


def test_an_idle_partition_without_a_connection_does_nothing(parts: Parts) -> None:
    """It is acquired first."""
    made = projector_of(parts, acquire=False)
    assert parts.since(made.idle) == []


def test_builds_that_readers_hold_are_asked_for_again(parts: Parts) -> None:
    """When the worker looks next, and with what was left of them; those that follow are all asked for once more."""
    parts.calls.publish_all.return_value = [MODEL]
    made = projector_of(parts)
    session = parts.session
    for left in ([MODEL], []):
        parts.calls.publish_all.return_value = left
        parts.time.now += LOOK_EVERY_SECONDS
        asked = parts.since(made.idle)
        assert asked[2] == call.publish_all(session, [MODEL], caught_up=False)
    parts.time.now += LOOK_EVERY_SECONDS
    parts.since(made.idle)
    assert not parts.calls.publish_all.called


def test_other_builds_are_fed_or_left_from_then_on(parts: Parts) -> None:
    """New ones when the partition is acquired again, those that are gone at once."""
    made = projector_of(parts)
    parts.calls.fed_keys.return_value = {MODEL.key}
    parts.time.now += LOOK_EVERY_SECONDS
    steps = parts.since(made.idle)
    assert steps[-1] == call.FollowingModels().drop(parts.session, 7, {OTHER_MODEL.key})
    parts.calls.fed_keys.return_value = {MODEL.key, OTHER_MODEL.key, "new/2", "new/1"}
    parts.time.now += LOOK_EVERY_SECONDS
    with pytest.raises(ReadModelsChanged) as changed:
        made.idle()
    assert changed.value.why == "new/1, new/2 is to be fed from now on."
    assert made._session is None


@pytest.mark.parametrize("rejoined", [[], [OTHER_MODEL]])
def test_models_near_the_logs_end_follow_again(parts: Parts, rejoined: list[Any]) -> None:
    """Readers see builds that have caught up by it."""
    parts.models.near.return_value = [OTHER_MODEL]
    parts.models.rejoin.return_value = rejoined
    made = projector_of(parts)
    session = parts.session
    published = [call.publish_all(session, [MODEL], caught_up=True)] if rejoined else []
    assert parts.since(made.idle) == [
        call.LogRanges().load_more(session),
        call.FollowingModels().near(),
        call.FollowingModels().rejoin(session, parts.staging, 7, [OTHER_MODEL]),
        *published,
    ]


@pytest.mark.parametrize(
    ("error", "raised", "forgets"),
    [
        (DataRefused("23505", "refused"), LogRefused, True),
        (DEFECT, KeyError, True),
        (OwnershipLost(why="lost"), OwnershipLost, True),
        (ModelStatementEnded(MODEL, ENDED), ModelStatementEnded, False),
    ],
)
def test_after_any_error_the_connection_is_closed(
    parts: Parts, error: Exception, raised: type[Exception], forgets: bool
) -> None:
    """A statement of a model that was given up is counted on, and whatever else went wrong begins the count again."""
    made = projector_of(parts)
    parts.ranges.load_more.side_effect = error
    outcome: list[Any] = []
    steps = parts.since(lambda: outcome.append(outcome_of(made.idle)))
    assert isinstance(outcome[0], raised)
    assert raised is not LogRefused or (outcome[0].why, outcome[0].__cause__) == ("refused", error)
    assert steps[1:] == [
        *([call.FollowingModels().forget_ended()] if forgets else []),
        call.Session().close(),
        call.FollowingModels().close(),
        call.PartitionParking().close(),
    ]
    assert (made._session, made._fence) == (None, None)


def test_a_partition_that_moved_is_forgotten(parts: Parts) -> None:
    """With what is known of event ids and of models that lag."""
    made = projector_of(parts)
    assert parts.since(made.forget)[-2:] == [call.FollowingModels().forget(), call.LogRanges().forget()]
    assert made._session is None


def test_a_stop_is_noted_over_a_connection_of_its_own(parts: Parts) -> None:
    """Under the last token, none where the partition was not acquired; a database that is away keeps nothing back."""
    made = projector_of(parts, acquire=False)
    for token in (None, 7):
        assert parts.since(lambda: made.note_stop("why")) == [
            call.Session(URL),
            call.note_stop(parts.session, "projector", TOPIC, 3, token, "why"),
            call.Session().close(),
        ]
        made.acquire(WATERMARKS)
    parts.calls.Session.side_effect = DatabaseUnreachable(why="away")
    made.note_stop("why")


def test_room_is_made_by_what_waits(parts: Parts) -> None:
    """It is told which poison records are named further on."""
    named = Mock()
    made = projector_of(parts)
    assert parts.since(lambda: made.make_room(named)) == [call.PartitionParking().make_room(named)]
