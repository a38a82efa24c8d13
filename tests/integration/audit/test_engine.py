"""What the projection engine writes, the verifier accepts: events of every kind, repeats, poison, gaps."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest

from audit.verifier.chain_range import Chain
from audit.verifier.chains import read_raised, verify_chains
from devstack import sql
from projections import engine
from projections.engine import PartitionProjector
from projections.read_model import READ_MODELS
from projections.session import Session
from schemas import codec
from schemas.control import chain_version_raised
from schemas.events import Event
from tests.conftest import Database
from tests.support import log_rows
from tests.support.batches import TOPIC, WATERMARKS, Record, batch_of
from tests.support.load import events
from tests.support.poison_records import redrive, skip, unreadable


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


AGENT = log_rows.onboarded(0)
KEY = codec.key(AGENT)
FORGED = [
    ("control_offset = 2", 4, "control_offset is 2, but the value says 0"),
    ("control_offset = NULL", 4, "event_id is filled, but control_offset is empty"),
    ("event_id = NULL", 4, "entity_id is"),
    ("event_id = gen_random_uuid()", 4, "event_id is"),
    ("event_id = NULL", 6, "control_offset is filled, but event_id is empty"),
    ("entity_id = NULL, key = {key}", 4, "entity_id is empty, but key and value say"),
    ("entity_id = gen_random_uuid(), key = {key}", 6, "entity_id is"),
    ("entity_id = gen_random_uuid(), key = {key}", 0, "entity_id is not the id that the key is"),
    ("entity_id = gen_random_uuid()", 0, "the hash does not fit"),
    ("event_type = 'plant.record.skipped'", 4, "event_type is"),
    ("entity_type = 'agent'", 6, "entity_type is"),
    ("disposition = 'applied', control_offset = NULL", 4, "but the value holds no event"),
    ("disposition = 'poison', reason = 'forged', control_offset = NULL", 4, "the value proves none of"),
]


def test_poison_parked_and_control_records_are_accepted_and_forged_ones_found(database: Database) -> None:
    """Each kind of effect and none at all; a repeat of an event that a control record has brought in is founded."""
    later = [log_rows.retired(0), msgspec.structs.replace(AGENT, event_id=UUID(int=9))]
    other = codec.key(log_rows.onboarded(1))
    records: list[Event | Record] = [
        unreadable(AGENT.agent_id), later[0], (KEY, codec.encode(AGENT) + b"x"), unreadable(UUID(int=2)),
        redrive(KEY, 0, AGENT), redrive(KEY, 2, later[0]), skip(other, 3), skip(other, 3), redrive(KEY, 0, later[1]),
        AGENT, (None, b"no event"), skip(None, 10), *events(30, agents=5, seed=7),
    ]  # fmt: skip
    raised = (None, codec.encode(chain_version_raised(TOPIC, 0)))
    projector = PartitionProjector(database.writer_url, TOPIC, 0, READ_MODELS)
    try:
        token = projector.acquire(WATERMARKS).token
        start = projector.project(batch_of([*records, raised], token=token))
        projector.project(batch_of(records, token=token, start=start))
    finally:
        projector.close()
    (verdict,) = verify_chains(database.auditor_url, jobs=1)
    assert (verdict.entries, verdict.finding, verdict.state) == (2 * len(records) + 1, None, "good")
    superuser = Session(database.superuser_url)
    effects = 'SELECT "offset", control_offset FROM event_stream WHERE control_offset IS NOT NULL AND "offset" < $1'
    assert dict(superuser.query(effects, (start,))) == {4: 0, 5: 2, 6: 3, 11: 10}
    columns = "disposition, event_id, entity_id, entity_type, event_type, control_offset, key, reason"
    superuser.script(f'CREATE TABLE kept AS SELECT "offset", {columns} FROM log_records')
    superuser.script("SET session_replication_role = replica")
    for change, offset, problem in FORGED:
        key = f"convert_to('{KEY.decode()}', 'UTF8')" if offset != 6 else f"convert_to('{other.decode()}', 'UTF8')"
        superuser.script(f'UPDATE log_records SET {change.format(key=key)} WHERE "offset" = {offset}')
        (verdict,) = verify_chains(database.auditor_url, jobs=1)
        superuser.script(
            f"UPDATE log_records AS r SET ({columns}) = (SELECT {columns} FROM kept AS k"
            f' WHERE k."offset" = r."offset") WHERE "offset" = {offset}'
        )
        assert verdict.finding is not None, change
        assert (verdict.finding.offset, problem in verdict.finding.problem) == (offset, True), verdict.finding
    superuser.close()
