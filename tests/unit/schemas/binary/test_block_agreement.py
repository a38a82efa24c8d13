"""A block and record-by-record reading accept the same values and give the same frames, whatever the bytes are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from schemas import batch_decoder, codec
from schemas.binary import block
from schemas.binary.avro_types import parse
from schemas.binary.reader import compile_reader, read_whole
from schemas.compatibility import full_transitive
from schemas.errors import Undecodable, UnknownSchema
from tests.support.made_events import broken_values, events
from tests.support.made_schemas import corrupted, evolutions, oracle, schemas_with_values, write

SLOW = settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
ONE_BY_ONE = 10**9


def both_ways(reader: block.BlockReader, values: Sequence[bytes], start: int = 0) -> Any:
    """Read as a block; assert that reading one by one gives the same."""
    by_one = reader.read_records(values, start, numpy.arange(len(values)))
    with patch.object(block, "BLOCK_ROWS_MIN", 1):
        by_block = reader.read(values, start)
    assert by_block[0].tolist() == by_one[0].tolist()
    assert by_block[2] == by_one[2]
    assert by_block[1].schema == by_one[1].schema
    assert by_block[1].equals(by_one[1])
    return by_block


@SLOW
@given(schemas_with_values())
def test_valid_values_are_read_as_written(made: tuple[Any, list[Any]]) -> None:
    """Values of any columnar schema come out of both ways as fastavro reads them."""
    schema, values = made
    avro_type = parse(schema)
    data = [write(schema, value) for value in values]
    _, _, refused = both_ways(block.BlockReader(avro_type, avro_type), data)
    read = compile_reader(avro_type, avro_type)
    assert not refused
    assert [read_whole(read, value, 0) for value in data] == [oracle(schema, schema, value) for value in data]


@SLOW
@given(st.data())
def test_corrupted_values_never_shift_their_neighbours(data: st.DataObject) -> None:
    """Bytes flipped, added, cut or doubled in some values leave the others as they were."""
    schema, values = data.draw(schemas_with_values())
    avro_type = parse(schema)
    whole = [write(schema, value) for value in values]
    harmed = [data.draw(corrupted(value)) for value in whole]
    places, frame, _ = both_ways(block.BlockReader(avro_type, avro_type), harmed)
    _, untouched, _ = both_ways(block.BlockReader(avro_type, avro_type), whole)
    for place in range(len(whole)):
        if harmed[place] == whole[place]:
            at = places.tolist().index(place)
            assert frame[at].equals(untouched[place])


@SLOW
@given(evolutions())
def test_older_values_are_read_into_the_newer_columns(made: tuple[Any, Any, list[Any]]) -> None:
    """Dropped, added and moved fields resolve in both ways as fastavro resolves them."""
    writer, reader, values = made
    assert full_transitive(reader, [writer]) == []
    data = [write(writer, value) for value in values]
    both_ways(block.BlockReader(parse(writer), parse(reader)), data)
    read = compile_reader(parse(writer), parse(reader))
    assert [read_whole(read, value, 0) for value in data] == [oracle(writer, reader, value) for value in data]


def of_a_later_release(value: bytes | None) -> bool:
    """Tell whether a value by itself names a schema that a later release may have."""
    try:
        codec.decode(value)
    except UnknownSchema:
        return True
    except Undecodable:
        pass
    return False


@SLOW
@example([None, b"\x00\x00\x00\x00\x0c", b"\x00\x00\x00\x00\x0d"])
@given(st.lists(st.one_of(events().map(codec.encode), broken_values(), st.binary(max_size=12), st.none()), max_size=12))
def test_batches_agree_with_single_values(values: list[bytes | None]) -> None:
    """A batch of events of any type, some breaking limits, is accepted as its values would be one at a time.

    A value of a later release keeps the batch waiting, by its row.
    """
    later = next((row for row, value in enumerate(values) if of_a_later_release(value)), None)
    if later is not None:
        with pytest.raises(UnknownSchema) as error:
            batch_decoder.decode_batch(values)
        assert error.value.row == later
        values = [value for value in values if not of_a_later_release(value)]
    with patch.object(block, "BLOCK_ROWS_MIN", 1):
        decoded, rejected = batch_decoder.decode_batch(values)
    with patch.object(block, "BLOCK_ROWS_MIN", ONE_BY_ONE):
        one_by_one, rejected_one_by_one = batch_decoder.decode_batch(values)
    assert rejected == rejected_one_by_one
    assert [part.event_type for part in decoded] == [part.event_type for part in one_by_one]
    for part, other in zip(decoded, one_by_one, strict=True):
        assert part.rows.tolist() == other.rows.tolist()
        assert part.frame.equals(other.frame)
        assert part.frame.schema == other.frame.schema
    taken = {row: part.event_type for part in decoded for row in part.rows.tolist()}
    assert sorted([*taken, *(refusal.row for refusal in rejected)]) == list(range(len(values)))
    for row, value in enumerate(values):
        try:
            single = codec.decode(value).event_type
        except Undecodable:
            single = None
        assert taken.get(row) == single
