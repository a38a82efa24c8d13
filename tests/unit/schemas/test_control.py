"""Control records: what their bytes are, and who takes them."""

from __future__ import annotations

import doctest
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import codec, control
from schemas.control import CONTROL_TYPES, ChainVersionRaised, chain_version_raised
from schemas.delivery_records import DELIVERY_TYPES
from schemas.endpoint_events import ENDPOINT_EVENT_TYPES
from schemas.errors import ControlRecordRefused, Undecodable
from schemas.events import EVENT_TYPES
from schemas.json_events import is_accepted
from schemas.record_types import RECORD_TYPES
from schemas.registry import OWN_IDS, Registry, bundled
from tests.support.batches import batch_of

RAISED = chain_version_raised("genesis.events", 3)


def test_documented_examples_hold() -> None:
    """The examples in the docstrings give what they say."""
    assert doctest.testmod(control).failed == 0


def test_a_control_type_is_no_event_type() -> None:
    """No event type has its name, and no webhook is taken for one."""
    assert not CONTROL_TYPES.keys() & EVENT_TYPES.keys()
    assert RECORD_TYPES.keys() == set().union(CONTROL_TYPES, EVENT_TYPES, DELIVERY_TYPES, ENDPOINT_EVENT_TYPES)
    assert not any(is_accepted(name) for name in CONTROL_TYPES)


def test_the_bytes_are_those_of_the_format_page() -> None:
    """Zero, the schema id 12, 16 bytes of event id, and the version 2 as an Avro long: 22 bytes."""
    value = codec.encode(RAISED)
    assert value == bytes.fromhex("000000000c") + RAISED.event_id.bytes + b"\x04"
    assert codec.decode_record(value) == RAISED


def test_each_partition_and_topic_has_an_event_id_of_its_own() -> None:
    """The id follows from topic and partition, so publishing again gives the same bytes."""
    ids = {chain_version_raised(topic, number).event_id for topic in ("a", "b") for number in range(3)}
    assert len(ids) == 6
    assert chain_version_raised("genesis.events", 3) == RAISED


def test_an_event_decoder_refuses_a_control_record_by_name() -> None:
    """Whoever decodes events gets an error that says what it is."""
    with pytest.raises(ControlRecordRefused, match=r"a control record, plant\.chain\.version_raised"):
        codec.decode(codec.encode(RAISED))


@pytest.mark.parametrize("topic", ["genesis.events", "plant.operations"])
def test_a_control_record_belongs_on_every_topic_that_is_logged(topic: str) -> None:
    """Operators' actions are chained like events, so their topic goes over too."""
    assert codec.decode_record(codec.encode(RAISED), topic) == RAISED


@given(st.integers(-(2**63), 2**63 - 1).filter(lambda version: version != 2))
def test_no_other_version_is_decoded(version: int) -> None:
    """A later version is another schema id, for which older workers wait; under this id it is malformed."""
    value = codec.encode(RAISED)[:21] + _long(version)
    with pytest.raises(Undecodable):
        codec.decode_record(value)


def _long(number: int) -> bytes:
    zigzag, out = (number << 1) ^ (number >> 63), bytearray()
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    return bytes([*out, zigzag])


def test_a_worker_from_before_waits_by_name() -> None:
    """Without the type in its registry, an id of Plant's releases is a newer schema, and not poison."""
    from projections.prepared import prepare
    from streams.errors import SchemaNewer

    before = Registry([version for version in bundled().versions if version.id < 12], EVENT_TYPES)
    assert bundled().current(ChainVersionRaised).id == 12
    assert 12 in OWN_IDS[0]
    batch = batch_of([(None, codec.encode(RAISED))], token=1)
    codec.activate(before)
    try:
        with pytest.raises(SchemaNewer, match="12"):
            prepare(replace(batch, topic="genesis.events"))
    finally:
        codec.activate(None)
