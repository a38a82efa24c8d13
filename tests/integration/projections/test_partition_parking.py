"""Poison, parked and control records in Postgres: what each row says, and what takes effect, in batches of any size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest

from audit.canonical import headers_bytes
from database.errors import DatabaseUnreachable
from projections import engine, partition_parking
from projections.engine import PartitionProjector
from projections.errors import TooManyParkedEntities, TooManyParkedRecords
from projections.install import install
from projections.partition_parking import ParkingLimits
from projections.prepared import PreparedBatch
from projections.session import Session
from runtime import metrics
from schemas import codec
from schemas.clock_fields import CLOCK_FIELDS, CLOCK_FIELDS_HEADER
from schemas.events import AgentAvailable, AgentOnboarded, Event
from schemas.registry import Registry, bundled
from streams.control_search import NamedPoison
from streams.errors import SchemaNewer, TooMuchParked
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS, Record, batch_of
from tests.support.log_rows import operation
from tests.support.made_models import made_model
from tests.support.poison_records import (
    OF_A_LATER_RELEASE,
    UNREADABLE,
    key_of,
    over_a_limit,
    redrive,
    redrive_to_newer,
    skip,
    unreadable,
)
from tests.support.projectors import MODELS, MakeProjector

pytestmark = pytest.mark.usefixtures("inline_records_max")

AGENT, OTHER = UUID(int=1), UUID(int=2)
KEY = key_of(AGENT)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ROWS = 'SELECT disposition::text AS d, control_offset, event_id::text AS e FROM event_stream ORDER BY "offset"'


def named(number: int, agent_id: UUID = AGENT) -> AgentOnboarded:
    """An event that gives its agent a name; its id follows from its number."""
    name = f"name {number}"
    return AgentOnboarded(
        event_id=UUID(int=1000 + number), agent_id=agent_id, occurred_at=NOON, name=name, skill_ids=()
    )


def available(number: int, *, is_available: bool) -> AgentAvailable:
    return AgentAvailable(
        event_id=UUID(int=2000 + number), agent_id=AGENT, occurred_at=NOON, available=is_available, available_from=None
    )


def project(projector: PartitionProjector, records: Sequence[Event | Record], size: int = 100) -> None:
    """Apply records from the first offset on, in batches of a size, under a new token."""
    token = projector.acquire(WATERMARKS).token
    for start in range(0, len(records), size):
        projector.project(batch_of(records[start : start + size], token=token, start=start))


def dispositions(session: Session) -> list[str]:
    return [row[0] for row in session.query(ROWS)]


def control_offsets(session: Session) -> dict[int, int]:
    """The offsets that control records with an effect name."""
    rows = session.query('SELECT "offset", control_offset FROM event_stream WHERE control_offset IS NOT NULL')
    return dict(rows)


def names(session: Session) -> dict[UUID, tuple[str | None, bool | None]]:
    rows = session.query("SELECT agent_id::text AS id, name, available FROM agents_v1.agents")
    return {UUID(agent_id): (name, is_available) for agent_id, name, is_available in rows}


SIZES = pytest.mark.parametrize("size", [1, 2, 3, 100], ids="batches of {}".format)


@SIZES
def test_events_behind_an_unreadable_record_wait_and_others_pass(
    projector: PartitionProjector, superuser: Session, size: int
) -> None:
    """They are parked from the poison record on; a repeat stays one, and the row says which entity it parks."""
    records = [named(1), unreadable(AGENT), named(2), named(3, OTHER), named(1), available(1, is_available=True)]
    project(projector, records, size)

    assert dispositions(superuser) == ["applied", "poison", "parked", "applied", "repeat", "parked"]
    assert names(superuser) == {AGENT: ("name 1", None), OTHER: ("name 3", None)}
    ((key, entity_id, event_id),) = superuser.query(
        "SELECT e.key, r.entity_id::text AS entity, e.event_id FROM event_stream AS e"
        " JOIN log_records AS r USING (topic, partition, \"offset\") WHERE e.disposition = 'poison'"
    )
    assert (key, entity_id, event_id) == (KEY, str(AGENT), None)
    assert metrics.WORKER_PARKED_ENTITIES.labels(TOPIC, 0)._value.get() == 1


@SIZES
def test_a_redriven_record_takes_effect_first_and_then_what_waited(
    projector: PartitionProjector, superuser: Session, size: int
) -> None:
    """At the control record's place; what comes after it is applied, and its event's repeats are repeats."""
    records = [
        named(1), unreadable(AGENT), available(1, is_available=True), available(2, is_available=False),
        redrive(KEY, 1, named(2)), named(2), named(3), redrive(KEY, 1, named(4)),
    ]  # fmt: skip
    project(projector, records[:5], size)
    assert names(superuser) == {AGENT: ("name 2", False)}
    project(projector, records, size)

    assert dispositions(superuser) == [
        "applied", "poison", "parked", "parked", "control", "repeat", "applied", "control"
    ]  # fmt: skip
    assert control_offsets(superuser) == {4: 1}
    rows = superuser.query(ROWS)
    assert (rows[4][2], rows[7][2]) == (str(named(2).event_id), None)
    assert names(superuser) == {AGENT: ("name 3", False)}
    ((profile_offset,),) = superuser.query("SELECT profile_offset FROM agents_v1.agents")
    assert profile_offset == 6


@SIZES
def test_a_record_over_a_limit_parks_and_is_skipped(
    projector: PartitionProjector, superuser: Session, size: int
) -> None:
    """It may have been an event; a skip releases what waits, and it never takes effect."""
    records = [over_a_limit(named(1), name="x" * 300), named(2), skip(KEY, 0), named(3), skip(KEY, 0)]
    project(projector, records, size)
    assert dispositions(superuser) == ["poison", "parked", "control", "applied", "control"]
    assert control_offsets(superuser) == {2: 0}
    assert names(superuser) == {AGENT: ("name 3", None)}


@SIZES
def test_records_that_can_not_have_been_an_event_of_the_entity_park_nothing(
    projector: PartitionProjector, superuser: Session, size: int
) -> None:
    """An id used before, another entity's key, no key, and keys that are no id in their one form."""
    forged = msgspec.structs.replace(named(1), name="forged")
    records: list[Event | Record] = [named(1), forged, (key_of(OTHER), codec.encode(named(2))), (None, UNREADABLE)]
    records += [(b"key", UNREADABLE), (KEY.upper() + b"0", UNREADABLE), (KEY.replace(b"-", b""), UNREADABLE)]
    records += [(str(UUID(int=10)).upper().encode(), UNREADABLE), named(3), named(4, OTHER), named(5, UUID(int=10))]
    project(projector, records, size)
    assert dispositions(superuser) == ["applied", *["poison"] * 7, *["applied"] * 3]


@SIZES
def test_poison_that_parked_nothing_is_redriven_as_a_new_event(
    projector: PartitionProjector, superuser: Session, size: int
) -> None:
    """Once, at its control record's offset, or behind what waits; without a key it can only be skipped."""
    forged = msgspec.structs.replace(named(1), name="forged")
    records: list[Event | Record] = [
        named(1), forged, (None, UNREADABLE), (key_of(OTHER), codec.encode(named(2))),
        redrive(KEY, 1, named(3)), redrive(KEY, 1, named(4)),
        redrive(None, 2, named(5)), skip(None, 2), skip(None, 2),
        redrive(KEY, 3, named(6)), redrive(key_of(OTHER), 3, event_id=named(2).event_id),
        unreadable(OTHER), redrive(key_of(OTHER), 3, named(7, OTHER)), named(8, OTHER), skip(key_of(OTHER), 11),
    ]  # fmt: skip
    project(projector, records[:14], size)
    assert names(superuser) == {AGENT: ("name 3", None)}
    project(projector, records, size)
    assert control_offsets(superuser) == {4: 1, 7: 2, 12: 3, 14: 11}
    assert names(superuser) == {AGENT: ("name 3", None), OTHER: ("name 8", None)}


@SIZES
def test_two_poison_records_of_one_entity_are_released_in_their_order(
    projector: PartitionProjector, superuser: Session, size: int
) -> None:
    """A later one that is redriven first waits at its own place."""
    records = [
        unreadable(AGENT), available(1, is_available=False), unreadable(AGENT), available(2, is_available=True),
        redrive(KEY, 2, named(2)), redrive(KEY, 0, named(1)),
    ]  # fmt: skip
    project(projector, records[:5], size)
    assert names(superuser) == {}
    project(projector, records, size)
    assert dispositions(superuser) == ["poison", "parked", "poison", "parked", "control", "control"]
    assert control_offsets(superuser) == {4: 2, 5: 0}
    assert names(superuser) == {AGENT: ("name 2", True)}


@SIZES
def test_an_event_that_was_sent_again_meanwhile_takes_effect_once(
    projector: PartitionProjector, superuser: Session, size: int
) -> None:
    """At the poison record's place where it waits; where it took effect already, the redrive is a skip."""
    records = [
        unreadable(AGENT), available(1, is_available=False), named(2), named(1), redrive(KEY, 0, named(1)),
        unreadable(AGENT), available(2, is_available=True), redrive(KEY, 5, named(1)), named(1),
    ]  # fmt: skip
    project(projector, records, size)
    assert dispositions(superuser) == [
        "poison", "parked", "parked", "parked", "control", "poison", "parked", "control", "repeat"
    ]  # fmt: skip
    assert control_offsets(superuser) == {4: 0, 7: 5}
    assert [row[2] for row in superuser.query(ROWS)][4] is None
    assert names(superuser) == {AGENT: ("name 2", True)}


@SIZES
def test_a_redrive_that_brings_no_event_of_the_entity_has_no_effect(
    projector: PartitionProjector, superuser: Session, size: int
) -> None:
    """Another entity's event, another id than it says, bytes that are no event, an id used for another event, another
    key, and an offset where no poison record is.
    """
    used = msgspec.structs.replace(named(1), name="another name")
    records: list[Event | Record] = [
        named(1), unreadable(AGENT), named(2),
        redrive(KEY, 1, named(3, OTHER)), redrive(KEY, 1, named(3), UUID(int=7)), redrive(KEY, 1, event_id=UUID(int=7)),
        redrive(KEY, 1, used), redrive(key_of(OTHER), 1, named(3, OTHER)), redrive(None, 1, named(3)),
        redrive(KEY, 0, named(3)), redrive(KEY, 10, named(3)), redrive(KEY, 11, named(3)), skip(KEY, 2), skip(None, 1),
    ]  # fmt: skip
    project(projector, records, size)
    assert dispositions(superuser) == ["applied", "poison", "parked", *["control"] * 11]
    assert control_offsets(superuser) == {}
    assert {row[2] for row in superuser.query(ROWS)[3:]} == {None}
    assert names(superuser) == {AGENT: ("name 1", None)}


@SIZES
def test_an_id_that_a_control_record_has_brought_in_names_its_event(
    projector: PartitionProjector, superuser: Session, size: int
) -> None:
    """Another event of that id is poison, the same one a repeat, in the same batch or a later one, waiting or not."""
    other = msgspec.structs.replace(named(2), name="another name")
    records: list[Event | Record] = [
        unreadable(AGENT), unreadable(AGENT), redrive(KEY, 1, named(2)), named(2), other, redrive(KEY, 0, named(2)),
        named(2), other, named(3),
    ]  # fmt: skip
    project(projector, records, size)
    assert dispositions(superuser) == [
        "poison", "poison", "control", "repeat", "poison", "control", "repeat", "poison", "applied"
    ]  # fmt: skip
    assert control_offsets(superuser) == {2: 1, 5: 0}


def test_a_worker_that_takes_over_knows_what_waits(make_projector: MakeProjector, superuser: Session) -> None:
    """From the log: the queue, its order, and what was redriven already."""
    records = [
        named(1), unreadable(AGENT), available(1, is_available=True), unreadable(AGENT), redrive(KEY, 3, named(3)),
        available(2, is_available=False), redrive(KEY, 1, named(2)), named(4),
    ]  # fmt: skip
    for end in range(1, len(records) + 1):
        projector = make_projector(0)
        token = projector.acquire(WATERMARKS).token
        projector.project(batch_of(records[end - 1 : end], token=token, start=end - 1))
    assert dispositions(superuser) == [
        "applied", "poison", "parked", "poison", "control", "parked", "control", "applied"
    ]  # fmt: skip
    assert names(superuser) == {AGENT: ("name 4", False)}


def test_a_batch_that_is_tried_again_finds_the_queues_as_they_were(
    projector: PartitionProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is refused has the transaction run twice; an outage has the partition acquired again."""
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of([unreadable(AGENT), named(1)], token=token))
    superuser.script("REVOKE ALL ON agents_v1.agents FROM plant_writer")
    records = [unreadable(OTHER), named(2), redrive(KEY, 0, named(3)), named(4, OTHER)]
    assert projector.project(batch_of(records, token=token, start=2)) == 6
    assert dispositions(superuser) == ["poison", "parked", "poison", "parked", "control", "parked"]
    assert list(projector._parking._parked.keys) == [key_of(OTHER)]
    assert projector._parking._parked.queues == {key_of(OTHER): ((2, None, None), (5, named(4).event_id.bytes, None))}


def test_more_parked_entities_than_a_worker_may_keep_stop_the_partition(database: Database, superuser: Session) -> None:
    """By name, before the batch is applied; with a larger bound it goes on."""
    projector = PartitionProjector(database.writer_url, TOPIC, 0, MODELS, parking_limits=ParkingLimits(entities=1))
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of([unreadable(AGENT), unreadable(AGENT)], token=token))
    with pytest.raises(TooManyParkedEntities, match="1 entities of genesis") as stopped:
        projector.project(batch_of([named(1), unreadable(OTHER)], token=token, start=2))
    assert "offset 3 is poison" in stopped.value.why
    assert "PLANT_WORKER_PARKED_ENTITIES_MAX" in stopped.value.next_step
    assert dispositions(superuser) == ["poison", "poison"]
    larger = PartitionProjector(database.writer_url, TOPIC, 0, MODELS, parking_limits=ParkingLimits(entities=2))
    token = larger.acquire(WATERMARKS).token
    assert larger.project(batch_of([named(1), unreadable(OTHER)], token=token, start=2)) == 4
    larger.close()


def test_more_waiting_records_than_a_worker_may_keep_stop_the_partition(database: Database, superuser: Session) -> None:
    """By name, before the batch is applied, be they events or poison; a release makes room again."""
    projector = PartitionProjector(database.writer_url, TOPIC, 0, MODELS, parking_limits=ParkingLimits(records=3))
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of([unreadable(AGENT), named(1), named(2), named(11, OTHER)], token=token))
    for one_more in (named(3), unreadable(AGENT), unreadable(OTHER)):
        with pytest.raises(TooManyParkedRecords, match="3 records of genesis") as stopped:
            projector.project(batch_of([named(12, OTHER), one_more], token=token, start=4))
        assert "offset 5 is of a parked entity" in stopped.value.why
        assert "PLANT_WORKER_PARKED_RECORDS_MAX" in stopped.value.next_step
        token = projector.acquire(WATERMARKS).token
    assert dispositions(superuser) == ["poison", "parked", "parked", "applied"]
    records = [skip(KEY, 0), unreadable(OTHER), named(13, OTHER), named(14, OTHER)]
    assert projector.project(batch_of(records, token=token, start=4)) == 8
    projector.close()


THIRD = UUID(int=3)


@pytest.mark.parametrize("limits", [ParkingLimits(entities=1), ParkingLimits(records=2)], ids=["entities", "records"])
def test_control_records_further_on_make_room(database: Database, superuser: Session, limits: ParkingLimits) -> None:
    """What they are about to release does not count, as far as all poison that holds it up is named, and no further
    than the bound once more.
    """
    projector = PartitionProjector(database.writer_url, TOPIC, 0, MODELS, parking_limits=limits)
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of([unreadable(AGENT), named(1)], token=token))
    records = [unreadable(OTHER), unreadable(OTHER), skip(KEY, 0), named(2), named(3, OTHER)]
    other = key_of(OTHER)
    useless = [NamedPoison(KEY, 7), NamedPoison(b"none", 0), NamedPoison(None, 0)]
    for heard in ([], useless):
        projector.make_room(heard)
        with pytest.raises(TooMuchParked):
            projector.project(batch_of(records, token=token, start=2))
        token = projector.acquire(WATERMARKS).token
    projector.make_room([*useless, NamedPoison(KEY, 0)])
    projector.project(batch_of(records, token=token, start=2))
    assert dispositions(superuser) == ["poison", "parked", "poison", "poison", "control", "applied", "parked"]
    assert names(superuser) == {AGENT: ("name 2", None)}

    records = [*map(unreadable, (AGENT, AGENT, THIRD)), skip(other, 2), skip(other, 3), skip(KEY, 7), skip(KEY, 8)]
    projector.make_room([NamedPoison(other, 2), NamedPoison(other, 3), NamedPoison(KEY, 7), NamedPoison(KEY, 8)])
    with pytest.raises(TooMuchParked, match=f"{2 * min(limits)} ") as stopped:
        projector.project(batch_of(records, token=token, start=7))
    assert stopped.value.offset == (9 if limits.entities == 1 else 8)
    projector.close()


def test_a_repaired_event_of_a_later_release_waits(projector: PartitionProjector, superuser: Session) -> None:
    """Its schema may be known to a later release: the control record is not applied, and what comes before it is."""
    records = [unreadable(AGENT), named(2), redrive_to_newer(KEY, 0), named(3)]
    token = projector.acquire(WATERMARKS).token
    with pytest.raises(SchemaNewer, match="schema id 99") as stopped:
        projector.project(batch_of(records, token=token))
    assert stopped.value.offset == 2
    assert dispositions(superuser) == ["poison", "parked"]
    token = projector.acquire(WATERMARKS).token
    projector.skip(2, "nobody wrote it")
    projector.project(batch_of([*records, skip(KEY, 2), skip(KEY, 0)], token=token))
    assert dispositions(superuser) == ["poison", "parked", "poison", "parked", "control", "control"]
    assert control_offsets(superuser) == {4: 2, 5: 0}
    assert names(superuser) == {AGENT: ("name 3", None)}


@SIZES
def test_a_repaired_event_of_a_later_release_has_no_effect_where_nothing_waits(
    projector: PartitionProjector, superuser: Session, size: int
) -> None:
    """Nobody can stop a partition with a control record that names no poison record, or one that is resolved."""
    no_effect = metrics.WORKER_CONTROL_RECORDS.labels("none")
    before = no_effect._value.get()
    records = [
        unreadable(AGENT), redrive_to_newer(KEY, 0x7FFF), redrive_to_newer(KEY, 1), redrive_to_newer(key_of(OTHER), 0),
        redrive_to_newer(None, 0), skip(KEY, 0), redrive_to_newer(KEY, 0), named(1),
    ]  # fmt: skip
    project(projector, records, size)
    assert dispositions(superuser) == ["poison", *["control"] * 6, "applied"]
    assert control_offsets(superuser) == {5: 0}
    assert no_effect._value.get() - before == 5
    assert names(superuser) == {AGENT: ("name 1", None)}


def test_a_record_of_a_later_release_that_is_redriven_as_it_is_waits_too(
    projector: PartitionProjector, superuser: Session
) -> None:
    """It was skipped by one worker, and another one may know its schema: what its redrive does has to be the same."""
    token = projector.acquire(WATERMARKS).token
    projector.skip(0, "nobody wrote it")
    projector.project(batch_of([(KEY, OF_A_LATER_RELEASE)], token=token))
    records = [named(1), redrive(KEY, 0, event_id=named(2).event_id), named(3)]
    with pytest.raises(SchemaNewer, match="schema id 99") as stopped:
        projector.project(batch_of(records, token=token, start=1))
    assert stopped.value.offset == 2
    assert dispositions(superuser) == ["poison", "parked"]


@SIZES
def test_a_redriven_event_of_another_topic_has_no_effect(
    projector: PartitionProjector, superuser: Session, size: int
) -> None:
    """As a record it would be poison there."""
    key = codec.key(operation(1))
    records = [unreadable(operation(1).entity_id), redrive(key, 0, operation(1)), skip(key, 0)]
    project(projector, records, size)
    assert dispositions(superuser) == ["poison", "control", "control"]
    assert control_offsets(superuser) == {2: 0}


@SIZES
def test_a_redriven_event_has_the_clock_of_its_poison_record(
    projector: PartitionProjector, superuser: Session, size: int
) -> None:
    """Where the poison record says that Plant filled in its time, a repeat with another time is still a repeat."""
    later = msgspec.structs.replace(named(1), occurred_at=NOON + timedelta(seconds=1))
    records = [unreadable(AGENT), redrive(KEY, 0, named(1)), later]
    token = projector.acquire(WATERMARKS).token
    for start in range(0, len(records), size):
        batch = batch_of(records[start : start + size], token=token, start=start)
        headers = headers_bytes([(CLOCK_FIELDS_HEADER, CLOCK_FIELDS)])
        projector.project(replace(batch, headers=[headers] * len(batch)))
    assert dispositions(superuser) == ["poison", "control", "repeat"]


def test_a_control_record_that_releases_much_goes_by_copy(
    projector: PartitionProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes as text is bounded by the bytes of the events that it releases too."""
    records = [unreadable(AGENT), named(1), named(2)]
    project(projector, records)
    values_bytes = sum(len(codec.encode(event)) for event in (named(1), named(2)))
    judged: list[PreparedBatch] = []
    goes_inline = engine.goes_inline
    monkeypatch.setattr(engine, "goes_inline", lambda prepared: judged.append(prepared) or goes_inline(prepared))
    project(projector, [*records, skip(KEY, 0)])
    assert [each.released_bytes for each in judged] == [values_bytes]
    assert names(superuser) == {AGENT: ("name 2", None)}


def test_control_records_are_counted_by_their_effect(projector: PartitionProjector) -> None:
    """Once each, however often the batch was tried."""
    counts = {each: metrics.WORKER_CONTROL_RECORDS.labels(each) for each in ("redriven", "skipped", "repeated", "none")}
    before = {name: count._value.get() for name, count in counts.items()}
    records = [
        unreadable(AGENT), unreadable(AGENT), unreadable(AGENT), redrive(KEY, 0, named(1)), redrive(KEY, 1, named(1)),
        skip(KEY, 2), skip(KEY, 2),
    ]  # fmt: skip
    project(projector, records)
    assert {name: count._value.get() - before[name] for name, count in counts.items()} == dict.fromkeys(before, 1)


@SIZES
def test_a_record_of_a_schema_that_has_become_known_is_redriven_as_it_is(
    make_projector: MakeProjector,
    superuser: Session,
    size: int,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its own bytes take effect, at once or once it is its turn; the same from the log."""
    monkeypatch.setattr(partition_parking, "OWN_VALUES", size)
    request.addfinalizer(lambda: codec.activate(None))
    schema_id = bundled().current(AgentOnboarded).id

    def later_known(event: Event) -> Record:
        return codec.key(event), codec.WIRE_PREFIX.pack(0, 70_000) + codec.encode(event)[5:]

    records = [
        later_known(named(1)), available(1, is_available=True), unreadable(OTHER), later_known(named(2, OTHER)),
        redrive(KEY, 0, event_id=named(2).event_id),
    ]  # fmt: skip
    project(make_projector(0), records, size)
    codec.activate(Registry(bundled().versions, external_ids={70_000: schema_id}))
    records += [
        redrive(KEY, 0, event_id=named(1).event_id), redrive(key_of(OTHER), 3, event_id=named(2).event_id),
        skip(key_of(OTHER), 2), named(1), named(2, OTHER),
    ]  # fmt: skip
    project(make_projector(0), records, size)
    assert dispositions(superuser) == [
        "poison", "parked", "poison", "poison", *["control"] * 4, "repeat", "repeat"
    ]  # fmt: skip
    assert control_offsets(superuser) == {5: 0, 6: 3, 7: 2}
    assert names(superuser) == {AGENT: ("name 1", True), OTHER: ("name 2", None)}

    superuser.script("TRUNCATE agents_v1.agents", "UPDATE checkpoints SET read_models = '{}'")
    make_projector(0).acquire(WATERMARKS)
    assert names(superuser) == {AGENT: ("name 1", True), OTHER: ("name 2", None)}


LATEST = made_model(
    "latest", 'partition bigint PRIMARY KEY, name text, effective_offset bigint, "offset" bigint',
    'INSERT INTO __schema__.latest SELECT DISTINCT ON (partition) partition, name, effective_offset, "offset"'
    ' FROM staged_agent_onboarded ORDER BY partition, effective_offset DESC, "offset" DESC'
    " ON CONFLICT (partition) DO UPDATE SET name = excluded.name, effective_offset = excluded.effective_offset,"
    ' "offset" = excluded."offset"',
)  # fmt: skip


@SIZES
def test_a_model_of_several_entities_orders_by_the_effective_offset(
    database: Database, superuser: Session, size: int
) -> None:
    """An event that has waited takes effect at its control record's place, behind others of higher offsets."""
    install(database.owner_url, [LATEST])
    records: list[Event | Record] = [
        unreadable(AGENT), named(1), named(2, OTHER), unreadable(AGENT), named(3), skip(KEY, 0),
        redrive(KEY, 3, named(4)),
    ]  # fmt: skip
    rows = 'SELECT name, effective_offset, "offset" FROM latest_v1.latest'
    for end, latest in ((5, ("name 2", 2, 2)), (6, ("name 1", 5, 1)), (7, ("name 3", 6, 4))):
        projector = PartitionProjector(database.writer_url, TOPIC, 0, [*MODELS, LATEST])
        project(projector, records[:end], size)
        assert superuser.query(rows) == [latest]
        superuser.script(
            "TRUNCATE latest_v1.latest", "UPDATE checkpoints SET read_models = array_remove(read_models, 'latest/1')"
        )
        projector.acquire(WATERMARKS)
        assert superuser.query(rows) == [latest]
        projector.close()


@pytest.mark.parametrize("runs", [False, True], ids=["before", "after"])
def test_a_transaction_that_ends_at_any_statement_leaves_no_trace(
    projector: PartitionProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    """Before a statement or after it, the commit included: the next owner goes on as if nothing had happened."""
    token, batches, failed = projector.acquire(WATERMARKS).token, 0, True
    while failed:
        start, first = 7 * batches, 10 * batches
        records: list[Event | Record] = [
            unreadable(AGENT), named(first), redrive(KEY, start, named(first + 1)), named(first + 2),
            unreadable(OTHER), named(first + 3, OTHER), skip(key_of(OTHER), start + 4),
        ]  # fmt: skip
        batches += 1
        projector.project(batch_of(records[:2], token=token, start=start))
        with monkeypatch.context() as patched:
            end_at(patched, batches, runs=runs)
            try:
                projector.project(batch_of(records[2:], token=token, start=start + 2))
                failed = False
            except DatabaseUnreachable:
                pass
        if failed:
            token = projector.acquire(WATERMARKS).token
            assert projector.project(batch_of(records[2:], token=token, start=start + 2)) == start + 7
        assert names(superuser) == {AGENT: (f"name {first + 2}", None), OTHER: (f"name {first + 3}", None)}
    assert batches > 3
    each = ["poison", "parked", "control", "applied", "poison", "parked", "control"]
    assert dispositions(superuser) == each * batches
    assert len(control_offsets(superuser)) == 2 * batches


def end_at(patched: pytest.MonkeyPatch, number: int, *, runs: bool) -> None:
    """Lose the connection at the n-th of a session's calls, once it has run where `runs`."""
    calls = itertools.count(1)

    def ending(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **others: Any) -> Any:
            ends = next(calls) == number
            if ends and not runs:
                raise DatabaseUnreachable(why="a test")
            result = method(*arguments, **others)
            if ends:
                raise DatabaseUnreachable(why="a test")
            return result

        return call

    for name in ("script", "query", "frame", "copy"):
        patched.setattr(Session, name, ending(getattr(Session, name)))
