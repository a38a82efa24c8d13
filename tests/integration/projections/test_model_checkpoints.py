"""Checkpoints of read models: who shares the log's, who has one apart, and that no missing row means caught up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from database.errors import DatabaseUnreachable
from projections import checkpoints, model_checkpoints
from projections.checkpoint_waiter import ReadModels
from projections.checkpoints import PROJECTOR, Fence
from projections.engine import PartitionProjector
from projections.session import Session
from runtime.settings import Settings
from streams.errors import CaughtUpTooLate, OwnershipLost
from streams.record_position import RecordPosition
from tests.conftest import Database
from tests.support.batches import PARTITIONS, TOPIC, TOPIC_ID, WATERMARKS, batch_of
from tests.support.load import some_events
from tests.support.made_models import AGENTS
from tests.support.projectors import AGENT_ROWS

APART = "SELECT projection || '/' || version AS key, next_offset, stop_reason FROM model_checkpoints ORDER BY 1"
SHARING = "SELECT next_offset, read_models FROM checkpoints"
BEHIND = "SELECT build_is_behind('agents', 1) AS behind"


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    """A worker's session."""
    with contextlib.closing(Session(database.writer_url)) as made:
        yield made


@pytest.fixture
def fence(session: Session) -> Fence:
    """The fence of a partition whose log is at 50."""
    token = checkpoints.acquire(session, PROJECTOR, TOPIC, 0, PARTITIONS, TOPIC_ID).token
    session.script(checkpoints.advance_statement(PROJECTOR, TOPIC, 0, 50))
    return locked(session, token)


def locked(session: Session, token: int) -> Fence:
    """Return the fence as it is now."""
    session.begin()
    fence = checkpoints.lock_fence(session, PROJECTOR, TOPIC, 0, token)
    session.commit()
    return fence


def advance_model(session: Session, key: str, next_offset: int) -> None:
    session.script(model_checkpoints.advance_models_statement(TOPIC, 0, [key], next_offset))


async def test_a_model_that_stands_nowhere_is_folded_from_the_beginning(
    projector: PartitionProjector, superuser: Session, settings: Settings
) -> None:
    """Whoever asks is told that it is behind, until it has been folded from offset 0."""
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of(some_events(40), token=token))
    rows = superuser.query(AGENT_ROWS)
    assert (superuser.query(SHARING), superuser.query(APART)) == ([(40, [AGENTS.key])], [])
    superuser.script("UPDATE checkpoints SET read_models = '{}'", "TRUNCATE agents_v1.agents")

    assert superuser.query(BEHIND) == [(True,)]
    waiter = ReadModels(settings)
    with pytest.raises(CaughtUpTooLate, match="It is at offset 0"):
        await waiter.wait_for(RecordPosition(TOPIC, 0, 0), 0, "agents")

    projector.acquire(WATERMARKS)
    assert superuser.query(AGENT_ROWS) == rows
    assert (superuser.query(SHARING), superuser.query(APART)) == ([(40, [AGENTS.key])], [])
    superuser.script(f"INSERT INTO checkpoints VALUES ('deliveries', '{TOPIC}', 0, 3)")
    assert superuser.query(BEHIND) == [(False,)]
    await waiter.wait_for(RecordPosition(TOPIC, 0, 39), 0, "agents")
    await waiter.close()


def test_a_model_that_stands_nowhere_holds_nothing(session: Session, fence: Fence) -> None:
    """Neither for the fence, nor for the owner that keeps it from then on."""
    assert fence.model_offset("new/1") == 0
    fence = model_checkpoints.keep(session, TOPIC, 0, fence, ["new/1"])
    assert (fence.caught_up, fence.lagging) == (frozenset(), {"new/1": 0})
    with pytest.raises(OwnershipLost, match="new/1 was brought up to 50 and is at 0"):
        model_checkpoints.join(session, TOPIC, 0, fence.token, ["new/1"])


def test_a_model_of_an_empty_partition_shares_its_checkpoint_once_it_is_kept(
    projector: PartitionProjector, superuser: Session
) -> None:
    """Offset 0 is where both are, and it is written down that the model has come so far."""
    projector.acquire(WATERMARKS)
    assert (superuser.query(SHARING), superuser.query(APART)) == ([(0, [AGENTS.key])], [])


def test_a_model_that_has_caught_up_shares_the_checkpoint(session: Session, fence: Fence, superuser: Session) -> None:
    """Then the one row moves for all of them, and its own is gone; the reason went when it moved on."""
    fence = model_checkpoints.keep(session, TOPIC, 0, fence, ["a/1", "b/2"])
    session.begin()
    assert model_checkpoints.note_stopped(session, TOPIC, 0, "a/1", "refused") == 0
    session.commit()
    for key in ("a/1", "b/2"):
        advance_model(session, key, 50)
    assert superuser.query(APART) == [("a/1", 50, None), ("b/2", 50, None)]

    model_checkpoints.join(session, TOPIC, 0, fence.token, ["a/1", "b/2"])
    session.script(checkpoints.advance_statement(PROJECTOR, TOPIC, 0, 60))

    assert (superuser.query(SHARING), superuser.query(APART)) == ([(60, ["a/1", "b/2"])], [])
    fence = locked(session, fence.token)
    assert [fence.model_offset(key) for key in ("a/1", "b/2", "c/1")] == [60, 60, 0]


def test_a_model_that_is_refused_stays_where_the_log_was(session: Session, fence: Fence, superuser: Session) -> None:
    """In the transaction that moves the checkpoint on; the others go with it, and one that lagged stays as well."""
    model_checkpoints.keep(session, TOPIC, 0, fence, ["a/1", "b/1", "c/1"])
    for key in ("a/1", "b/1"):
        advance_model(session, key, 50)
    advance_model(session, "c/1", 20)
    model_checkpoints.join(session, TOPIC, 0, fence.token, ["a/1", "b/1"])

    session.begin()
    assert model_checkpoints.note_stopped(session, TOPIC, 0, "a/1", "refused") == 50
    assert model_checkpoints.note_stopped(session, TOPIC, 0, "c/1", "refused too") == 20
    session.script(checkpoints.advance_statement(PROJECTOR, TOPIC, 0, 80), "COMMIT")

    assert superuser.query(SHARING) == [(80, ["b/1"])]
    assert superuser.query(APART) == [("a/1", 50, "refused"), ("c/1", 20, "refused too")]


def test_models_that_an_owner_does_not_keep_stay_behind(session: Session, fence: Fence, superuser: Session) -> None:
    """It folds nothing into them, so they share its checkpoint no longer; one that lagged stays as it is."""
    model_checkpoints.keep(session, TOPIC, 0, fence, ["a/1", "b/1", "c/1"])
    for key, offset in (("a/1", 50), ("b/1", 50), ("c/1", 20)):
        advance_model(session, key, offset)
    model_checkpoints.join(session, TOPIC, 0, fence.token, ["a/1", "b/1"])

    fence = model_checkpoints.keep(session, TOPIC, 0, locked(session, fence.token), ["b/1"])
    session.script(checkpoints.advance_statement(PROJECTOR, TOPIC, 0, 80))

    assert superuser.query(SHARING) == [(80, ["b/1"])]
    assert superuser.query(APART) == [("a/1", 50, None), ("c/1", 20, None)]
    assert (fence.caught_up, fence.lagging) == (frozenset({"b/1"}), {"a/1": 50, "c/1": 20})


def test_an_owner_of_before_changes_no_models(session: Session, fence: Fence, superuser: Session) -> None:
    """Who shares the checkpoint is under the fence, like the checkpoint."""
    superuser.script("UPDATE partition_owners SET token = token + 1")
    for change in (
        lambda: model_checkpoints.keep(session, TOPIC, 0, fence, ["a/1"]),
        lambda: model_checkpoints.join(session, TOPIC, 0, fence.token, []),
    ):
        with pytest.raises(OwnershipLost, match="not current"):
            change()
        session.rollback()
    assert (superuser.query(SHARING), superuser.query(APART)) == ([(50, [])], [])


def test_a_models_checkpoint_never_goes_back(session: Session, fence: Fence, superuser: Session) -> None:
    """Where it stands is what its tables hold."""
    model_checkpoints.keep(session, TOPIC, 0, fence, ["a/1"])
    advance_model(session, "a/1", 30)
    advance_model(session, "a/1", 20)
    assert superuser.query(APART) == [("a/1", 30, None)]


def test_models_of_another_partition_are_left_alone(session: Session, fence: Fence, superuser: Session) -> None:
    """Each partition has its own list and its own rows."""
    other = checkpoints.acquire(session, PROJECTOR, TOPIC, 1, PARTITIONS, TOPIC_ID)
    model_checkpoints.keep(session, TOPIC, 1, other, ["a/1"])
    fence = model_checkpoints.keep(session, TOPIC, 0, fence, ["a/1"])
    advance_model(session, "a/1", 50)
    model_checkpoints.join(session, TOPIC, 0, fence.token, ["a/1"])
    session.begin()
    model_checkpoints.note_stopped(session, TOPIC, 1, "a/1", "refused")
    session.commit()
    lists = "SELECT partition, next_offset, read_models FROM checkpoints ORDER BY 1"
    assert superuser.query(lists) == [(0, 50, ["a/1"]), (1, 0, [])]
    assert superuser.query("SELECT partition, next_offset, stop_reason FROM model_checkpoints") == [(1, 0, "refused")]


def test_a_model_that_joins_changes_nothing_of_others(session: Session, fence: Fence, superuser: Session) -> None:
    """Those that share the row go on sharing it, and its own rows on other partitions stay."""
    superuser.script(
        "UPDATE checkpoints SET read_models = '{other/1}'",
        f"INSERT INTO model_checkpoints VALUES ('mine', 1, '{TOPIC}', 0, 50), ('mine', 1, '{TOPIC}', 1, 7)",
    )
    model_checkpoints.join(session, TOPIC, 0, fence.token, ["mine/1"])
    assert superuser.query(SHARING) == [(50, ["mine/1", "other/1"])]
    assert superuser.query("SELECT partition, next_offset FROM model_checkpoints") == [(1, 7)]


def test_the_rows_that_are_locked_are_those_that_lag(session: Session, fence: Fence, superuser: Session) -> None:
    """With the log's offset; nobody moves them meanwhile. None under another token, and none where no model lags."""
    model_checkpoints.keep(session, TOPIC, 0, fence, ["a/1", "b/1"])
    advance_model(session, "a/1", 30)
    session.begin()
    locked_rows = model_checkpoints.lock(session, TOPIC, 0, fence.token, ["a/1", "b/1", "c/1"])
    assert locked_rows == ({"a/1": 30, "b/1": 0}, 50)
    superuser.script("SET lock_timeout = '100ms'")
    with pytest.raises(DatabaseUnreachable):
        superuser.script("UPDATE model_checkpoints SET next_offset = 31 WHERE projection = 'a'")
    session.rollback()
    for token, keys in ((fence.token + 1, ["a/1"]), (fence.token, ["c/1"])):
        session.begin()
        with pytest.raises(OwnershipLost):
            model_checkpoints.lock(session, TOPIC, 0, token, keys)
        session.rollback()


def test_only_the_owners_token_may_register_a_feeder(session: Session, fence: Fence) -> None:
    """Whoever acquires the partition next ends the session."""
    model_checkpoints.register_feeder(session, TOPIC, 0, fence.token)
    with pytest.raises(OwnershipLost):
        model_checkpoints.register_feeder(session, TOPIC, 0, fence.token - 1)


OTHER_TOPIC = f"{TOPIC}-2"
ROWS_OF_TOPICS = "SELECT topic, partition, next_offset, stop_reason FROM model_checkpoints ORDER BY 1, 2"
FEEDERS = "SELECT topic, partition FROM partition_owners WHERE feeder_pid <> 0"


def test_other_topics_and_other_consumers_are_left_alone(session: Session, fence: Fence, superuser: Session) -> None:
    """Partitions of theirs have the same numbers and tokens, and their models the same keys."""
    other = checkpoints.acquire(session, PROJECTOR, OTHER_TOPIC, 0, PARTITIONS, TOPIC_ID)
    checkpoints.acquire(session, PROJECTOR, TOPIC, 1, PARTITIONS, TOPIC_ID)
    assert other.token == fence.token
    others = [(TOPIC, 1, 0, None), (OTHER_TOPIC, 0, 0, None)]
    superuser.script(f"INSERT INTO checkpoints VALUES ('deliveries', '{TOPIC}', 0, 3)")
    superuser.script(f"INSERT INTO model_checkpoints VALUES ('a', 1, '{OTHER_TOPIC}', 0, 0), ('a', 1, '{TOPIC}', 1, 0)")
    model_checkpoints.keep(session, TOPIC, 0, fence, ["a/1"])
    advance_model(session, "a/1", 30)

    session.begin()
    assert model_checkpoints.lock(session, TOPIC, 0, fence.token, ["a/1"]) == ({"a/1": 30}, 50)
    model_checkpoints.note_stopped(session, TOPIC, 0, "a/1", "refused")
    session.commit()
    model_checkpoints.register_feeder(session, TOPIC, 0, fence.token)
    assert superuser.query(FEEDERS) == [(TOPIC, 0)]
    assert superuser.query(ROWS_OF_TOPICS) == [(TOPIC, 0, 30, "refused"), *others]

    advance_model(session, "a/1", 50)
    model_checkpoints.join(session, TOPIC, 0, fence.token, ["a/1"])
    assert superuser.query(ROWS_OF_TOPICS) == others
    superuser.script("UPDATE checkpoints SET read_models = '{a/1}' WHERE partition = 0 AND consumer = 'projector'")
    model_checkpoints.keep(session, TOPIC, 0, locked(session, fence.token), [])
    shared = "SELECT topic FROM checkpoints WHERE read_models = '{a/1}'"
    assert superuser.query(shared) == [(OTHER_TOPIC,)]


def test_a_row_that_was_left_over_is_no_checkpoint(session: Session, fence: Fence, superuser: Session) -> None:
    """A model that shared the log's checkpoint stays where that is: from there on it lacks records."""
    superuser.script(
        "UPDATE checkpoints SET read_models = '{a/1}'",
        f"INSERT INTO model_checkpoints VALUES ('a', 1, '{TOPIC}', 0, 7)",
    )
    model_checkpoints.keep(session, TOPIC, 0, locked(session, fence.token), [])
    assert superuser.query(APART) == [("a/1", 50, None)]


def test_each_version_of_a_model_has_a_checkpoint(session: Session, fence: Fence, superuser: Session) -> None:
    """Both are fed: what moves one moves no other."""
    model_checkpoints.keep(session, TOPIC, 0, fence, ["a/1", "a/2"])
    advance_model(session, "a/2", 30)
    session.begin()
    model_checkpoints.note_stopped(session, TOPIC, 0, "a/1", "refused")
    session.commit()
    assert superuser.query(APART) == [("a/1", 0, "refused"), ("a/2", 30, None)]
