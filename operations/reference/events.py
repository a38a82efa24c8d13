"""docs/reference/events.md, made from the event structs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import inspect as types

from schemas.control import CONTROL_TYPES, ChainVersionRaised, ControlRecord
from schemas.entity_states import NO_NUL, AgentState, IndustryState, JobRoleState, SkillState, TeamState
from schemas.events import EVENT_TYPES, Event
from schemas.examples import examples, webhook_body
from schemas.generation import description, full_name
from schemas.registry import bundled, subject

REFERENCE_FILE = Path(__file__).parents[2] / "docs" / "reference" / "events.md"
STATE_STRUCTS = (AgentState, SkillState, JobRoleState, IndustryState, TeamState)

_INTRODUCTION = """\
# Events

Generated from `schemas/events.py` by `plant schemas docs`.

A record's value is Avro in the Confluent wire format: `0x00`, the schema id as a big-endian int32, Avro binary. Its key
is the entity's id as 36 lower-case characters. Its headers are CloudEvents 1.0 in binary mode: `ce_specversion`,
`ce_id`, `ce_type`, `ce_source`, `ce_time`, and `traceparent` where there is a trace. `plant_clock_fields: occurred_at`
says that the sender gave no time, so Plant's clock did. Then come the headers of its sender: `plant_producer` is the
verified producer, `plant_key` the id of the key that signed, and `plant_message_id` the sender's own id of the message
(`webhook-id`, or the CloudEvent's `id`). What Plant publishes itself has no `plant_key`. `plant_operation` is the
`operation_id` of the operator's action that published the event (`plant publish`), which `plant.operations` holds.
`plant_tenant` and `plant_version` come from `plant relay` alone, whose `plant_producer` is `plant.relay`: the event is
of a change that was made in the database, to an entity of that tenant, and the change made that version of it. An event
without `plant_tenant` belongs to the tenant `genesis`. The audit chain covers all headers. Records that were written
before these headers have none of them.

Every event has an `event_id`, made from the producer's name and the message's id, or from the producer's name and a
CloudEvent's `source` and `id`. So a repeat has the same one. Ingress sets it, and takes `occurred_at` from the body's
`timestamp`; the other fields are the body's `data`. Text holds no NUL characters. Times lie in the years 1 to 9999, in
UTC, to the microsecond. A UUID is `fixed(16)` in Avro.
No field may hold personal data: people appear as opaque ids, since the log is permanent.
"""


_ABOUT_CONTROL_RECORDS = """\
Plant's operators publish them, nobody else: they are about the log, not about an entity, and no read model takes one.
They stand among the events of every topic that workers log. A consumer of events skips them."""


def events_page() -> str:
    """Return the whole page."""
    parts = [_INTRODUCTION, "## Types\n\n" + "\n".join(_index()) + "\n"]
    parts += [_section(event) for event in EVENT_TYPES.values()]
    parts.append("## Entity states\n\nCarried by `genesis.entity.amended` and `genesis.entity.retired`.\n")
    parts += [f"### {state.__name__}\n\n{_summary(state)}\n\n" + _table(state) for state in STATE_STRUCTS]
    parts.append(f"## Control records\n\n{_ABOUT_CONTROL_RECORDS}\n")
    parts += [_control_section(control) for control in CONTROL_TYPES.values()]
    return "\n".join(parts)


def _index() -> Iterator[str]:
    yield "| event type | key | topic | schema id | meaning |"
    yield "|---|---|---|---|---|"
    for name, event in EVENT_TYPES.items():
        schema_id = bundled().current(event).id
        link = f"[`{name}`](#{name.replace('.', '')})"
        yield f"| {link} | `{event.entity_field}` | `{event.topic}` | {schema_id} | {_summary(event)} |"


def _section(event: type[Event]) -> str:
    example = examples()[event.event_type]
    return (
        f"## {event.event_type}\n\n{_summary(event)}\n\n"
        f"Key: `{event.entity_field}`. Struct: `{event.__name__}`. Avro record: `{full_name(event)}`. "
        f"Subject: `{subject(event)}`.\n\n"
        f"{_table(event)}\n```json\n{webhook_body(example)}\n```\n"
    )


def _control_section(control: type[ControlRecord]) -> str:
    schema_id = bundled().current(control).id
    return (
        f"### {control.event_type}\n\n{_summary(control)}\n\n"
        f"Key: {_control_key(control)}. Schema id: {schema_id}. Struct: `{control.__name__}`. "
        f"Avro record: `{full_name(control)}`. Subject: `{subject(control)}`.\n\n{_table(control)}"
    )


def _control_key(control: type[ControlRecord]) -> str:
    return "none" if control is ChainVersionRaised else "the poison record's, which may be none"


def _table(struct: type[msgspec.Struct]) -> str:
    info = types.type_info(struct)
    assert isinstance(info, types.StructType)
    lines = ["| field | type | limits | meaning |", "|---|---|---|---|"]
    for field in info.fields:
        kind = _kind(field.type) + ("" if field.required else ", may be left out")
        lines.append(f"| `{field.name}` | {kind} | {_limits(field.type)} | {description(field.type)} |")
    return "\n".join(lines) + "\n"


def _summary(struct: type[msgspec.Struct]) -> str:
    return " ".join(inspect.cleandoc(struct.__doc__ or "").split("\n"))


def _kind(type_: types.Type) -> str:
    match type_:
        case types.Metadata(type=inner):
            return _kind(inner)
        case types.UnionType(types=members):
            return next(_kind(member) for member in members if not isinstance(member, types.NoneType))
        case types.VarTupleType(item_type=item):
            return f"list of {_kind(item)}"
        case types.StructType(cls=struct):
            return f"[{struct.__name__}](#{struct.__name__.lower()})"
    return _KINDS[type(type_)]


_KINDS: dict[type[types.Type], str] = {
    types.UUIDType: "UUID",
    types.DateTimeType: "time",
    types.StrType: "text",
    types.LiteralType: "text",
    types.IntType: "integer",
    types.BoolType: "boolean",
    types.BytesType: "bytes",
}


def _limits(type_: types.Type) -> str:
    match type_:
        case types.Metadata(type=inner):
            return _limits(inner)
        case types.UnionType(types=members):
            return next(_limits(member) for member in members if not isinstance(member, types.NoneType))
        case types.StrType(min_length=least, max_length=most, pattern=pattern):
            assert pattern == NO_NUL
            return f"{least or 0} to {most:,} characters"
        case types.IntType(ge=least, le=most):
            return f"{least} to {most}"
        case types.LiteralType(values=values):
            return ", ".join(f"`{value}`" for value in values)
        case types.VarTupleType(max_length=most):
            return f"at most {most:,} items"
        case _:
            return ""
