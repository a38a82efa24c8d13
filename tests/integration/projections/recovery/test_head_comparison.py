"""Heads of chains that were kept elsewhere, compared with a recovered log: the first entry that differs is named."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import pytest

from audit.chain import CHAIN_START, ChainSlice, extend_slice
from audit.verifier.heads import Head
from projections.engine import PartitionProjector
from projections.install import install
from projections.read_model import READ_MODELS
from projections.recovery.head_comparison import HeadComparison, compare_heads
from projections.session import Session
from schemas import codec
from schemas.control import chain_version_raised
from schemas.events import AgentRated
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS, batch_of
from tests.support.load import some_events
from tests.support.poison_records import over_a_limit
from tests.support.rebuilding import session_of

RAISED_AT = 4
POISON_AT = 10
LAST = 29
ROWS = """
SELECT "offset", (extract(epoch FROM created_at) * 1000)::bigint AS timestamp_ms,
       coalesce(key, convert_to(entity_id::text, 'UTF8')) AS key, value, headers, disposition::text AS disposition,
       uuid_send(event_id) AS event_id
FROM log_records ORDER BY "offset"
"""


@pytest.fixture
def log(database: Database) -> Iterator[Session]:
    """A chain of 30 entries that goes over to v2, with one poison record."""
    install(database.owner_url)
    events = some_events(LAST - 1)
    rated = AgentRated(
        event_id=UUID(int=7), agent_id=UUID(int=8), occurred_at=events[0].occurred_at, rater_id=UUID(int=9), rating=5
    )
    raised = (None, codec.encode(chain_version_raised(TOPIC, 0)))
    records = [*events[:RAISED_AT], raised, *events[RAISED_AT:9], over_a_limit(rated, rating=6), *events[9:]]
    projector = PartitionProjector(database.writer_url, TOPIC, 0, READ_MODELS)
    projector.project(batch_of(records, token=projector.acquire(WATERMARKS).token))
    projector.close()
    with session_of(database.owner_url) as session:
        yield session


def head_at(session: Session, offset: int, **otherwise: tuple[str, bytes | None]) -> Head:
    """The head at an offset, as it was where entries were judged otherwise: `at_10=("applied", b"...")`."""
    rows = [list(row) for row in session.frame(ROWS).rows() if row[0] <= offset]
    for name, judged in otherwise.items():
        rows[int(name.removeprefix("at_"))][5:7] = judged
    columns = ChainSlice(*map(list, zip(*rows, strict=True)))
    digest = extend_slice(TOPIC, 0, CHAIN_START, columns, RAISED_AT)[-1].hex()
    return Head(topic=TOPIC, partition=0, offset=offset, hash=digest)


def compared(session: Session, *heads: Head) -> HeadComparison:
    """The comparison of one chain."""
    (found,) = compare_heads(session, heads)
    return found


def test_heads_that_are_the_same_are_said_to_be(log: Session) -> None:
    """Of several heads of a chain all are compared, and the last one stands for it."""
    assert compared(log, head_at(log, LAST), head_at(log, 12)) == (TOPIC, 0, LAST, True, None, "")


@pytest.mark.parametrize("same_to", [None, 7])
def test_poison_that_was_applied_once_is_named(log: Session, same_to: int | None) -> None:
    """Newer limits say that it is poison: the entry is found, with its reason."""
    heads = [] if same_to is None else [head_at(log, same_to)]
    found = compared(log, *heads, head_at(log, LAST, at_10=("applied", UUID(int=7).bytes)))
    assert (found.same, found.first) == (False, POISON_AT)
    assert "It was applied, and is poison now (" in found.why


def test_an_applied_event_that_was_poison_once_is_named(log: Session) -> None:
    """Newer schemas can read it: the entry is found."""
    found = compared(log, head_at(log, LAST, at_20=("poison", None)))
    assert (found.same, found.first, found.why[:37]) == (False, 20, "It was poison, and is applied now: th")


def test_two_entries_that_were_judged_otherwise_are_bounded(log: Session) -> None:
    """No single entry explains the head; it is said between which heads they are."""
    head = head_at(log, LAST, at_10=("applied", UUID(int=7).bytes), at_20=("poison", None))
    found = compared(log, head_at(log, 9), head)
    assert (found.same, found.first) == (False, None)
    assert found.why.startswith("It is between 9 and 29. No single entry")


def test_records_that_differ_in_a_chain_of_v1_are_no_judgement(log: Session) -> None:
    """v1 covers bytes alone, so the topic holds other records."""
    found = compared(log, Head(topic=TOPIC, partition=0, offset=2, hash="0" * 64))
    assert (found.same, found.first) == (False, None)
    assert found.why.startswith("Records differ: the chain is v1 up to there")


def test_a_head_behind_the_end_is_no_equal_one(log: Session) -> None:
    """The topic has lost its end: nothing is there to compare."""
    found = compared(log, Head(topic=TOPIC, partition=0, offset=99, hash="0" * 64))
    assert (found.same, found.first) == (False, None)
    assert found.why.startswith("The topic holds no record there")
