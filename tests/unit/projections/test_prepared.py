"""The dispositions of a batch's records, from the records alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import msgspec

from projections.prepared import prepare
from projections.repeats import EventRecord
from schemas import codec
from schemas.events import AgentRated
from schemas.examples import examples
from tests.support.batches import batch_of

EVENT = examples()["genesis.agent.rated"]
LATER = msgspec.structs.replace(EVENT, occurred_at=EVENT.occurred_at + timedelta(seconds=1))


def test_clock_stamped_events_of_a_batch_are_repeats() -> None:
    """The same id with another time is a repeat where Plant's clock gave both, and poison where a sender gave one."""
    batch = batch_of([EVENT, LATER, LATER], token=1)
    stamped, plain = (codec.headers(EVENT, "t", clock_stamped=each) for each in (True, False))
    prepared = prepare(replace(batch, headers=[stamped, stamped, plain])).with_dispositions(None)
    assert prepared.rows["disposition"].to_list() == ["applied", "repeat", "poison"]
    assert prepared.events["genesis.agent.rated"].height == 1


def test_a_first_event_of_a_schema_that_is_not_known_is_judged_by_its_type() -> None:
    """As the log holds one after an update of Plant was taken back: its repeat is one, and fails in no loop."""
    assert isinstance(EVENT, AgentRated)
    newer = codec.WIRE_PREFIX.pack(0, 99) + bytes(32)
    seen = {EVENT.event_id.bytes: EventRecord(newer, EVENT.event_type, None, None)}
    prepared = prepare(batch_of([EVENT], token=1))
    assert prepared.with_dispositions(seen).rows["disposition"].to_list() == ["repeat"]
    other = {EVENT.event_id.bytes: EventRecord(newer, "genesis.skill.validated", None, None)}
    assert prepared.with_dispositions(other).rows["disposition"].to_list() == ["poison"]
