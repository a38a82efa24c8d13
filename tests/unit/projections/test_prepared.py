"""What the records of a batch are, from the records alone: rows, verdicts and decoded events, and dispositions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec
import numpy
import pytest

from audit.canonical import headers_bytes
from projections import prepared
from projections.inline_folds import InlineFolds, InlineRows
from projections.prepared import prepare
from projections.read_model import READ_MODELS
from projections.repeats import ID_REUSED, EventRecord, content_fingerprint
from projections.staging import Staging
from schemas import codec
from schemas.batch_decoder import RejectedValue
from schemas.control import RecordSkipped, chain_version_raised
from schemas.events import AgentRated, Event
from schemas.examples import examples
from schemas.polars_import import polars as pl
from streams.batch import EventBatch
from streams.errors import SchemaNewer
from tests.support.batches import Record, batch_of
from tests.support.load import events_of_all_models
from tests.support.made_events import unchecked_value

EVENT = examples()["genesis.agent.rated"]
LATER = msgspec.structs.replace(EVENT, occurred_at=EVENT.occurred_at + timedelta(seconds=1))
OF_ALL_TYPES = tuple(event for event in examples().values() if event.event_type != "plant.operation.recorded")
POISON: Record = (b"key", b"no event")
COLUMNS = ["row", "event_id", "entity_type", "entity_id", "event_type", "reason"]
KEY = codec.key(EVENT)
RAISED = codec.encode(chain_version_raised("genesis.events", 0))
CONTROL: Record = (None, RAISED)


def another(number: int, event: Event = EVENT) -> Event:
    """Return an event with an id of its own."""
    return msgspec.structs.replace(event, event_id=UUID(int=number))


def row_of(row: int, event: Event) -> tuple[object, ...]:
    entity_id = getattr(event, event.entity_field)
    return row, event.event_id.bytes, event.entity_type, entity_id.bytes, event.event_type, None


def rows_of(batch: EventBatch) -> list[tuple[object, ...]]:
    rows = prepare(batch).rows
    assert rows.columns == COLUMNS
    return rows.rows()


def dispositions(records: list[Event | Record], seen: dict[bytes, EventRecord] | None = None) -> list[str]:
    return prepare(batch_of(records, token=1)).with_dispositions(seen or {}).rows["disposition"].to_list()


def test_a_row_says_what_each_record_is_about() -> None:
    """In the batch's order, whatever types take turns in it, with the entity's type where the data names it."""
    events = [*OF_ALL_TYPES, *(another(number, event) for number, event in enumerate(reversed(OF_ALL_TYPES)))]
    batch = batch_of(events, token=1)
    assert rows_of(batch) == [row_of(row, event) for row, event in enumerate(events)]
    frames = prepare(batch).events
    for name in {event.event_type for event in OF_ALL_TYPES}:
        assert frames[name]["row"].to_list() == [row for row, event in enumerate(events) if event.event_type == name]
        assert frames[name].columns[0] == "row"
    assert prepare(batch_of([EVENT, another(1)], token=1)).rows.rows() == [row_of(0, EVENT), row_of(1, another(1))]


def test_rows_of_poison_stand_between_the_others() -> None:
    """They have a reason and nothing else, and events keep the numbers of their rows."""
    other = examples()["genesis.skill.registered"]
    batch = batch_of([POISON, EVENT, POISON, other, another(1), POISON], token=1)
    rows = rows_of(batch)
    assert [row for row in rows if row[5] is None] == [row_of(1, EVENT), row_of(3, other), row_of(4, another(1))]
    for row in (0, 2, 5):
        assert rows[row][:5] == (row, None, None, None, None)
        assert rows[row][5]
    assert prepare(batch).events[EVENT.event_type]["row"].to_list() == [1, 4]
    assert rows_of(batch_of([POISON], token=1))[0][:5] == (0, None, None, None, None)
    assert prepare(batch_of([POISON], token=1)).events == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda key: None,
        lambda key: b"",
        lambda key: key[:-1],
        lambda key: key + b"0",
        lambda key: key[:8] + b"+" + key[9:],
        lambda key: key[:35] + b"x",
        lambda key: b"x" + key[1:],
        lambda key: key.replace(b"-", b"") + b"----",
        lambda key: str(UUID(int=1)).encode(),
    ],
    ids=["null", "empty", "short", "long", "dash", "last digit", "first digit", "dashes at the end", "another id"],
)
@pytest.mark.parametrize("before", [[], [POISON]], ids=["alone", "behind poison"])
def test_a_key_that_is_not_the_entitys_id_is_poison(
    change: Callable[[bytes], bytes | None], before: list[Record]
) -> None:
    """Only that record, and what was decoded of it is kept nowhere."""
    misplaced = (change(KEY), codec.encode(another(1)))
    batch = batch_of([*before, EVENT, misplaced, another(2)], token=1)
    first, wrong, last = rows_of(batch)[len(before) :]
    assert first[5] is last[5] is None
    assert wrong[1:] == (None, None, None, None, "key: not the id of the entity that the event is about")
    start = len(before)
    assert prepare(batch).events[EVENT.event_type]["row"].to_list() == [start, start + 2]
    both = prepare(batch_of([(None, b"no event"), misplaced], token=1)).rows
    assert both["reason"].null_count() == 0
    alone = prepare(batch_of([misplaced], token=1))
    assert alone.events == {}
    assert alone.rows.height == 1


def test_a_reason_can_be_written_into_postgres(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes no NUL in a text, so one that a record brought along is written out."""
    rejected = [RejectedValue(0, "name: holds \x00")]
    monkeypatch.setattr(prepared, "decode_batch", lambda values, topic: ([], rejected))
    assert rows_of(batch_of([POISON], token=1))[0][5] == "name: holds \\0"


def test_first_occurrences_are_applied_and_others_are_repeats() -> None:
    """Also where the first one stands in the log, and poison is none of both."""
    assert dispositions([EVENT, another(1)]) == ["applied", "applied"]
    assert dispositions([EVENT, another(1), EVENT, EVENT]) == ["applied", "applied", "repeat", "repeat"]
    assert dispositions([POISON, EVENT, POISON, EVENT]) == ["poison", "applied", "poison", "repeat"]
    assert dispositions([POISON, POISON, EVENT]) == ["poison", "poison", "applied"]
    seen = {EVENT.event_id.bytes: EventRecord(content_fingerprint(codec.encode(EVENT)), EVENT.event_type, None, None)}
    assert dispositions([EVENT, another(1), EVENT], seen) == ["repeat", "applied", "repeat"]
    assert dispositions([POISON, another(1), EVENT], seen) == ["poison", "applied", "repeat"]
    assert dispositions([another(1), another(1)], seen) == ["applied", "repeat"]
    assert dispositions([another(1)], seen) == ["applied"]
    assert dispositions([another(1)], {}) == ["applied"]


def test_only_first_occurrences_are_left_among_the_events() -> None:
    """A type without any is left out, and the others keep the numbers of their rows."""
    other = examples()["genesis.skill.registered"]
    seen = {other.event_id.bytes: EventRecord(content_fingerprint(codec.encode(other)), other.event_type, None, None)}
    judged = prepare(batch_of([EVENT, other, another(1), EVENT, another(2)], token=1)).with_dispositions(seen)
    assert set(judged.events) == {EVENT.event_type}
    assert judged.events[EVENT.event_type]["row"].to_list() == [0, 2, 4]
    assert judged.rows.columns == [*COLUMNS, "disposition"]
    assert judged.rows["reason"].null_count() == 5
    assert prepare(batch_of([EVENT], token=1)).with_dispositions({}).rows.columns == [*COLUMNS, "disposition"]


def test_an_id_that_was_used_for_another_event_is_poison() -> None:
    """Each such record is, wherever it stands between repeats; its first event stays what it was."""
    records: list[Event | Record] = [another(2), another(1), EVENT, another(3), LATER, EVENT, another(1), LATER, POISON]
    expected = ["applied", "applied", "applied", "applied", "poison", "repeat", "repeat", "poison", "poison"]
    judged = prepare(batch_of(records, token=1)).with_dispositions({})
    assert judged.rows["disposition"].to_list() == expected
    reasons = judged.rows["reason"].to_list()
    assert reasons[:8] == [None, None, None, None, ID_REUSED, None, None, ID_REUSED]
    assert judged.events[EVENT.event_type]["row"].to_list() == [0, 1, 2, 3]
    assert judged.rows.columns == [*COLUMNS, "disposition"]


def test_what_the_log_holds_is_the_first_event_of_its_id() -> None:
    """The batch's own first record is compared with it, not with the ones behind it."""
    logged = EventRecord(content_fingerprint(codec.encode(EVENT)), EVENT.event_type, None, None)
    assert dispositions([LATER, EVENT, LATER], {EVENT.event_id.bytes: logged}) == ["poison", "repeat", "poison"]
    stamped = headers_bytes(codec.headers(EVENT, "t", clock_stamped=True))
    batch = replace(batch_of([LATER, LATER], token=1), headers=[stamped] * 2)
    kept = logged._replace(value=codec.encode(EVENT), headers=stamped)
    assert (
        prepare(batch).with_dispositions({EVENT.event_id.bytes: kept}).rows["disposition"].to_list() == ["repeat"] * 2
    )


def test_only_what_is_no_default_is_stored() -> None:
    """A key that is the entity's id stands in one column; what all records have in common is the table's default."""
    stored = prepare(batch_of([EVENT, another(1)], token=1)).with_dispositions({}).stored_columns()
    assert list(stored) == ["event_id", "entity_id", "entity_type", "event_type"]
    mixed = prepare(batch_of([EVENT, POISON, EVENT], token=1)).with_dispositions({}).stored_columns()
    assert mixed["key"].to_list() == [None, b"key", None]
    assert mixed["disposition"].to_list() == ["applied", "poison", "repeat"]
    assert [reason is None for reason in mixed["reason"]] == [True, False, True]
    assert mixed["entity_id"].to_list()[0] == EVENT.entity_id.bytes


def test_first_occurrences_are_those_that_are_applied_or_parked() -> None:
    """Hashes come one for each record that has an event id; offsets are the records' own."""
    events = prepare(batch_of([EVENT, another(1)], token=1, start=7)).with_dispositions({})
    hashes = numpy.array([11, 12], numpy.uint64)
    kept, offsets = events.first_occurrences(hashes)
    assert (kept.tolist(), offsets) == ([11, 12], [7, 8])
    mixed = prepare(batch_of([POISON, EVENT, EVENT, another(1)], token=1, start=7)).with_dispositions({})
    kept, offsets = mixed.first_occurrences(numpy.array([11, 12, 13], numpy.uint64))
    assert (kept.tolist(), offsets) == ([11, 13], [8, 10])
    parked = mixed.rows.with_columns(pl.Series("disposition", ["poison", "parked", "repeat", "applied"]))
    kept, offsets = replace(mixed, rows=parked).first_occurrences(numpy.array([11, 12, 13], numpy.uint64))
    assert (kept.tolist(), offsets) == ([11, 13], [8, 10])


def test_clock_stamped_events_of_a_batch_are_repeats() -> None:
    """The same id with another time is a repeat where Plant's clock gave both, and poison where a sender gave one."""
    batch = batch_of([EVENT, LATER, LATER], token=1)
    stamped, plain = (headers_bytes(codec.headers(EVENT, "t", clock_stamped=each)) for each in (True, False))
    judged = prepare(replace(batch, headers=[stamped, stamped, plain])).with_dispositions({})
    assert judged.rows["disposition"].to_list() == ["applied", "repeat", "poison"]
    assert judged.events["genesis.agent.rated"].height == 1


def test_a_first_event_of_a_schema_that_is_not_known_is_judged_by_its_type() -> None:
    """As the log holds one after an update of Plant was taken back: its repeat is one, and fails in no loop."""
    assert isinstance(EVENT, AgentRated)
    newer = codec.WIRE_PREFIX.pack(0, 99) + bytes(32)
    seen = {EVENT.event_id.bytes: EventRecord(newer, EVENT.event_type, None, None)}
    judged = prepare(batch_of([EVENT], token=1))
    assert judged.with_dispositions(seen).rows["disposition"].to_list() == ["repeat"]
    other = {EVENT.event_id.bytes: EventRecord(newer, "genesis.skill.validated", None, None)}
    assert judged.with_dispositions(other).rows["disposition"].to_list() == ["poison"]


def test_a_control_record_is_about_no_entity() -> None:
    """It has its event id and its type, no entity, and stands among no events; it is judged `control`."""
    judged = prepare(batch_of([EVENT, CONTROL, POISON, another(1)], token=1)).with_dispositions({})
    (row,) = [row for row in judged.rows.rows() if row[0] == 1]
    raised = chain_version_raised("genesis.events", 0)
    assert row == (1, raised.event_id.bytes, None, None, "plant.chain.version_raised", None, "control")
    assert judged.rows["disposition"].to_list() == ["applied", "control", "poison", "applied"]
    assert judged.events[EVENT.event_type]["row"].to_list() == [0, 3]
    assert list(judged.events) == [EVENT.event_type]
    assert judged.chain_raised_at == 1


def test_a_batch_of_control_records_alone_is_judged() -> None:
    """No event has to be there for one; the first of two is the one that raises the chain's version."""
    judged = prepare(batch_of([CONTROL, CONTROL], token=1)).with_dispositions({})
    assert judged.rows["disposition"].to_list() == ["control", "control"]
    assert (judged.events, judged.chain_raised_at) == ({}, 0)
    assert prepare(batch_of([EVENT], token=1)).chain_raised_at is None


def test_a_control_record_is_no_repeat_and_repeats_nothing() -> None:
    """Its event id is not compared with those of events, in its batch or before it, whichever comes first."""
    event_id = chain_version_raised("genesis.events", 0).event_id
    same = msgspec.structs.replace(EVENT, event_id=event_id)
    record = EventRecord(content_fingerprint(codec.encode(same)), same.event_type, codec.encode(same), ())
    assert dispositions([CONTROL, same, CONTROL, same]) == ["control", "applied", "control", "repeat"]
    assert dispositions([same, CONTROL, same, another(1)]) == ["applied", "control", "repeat", "applied"]
    assert dispositions([CONTROL, same], {event_id.bytes: record}) == ["control", "repeat"]
    judged = prepare(batch_of([CONTROL, same, CONTROL, same], token=1)).with_dispositions({})
    assert judged.rows["event_id"].to_list() == [event_id.bytes] * 4
    assert judged.events[EVENT.event_type]["row"].to_list() == [1]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ((b"", RAISED), "key: a control record of this type has none"),
        ((KEY, RAISED), "key: a control record of this type has none"),
        ((None, RAISED + b"\0"), "1 unread bytes after the record"),
        ((None, RAISED[:-1]), "the value ends too early"),
        ((None, RAISED[:-1] + b"\x84\0"), "not canonical: an overlong number in version"),
        ((None, RAISED[:-1] + b"\x02"), "version is less than 2"),
        ((None, RAISED[:-1] + b"\x06"), "version is more than 2"),
    ],
)
@pytest.mark.parametrize("among", [0, 40])
def test_a_malformed_control_record_is_poison(record: Record, reason: str, among: int) -> None:
    """Key, length, form and version are checked, alone and in a block, and the chain stays where it is."""
    judged = prepare(batch_of([*[CONTROL] * among, record, EVENT], token=1)).with_dispositions({})
    assert judged.rows["disposition"].to_list() == ["control"] * among + ["poison", "applied"]
    assert judged.rows.rows()[among][1:6] == (None, None, None, None, reason)
    assert judged.chain_raised_at == (0 if among else None)


def test_operations_and_later_generations_are_raised_too() -> None:
    """Every topic that workers log takes the control record; its schema is of no other topic."""
    for topic in ("plant.operations", "genesis.events-2"):
        judged = prepare(replace(batch_of([CONTROL], token=1), topic=topic)).with_dispositions({})
        assert judged.rows["disposition"].to_list() == ["control"]
    elsewhere = prepare(replace(batch_of([CONTROL], token=1), topic="genesis.deliveries"))
    assert elsewhere.rows["reason"].to_list() == ["plant.chain.version_raised does not belong on genesis.deliveries"]


def test_a_control_record_over_its_limits_parks_nothing() -> None:
    """It can't have been an event of the entity whose key it has."""
    skipped = RecordSkipped(event_id=UUID(int=9), poison_offset=3, reason="a test")
    beyond = {name: getattr(skipped, name) for name in skipped.__struct_fields__} | {"poison_offset": -1}
    made = prepare(batch_of([(KEY, unchecked_value(RecordSkipped, beyond)), (KEY, b"no event")], token=1))
    assert made.rows["reason"].null_count() == 0
    assert list(made.parking) == [1]


def test_a_record_that_was_skipped_while_it_was_waited_at_is_poison() -> None:
    """For the reason of the skip, and it parks its entity; another one like it is still waited at."""
    newer = codec.WIRE_PREFIX.pack(0, 99) + b"of a later release"
    batch = batch_of([EVENT, (KEY, newer), another(2)], token=1, start=7)
    with pytest.raises(SchemaNewer) as waiting:
        prepare(batch)
    assert waiting.value.offset == 8
    made = prepare(batch, {8: "nobody wrote it"})
    assert made.rows["reason"].to_list() == [
        None, "skipped, while no schema was known for its id: nobody wrote it", None,
    ]  # fmt: skip
    assert list(made.parking) == [1]
    assert made.batch.values[1] == newer
    with pytest.raises(SchemaNewer):
        prepare(batch, {9: "another"})


def test_a_small_batch_needs_no_query_of_polars(monkeypatch: pytest.MonkeyPatch) -> None:
    """From values to statements with rows: each query would wait for a thread that all partitions share."""
    queries: list[pl.LazyFrame] = []
    collect = pl.LazyFrame._collect_eager

    def seen(query: pl.LazyFrame, **options: Any) -> pl.DataFrame:
        queries.append(query)
        return collect(query, **options)

    monkeypatch.setattr(pl.LazyFrame, "_collect_eager", seen)
    pl.DataFrame({"a": [1]}).select("a")
    assert len(queries) == 1  # so they are seen
    staging = Staging(READ_MODELS)
    batch = batch_of(list(events_of_all_models(20)), token=1)

    prepared = prepare(batch).with_dispositions({})
    prepared.stored_columns()
    rows = InlineRows(staging, prepared.events, prepared.staged_offsets, partition=0)
    statements = InlineFolds(staging).statements(READ_MODELS, rows)

    assert len(prepared.events) == 5
    assert len(statements) > len(READ_MODELS)
    assert len(queries) == 1


@pytest.mark.parametrize("asked", [None, [True, True, True], [True, False, True]])
def test_a_repeat_is_no_first_occurrence_where_all_records_have_ids(asked: list[bool] | None) -> None:
    """Whichever of them were looked up: its offset would be taken for that of the event."""
    made = prepare(batch_of([EVENT, EVENT, another(1)], token=1, start=7)).with_dispositions({})
    looked_up = asked or [True] * 3
    hashes = numpy.array([11, 12, 13], numpy.uint64)[looked_up]
    made = replace(made, asked=None if asked is None else numpy.array(asked))
    kept, offsets = made.first_occurrences(hashes)
    assert (kept.tolist(), list(offsets)) == ([11, 13], [7, 9])
