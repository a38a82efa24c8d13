"""The recorder: the same tables for any batches, under its fence, whatever stands on the topic."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec
import pytest
import structlog
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from deliveries.state.recorder import AttemptRecorder, build_recorder
from devstack import sql
from runtime import metrics
from schemas import codec
from schemas.delivery_records import ATTEMPTS_TOPIC, DeliveryAttempted
from schemas.examples import delivery_examples
from streams.errors import OwnershipLost, SchemaNewer, TopicRecreated
from streams.watermarks import Leadership
from tests.conftest import Database, SettingsFor
from tests.support.long_form import sized
from tests.support.made_attempts import BEGAN_AT, WATERMARKS, attempt_batch, attempted, folded
from tests.support.waiting import wait_until

MakeRecorder = Callable[..., AttemptRecorder]

PARTITION: Final = 1
"""Its owner leaves the tables of days alone, so the database can be used again."""

DELIVERIES: Final = "SELECT * FROM webhook_deliveries ORDER BY id"
ATTEMPTS: Final = "SELECT * FROM webhook_attempts ORDER BY delivery_id, attempted_at, hop, token"
EMPTY: Final = ["TRUNCATE webhook_deliveries, webhook_attempts, delivery_owners, delivery_checkpoints"]


@pytest.fixture
def make_recorder(database: Database, settings_for: SettingsFor) -> Iterator[MakeRecorder]:
    made: list[AttemptRecorder] = []

    def make(partition: int = PARTITION) -> AttemptRecorder:
        recorder = build_recorder(settings_for(database))(ATTEMPTS_TOPIC, partition)
        assert isinstance(recorder, AttemptRecorder)
        made.append(recorder)
        return recorder

    yield make
    for recorder in made:
        recorder.close()


def rows(database: Database, query: str) -> list[dict[str, Any]]:
    """Return rows; asyncpg's ids become plain ones."""

    async def fetch(connection: asyncpg.Connection[Any]) -> list[dict[str, Any]]:
        found = await connection.fetch(query)
        return [{n: UUID(bytes=v.bytes) if isinstance(v, UUID) else v for n, v in dict(row).items()} for row in found]

    return sql.run_on(database.operator_url, fetch)


RECORDS = st.builds(
    lambda number, tick, token, hop, attempt, outcome, state, stream: attempted(
        number,
        token=token,
        hop=hop,
        attempt=attempt,
        outcome=outcome,
        state=state,
        stream=stream,
        attempted_at=BEGAN_AT + timedelta(seconds=tick),
        status_code=None if tick == 1 else 500 + tick,
        why=f"tick {tick}",
        next_attempt_at=BEGAN_AT + timedelta(hours=tick) if state == "waiting" else None,
    ),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([0, 0, 0, 1, 2]),
    st.sampled_from([1, 1, 1, 2, 3]),
    st.sampled_from(["delivered", "failed", "postponed", "cancelled"]),
    st.sampled_from(["delivered", "waiting", "dead", "cancelled"]),
    st.sampled_from(["live", "backfill", "redrive"]),
)
"""Records that no deliverer writes in this order, too; some are copies."""


@hypothesis_settings(
    max_examples=sized(40, 80), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(records=st.lists(RECORDS, min_size=1, max_size=12), cuts=st.sets(st.integers(1, 11)), again=st.integers(0, 12))
def test_any_batches_give_the_tables_of_a_plain_fold(
    database: Database, make_recorder: MakeRecorder, records: list[DeliveryAttempted], cuts: set[int], again: int
) -> None:
    """However records are divided, and with some of them written again, the tables are those of one after another."""
    records = [*records, *records[:again]]
    sql.execute(database.superuser_url, EMPTY)
    recorder = make_recorder()
    token = recorder.acquire(WATERMARKS).token
    bounds = [0, *sorted(cut for cut in cuts if cut < len(records)), len(records)]
    for start, stop in pairwise(bounds):
        assert recorder.project(attempt_batch(records[start:stop], token=token, start=start, partition=1)) == stop
    recorder.close()

    deliveries, attempts = folded(records)
    assert rows(database, DELIVERIES) == deliveries
    assert rows(database, ATTEMPTS) == attempts


def test_first_attempts_are_copied_as_they_are_folded(database: Database, make_recorder: MakeRecorder) -> None:
    """The rows of new deliveries go straight into the tables, and are those that the statement would make."""
    changes: list[dict[str, Any]] = [
        {"stream": stream, "outcome": outcome, "state": state}
        for stream in ("live", "backfill", "redrive")
        for outcome, state in (("delivered", "delivered"), ("failed", "waiting"), ("gone", "cancelled"))
    ]
    records = [attempted(number, **each) for number, each in enumerate(changes, 1)]
    recorder = make_recorder()
    token = recorder.acquire(WATERMARKS).token
    recorder.project(attempt_batch(records, token=token, partition=1))
    deliveries, attempts = folded(records)
    assert rows(database, DELIVERIES) == deliveries
    assert rows(database, ATTEMPTS) == attempts


def test_two_owners_attempts_are_both_kept(database: Database, make_recorder: MakeRecorder) -> None:
    """Both reached the subscriber; the delivery's state is the later owner's, though its record came first."""
    recorder = make_recorder()
    token = recorder.acquire(WATERMARKS).token
    later = attempted(token=2, outcome="failed", state="waiting", status_code=500)
    recorder.project(attempt_batch([later, attempted(token=1)], token=token, partition=1))
    assert [row["token"] for row in rows(database, ATTEMPTS)] == [1, 2]
    (delivery,) = rows(database, DELIVERIES)
    assert (delivery["state"], delivery["status_code"], delivery["redriven"]) == ("waiting", 500, 0)


def test_a_redrive_begins_again(database: Database, make_recorder: MakeRecorder) -> None:
    """Its attempts are counted from one, and the row says that it was redriven; a repeat by another owner is none."""
    recorder = make_recorder()
    token = recorder.acquire(WATERMARKS).token
    dead = attempted(attempt=6, hop=5, outcome="failed", state="dead", status_code=500)
    repeat = msgspec.structs.replace(dead, token=2, attempted_at=dead.attempted_at + timedelta(seconds=1))
    redriven = attempted(hop=6, attempted_at=BEGAN_AT + timedelta(days=1), stream="redrive", token=2)
    recorder.project(attempt_batch([dead, repeat], token=token, partition=1))
    assert [(row["state"], row["attempts"], row["redriven"]) for row in rows(database, DELIVERIES)] == [("dead", 6, 0)]
    recorder.project(attempt_batch([redriven], token=token, start=2, partition=1))
    (row,) = rows(database, DELIVERIES)
    assert (row["state"], row["attempts"], row["redriven"]) == ("delivered", 1, 1)
    assert row["first_attempted_at"] == dead.attempted_at


def test_a_batch_is_recorded_once(database: Database, make_recorder: MakeRecorder) -> None:
    """Rows and checkpoint are one transaction: a successor goes on where it ended, and what is below is left out."""
    first = make_recorder()
    batch = attempt_batch([attempted(1), attempted(2)], token=first.acquire(WATERMARKS).token, partition=1)
    assert first.project(batch) == 2
    second = make_recorder()
    acquired = second.acquire(WATERMARKS)
    assert acquired.log_end.next_offset == 2
    again = attempt_batch([attempted(1), attempted(2), attempted(3)], token=acquired.token, partition=1)
    assert second.project(again) == 3
    assert len(rows(database, ATTEMPTS)) == 3


def test_a_former_owner_writes_nothing(database: Database, make_recorder: MakeRecorder) -> None:
    """Its session has ended, and its token is not current; nor is a batch of an earlier token taken."""
    first, second = make_recorder(), make_recorder()
    former = first.acquire(WATERMARKS)
    second.acquire(WATERMARKS)
    with pytest.raises(Exception, match=r"terminat|not current"):
        first.project(attempt_batch([attempted()], token=former.token, partition=1))
    with pytest.raises(OwnershipLost):
        second.project(attempt_batch([attempted()], token=former.token, partition=1))
    assert rows(database, ATTEMPTS) == []


def test_what_is_no_attempt_is_skipped(database: Database, make_recorder: MakeRecorder) -> None:
    """It is counted and named in the log without its bytes, and the records around it are recorded."""
    recorder = make_recorder()
    token = recorder.acquire(WATERMARKS).token
    before = metrics.RECORDER_SKIPPED._value.get()
    nul = bytearray(codec.encode(attempted(why="abc")))
    nul[nul.index(b"abc") + 1] = 0
    queued = codec.encode(delivery_examples()["plant.delivery.queued"])
    values = [attempted(1), b"junk", None, bytes(nul), queued, attempted(2)]
    with structlog.testing.capture_logs() as lines:
        assert recorder.project(attempt_batch(values, token=token, partition=1)) == 6
    assert len(rows(database, ATTEMPTS)) == 2
    assert metrics.RECORDER_SKIPPED._value.get() == before + 4
    skipped = [line for line in lines if line["event"] == "attempt.skipped"]
    assert [line["offset"] for line in skipped] == [1, 2, 3, 4]
    assert "has a NUL character" in skipped[2]["reason"]


def test_values_that_postgres_refuses_are_skipped_alone(database: Database, make_recorder: MakeRecorder) -> None:
    """A constraint that nobody thought of stops no partition: the batch is divided until the row is by itself."""
    refuse = "ALTER TABLE webhook_attempts ADD CONSTRAINT odd CHECK (hop <> 13)"
    sql.execute(database.owner_url, [refuse])
    recorder = make_recorder()
    token = recorder.acquire(WATERMARKS).token
    records = [attempted(number, hop=13 if number == 3 else 0) for number in range(1, 8)]
    with structlog.testing.capture_logs() as lines:
        assert recorder.project(attempt_batch(records, token=token, partition=1)) == 7
    assert len(rows(database, ATTEMPTS)) == len(rows(database, DELIVERIES)) == 6
    assert [line["offset"] for line in lines if line["event"] == "attempt.skipped"] == [2]


def test_a_later_schema_is_waited_for(database: Database, make_recorder: MakeRecorder) -> None:
    """Records before it are recorded; the reason is noted where operators look."""
    recorder = make_recorder()
    token = recorder.acquire(WATERMARKS).token
    newer = b"\x00" + (99).to_bytes(4, "big") + b"\x02"
    with pytest.raises(SchemaNewer) as stopped:
        recorder.project(attempt_batch([attempted(1), newer, attempted(2)], token=token, partition=1))
    assert stopped.value.offset == 1
    recorder.note_stop(f"SchemaNewer: {stopped.value}")
    assert len(rows(database, ATTEMPTS)) == 1
    assert "SchemaNewer" in sql.value(database.operator_url, "SELECT stop_reason FROM delivery_owners")
    assert recorder.acquire(WATERMARKS).log_end.next_offset == 1


def test_long_excerpts_are_cut(database: Database, make_recorder: MakeRecorder) -> None:
    """No more than 4 KiB of a request or an answer is kept, whatever a record holds; bytes stay as they are."""
    recorder = make_recorder()
    token = recorder.acquire(WATERMARKS).token
    recorder.project(attempt_batch([attempted(request=b"\x00\xff" * 5000, answer=b"")], token=token, partition=1))
    (row,) = rows(database, ATTEMPTS)
    assert (row["request"], row["answer"]) == (b"\x00\xff" * 2048, b"")


def test_a_topic_that_was_never_recorded_begins_at_its_first_record(make_recorder: MakeRecorder) -> None:
    """What was there before it has aged out of the topic; a topic that was made again stops by name."""
    recorder = make_recorder()
    assert recorder.acquire(WATERMARKS._replace(low=40)).log_end.next_offset == 40
    with pytest.raises(TopicRecreated):
        recorder.acquire(WATERMARKS._replace(leadership=Leadership(UUID(int=5), 0)))


def test_a_partition_that_is_given_up_records_nothing(database: Database, make_recorder: MakeRecorder) -> None:
    """A batch that waits for the thread while the partition is revoked is left to the next owner."""
    recorder, interrupted = make_recorder(), threading.Event()
    token = recorder.acquire(WATERMARKS, interrupted).token
    interrupted.set()
    with pytest.raises(OwnershipLost):
        recorder.project(attempt_batch([attempted()], token=token, partition=1))
    assert rows(database, ATTEMPTS) == []


def test_the_waits_of_a_delivery_touch_no_index(database: Database, make_recorder: MakeRecorder) -> None:
    """While a delivery waits, its attempts change no column that is in an index: Postgres can update in place."""
    recorder = make_recorder()
    token = recorder.acquire(WATERMARKS).token
    records = [
        attempted(attempt=number, hop=number - 1, outcome="failed", state="waiting",
                  attempted_at=BEGAN_AT + timedelta(seconds=number))
        for number in range(1, 6)
    ]  # fmt: skip
    for start, record in enumerate(records):
        recorder.project(attempt_batch([record], token=token, start=start, partition=1))
    recorder.close()
    query = "SELECT {} FROM pg_stat_user_tables WHERE relname = 'webhook_deliveries_other'"
    # Its session tells what it has done as it ends, a moment after the recorder has closed it.
    wait_until(lambda: sql.value(database.superuser_url, query.format("n_tup_upd")) == 4, "the updates are counted")
    assert sql.value(database.superuser_url, query.format("n_tup_hot_upd")) == 4
