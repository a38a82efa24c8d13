"""What the projection engine writes, the verifier accepts: events of every kind, repeats, poison, gaps."""

from __future__ import annotations

from audit.verifier.chains import verify_chains
from devstack import sql
from projections.engine import PartitionProjector
from projections.read_model import READ_MODELS
from schemas import codec
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
