"""Read models that lag are fed next to live projection, from the log, and follow again at equal offsets."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import structlog

from projections import builds, fold, following_models, lagging_models, model_checkpoints
from projections.read_model import ReadModel
from projections.session import Session
from projections.stopped_models import TRIES
from streams.errors import ReadModelsChanged
from tests.support.lagging_worker import (
    NEW,
    PAUSE,
    REFUSE_ONE,
    Clock,
    MakeWorker,
    Worker,
    available,
    lag,
    offsets,
    rows,
    sample,
)  # fmt: skip
from tests.support.load import some_events
from tests.support.waiting import DEADLINE_SECONDS, wait_until

REASONS = "SELECT projection, next_offset, stop_reason FROM model_checkpoints WHERE stop_reason IS NOT NULL"
MENDED = "ALTER TABLE {0}_v1.{0} DROP CONSTRAINT refused"

END_ONE = """
CREATE FUNCTION end_statement() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'ended' USING ERRCODE = 'XX000'; END $$;
CREATE TRIGGER end_statement BEFORE INSERT ON {0}_v1.{0} FOR EACH ROW WHEN (NEW."offset" = {1})
    EXECUTE FUNCTION end_statement()
"""


def test_live_records_go_on_while_a_model_is_fed(worker: Worker, superuser: Session) -> None:
    """Its partition opens at once, a batch goes in between two slices, and then it follows at the log's own offset."""
    events = lag(superuser, worker, NEW)
    assert offsets(superuser) == {"agents": 40, NEW: 0, "log": 40, "others": 40}

    assert worker.lagging.feed_next() == 0.0
    between = offsets(superuser)[NEW]
    assert 0 < between < 40
    assert sample("plant_worker_read_model_lag", model=NEW, version="1") == 40
    worker.project(more := some_events(30, seed=5))
    assert offsets(superuser) == {"agents": 70, NEW: between, "log": 70, "others": 70}

    worker.feed()
    assert offsets(superuser)[NEW] == 70
    worker.owners[0].idle()
    worker.project(last := some_events(8, seed=6))
    assert superuser.query("SELECT count(*) AS n FROM model_checkpoints WHERE partition = 0") == [(0,)]
    worker.project(again := some_events(8, seed=7))

    assert set(offsets(superuser).values()) == {86}
    expected = [*available(events), *available(more, 40), *available(last, 70), *available(again, 78)]
    assert rows(superuser) == rows(superuser, "others") == expected
    assert sample("plant_worker_read_model_lag", model=NEW, version="1") is None


def test_what_comes_while_the_owner_is_asked_is_folded_by_it(
    worker: Worker, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It alone moves the log, so it can tell that both are equal; what is much by then is fed again."""
    lag(superuser, worker, NEW)
    worker.feed()
    monkeypatch.setattr(following_models, "REJOIN_OFFSETS", 5)
    worker.project(some_events(6, seed=5))
    assert offsets(superuser)[NEW] == 40
    worker.feed()
    assert offsets(superuser)[NEW] == 46
    worker.project(some_events(5, seed=6))
    assert offsets(superuser)[NEW] == 51
    assert superuser.query("SELECT count(*) AS n FROM model_checkpoints WHERE partition = 0") == [(0,)]
    assert rows(superuser) == rows(superuser, "others")


def test_an_owner_without_records_takes_models_back(
    worker: Worker, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And readers see a build that is whole by that."""
    lag(superuser, worker, "agents")
    worker.feed()
    published: list[tuple[set[str], bool]] = []

    def publish_all(_session: Session, models: Iterable[ReadModel], *, caught_up: bool) -> list[ReadModel]:
        published.append(({model.name for model in models}, caught_up))
        return []

    monkeypatch.setattr(builds, "publish_all", publish_all)
    worker.owners[0].idle()
    assert set(offsets(superuser).values()) == {40}
    assert [(True, caught_up) for names, caught_up in published if "agents" in names] == [(True, True)]


def test_models_at_one_offset_are_decoded_once(
    worker: Worker, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one furthest behind goes up to where the next one stands, and both go on together."""
    lag(superuser, worker, NEW, "others", "agents")
    for name, next_offset in ((NEW, 7), ("others", 20), ("agents", 30)):
        superuser.script(f"UPDATE model_checkpoints SET next_offset = {next_offset} WHERE projection = '{name}'")
    decoded: list[int] = []
    frames = fold.decoded_frames

    def counted(topic: str, partition: int, of: Sequence[int], *others: Any) -> Any:
        decoded.append(len(of))
        return frames(topic, partition, of, *others)

    monkeypatch.setattr(fold, "decoded_frames", counted)
    with structlog.testing.capture_logs() as lines:
        worker.feed()
    folded = [(line["models"], line["next_offset"]) for line in lines if line["event"] == "models.folded"]
    assert folded == [
        ([f"{NEW}/1"], 20),
        ([f"{NEW}/1", "others/1"], 30),
        (["agents/1", f"{NEW}/1", "others/1"], 40),
    ]
    assert decoded == [13, 10, 10]


def test_partitions_take_turns_on_one_connection(worker: Worker, superuser: Session) -> None:
    """Each has a slice, whatever the other one lacks; the connection goes once nothing lags."""
    superuser.script(PAUSE.format("true", NEW), PAUSE.format("true", "others"))
    for partition in (0, 1):
        lag(superuser, worker, "agents", partition=partition)
    pids = set()
    for _ in range(2):
        assert worker.lagging.feed_next() == 0.0
        pids.add(worker.lagging.backend_pid)
    assert (offsets(superuser)["agents"], offsets(superuser, 1)["agents"]) == (16, 16)
    worker.feed()
    assert (offsets(superuser)["agents"], offsets(superuser, 1)["agents"]) == (40, 40)
    assert len(pids) == 1
    assert worker.lagging.feed_next() is None
    assert worker.lagging.backend_pid == 0


def test_one_refused_row_stops_its_model_right_there(worker: Worker, superuser: Session) -> None:
    """The search for it halves slices; the other model goes on, and so do log and partition. Mended, it catches up."""
    events = lag(superuser, worker, NEW, "others", count=100)
    bad = available(events)[3]
    superuser.script(REFUSE_ONE.format(NEW, bad))

    with structlog.testing.capture_logs() as lines:
        worker.feed()

    assert (offsets(superuser)[NEW], rows(superuser)) == (bad, available(events)[:3])
    assert rows(superuser, "others") == available(events)
    ((name, next_offset, reason),) = superuser.query(REASONS)
    assert (name, next_offset) == (NEW, bad)
    assert "23514" in reason
    (stopped,) = [line for line in lines if line["event"] == "model.stopped"]
    assert (stopped["model"], stopped["next_offset"], stopped["log_level"]) == (NEW, bad, "error")
    assert sample("plant_worker_stopped_read_models", model=NEW) == 1.0
    slices = sum(line["event"] in ("models.folded", "models.slice_halved") for line in lines)
    assert slices < 40

    worker.project(some_events(8, seed=5))
    assert offsets(superuser)["log"] == 108
    superuser.script(MENDED.format(NEW))
    worker.feed()
    assert offsets(superuser)[NEW] == bad, "it was tried at once"


def test_a_stopped_model_is_tried_again_ever_less_often(worker: Worker, superuser: Session, clock: Clock) -> None:
    """With a line at the usual level for the first time; once it is mended it goes on, and nothing says stopped."""
    events = lag(superuser, worker, NEW)
    superuser.script(REFUSE_ONE.format(NEW, available(events)[0]))
    with structlog.testing.capture_logs() as lines:
        worker.feed()
        waits = []
        for _ in range(6):
            wait_seconds = worker.lagging.feed_next()
            assert wait_seconds is not None
            waits.append(wait_seconds)
            clock.now += wait_seconds
            worker.feed()
    assert waits == [10.0, 30.0, 60.0, 120.0, 300.0, 300.0]
    named = [line["event"] for line in lines if line["event"].startswith("model.")]
    assert named == ["model.stopped", *["model.still_stopped"] * 6]

    superuser.script(MENDED.format(NEW))
    clock.now += 300
    with structlog.testing.capture_logs() as lines:
        worker.feed()
    assert "model.resumed" in [line["event"] for line in lines]
    assert superuser.query(REASONS) == []
    assert sample("plant_worker_stopped_read_models", model=NEW) is None
    worker.owners[0].idle()
    assert set(offsets(superuser).values()) == {40}
    assert rows(superuser) == available(events)


def test_a_stopped_model_waits_when_its_partition_is_acquired_again(
    make_worker: MakeWorker, superuser: Session, clock: Clock
) -> None:
    """In the same worker. Another one, or the same started again, tries it at once."""
    worker = make_worker()
    events = lag(superuser, worker, NEW)
    superuser.script(REFUSE_ONE.format(NEW, available(events)[0]))
    worker.feed()
    superuser.script(MENDED.format(NEW))
    worker.acquire()
    worker.feed()
    assert offsets(superuser)[NEW] == available(events)[0]

    second = make_worker()
    second.acquire()
    second.feed()
    assert offsets(superuser)[NEW] == 40


def test_a_statement_that_is_always_ended_stops_its_model(worker: Worker, superuser: Session) -> None:
    """With one record, several times in a row; it may have been the server's fault."""
    events = lag(superuser, worker, NEW, "others")
    bad = available(events)[2]
    superuser.script(END_ONE.format(NEW, bad))
    tried: list[object] = []
    fold_slice = fold.fold_slice

    def counted(*arguments: Any) -> int:
        if NEW in [model.name for model in arguments[2]]:
            tried.append(arguments[5:])
        return fold_slice(*arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fold, "fold_slice", counted)
        worker.feed()
    assert offsets(superuser)[NEW] == bad
    assert rows(superuser, "others") == available(events)
    assert tried.count(((bad, 40), 1)) == TRIES
    ((_, _, reason),) = superuser.query(REASONS)
    assert "XX000" in reason


def test_a_model_that_can_not_be_taken_back_is_fed_to_the_end(
    worker: Worker, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its statement is given up while its partition waits: that does not happen again, and nothing else stops."""
    events = lag(superuser, worker, NEW)
    monkeypatch.setattr(lagging_models, "QUICK_SECONDS", 0.0)
    monkeypatch.setattr(lagging_models, "NEAR_OFFSETS", 1_000)
    monkeypatch.setattr(following_models, "REJOIN_OFFSETS", 1_000)
    monkeypatch.setattr(following_models, "REJOIN_TIMEOUT", "SET LOCAL statement_timeout = '2s'")
    superuser.script(
        "CREATE FUNCTION be_slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM pg_sleep(60) WHERE current_setting('statement_timeout') = '2s'; RETURN NEW; END $$",
        f"CREATE TRIGGER be_slow BEFORE INSERT ON {NEW}_v1.{NEW} FOR EACH ROW EXECUTE FUNCTION be_slow()",
    )
    worker.feed()
    assert offsets(superuser)[NEW] == 0, "it is near"
    worker.owners[0].idle()
    assert offsets(superuser)[NEW] == 0
    worker.feed()
    assert offsets(superuser)[NEW] == 40
    worker.owners[0].idle()
    worker.project(more := some_events(4, seed=5))
    assert set(offsets(superuser).values()) == {44}
    assert rows(superuser) == [*available(events), *available(more, 40)]


def test_a_mended_model_is_taken_back_while_records_come_in(
    worker: Worker, superuser: Session, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each slice the log is longer: it is near once it lacks no more than quick slices have brought."""
    monkeypatch.setattr(lagging_models, "NEAR_OFFSETS", 1_000)
    monkeypatch.setattr(following_models, "REJOIN_OFFSETS", 1_000)
    worker.acquire()
    superuser.script(REFUSE_ONE.format(NEW, available(some_events(8))[0]))
    worker.project(some_events(8))
    assert sample("plant_worker_stopped_read_models", model=NEW) == 1.0
    superuser.script(MENDED.format(NEW))
    clock.now += 10
    for seed in range(2, 12):
        worker.project(some_events(2, seed=seed))
        worker.lagging.feed_next()
    assert superuser.query("SELECT count(*) AS n FROM model_checkpoints WHERE partition = 0") == [(0,)]
    assert set(offsets(superuser).values()) == {28}
    assert rows(superuser) == rows(superuser, "others")


def test_an_owner_waits_no_longer_for_a_slice_than_for_a_statement(
    worker: Worker, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice that began before the partition was acquired again has the model: it is fed apart, and records flow."""
    events = lag(superuser, worker, NEW)
    monkeypatch.setattr(following_models, "REJOIN_OFFSETS", 1_000)
    monkeypatch.setattr(following_models, "REJOIN_TIMEOUT", "SET LOCAL statement_timeout = '100ms'")
    superuser.script("BEGIN", "SELECT FROM model_checkpoints FOR UPDATE")
    worker.acquire()
    worker.project(more := some_events(8, seed=5))
    superuser.rollback()
    assert offsets(superuser) == {"agents": 48, NEW: 0, "log": 48, "others": 48}
    worker.feed()
    worker.owners[0].idle()
    assert rows(superuser) == [*available(events), *available(more, 40)]


def test_a_model_that_is_refused_when_it_is_taken_back_is_stopped(
    worker: Worker, superuser: Session, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its partition goes on; the row is looked for apart."""
    events = lag(superuser, worker, NEW)
    monkeypatch.setattr(lagging_models, "NEAR_OFFSETS", 1_000)
    monkeypatch.setattr(following_models, "REJOIN_OFFSETS", 1_000)
    bad = available(events)[2]
    superuser.script(REFUSE_ONE.format(NEW, bad))
    worker.feed()
    worker.owners[0].idle()
    worker.project(some_events(4, seed=5))
    ((name, next_offset, _),) = superuser.query(REASONS)
    assert (name, next_offset <= bad) == (NEW, True)
    clock.now += 10
    worker.feed()
    assert offsets(superuser)[NEW] == bad
    assert offsets(superuser)["log"] == 44


@pytest.mark.parametrize("point", ["before the slice", "before its commit"])
def test_a_connection_that_is_lost_is_opened_again(
    worker: Worker, superuser: Session, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """The slice that was open is folded once, by the next one."""
    events = lag(superuser, worker, NEW)
    worker.lagging.feed_next()
    first = worker.lagging.backend_pid
    fold_slice, killed = fold.fold_slice, []

    def lose(*arguments: Any) -> int:
        if not killed and point == "before the slice":
            killed.append(superuser.query("SELECT pg_terminate_backend($1::int, 60000)", (first,)))
        after = fold_slice(*arguments)
        if not killed:
            killed.append(superuser.query("SELECT pg_terminate_backend($1::int, 60000)", (first,)))
        return after

    monkeypatch.setattr(fold, "fold_slice", lose)
    assert worker.lagging.feed_next() == lagging_models.RETRY_DELAYS_SECONDS[0]
    assert offsets(superuser)[NEW] == 16
    worker.feed()
    assert (offsets(superuser)[NEW], rows(superuser)) == (40, available(events))


def test_a_slice_that_is_given_up_is_halved_and_then_grows(worker: Worker, superuser: Session) -> None:
    """It is not tried again at the same size."""
    events = lag(superuser, worker, NEW, count=80)
    fold_slice, tried, failures = fold.fold_slice, [], iter((True, True))

    def failing(session: Session, *arguments: Any) -> int:
        tried.append(arguments[-1])
        after = fold_slice(session, *arguments)
        if next(failures, False):
            session.script("DO $$ BEGIN RAISE EXCEPTION 'ended' USING ERRCODE = '57014'; END $$")
        return after

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fold, "fold_slice", failing)
        worker.feed()
    assert tried == [16, 8, 4, 8, 16, 16, 16, 16, 16][: len(tried)]
    assert rows(superuser) == available(events)


def test_a_new_owner_ends_the_session_that_feeds(make_worker: MakeWorker, superuser: Session) -> None:
    """Even one that is frozen in a slice: its locks go with it, and what it had not committed. It begins no other."""
    former = make_worker()
    events = lag(superuser, former, NEW)
    former.lagging.feed_next()
    frozen, going = threading.Event(), threading.Event()
    fold_slice = fold.fold_slice

    def freeze(*arguments: Any) -> int:
        after = fold_slice(*arguments)
        if threading.current_thread() is thread:
            frozen.set()
            assert going.wait(DEADLINE_SECONDS)
        return after

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fold, "fold_slice", freeze)
        thread = threading.Thread(target=former.lagging.feed_next)
        thread.start()
        assert frozen.wait(DEADLINE_SECONDS)
        second = make_worker()
        second.acquire()
        second.feed()
        assert offsets(superuser)[NEW] == 40
        going.set()
        thread.join(DEADLINE_SECONDS)
    former.feed()
    assert former.lagging.feed_next() is None
    second.owners[0].idle()
    second.project(more := some_events(8, seed=5))
    assert rows(superuser) == [*available(events), *available(more, 40)]


def test_the_same_worker_keeps_its_session_when_it_acquires_again(worker: Worker, superuser: Session) -> None:
    """Otherwise each election of a leader would end the slice of another partition."""
    lag(superuser, worker, NEW)
    worker.lagging.feed_next()
    pid = worker.lagging.backend_pid
    worker.acquire()
    worker.lagging.feed_next()
    assert worker.lagging.backend_pid == pid
    assert offsets(superuser)[NEW] == 32


def test_a_slice_of_before_does_not_end_the_feeding(
    worker: Worker, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its partition is acquired again by the same worker while it runs; it is refused, and its token is not current."""
    monkeypatch.setattr(fold, "FOLD_RECORDS", 1)
    events = lag(superuser, worker, NEW)
    fold_slice, acquired = fold.fold_slice, iter((True,))

    def refused(*arguments: Any) -> int:
        if next(acquired, False):
            worker.acquire()
            raise KeyError("a defect")
        return fold_slice(*arguments)

    monkeypatch.setattr(fold, "fold_slice", refused)
    worker.feed()
    assert (offsets(superuser)[NEW], rows(superuser)) == (40, available(events))


def test_a_former_owner_folds_nothing_more(make_worker: MakeWorker, superuser: Session) -> None:
    """Its token is not current: neither under the session that it has, nor under a new one."""
    former = make_worker()
    lag(superuser, former, NEW)
    second = make_worker()
    second.acquire()
    assert former.lagging.feed_next() == 0.0
    assert former.lagging.feed_next() is None
    assert offsets(superuser)[NEW] == 0
    second.feed()
    assert rows(superuser) == rows(superuser, "others")


def test_a_model_that_is_paused_while_it_lags_stays_where_it_is(
    worker: Worker, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others go on; resumed, it goes on from there."""
    monkeypatch.setattr("projections.engine.LOOK_EVERY_SECONDS", 0.0)
    lag(superuser, worker, NEW)
    worker.lagging.feed_next()
    superuser.script(PAUSE.format("true", NEW))
    worker.owners[0].idle()
    worker.feed()
    assert offsets(superuser) == {"agents": 40, NEW: 16, "log": 40, "others": 40}
    superuser.script(PAUSE.format("false", NEW))
    with pytest.raises(ReadModelsChanged):
        worker.owners[0].idle()
    worker.acquire()
    worker.feed()
    worker.owners[0].idle()
    assert set(offsets(superuser).values()) == {40}


def test_a_build_whose_sql_was_altered_is_not_run(worker: Worker, superuser: Session) -> None:
    """It is stopped by name, and the others that lag are fed."""
    lag(superuser, worker, NEW, "others")
    superuser.script(
        "SET session_replication_role = replica",
        f"UPDATE read_model_builds SET apply_sql = apply_sql || ' RETURNING 1' WHERE projection = '{NEW}'",
        "SET session_replication_role = origin",
    )
    worker.acquire()
    worker.feed()
    assert (offsets(superuser)[NEW], offsets(superuser)["others"]) == (0, 40)
    ((name, _, reason),) = superuser.query(REASONS)
    assert name == NEW
    assert "other SQL" in reason


def test_the_filled_tables_are_analysed(worker: Worker, superuser: Session) -> None:
    """Postgres takes them for as small as they were until then."""
    events = lag(superuser, worker, NEW)
    worker.feed()
    known = f"SELECT reltuples::bigint AS rows FROM pg_class WHERE oid = '{NEW}_v1.{NEW}'::regclass"
    assert superuser.query(known) == [(len(available(events)),)]


def test_models_are_fed_in_a_thread_until_it_is_closed(
    worker: Worker, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice that runs ends first, and no other begins."""
    lag(superuser, worker, NEW, count=400)
    started, going = threading.Event(), threading.Event()
    fold_slice = fold.fold_slice

    def hold(*arguments: Any) -> int:
        started.set()
        assert going.wait(DEADLINE_SECONDS)
        return fold_slice(*arguments)

    monkeypatch.setattr(fold, "fold_slice", hold)
    worker.lagging.start()
    assert started.wait(DEADLINE_SECONDS)
    closing = threading.Thread(target=worker.lagging.close)
    closing.start()
    wait_until(lambda: worker.lagging._closing, "it is closing")
    going.set()
    closing.join(DEADLINE_SECONDS)
    assert offsets(superuser)[NEW] == 16


def test_a_thread_feeds_what_comes_later(worker: Worker, superuser: Session) -> None:
    """It sleeps while nothing lags, and wakes when something does."""
    worker.lagging.start()
    for _ in range(3):
        lag(superuser, worker, NEW)
        wait_until(lambda: offsets(superuser)[NEW] == worker.ends[0], "it is fed")
        worker.owners[0].idle()
        wait_until(lambda: worker.lagging.backend_pid == 0, "the connection is closed")
    assert rows(superuser) == rows(superuser, "others")


def test_a_defect_is_logged_and_tried_again(
    worker: Worker, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread goes on."""
    monkeypatch.setattr(lagging_models, "RETRY_DELAYS_SECONDS", (0.01,))
    lag(superuser, worker, NEW)
    lock, failures = model_checkpoints.lock, iter((True,))

    def failing(*arguments: Any) -> Any:
        if next(failures, False):
            raise KeyError("a defect")
        return lock(*arguments)

    monkeypatch.setattr(model_checkpoints, "lock", failing)
    with structlog.testing.capture_logs() as lines:
        worker.lagging.start()
        wait_until(lambda: offsets(superuser)[NEW] == 40, "it is fed")
    assert "models.failed" in [line["event"] for line in lines]


def test_what_says_nothing_about_a_model_stops_none(
    worker: Worker, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement that reads the log is ended, with one record too: the connection is opened again, later."""
    lag(superuser, worker, NEW)

    def frame(self: Session, *_: object) -> object:
        self.script("DO $$ BEGIN RAISE EXCEPTION 'ended' USING ERRCODE = '57014'; END $$")
        raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr(Session, "frame", frame)
        waits = [worker.lagging.feed_next() for _ in range(3 * TRIES)]
    assert {wait for wait in waits if wait} <= set(lagging_models.RETRY_DELAYS_SECONDS)
    assert any(waits)
    assert superuser.query(REASONS) == []
    worker.feed()
    assert rows(superuser) == rows(superuser, "others")


def test_metrics_of_a_partition_that_has_moved_go(worker: Worker, superuser: Session) -> None:
    """Another worker shows them."""
    events = lag(superuser, worker, NEW)
    superuser.script(REFUSE_ONE.format(NEW, available(events)[0]))
    worker.feed()
    assert sample("plant_worker_stopped_read_models", model=NEW) == 1.0
    worker.owners[0].forget()
    assert sample("plant_worker_stopped_read_models", model=NEW) is None
    assert sample("plant_worker_read_model_lag", model=NEW, version="1") is None


def test_no_metric_comes_back_after_its_partition_has_moved(
    worker: Worker, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice was about to show it."""
    lag(superuser, worker, NEW)
    lock = model_checkpoints.lock

    def locked(*arguments: Any) -> Any:
        locked_rows = lock(*arguments)
        worker.owners[0].forget()
        return locked_rows

    monkeypatch.setattr(model_checkpoints, "lock", locked)
    worker.lagging.feed_next()
    assert sample("plant_worker_read_model_lag", model=NEW, version="1") is None
