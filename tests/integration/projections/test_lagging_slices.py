"""Slices of read models that lag: how large they are, who shares one, when one is tried again, and who begins none."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import structlog

from database.errors import DatabaseUnreachable
from projections import fold, following_models, lagging_models, model_checkpoints
from projections.errors import ModelStatementEnded
from projections.session import Session, StatementEnded
from projections.stopped_models import TRIES
from tests.support.batches import TOPIC
from tests.support.lagging_worker import MODELS, NEW, REFUSE_ONE, Clock, Worker, available, lag, offsets

_, AVAILABILITIES, OTHERS = MODELS
FEEDER = "SELECT feeder_pid FROM partition_owners WHERE consumer = 'projector' AND partition = 0"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine makes no slice slow."""
    monkeypatch.setattr(lagging_models, "QUICK_SECONDS", 1_000_000.0)


def fed(worker: Worker) -> list[tuple[list[str], int]]:
    """Feed what lags; returns the names of the models of each slice, and where it ended."""
    with structlog.testing.capture_logs() as lines:
        worker.feed()
    return [
        ([key.partition("/")[0] for key in line["models"]], line["next_offset"])
        for line in lines
        if line["event"] == "models.folded"
    ]


def put_at(superuser: Session, **next_offsets: int) -> None:
    """Let models that lag stand elsewhere."""
    for name, next_offset in next_offsets.items():
        superuser.script(f"UPDATE model_checkpoints SET next_offset = {next_offset} WHERE projection = '{name}'")


def test_a_model_that_is_given_back_is_fed_by_itself_at_first(worker: Worker, superuser: Session) -> None:
    """In slices that double from one record on; once they are whole it shares them, and holds up nobody before."""
    lag(superuser, worker, NEW, "others")
    worker.lagging.give(TOPIC, 0, worker.tokens[0], OTHERS)
    assert fed(worker) == [
        ([NEW], 16), (["others"], 1), (["others"], 3), (["others"], 7), (["others"], 15), (["others"], 16),
        ([NEW, "others"], 32), ([NEW, "others"], 40),
    ]  # fmt: skip


def test_a_model_is_near_once_it_lacks_what_its_largest_slice_has_brought(
    worker: Worker, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what the last one has, which may have ended where another model stands."""
    lag(superuser, worker, NEW, "others", count=48)
    monkeypatch.setattr(lagging_models, "NEAR_OFFSETS", 16)
    put_at(superuser, availabilities=32)
    for model in (OTHERS, AVAILABILITIES):
        worker.lagging.give(TOPIC, 0, worker.tokens[0], model)
    assert [slice_ for slice_ in fed(worker) if "others" in slice_[0]] == [
        (["others"], 1), (["others"], 3), (["others"], 7), (["others"], 15), (["others"], 31), (["others"], 32),
    ]  # fmt: skip
    assert offsets(superuser)["others"] == 32


def test_a_closed_partition_is_not_fed(worker: Worker, superuser: Session) -> None:
    """Until it is acquired again: its owner may have closed it over what a slice would meet as well."""
    lag(superuser, worker, NEW)
    worker.owners[0].close()
    assert worker.lagging.feed_next() is None
    assert offsets(superuser)[NEW] == 0
    worker.acquire()
    worker.feed()
    assert offsets(superuser)[NEW] == 40


def test_an_unreachable_database_is_tried_ever_less_often(
    worker: Worker, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the shortest delay on again after each slice that went well."""
    delays = lagging_models.RETRY_DELAYS_SECONDS
    lag(superuser, worker, NEW)
    lock = model_checkpoints.lock

    def unreachable(*_: object) -> Any:
        raise DatabaseUnreachable(why="It is away.")

    for _ in range(2):
        monkeypatch.setattr(model_checkpoints, "lock", unreachable)
        assert [worker.lagging.feed_next() for _ in range(len(delays) + 1)] == [*delays, delays[-1]]
        monkeypatch.setattr(model_checkpoints, "lock", lock)
        assert worker.lagging.feed_next() == 0.0
    assert offsets(superuser)[NEW] == 32


@pytest.mark.parametrize(("rejoin_offsets", "expected"), [(40, 40), (39, 0)])
def test_a_model_that_lags_by_no_more_than_the_bound_is_brought_up_at_once(
    worker: Worker, superuser: Session, monkeypatch: pytest.MonkeyPatch, rejoin_offsets: int, expected: int
) -> None:
    """The partition is opened with it. One that lags by one offset more is left to be fed."""
    monkeypatch.setattr(following_models, "REJOIN_OFFSETS", rejoin_offsets)
    lag(superuser, worker, NEW)
    assert offsets(superuser)[NEW] == expected


def test_the_session_that_feeds_is_written_down(worker: Worker, superuser: Session) -> None:
    """Again where its connection was lost: the partition's next owner ends the one that is there now."""
    lag(superuser, worker, NEW)
    worker.lagging.feed_next()
    first = worker.lagging.backend_pid
    assert superuser.query(FEEDER) == [(first,)]
    superuser.query("SELECT pg_terminate_backend($1::int, 60000)", (first,))
    assert worker.lagging.feed_next() == lagging_models.RETRY_DELAYS_SECONDS[0]
    worker.lagging.feed_next()
    assert worker.lagging.backend_pid not in (0, first)
    assert superuser.query(FEEDER) == [(worker.lagging.backend_pid,)]


def test_a_build_whose_sql_was_altered_is_not_brought_up(
    worker: Worker, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by the partition's owner, however little it lags: it is stopped by name."""
    lag(superuser, worker, NEW)
    superuser.script(
        "SET session_replication_role = replica",
        f"UPDATE read_model_builds SET apply_sql = apply_sql || ' RETURNING 1' WHERE projection = '{NEW}'",
        "SET session_replication_role = origin",
    )
    monkeypatch.setattr(following_models, "REJOIN_OFFSETS", 1_000)
    worker.acquire()
    ((next_offset, reason),) = superuser.query("SELECT next_offset, stop_reason FROM model_checkpoints")
    assert (next_offset, "other SQL" in reason) == (0, True)


def test_a_model_that_went_on_is_tried_again_soon(worker: Worker, superuser: Session, clock: Clock) -> None:
    """Where it is refused once more: the wait begins at its shortest, however long the last one was."""
    events = lag(superuser, worker, NEW)
    first, second = available(events)[0], available(events)[-1]
    superuser.script(REFUSE_ONE.format(NEW, first))
    worker.feed()
    clock.now += 10
    worker.feed()
    assert worker.lagging.feed_next() == 30.0
    superuser.script(f"ALTER TABLE {NEW}_v1.{NEW} DROP CONSTRAINT refused", REFUSE_ONE.format(NEW, second))
    clock.now += 30
    worker.feed()
    assert offsets(superuser)[NEW] == second
    assert worker.lagging.feed_next() == 10.0


def test_statements_that_are_ended_now_and_then_stop_no_model(
    worker: Worker, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what happens several times in a row is the model's: each slice that went well begins the count again."""
    monkeypatch.setattr(fold, "FOLD_RECORDS", 1)
    lag(superuser, worker, NEW, count=3)
    fold_slice, ends = fold.fold_slice, itertools.cycle([*[True] * (TRIES - 1), False])
    given_up = StatementEnded("XX000", why="ended")

    def ended_at_first(*arguments: Any) -> int:
        if next(ends):
            raise ModelStatementEnded(AVAILABILITIES, given_up)
        return fold_slice(*arguments)

    monkeypatch.setattr(fold, "fold_slice", ended_at_first)
    worker.feed()
    assert superuser.query("SELECT next_offset, stop_reason FROM model_checkpoints") == [(3, None)]
