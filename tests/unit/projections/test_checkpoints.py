"""A partition is acquired and fenced, and what is left of a batch before anything of it is decoded."""

from __future__ import annotations

import dataclasses
import doctest
import json
from typing import Any, cast
from uuid import UUID

import pytest

from projections import checkpoints
from projections.checkpoints import KNOWN_REVISION, STOP_REASON_CHARACTERS_MAX, Fence, log_end, note_stop, remainder
from projections.session import Session
from streams.batch import EventBatch
from streams.errors import OwnershipLost, PartitionCountChanged, TopicRecreated
from streams.log_end import LogEnd, LoggedRecord
from tests.support.batches import batch_of

TOKEN = 7


def batch(start: int, count: int) -> EventBatch:
    return batch_of([(None, None)] * count, token=TOKEN, start=start)


def fence(next_offset: int) -> Fence:
    return Fence(TOKEN, next_offset, bytes(32), lagging={"agents/1": 0})


@pytest.mark.parametrize(
    ("next_offset", "offsets"),
    [(10, [10, 11, 12]), (11, [11, 12]), (12, [12]), (13, None), (14, None)],
)
def test_what_is_applied_already_is_cut_off(next_offset: int, offsets: list[int] | None) -> None:
    """A batch of offsets 10 to 12 is what is left of it at each checkpoint; nothing from its end on."""
    left = remainder(batch(10, 3), fence(next_offset))

    assert (None if left is None else left.offsets) == offsets
    assert left is None or left.next_offset == 13


@pytest.mark.parametrize("next_offset", [0, 8, 9])
def test_a_hole_of_any_size_is_refused(next_offset: int) -> None:
    """Records between the checkpoint and the batch were not read."""
    with pytest.raises(OwnershipLost, match=f"Offsets {next_offset} to 10 were not read"):
        remainder(batch(10, 3), fence(next_offset))


@pytest.mark.parametrize("token", [TOKEN - 1, TOKEN + 1])
def test_a_batch_of_another_token_is_refused(token: int) -> None:
    """Also where all of it is applied already."""
    for next_offset in (10, 13):
        with pytest.raises(OwnershipLost, match=f"under token {token}, not {TOKEN}"):
            remainder(dataclasses.replace(batch(10, 3), token=token), fence(next_offset))


def test_a_gap_at_the_end_of_a_batch_is_left() -> None:
    """Where only offsets without records are left, the checkpoint still passes them."""
    gappy = dataclasses.replace(batch(10, 3), next_offset=20)

    left = remainder(gappy, fence(13))

    assert left is not None
    assert (len(left), left.next_offset) == (0, 20)


def test_a_stop_reason_is_one_short_line() -> None:
    """It may quote whatever a record or a driver held; Postgres takes no NUL, and a terminal obeys what it is shown."""
    written: list[tuple[object, ...]] = []

    class Session:
        def execute(self, _statement: str, values: tuple[object, ...]) -> None:
            written.append(values)

    note_stop(Session(), "projector", "t", 0, 1, "a\x00b\x1b[2J\n" + "\x01" * 5000)  # type: ignore[arg-type]
    (values,) = written
    reason = str(values[3])
    assert reason.startswith("a\\x00b\\x1b[2J\\n\\x01")
    assert (reason.isprintable(), len(reason)) == (True, STOP_REASON_CHARACTERS_MAX)


def test_the_docstrings_are_right() -> None:
    """The examples in the module hold."""
    assert doctest.testmod(checkpoints).failed == 0


@pytest.mark.parametrize("rows", [[], [(9, 1_000, b"k", b"v", b"h")]])
def test_the_logs_end_is_its_last_record(rows: list[tuple[Any, ...]]) -> None:
    """With the checkpoint of the log, whatever models have; an empty log has none."""

    class Session:
        def query(self, _sql: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
            assert values == ("t", 3, 10)
            return rows

    end = log_end(Session(), "t", 3, fence(10))  # type: ignore[arg-type]
    assert end == LogEnd(LoggedRecord(*rows[0]) if rows else None, 10)


ID = UUID(int=0xABC)
OTHER_ID = UUID(int=0xDEF)
CHECKPOINT = json.dumps({"next_offset": 12, "caught_up": ["agents/1", "skills/2"]})
KEY = ("consumer", "t", 3)


Rows = list[tuple[Any, ...]]


class Scripted:
    """A session that gives these rows for statements that hold these words, and keeps what is done with it."""

    def __init__(self, rows: dict[str, Rows]) -> None:
        self.rows = {"token + 1": [(TOKEN,)], "AS owners": [(4, 1, None)], "pg_terminate_backend": [], **rows}
        self.done: list[tuple[str, object]] = []

    def query(self, sql: str, parameters: object = None) -> Rows:
        self.done.append((sql, parameters))
        return next(answer for words, answer in self.rows.items() if words in sql)

    def script(self, sql: str) -> None:
        self.done.append((sql, "script"))

    def execute(self, sql: str, parameters: object) -> None:
        self.done.append((sql, parameters))

    def begin(self) -> None:
        self.done.append(("BEGIN", None))

    def commit(self) -> None:
        self.done.append(("COMMIT", None))


def scripted(rows: dict[str, Rows]) -> tuple[Session, list[tuple[str, object]]]:
    session = Scripted(rows)
    return cast(Session, session), session.done


@pytest.mark.parametrize("topic_id", [None, ID])
def test_a_partition_is_acquired_in_this_order(topic_id: UUID | None) -> None:
    """Owners are added and compared, the former one is terminated, and one transaction takes the next token."""
    session, done = scripted({"FOR UPDATE": [(TOKEN, CHECKPOINT, '{"new/1": 5}', b"head")]})
    recorded = None if topic_id is None else str(ID)
    fence = checkpoints.acquire(session, *KEY, 4, topic_id)
    assert fence == Fence(TOKEN, 12, b"head", frozenset({"agents/1", "skills/2"}), {"new/1": 5})
    literal = "NULL" if recorded is None else f"'{recorded}'"
    names = {"topic": "'t'", "partition": "3", "consumer": "'consumer'", "token": str(TOKEN)}
    assert done == [
        (f"SELECT add_partition_owners('consumer', 't', 4, {literal}, {KNOWN_REVISION})", "script"),
        (checkpoints._OWNERS, KEY),
        (checkpoints._TERMINATE, KEY),
        ("BEGIN", None),
        (checkpoints._ADVANCE_OWNER, (*KEY, checkpoints.WORKER, recorded)),
        (checkpoints._INSERT_CHECKPOINT, KEY),
        (checkpoints._FENCE.format(**names), None),
        ("COMMIT", None),
    ]


@pytest.mark.parametrize(
    ("owners", "topic_id", "error"),
    [
        ((4, 1, str(ID)), ID, None),
        ((4, 1, str(ID)), None, None),
        ((4, 1, None), ID, None),
        ((4, 1, str(OTHER_ID)), ID, TopicRecreated),
        ((4, 0, None), ID, PartitionCountChanged),
        ((3, 1, None), ID, PartitionCountChanged),
        ((5, 1, None), ID, PartitionCountChanged),
    ],
    ids=["same topic", "id not known", "id not recorded", "another topic", "not among them", "grown", "shrunk"],
)
def test_another_topic_or_count_is_refused_before_anything_changes(
    owners: tuple[Any, ...], topic_id: UUID | None, error: type[Exception] | None
) -> None:
    """With what was expected and what is there, in that order."""
    session, done = scripted({"AS owners": [owners], "FOR UPDATE": [(TOKEN, CHECKPOINT, None, b"head")]})
    if error is None:
        assert checkpoints.acquire(session, *KEY, 4, topic_id).lagging == {}
        return
    with pytest.raises(error) as refused:
        checkpoints.acquire(session, *KEY, 4, topic_id)
    expected: Exception = PartitionCountChanged("t", owners[0], 4)
    if error is TopicRecreated:
        expected = TopicRecreated("t", 3, OTHER_ID, ID)
    assert str(refused.value) == str(expected)
    assert len(done) == 2


def test_a_fence_that_is_not_there_is_lost() -> None:
    """The token is another one, or the consumer's checkpoint is gone; each is said."""
    for rows, why in (
        ([], f"The token {TOKEN} of t/3 is not current."),
        ([(TOKEN, None, None, b"head")], "t/3 has no checkpoint of the consumer consumer any more."),
    ):
        session, _ = scripted({"FOR UPDATE": rows})
        with pytest.raises(OwnershipLost) as lost:
            checkpoints.lock_fence(session, *KEY, TOKEN)
        assert lost.value.why == why


def test_what_is_read_without_the_fence() -> None:
    """Each question names its consumer, topic and partition, and has an answer where nothing is there."""
    answers: dict[str, Rows] = {
        "SELECT topic_id": [(str(ID),)],
        "SELECT next_offset": [(7,)],
        "count(*)": [(4,)],
        "SELECT partition, next_offset": [(0, 5), (2, 9)],
    }
    session, done = scripted(answers)
    assert checkpoints.recorded_topic_id(session, *KEY) == ID
    assert checkpoints.log_next_offset(session, "t", 3) == 7
    assert checkpoints.partition_count(session, "consumer", "t") == 4
    assert checkpoints.checkpoints_of(session, "consumer", "t") == {0: 5, 2: 9}
    checkpoints.terminate_feeder(session, "t", 3, 17)
    checkpoints.note_stop(session, *KEY, TOKEN, "why")
    assert done == [
        (checkpoints._TOPIC_ID, KEY),
        (checkpoints._LOG_CHECKPOINT, ("projector", "t", 3)),
        (checkpoints._PARTITION_COUNT, ("consumer", "t")),
        (checkpoints._CHECKPOINTS_OF, ("consumer", "t")),
        (checkpoints._TERMINATE_FEEDER, ("t", 3, 17)),
        (checkpoints._NOTE_STOP, (*KEY, "why", TOKEN)),
    ]
    session, _ = scripted({"SELECT topic_id": [(None,)], "SELECT next_offset": []})
    assert (checkpoints.recorded_topic_id(session, *KEY), checkpoints.log_next_offset(session, "t", 3)) == (None, 0)
    session, _ = scripted({"SELECT topic_id": []})
    assert checkpoints.recorded_topic_id(session, *KEY) is None


def test_statements_of_a_batchs_transaction() -> None:
    """With every argument where the database's function has it."""
    lock = f"SELECT lock_partition('consumer', 't', 3, {TOKEN}, 12, {KNOWN_REVISION})"
    assert checkpoints.lock_statement(*KEY, TOKEN, 12) == lock
    advance = "SELECT advance_checkpoint('consumer', 't', 3, 12, {})"
    assert checkpoints.advance_statement(*KEY, 12) == advance.format("false")
    assert checkpoints.advance_statement(*KEY, 12, all_applied=True) == advance.format("true")


def test_a_models_offset_is_the_logs_its_own_or_none() -> None:
    """In this order: one that has caught up shares the log's."""
    own = Fence(TOKEN, 12, b"head", frozenset({"agents/1"}), {"agents/1": 3, "skills/2": 5})
    assert [own.model_offset(key) for key in ("agents/1", "skills/2", "new/1")] == [12, 5, 0]
