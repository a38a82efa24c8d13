"""The verifier's reading of stored bytes: any cut of the stream, every wrong column, and what values prove."""

from __future__ import annotations

import json
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.canonical import headers_bytes
from audit.vectors.generate import FILE
from audit.verifier import chain_range
from audit.verifier.chain_range import CHAIN_START, Chain, ChainFault, RangeVerifier, UnjudgedEntries
from audit.verifier.decoded_columns import DecodedColumns, expected_columns, id_offsets, mismatch, unknown_schema
from schemas import codec
from schemas.registry import bundled
from tests.support import log_rows
from tests.support.log_rows import Row

VECTORS = json.loads(FILE.read_text(encoding="utf-8"))["chains"]
ROWS = log_rows.log()
RAISED = log_rows.raised_log()
FIRST_V2 = 26
CHAIN = Chain("genesis.events", 0)


def check(
    rows: list[Row], *, chunk_bytes: int = 1 << 20, before: bytes = CHAIN_START, first_v2: int | None = None
) -> RangeVerifier:
    """Feed the COPY of the rows in chunks of a size."""
    chain = Chain(rows[0].topic, rows[0].partition) if rows else CHAIN
    checked = RangeVerifier(chain, before, first_v2=first_v2)
    data = log_rows.copied(rows)
    for start in range(0, len(data), chunk_bytes):
        checked.feed(data[start : start + chunk_bytes])
    checked.finish()
    return checked


def problem(rows: list[Row], first_v2: int | None = None) -> str:
    finding = check(rows, first_v2=first_v2).finding
    assert finding is not None
    return finding.problem


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_vectors_are_accepted(vector: dict, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[type-arg]
    """The verifier finds every vector's chain good, in v1 and v2, and its head is the vector's last hash."""
    # Vectors are about the formula: most have dispositions that their values do not support.
    monkeypatch.setattr(chain_range, "mismatch", lambda *_, **__: None)
    rows, previous = [], bytes.fromhex(vector["previous_hash"])
    first_v2 = next((record["offset"] for record in vector["records"] if record.get("version") == 2), None)
    for record in vector["records"]:
        key, value = (None if record[name] is None else bytes.fromhex(record[name]) for name in ("key", "value"))
        row = log_rows.poison(vector["topic"], vector["partition"], record["offset"], key, value)
        digest, headers = bytes.fromhex(record["hash"]), bytes.fromhex(record["headers_bytes"])
        event_id = None if record.get("event_id") is None else UUID(hex=record["event_id"])
        judged = replace(row, disposition=record.get("disposition", "poison"), event_id=event_id)
        stamped = replace(judged, timestamp_ms=record["timestamp_ms"], headers=headers)
        rows.append(replace(stamped, previous_hash=previous, hash=digest))
        previous = digest
    checked = check(rows, first_v2=first_v2)
    assert checked.finding is None
    assert (checked.entries, checked.head_hash) == (len(rows), previous)


@settings(deadline=None)
@given(st.integers(1, 900))
def test_any_cut_of_the_stream_gives_the_same_verdict(chunk_bytes: int) -> None:
    """Chunks of any size, which cut rows anywhere, change nothing."""
    whole, cut = check(ROWS), check(ROWS, chunk_bytes=chunk_bytes)
    assert whole.finding is None
    assert (cut.finding, cut.entries, cut.head_hash) == (None, len(ROWS), ROWS[-1].hash)
    assert (cut.head_offset, cut.repeats) == (whole.head_offset, whole.repeats)


@settings(deadline=None)
@given(st.integers(1, 900), st.integers(0, len(ROWS) - 1))
def test_any_cut_finds_the_same_bad_entry(chunk_bytes: int, index: int) -> None:
    """A changed value is found at its own offset with both hashes, however the stream is cut."""
    rows = log_rows.different(ROWS, index, headers=headers_bytes([("forged", b"")]))
    finding = check(rows, chunk_bytes=chunk_bytes).finding
    assert finding is not None
    assert finding.offset == ROWS[index].offset
    assert finding.stored_hash == ROWS[index].hash.hex()
    assert finding.recomputed_hash != finding.stored_hash


def test_nothing_is_good() -> None:
    """A range without rows is good and leaves the head where it was."""
    checked = check([], before=b"h" * 32)
    assert (checked.finding, checked.entries, checked.head_hash) == (None, 0, b"h" * 32)


def test_a_stream_that_breaks_off_is_a_finding() -> None:
    """Rows that end in the middle of one are not taken for the end."""
    checked = RangeVerifier(CHAIN, CHAIN_START)
    checked.feed(log_rows.copied(ROWS)[:-10])
    checked.finish()
    assert checked.finding is not None
    assert "middle" in checked.finding.problem
    assert checked.finding.offset == ROWS[-2].offset + 1
    first = RangeVerifier(CHAIN, CHAIN_START)
    first.feed(log_rows.copied(ROWS)[:40])
    first.finish()
    assert first.finding is not None
    assert first.finding.offset == 1


def test_what_comes_after_a_finding_is_not_read() -> None:
    """After the first bad entry the rest of the stream is ignored."""
    checked = check(log_rows.different(ROWS, 2, hash=b"x" * 32))
    before = checked.finding
    checked.feed(b"anything")
    assert checked.finding is before
    assert checked.entries == 2


def test_a_later_range_starts_from_the_entry_before() -> None:
    """A range in the middle is good with the stored hash before it, and not with another."""
    assert check(ROWS[5:], before=ROWS[4].hash).finding is None
    assert "bytes and the entry before" in (finding.problem if (finding := check(ROWS[5:]).finding) else "")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"hash": b"x" * 32}, "hash does not fit"),
        ({"hash": b"short"}, "32 bytes"),
        ({"key": b"other"}, "hash does not fit"),
        ({"key": None}, "hash does not fit"),
        ({"timestamp_ms": 1}, "hash does not fit"),
        ({"headers": b""}, "hash does not fit"),
        (
            {"event_type": "genesis.agent.rated"},
            "event_type is genesis.agent.rated, but the value says genesis.agent.o",
        ),
        ({"event_type": None}, "event_type is empty"),
        ({"entity_type": "team"}, "entity_type is team, but the value says agent"),
        ({"entity_id": UUID(int=0)}, "entity_id is 0000"),
        ({"event_id": UUID(int=0)}, "event_id is 0000"),
        ({"event_id": None}, "event_id is empty"),
    ],
    ids=str,
)
def test_a_wrong_column_is_named(change: dict[str, object], expected: str) -> None:
    """Each column that can be checked is, and the finding says what is wrong with it."""
    assert expected in problem(log_rows.different(ROWS, 4, **change))


def test_a_chain_that_goes_over_to_v2_is_good() -> None:
    """Its entries are v1 before the control record and v2 from it on, and a second control record changes nothing."""
    checked = check(RAISED, first_v2=FIRST_V2)
    assert (checked.finding, checked.entries, checked.head_hash) == (None, len(RAISED), RAISED[-1].hash)
    later = check(RAISED[-3:], before=RAISED[-4].hash, first_v2=FIRST_V2)
    assert (later.finding, later.entries) == (None, 3)


@settings(deadline=None)
@given(st.integers(1, 900))
def test_any_cut_of_a_chain_that_goes_over_is_good(chunk_bytes: int) -> None:
    """Chunks of any size, which cut rows anywhere, change nothing in v2 either."""
    cut = check(RAISED, chunk_bytes=chunk_bytes, first_v2=FIRST_V2)
    assert (cut.finding, cut.entries) == (None, len(RAISED))


def at(offset: int) -> int:
    """The index of a row of RAISED."""
    return next(index for index, row in enumerate(RAISED) if row.offset == offset)


@pytest.mark.parametrize(
    ("offset", "change", "expected"),
    [
        (27, {"disposition": "poison", "reason": "forged"}, "hash does not fit"),
        (27, {"disposition": "parked"}, "hash does not fit"),
        (27, {"disposition": "repeat"}, "hash does not fit"),
        (27, {"disposition": "control"}, "not those of a control record"),
        (27, {"event_id": None}, "event_id is empty"),
        (27, {"event_id": UUID(int=0)}, "event_id is 0000"),
        (27, {"entity_id": UUID(int=0)}, "entity_id is 0000"),
        (27, {"entity_type": "team"}, "entity_type is team"),
        (30, {"disposition": "applied"}, "hash does not fit"),
        (30, {"disposition": "poison", "reason": "forged"}, "hash does not fit"),
        (31, {"event_id": UUID(int=0)}, "proves none"),
        (31, {"disposition": "control"}, "not those of a control record"),
        (32, {"disposition": "poison", "event_id": None}, "hash does not fit"),
        (26, {"disposition": "poison", "reason": "forged"}, "poison, but key and value are those of a control record"),
        (33, {"disposition": "applied"}, "applied, but key and value are those of a control record"),
        (26, {"event_id": None}, "event_id is empty"),
        (26, {"event_type": None}, "event_type is empty"),
        (26, {"event_type": "genesis.agent.rated"}, "event_type is genesis.agent.rated"),
        (26, {"entity_type": "agent"}, "entity_type is agent, but the value says empty"),
        (26, {"key": b""}, "not those of a control record"),
    ],
)
def test_a_change_that_v2_covers_is_found(offset: int, change: dict[str, object], expected: str) -> None:
    """The disposition and the event id of an entry, and all columns of a control record."""
    rows = log_rows.different(RAISED, at(offset), **change)
    finding = check(rows, first_v2=FIRST_V2).finding
    assert finding is not None
    assert (finding.offset, expected in finding.problem) == (offset, True), finding.problem


@pytest.mark.parametrize(
    ("first_v2", "bad_offset"), [(None, 26), (0, 3), (25, 25), (27, 26), (33, 26)], ids=["never", "0", "25", "27", "33"]
)
def test_a_switch_elsewhere_is_found(first_v2: int | None, bad_offset: int) -> None:
    """Whoever makes the chain go over earlier, later or not at all gets a hash that does not fit."""
    finding = check(RAISED, first_v2=first_v2).finding
    assert finding is not None
    assert finding.offset == bad_offset


def test_a_removed_moved_or_doubled_control_record_is_found() -> None:
    """The entry after a removed one does not fit, nor does a record at another offset, or one put in twice."""
    index = at(FIRST_V2)
    removed = [*RAISED[:index], *RAISED[index + 1 :]]
    assert "hash does not fit" in problem(removed, 33)
    moved = [*RAISED[: index - 1], replace(RAISED[index], offset=24), *RAISED[index - 1 : index], *RAISED[index + 1 :]]
    assert "hash does not fit" in problem(sorted(moved, key=lambda row: row.offset), 24)
    doubled = [*RAISED[: index + 2], replace(RAISED[index], offset=28), *RAISED[index + 2 :]]
    assert "hash does not fit" in problem(doubled, FIRST_V2)
    forged = [*RAISED[: index - 5], log_rows.switch("genesis.events", 0, 20), *RAISED[index - 5 :]]
    assert "hash does not fit" in problem(forged, 20)


def test_v1_does_not_cover_the_disposition() -> None:
    """What v2 is for: an applied event that is marked as poison passes in v1, as the page on the format says."""
    rows = log_rows.different(ROWS, 4, disposition="poison", reason="forged")
    assert check(rows).finding is None


def test_repeats_are_handed_on() -> None:
    """An entry marked as a repeat is kept with its event id, for the look-up of the first one."""
    repeat = next(row for row in ROWS if row.disposition == "repeat")
    assert repeat.event_id is not None
    assert check(ROWS).repeats == [(repeat.offset, repeat.event_id.bytes)]


def test_every_bundled_schema_begins_with_the_two_ids() -> None:
    """What the verifier takes from values by position holds for every schema whose records are logged."""
    entries = json.loads((FILE.parents[2] / "schemas" / "registry.json").read_text())
    logged = [entry for entry in entries if entry["subject"].startswith(("genesis.events-", "plant.operations-"))]
    assert len(id_offsets()) == len(logged)


@pytest.mark.parametrize("event", [log_rows.onboarded(1), log_rows.retired(2), log_rows.operation(3)], ids=repr)
def test_values_prove_what_they_hold(event: log_rows.Event) -> None:
    """The ids and the types read from a value's bytes are those of the event."""
    columns = expected_columns(codec.encode(event))
    assert columns == DecodedColumns(event.event_type, event.entity_type, event.entity_id.bytes, event.event_id.bytes)


def test_event_types_are_those_of_the_registry() -> None:
    """Every schema id stands for the event type that the writer's registry gives it."""
    for start, layout in id_offsets().items():
        known = bundled().get(int.from_bytes(start[1:], "big"))
        assert known is not None
        assert layout.event_type == known.event.event_type


EMPTY = DecodedColumns(None, None, None, None)
UNKNOWN_SCHEMA = b"\x00\x7f\xff\xff\xff" + bytes(40)


@pytest.mark.parametrize(
    ("columns", "disposition", "value", "expected"),
    [
        (EMPTY, "applied", None, "holds no event"),
        (EMPTY, "repeat", b"\x00\x00\x00\x00\x01 short", "holds no event"),
        (EMPTY, "parked", b"\x01" + bytes(50), "holds no event"),
        (EMPTY._replace(entity_type="agent"), "poison", b"no event", "proves none"),
        (EMPTY._replace(event_id=bytes(16)), "poison", codec.encode(log_rows.onboarded(1)), "event_id is 0000"),
        (EMPTY._replace(entity_type="team"), "applied", codec.encode(log_rows.retired(1)), "event_type is empty"),
    ],
)
def test_columns_that_the_value_contradicts_are_refused(
    columns: DecodedColumns, disposition: str, value: bytes | None, expected: str
) -> None:
    """Whatever a column says has to follow from the value, and an applied record has to hold an event."""
    assert expected in (mismatch(columns, disposition, value) or "")


@pytest.mark.parametrize(
    ("columns", "disposition", "value"),
    [
        (EMPTY, "poison", None),
        (EMPTY, "poison", codec.encode(log_rows.onboarded(1))),
        (expected_columns(codec.encode(log_rows.onboarded(1))), "poison", codec.encode(log_rows.onboarded(1))),
        (expected_columns(codec.encode(log_rows.retired(1))), "applied", codec.encode(log_rows.retired(1))),
        (DecodedColumns("a.new.type", "new", bytes(16), bytes(16)), "applied", UNKNOWN_SCHEMA),
    ],
)
def test_columns_that_nothing_speaks_against_are_accepted(
    columns: DecodedColumns, disposition: str, value: bytes
) -> None:
    """Poison may say nothing or the truth; a schema newer than the verifier's proves nothing."""
    assert mismatch(columns, disposition, value) is None


@pytest.mark.parametrize(
    ("columns", "disposition", "value", "expected"),
    [
        (EMPTY, "applied", UNKNOWN_SCHEMA, 0x7FFFFFFF),
        (EMPTY._replace(entity_type="agent"), "poison", UNKNOWN_SCHEMA, 0x7FFFFFFF),
        (EMPTY._replace(event_id=bytes(16)), "control", b"\x00\x00\x00\x00\x4d" + bytes(40), 77),
        (EMPTY, "poison", UNKNOWN_SCHEMA, None),
        (EMPTY, "poison", None, None),
        (EMPTY._replace(entity_type="agent"), "poison", b"no event", None),
        (expected_columns(codec.encode(log_rows.onboarded(1))), "applied", codec.encode(log_rows.onboarded(1)), None),
    ],
)
def test_columns_of_an_unknown_schema_can_not_be_judged(
    columns: DecodedColumns, disposition: str, value: bytes | None, expected: int | None
) -> None:
    """The schema's id is named where columns say something, or have to; empty ones of poison say nothing."""
    assert unknown_schema(columns, disposition, value) == expected
    if expected is not None:
        assert mismatch(columns, disposition, value) is None


@settings(deadline=None)
@given(st.integers(1, 900))
def test_any_cut_counts_the_same_unjudged_entries(chunk_bytes: int) -> None:
    """Entries of unknown schemas are counted once, however the stream is cut, and their hashes are checked."""
    rows = [
        replace(row, value=UNKNOWN_SCHEMA[:5] + row.value[5:]) if row.value is not None and at in (2, 6, 14) else row
        for at, row in enumerate(ROWS)
    ]
    checked = check(log_rows.linked(rows), chunk_bytes=chunk_bytes)
    assert (checked.finding, checked.entries) == (None, len(ROWS))
    assert checked.unjudged == UnjudgedEntries(entries=3, first_offset=rows[2].offset, schema_ids=(0x7FFFFFFF,))
    forged = log_rows.different(log_rows.linked(rows), 6, key=b"x")
    assert "hash does not fit" in problem(forged)


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1 << 20])
@pytest.mark.parametrize("stored", [b"", b"x", b"x" * 31, b"x" * 33, b"x" * 300], ids=len)
@pytest.mark.parametrize("index", [0, 2, len(ROWS) - 1])
def test_a_hash_of_another_length_is_a_finding_at_its_offset(stored: bytes, index: int, chunk_bytes: int) -> None:
    """However the stream is cut; entries before it are good, and nothing is recomputed without a hash."""
    checked = check(log_rows.different(ROWS, index, hash=stored), chunk_bytes=chunk_bytes)
    expected = {"topic": CHAIN.topic, "partition": CHAIN.partition, "offset": ROWS[index].offset}
    assert checked.finding == ChainFault(**expected, problem="the stored hash is not 32 bytes long")
    assert (checked.entries, checked.head_hash) == (index, ROWS[index - 1].hash if index else CHAIN_START)


@pytest.mark.parametrize("column", ["event_type", "entity_type"])
def test_an_empty_text_is_no_null(column: str) -> None:
    """A column of poison that is filled with nothing says something, and its value proves none of it."""
    index = next(at for at, row in enumerate(ROWS) if row.disposition == "poison")
    assert problem(log_rows.different(ROWS, index, **{column: ""})).endswith("proves none of what the columns say")


def test_a_column_that_is_no_utf_8_is_read_with_replacements() -> None:
    """It is a finding like any other, and no error."""
    index = next(at for at, row in enumerate(ROWS) if row.disposition == "applied")
    row = ROWS[index]
    assert row.event_type is not None
    name = row.event_type.encode()
    before, _, after = log_rows.copied([row]).rpartition(name)
    checked = RangeVerifier(CHAIN, row.previous_hash)
    checked.feed(before + name[:-1] + b"\xff" + after)
    finding = checked.finding
    assert finding is not None
    assert finding.problem == f"event_type is {row.event_type[:-1]}\ufffd, but the value says {row.event_type}"
    assert (finding.stored_hash, finding.recomputed_hash) == (row.hash.hex(), row.hash.hex())


def test_a_record_of_another_partition_is_named() -> None:
    """Whatever else is wrong with it."""
    foreign = b"genesis.events/7"
    for rows in (ROWS[:1], log_rows.different(ROWS[:1], 0, entity_type="other")):
        data = log_rows.copied(rows)
        assert data.endswith(b"\xff\xff\xff\xff\xff\xff")
        checked = RangeVerifier(CHAIN, CHAIN_START)
        checked.feed(data[:-6] + len(foreign).to_bytes(4, "big") + foreign + b"\xff\xff")
        assert checked.finding is not None
        assert checked.finding.problem == "a record of genesis.events/7 is in a table of this partition"
