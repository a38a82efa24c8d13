"""An event's bytes, key and headers; what is refused on the way in and on the way out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, topic_record_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from hypothesis import given, settings

from schemas import codec
from schemas.entity_states import IndustryState
from schemas.errors import Undecodable, Unencodable
from schemas.events import AgentOnboarded, AgentRated, EntityAmended, Event, IndustryDefined
from schemas.examples import examples
from schemas.generation import avro_file_text
from schemas.record_types import RECORD_TYPES
from schemas.registry import bundled, subject
from schemas.sender_headers import sender_headers
from tests.support.made_events import events
from tests.support.made_versions import FIRST, ThingMade, registered

NOW = datetime(2026, 1, 15, 9, 30, tzinfo=UTC)


def industry(**changes: Any) -> IndustryDefined:
    fields: dict[str, Any] = {
        "event_id": uuid4(),
        "industry_id": uuid4(),
        "occurred_at": NOW,
        "name": "Mining",
        "description": "Digs.",
    }
    return IndustryDefined(**(fields | changes))


@pytest.fixture(scope="module")
def serializers() -> dict[str, AvroSerializer]:
    """confluent_kafka's own serializers on its in-process registry, which counts ids from 1 like the bundled one."""
    client = SchemaRegistryClient.new_client({"url": "mock://"})
    by_subject = {subject(value): value for value in RECORD_TYPES.values()}
    made = {}
    for version in sorted(bundled().versions, key=lambda version: version.id):
        event = by_subject[version.subject]
        schema = Schema(avro_file_text(event), "AVRO")
        assert client.register_schema(version.subject, schema) == version.id
        conf = {"auto.register.schemas": False, "subject.name.strategy": topic_record_subject_name_strategy}
        made[event.event_type] = AvroSerializer(client, schema, conf=conf)
    return made


def _for_confluent(value: object) -> object:
    match value:
        case UUID():
            return value.bytes
        case list() | tuple():
            return [_for_confluent(item) for item in value]
        case dict():
            return {key: _for_confluent(item) for key, item in value.items()}
        case _:
            return value


@settings(deadline=None, max_examples=120)
@given(event=events())
def test_bytes_are_those_of_confluents_serializer(serializers: dict[str, AvroSerializer], event: Event) -> None:
    """Any event of any type is encoded to the bytes that confluent_kafka's AvroSerializer writes."""
    plain = _for_confluent(msgspec.to_builtins(event, builtin_types=(UUID, datetime)))
    context = SerializationContext(event.topic, MessageField.VALUE)
    assert codec.encode(event) == serializers[event.event_type](plain, context)


@settings(deadline=None, max_examples=120)
@given(event=events())
def test_decoding_gives_back_what_was_encoded(event: Event) -> None:
    """Any event survives its bytes."""
    assert codec.decode(codec.encode(event), event.topic) == event


def test_the_first_bytes_are_the_magic_and_the_schema_id() -> None:
    """The wire format is 0x00, the id as a big-endian int32, then Avro."""
    value = codec.encode(examples()["genesis.agent.rated"])
    assert value[:5] == b"\x00" + bundled().current(AgentRated).id.to_bytes(4, "big")


def test_the_key_is_the_entity_id_in_kafkas_uuid_form() -> None:
    """36 lower-case characters, as Kafka's UUIDSerializer writes."""
    event = examples()["genesis.skill.validated"]
    assert codec.key(event) == str(event.entity_id).encode()
    assert len(codec.key(event)) == 36


def test_headers_are_cloudevents_in_binary_mode() -> None:
    """The attributes come in one order, the trace's parent last and only if there is one."""
    event = industry(occurred_at=datetime(2026, 1, 15, 10, 30, 0, 5, tzinfo=timezone(timedelta(hours=1))))
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    wanted = [
        ("ce_specversion", b"1.0"),
        ("ce_id", str(event.event_id).encode()),
        ("ce_type", b"genesis.industry.defined"),
        ("ce_source", b"plant/ingress"),
        ("ce_time", b"2026-01-15T09:30:00.000005Z"),
    ]
    assert codec.headers(event, "plant/ingress") == wanted
    assert codec.headers(event, "plant/ingress", trace) == [*wanted, ("traceparent", trace.encode())]
    sender = sender_headers("genesis", "msg_1", key_id="a key")
    assert codec.headers(event, "plant/ingress", sender=sender) == [
        *wanted,
        ("plant_producer", b"genesis"),
        ("plant_key", b"a key"),
        ("plant_message_id", b"msg_1"),
    ]


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (industry(name=""), "length >= 1"),
        (industry(name="x" * 201), "length <= 200"),
        (industry(description="x" * 10_001), "length <= 10000"),
        (industry(name="a\0b"), "regex"),
        (industry(name="\ud800"), "surrogates not allowed in name"),
        (industry(occurred_at=datetime(2026, 1, 1)), "timezone"),
        (
            industry(occurred_at=datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))),
            "years 1 to 9999 in occurred_at",
        ),
        (
            industry(occurred_at=datetime(9999, 12, 31, 23, 59, tzinfo=timezone(-timedelta(hours=1)))),
            "years 1 to 9999 in occurred_at",
        ),
        (industry(name=5), "Expected `str`"),
        (industry(industry_id=str(uuid4())), "Expected `uuid`"),
        (industry(occurred_at="2026-01-15T09:30:00Z"), "Expected `datetime`"),
        (msgspec.structs.replace(examples()["genesis.agent.rated"], rating=6), "`int` <= 5"),
        (
            msgspec.structs.replace(examples()["genesis.agent.onboarded"], skill_ids=(uuid4(),) * 1_001),
            "length <= 1000",
        ),
    ],
)
def test_an_event_outside_its_limits_is_not_encoded(event: Event, reason: str) -> None:
    """What would be poison is refused before it is written."""
    with pytest.raises(Unencodable) as refused:
        codec.encode(event)
    assert reason in refused.value.reason


def test_a_nested_state_outside_its_limits_is_not_encoded() -> None:
    """Limits hold inside the states of amended and retired too."""
    state = IndustryState(name="", description="")
    event = EntityAmended(event_id=uuid4(), entity_id=uuid4(), occurred_at=NOW, entity_type="industry", industry=state)
    with pytest.raises(Unencodable, match="length >= 1"):
        codec.encode(event)


@pytest.mark.parametrize(
    ("entity_type", "states", "reason"),
    [
        ("agent", {}, "agent must be set"),
        ("agent", {"industry": IndustryState(name="x", description="")}, "agent must be set"),
        (
            "industry",
            {"industry": IndustryState(name="x", description=""), "skill": examples()},
            "skill must not be set",
        ),
    ],
)
def test_exactly_the_named_state_is_set(entity_type: Any, states: dict[str, Any], reason: str) -> None:
    """Amended and retired carry one state: the one that entity_type names."""
    with pytest.raises(ValueError, match=reason):
        EntityAmended(event_id=uuid4(), entity_id=uuid4(), occurred_at=NOW, entity_type=entity_type, **states)


VALUE = codec.encode(
    AgentOnboarded(
        event_id=UUID(int=1),
        agent_id=UUID(int=2),
        occurred_at=NOW,
        name="Ada",
        industry_id=UUID(int=3),
        skill_ids=(UUID(int=4), UUID(int=5)),
    )
)
NAME = VALUE.index(b"\x06Ada")
ARRAY = len(VALUE) - 34
"""Where the name's length and the array's count stand in VALUE."""


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "no value"),
        (b"", "too short"),
        (b"\x01" + VALUE[1:], "the first byte is 1, not 0"),
        (b"\x00\x00\x00\x27\x0f" + VALUE[5:], "no schema has the id 9999"),
        (b"\x00\xff\xff\xff\xff" + VALUE[5:], "no schema has the id -1"),
        (VALUE[:5], "ends too early"),
        (VALUE[:-1], "ends too early"),
        (VALUE[:30], "ends too early"),
        (VALUE + b"\x00", "1 unread bytes"),
        (VALUE + VALUE[5:], "unread bytes"),
        (VALUE[:NAME] + b"\x86\x00" + VALUE[NAME + 1 :], "not canonical: an overlong number in name"),
        (VALUE[:NAME] + b"\x86\x80\x00" + VALUE[NAME + 1 :], "not canonical: an overlong number in name"),
        (VALUE[:NAME] + b"\xff" * 10 + b"\x01" + VALUE[NAME + 1 :], "more than 64 bits in name"),
        (VALUE[:NAME] + b"\xff" * 9 + b"\x03" + VALUE[NAME + 1 :], "more than 64 bits in name"),
        (VALUE[:NAME] + b"\x05" + VALUE[NAME + 1 :], "a negative length in name"),
        (VALUE[:NAME] + b"\xfe\x01" + VALUE[NAME + 1 :], "a length beyond the value in name"),
        (VALUE.replace(b"Ada", b"A\xffa"), "invalid UTF-8 in name"),
        (VALUE.replace(b"Ada", b"A\x00a"), "name"),
        (VALUE[: NAME + 4] + b"\x04" + VALUE[NAME + 5 :], "a union branch that does not exist in industry_id"),
        (VALUE[: NAME + 4] + b"\x01" + VALUE[NAME + 5 :], "a union branch that does not exist in industry_id"),
        (VALUE[:ARRAY] + b"\x7e" + VALUE[ARRAY + 1 :], "an array longer than the value in skill_ids"),
        (VALUE[:ARRAY] + b"\x03\x42" + VALUE[ARRAY + 1 :], "an array block whose size is wrong in skill_ids"),
        (VALUE[:ARRAY] + b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01", "an array longer than the value in skill_ids"),
    ],
)
def test_odd_values_are_undecodable_with_a_reason(value: bytes | None, reason: str) -> None:
    """Strict: nothing is read past, read over or guessed."""
    with pytest.raises(Undecodable) as refused:
        codec.decode(value)
    assert reason in refused.value.reason


def test_a_boolean_is_0_or_1() -> None:
    """Other bytes, which lenient readers take for true or false, are refused."""
    value = codec.encode(examples()["genesis.agent.available"])
    at = value.index(b"\x00\x02", 5 + 32)
    with pytest.raises(Undecodable, match="a boolean other than 0 and 1 in available"):
        codec.decode(value[:at] + b"\x02" + value[at + 1 :])


def test_an_array_in_several_sized_blocks_is_decoded() -> None:
    """Legal Avro that Plant does not write itself is read."""
    ids = VALUE[ARRAY + 1 : -1]
    sized = VALUE[:ARRAY] + b"\x01\x20" + ids[:16] + b"\x02" + ids[16:] + b"\x00"
    assert codec.decode(sized) == codec.decode(VALUE)


def test_a_value_on_the_wrong_topic_is_undecodable() -> None:
    """A schema belongs to its subject's topic."""
    with pytest.raises(Undecodable, match=r"does not belong on plant\.operations"):
        codec.decode(VALUE, "plant.operations")


def test_an_event_that_was_checked_before_has_the_same_bytes() -> None:
    """The fast way writes what the checked way writes, and names the field of a text that Avro can't hold."""
    for event in examples().values():
        assert codec.encode_checked(event) == codec.encode(event)
    with pytest.raises(Unencodable, match="in name"):
        codec.encode_checked(industry(name="\ud800"))


def test_another_active_registry_changes_what_an_id_means() -> None:
    """What was compiled for one registry is not used for the next."""
    value = codec.encode(examples()["genesis.agent.onboarded"])
    assert codec.decode(value).event_type == "genesis.agent.onboarded"
    codec.activate(registered(FIRST))
    try:
        assert FIRST.id == int.from_bytes(value[1:5], "big")
        thing = ThingMade(event_id=UUID(int=1), thing_id=UUID(int=2), occurred_at=NOW, name="x")
        assert codec.decode(codec.encode(thing)) == thing
    finally:
        codec.activate(None)
    assert codec.decode(value) == examples()["genesis.agent.onboarded"]
