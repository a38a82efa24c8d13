"""The canonical bytes and the hash, against a second reading of the format in plain Python."""

from __future__ import annotations

import doctest
import hashlib
import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit import canonical, chain
from audit.canonical import event_data, event_data_v2, headers_bytes
from audit.chain import CHAIN_START, ChainSlice, extend, extend_slice, extend_v2
from audit.vectors.generate import FILE, PAGE, SHOWN, page, text

VECTORS = json.loads(FILE.read_text(encoding="utf-8"))["chains"]

some_bytes = st.binary(max_size=40) | st.sampled_from([b"x" * 4095, b"x" * 4096, b"x" * 5000])
headers_lists = st.lists(st.tuples(st.text(max_size=8), st.none() | some_bytes), max_size=6)
offsets = st.integers(0, 2**63 - 1)
timestamps_ms = st.integers(-1, 253402300799999)
records = st.tuples(offsets, timestamps_ms, st.none() | some_bytes, st.none() | some_bytes, headers_lists)
DISPOSITIONS = ("applied", "repeat", "poison", "parked", "control")
outcomes = st.tuples(st.sampled_from(DISPOSITIONS), st.none() | st.binary(min_size=16, max_size=16))


def plain_field(data: bytes | None) -> bytes:
    return b"\xff" * 4 if data is None else struct.pack(">I", len(data)) + data


def plain_headers(headers: list[tuple[str, bytes | None]]) -> bytes:
    fields = [plain_field(name.encode()) + plain_field(value) for name, value in headers]
    return struct.pack(">I", len(headers)) + b"".join(fields)


def plain_event_data(  # type: ignore[no-untyped-def]
    topic, partition, offset, timestamp_ms, key, value, headers, outcome=None
) -> bytes:
    domain = b"plant.event.v1" if outcome is None else b"plant.event.v2"
    numbers = struct.pack(">i", partition), struct.pack(">q", offset), struct.pack(">q", timestamp_ms)
    parts = (domain, topic.encode(), *numbers, key, value)
    data = b"".join(plain_field(part) for part in parts) + plain_headers(headers)
    return data if outcome is None else data + plain_field(outcome[0].encode()) + plain_field(outcome[1])


def unhex(data: str | None) -> bytes | None:
    return None if data is None else bytes.fromhex(data)


@pytest.mark.parametrize("module", [canonical, chain])
def test_documented_examples_hold(module: object) -> None:
    """The examples in the docstrings give what they say."""
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_vectors_are_what_the_generator_writes() -> None:
    """The committed vectors are those of today's code."""
    assert FILE.read_text(encoding="utf-8") == text()


def test_docs_show_the_worked_example_of_the_vectors() -> None:
    """The page on the format holds the generated example."""
    shown = PAGE.read_text(encoding="utf-8")
    assert shown == page(shown)
    (vector,) = (vector for vector in VECTORS if vector["name"] == SHOWN)
    assert vector["records"][0]["hash"] in shown


def test_vectors_have_every_disposition_and_a_null_event_id() -> None:
    """The v2 vectors leave no disposition out, and one goes over from v1 to v2."""
    every = [record for vector in VECTORS for record in vector["records"] if record.get("version") == 2]
    assert {record["disposition"] for record in every} == set(DISPOSITIONS)
    assert None in {record["event_id"] for record in every}
    assert any({record.get("version") for record in vector["records"]} == {None, 2} for vector in VECTORS)


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_vectors_follow_from_the_format_alone(vector: dict) -> None:  # type: ignore[type-arg]
    """A few lines of struct and hashlib, written from the page, give every vector's bytes and hashes."""
    previous = bytes.fromhex(vector["previous_hash"])
    assert previous == bytes(32)
    for record in vector["records"]:
        headers = [(name, unhex(value)) for name, value in record["headers"]]
        place = (vector["topic"], vector["partition"], record["offset"], record["timestamp_ms"])
        outcome = (record["disposition"], unhex(record["event_id"])) if record.get("version") == 2 else None
        data = plain_event_data(*place, unhex(record["key"]), unhex(record["value"]), headers, outcome)
        previous = hashlib.sha256(previous + data).digest()
        assert record["headers_bytes"] == plain_headers(headers).hex()
        assert record["event_data"] == data.hex()
        assert record["hash"] == previous.hex()


def test_vectors_are_all_different() -> None:
    """No two records of the vectors have the same canonical bytes: null differs from empty, order counts."""
    every = [record["event_data"] for vector in VECTORS for record in vector["records"]]
    assert len(set(every)) == len(every)


@settings(deadline=None)
@given(st.text(max_size=12), st.integers(0, 2**31 - 1), st.lists(records, max_size=4))
def test_any_chain_is_hashed_as_the_format_says(topic: str, partition: int, chain_records: list) -> None:  # type: ignore[type-arg]
    """For any records, the fast writer agrees with the plain reading, and event_data with both."""
    expected, previous = [], CHAIN_START
    for record in chain_records:
        data = plain_event_data(topic, partition, *record)
        assert event_data(topic, partition, *record[:4], headers_bytes(record[4])) == data
        previous = hashlib.sha256(previous + data).digest()
        expected.append(previous)
    columns = [[record[at] for record in chain_records] for at in range(4)]
    headers = [headers_bytes(record[4]) for record in chain_records]
    assert extend(topic, partition, CHAIN_START, *columns, headers) == expected


@settings(deadline=None)
@given(
    st.text(max_size=12),
    st.integers(0, 2**31 - 1),
    st.lists(st.tuples(records, outcomes), min_size=1, max_size=5),
    st.integers(0, 6),
)
def test_any_chain_goes_over_to_v2_as_the_format_says(
    topic: str,
    partition: int,
    chain_records: list,  # type: ignore[type-arg]
    first_v2: int,
) -> None:
    """For any records and dispositions, the fast writer agrees with the plain reading, from any index on."""
    expected, previous = [], CHAIN_START
    for index, (record, outcome) in enumerate(chain_records):
        data = plain_event_data(topic, partition, *record, outcome if index >= first_v2 else None)
        if index >= first_v2:
            assert event_data_v2(topic, partition, *record[:4], headers_bytes(record[4]), *outcome) == data
        previous = hashlib.sha256(previous + data).digest()
        expected.append(previous)
    columns = [[record[at] for record, _ in chain_records] for at in range(4)]
    headers = [headers_bytes(record[4]) for record, _ in chain_records]
    judged = [[outcome[at] for _, outcome in chain_records] for at in range(2)]
    slice_of_chain = ChainSlice(*columns, headers, *judged)
    assert extend_slice(topic, partition, CHAIN_START, slice_of_chain, first_v2) == expected


def test_v2_covers_disposition_and_event_id() -> None:
    """Any other disposition or event id, null and zeros among them, gives another hash."""
    record: tuple[list, ...] = ([0], [1], [b"k"], [b"v"], [headers_bytes([])])  # type: ignore[type-arg]
    judged = [(name, event_id) for name in DISPOSITIONS for event_id in (None, bytes(16), bytes(15) + b"x")]
    hashes = {extend_v2("t", 0, CHAIN_START, *record, [name], [event_id])[0] for name, event_id in judged}
    assert len(hashes | set(extend("t", 0, CHAIN_START, *record))) == len(judged) + 1


def test_a_disposition_that_the_log_does_not_know_is_refused() -> None:
    """A new disposition has to be written down here before it can be hashed."""
    with pytest.raises(KeyError):
        extend_v2("t", 0, CHAIN_START, [0], [1], [b"k"], [b"v"], [headers_bytes([])], ["lost"], [bytes(16)])


def test_a_chain_can_be_extended_in_parts() -> None:
    """Extending in two steps from the head gives the same links as extending at once."""
    columns = (list(range(6)), [5] * 6, [b"k"] * 6, [None, b"", b"v"] * 2, [headers_bytes([])] * 6)
    whole = extend("t", 0, CHAIN_START, *columns)
    first = extend("t", 0, CHAIN_START, *(column[:2] for column in columns))
    assert first + extend("t", 0, first[-1], *(column[2:] for column in columns)) == whole


def test_columns_of_unequal_length_are_refused() -> None:
    """A slice whose columns don't line up raises instead of leaving records out of the chain."""
    with pytest.raises(ValueError, match="zip"):
        extend("t", 0, CHAIN_START, [0, 1], [5], [b"k"], [b"v"], [bytes(4)])
    with pytest.raises(ValueError, match="zip"):
        extend_v2("t", 0, CHAIN_START, [0], [5], [b"k"], [b"v"], [bytes(4)], ["applied"] * 2, [None])


def test_header_names_keep_bytes_that_are_not_utf8() -> None:
    """A name decoded with surrogateescape gets its bytes back."""
    name = b"\xff\xfename".decode("utf-8", "surrogateescape")
    assert headers_bytes([(name, b"v")]) == struct.pack(">I", 1) + plain_field(b"\xff\xfename") + plain_field(b"v")


def test_the_memory_of_header_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names beyond the bound, and very long ones, are encoded each time and not kept."""
    monkeypatch.setattr(canonical, "_names", {})
    for number in range(2_000):
        headers_bytes([(f"name-{number}", b"v")])
    assert len(canonical._names) == canonical._NAMES_MAX
    monkeypatch.setattr(canonical, "_names", {})
    headers_bytes([("n" * 300, b"v")])
    assert not canonical._names
