"""Waiting for the log: who waits goes on when the checkpoint has passed, and no one is forgotten."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from database.errors import DatabaseUnreachable
from projections import log_checkpoints
from projections.log_checkpoints import LogCheckpoints, LogWaiter
from projections.session import Session
from streams.errors import OwnershipLost
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS, batch_of
from tests.support.load import some_events
from tests.support.projectors import MakeProjector
from tests.support.waiting import DEADLINE_SECONDS, wait_until

NEVER = threading.Event()
END_SESSIONS = """
SELECT count(pg_terminate_backend(pid, 5000)) AS ended FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@pytest.fixture
def checkpoints(database: Database) -> Iterator[LogCheckpoints]:
    made = LogCheckpoints(database.writer_url, TOPIC)
    yield made
    made.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


def test_each_waits_for_its_own_partition(
    checkpoints: LogCheckpoints, threads: ThreadPoolExecutor, make_projector: MakeProjector
) -> None:
    """One poller tells all of them."""
    first, second = make_projector(0), make_projector(1)
    events = some_events(5)
    waits = [threads.submit(checkpoints.wait_past, partition, 4, NEVER) for partition in (0, 1)]
    first.project(batch_of(events[:2], token=first.acquire(WATERMARKS).token))
    second.project(batch_of(events, token=second.acquire(WATERMARKS).token, partition=1))
    assert waits[1].result(DEADLINE_SECONDS) == 5
    assert checkpoints.next_offset(1) == 5
    assert not waits[0].done()
    token = first.acquire(WATERMARKS).token
    first.project(batch_of(some_events(5, seed=2)[2:], token=token, start=2))
    assert waits[0].result(DEADLINE_SECONDS) == 5
    assert checkpoints.wait_past(0, 0, NEVER) == 5


def test_none_is_woken_for_another_partition(
    checkpoints: LogCheckpoints, threads: ThreadPoolExecutor, make_projector: MakeProjector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Nor for an offset that it does not wait for: with many partitions each batch would wake them all."""
    looked: list[tuple[int, int]] = []
    reached = LogCheckpoints._reached

    def seen(self: LogCheckpoints, waiter: LogWaiter, interrupted: threading.Event) -> int | None:
        looked.append((waiter.partition, waiter.offset))
        return reached(self, waiter, interrupted)

    monkeypatch.setattr(log_checkpoints, "INTERRUPTION_SECONDS", DEADLINE_SECONDS)
    monkeypatch.setattr(LogCheckpoints, "_reached", seen)
    projector = make_projector(0)
    waits = [threads.submit(checkpoints.wait_past, *each, NEVER) for each in ((0, 0), (0, 7), (1, 0))]
    wait_until(lambda: len(looked) == 3, "all wait")
    projector.project(batch_of(some_events(5), token=projector.acquire(WATERMARKS).token))
    assert waits[0].result(DEADLINE_SECONDS) == 5
    seen_by_then = sorted(looked)
    checkpoints.close()
    for each in waits[1:]:
        with pytest.raises(OwnershipLost):
            each.result(DEADLINE_SECONDS)
    assert seen_by_then == [(0, 0), (0, 0), (0, 7), (1, 0)]


def test_a_wait_ends_when_its_partition_is_given_up(checkpoints: LogCheckpoints, threads: ThreadPoolExecutor) -> None:
    """Others wait on, until the poller is closed."""
    given_up = threading.Event()
    mine, other = (
        threads.submit(checkpoints.wait_past, 0, 0, given_up),
        threads.submit(checkpoints.wait_past, 1, 0, NEVER),
    )
    given_up.set()
    with pytest.raises(OwnershipLost):
        mine.result(DEADLINE_SECONDS)
    assert not other.done()
    checkpoints.close()
    with pytest.raises(OwnershipLost):
        other.result(DEADLINE_SECONDS)


def test_a_session_that_ends_is_told_to_who_waits_and_begun_again(
    checkpoints: LogCheckpoints, threads: ThreadPoolExecutor, database: Database, make_projector: MakeProjector
) -> None:
    """The next wait finds the poller as if nothing had been."""
    waiting = threads.submit(checkpoints.wait_past, 0, 0, NEVER)
    superuser = Session(database.superuser_url)
    try:

        def is_told() -> bool:
            superuser.query(END_SESSIONS)
            return waiting.done()

        wait_until(is_told, "the wait has ended")
    finally:
        superuser.close()
    with pytest.raises(DatabaseUnreachable):
        waiting.result()
    projector = make_projector(0)
    projector.project(batch_of(some_events(1), token=projector.acquire(WATERMARKS).token))
    assert checkpoints.wait_past(0, 0, NEVER) == 1
