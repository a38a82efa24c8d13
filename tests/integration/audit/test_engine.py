"""What the projection engine writes, the verifier accepts: events of every kind, repeats, poison, gaps."""

from __future__ import annotations

import pytest

from audit.verifier.chain_range import Chain
from audit.verifier.chains import read_raised, verify_chains
from devstack import sql
from projections import engine
from projections.engine import PartitionProjector
from projections.read_model import READ_MODELS
from schemas import codec
from schemas.control import chain_version_raised
from schemas.events import Event
from tests.conftest import Database
from tests.support import log_rows
from tests.support.batches import TOPIC, WATERMARKS, Record, batch_of
from tests.support.load import events


def test_what_the_engine_writes_is_accepted(log_database: Database) -> None:
    """Events, repeats, a retired entity and five kinds of poison, written by the engine, are a good chain."""
    batch: list[Event | Record] = [*events(500, agents=20, seed=7), log_rows.retired(3)]
    misplaced = (b"0" * 36, codec.encode(log_rows.onboarded(900)))
    trailing = (codec.key(log_rows.onboarded(901)), codec.encode(log_rows.onboarded(901)) + b"x")
    batch += [(None, None), (b"", b""), (None, b"\x00\x00\x00\x00\x01"), misplaced, trailing]
    projector = PartitionProjector(log_database.writer_url, TOPIC, 0, READ_MODELS)
    try:
        token = projector.acquire(WATERMARKS).token
        projector.project(batch_of([*batch, *batch[100:120]], token=token))
    finally:
        projector.close()
    (verdict,) = verify_chains(log_database.auditor_url, jobs=1)
    assert (verdict.entries, verdict.finding) == (526, None)
    counted = "SELECT count(*) FROM event_stream WHERE disposition = '{}'"
    assert sql.value(log_database.superuser_url, counted.format("repeat")) == 20
    assert sql.value(log_database.superuser_url, counted.format("poison")) == 5


@pytest.mark.parametrize("inline_records_max", [0, 10_000], ids=["copied", "inline"])
def test_a_chain_that_the_engine_takes_to_v2_is_accepted(
    database: Database, monkeypatch: pytest.MonkeyPatch, inline_records_max: int
) -> None:
    """In the middle of a batch, with events, repeats and poison around it; the next owner goes on in v2.

    From there on a disposition that a superuser changes is found.
    """
    monkeypatch.setattr(engine, "INLINE_RECORDS_MAX", inline_records_max)
    raised = (None, codec.encode(chain_version_raised(TOPIC, 0)))
    some, more = list(events(60, agents=5, seed=7)), list(events(60, agents=5, seed=8))
    first: list[Event | Record] = [*some[:40], (b"", b""), raised, *some[30:], (None, b"no event")]
    second: list[Event | Record] = [*more, *more[:3], raised, (b"k", raised[1])]
    start = 0
    for batch in (first, second):
        projector = PartitionProjector(database.writer_url, TOPIC, 0, READ_MODELS)
        try:
            token = projector.acquire(WATERMARKS).token
            start = projector.project(batch_of(batch, token=token, start=start))
        finally:
            projector.close()
    (verdict,) = verify_chains(database.auditor_url, jobs=1)
    assert (verdict.entries, verdict.finding, verdict.state) == (len(first) + len(second), None, "good")
    assert read_raised(database.auditor_url) == {Chain(TOPIC, 0): 41}
    forge = "UPDATE log_records SET disposition = 'poison', reason = 'forged' WHERE \"offset\" = {}"
    sql.execute(database.superuser_url, ["SET session_replication_role = replica", forge.format(80)])
    (forged,) = verify_chains(database.auditor_url, jobs=1)
    assert forged.finding is not None
    assert forged.finding.offset == 80
