"""Bodies into events: what is accepted, what is refused and where, and that nothing else ever happens."""

from __future__ import annotations

import base64
import doctest
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingress import payloads
from ingress.payloads import read_binary, read_cloud_event, read_webhook
from schemas.event_id import cloud_event_id, event_id
from schemas.events import AgentAvailable, AgentOnboarded, AgentRated, EntityAmended
from server import problems
from server.problems import Problem

AGENT = "72d76358-5032-530d-b5a7-ee89ea19f5a4"
RATED = {"agent_id": AGENT, "rater_id": AGENT, "rating": 4}
ONBOARDED = {"agent_id": AGENT, "name": "A", "skill_ids": [AGENT]}


def webhook(data: object = None, /, **changes: object) -> bytes:
    payload = {"type": "genesis.agent.rated", "timestamp": "2026-11-23T08:00:00.123456Z", "data": data or RATED}
    return json.dumps({name: value for name, value in {**payload, **changes}.items() if value is not None}).encode()


def cloud_event(**changes: object) -> bytes:
    event = {
        "specversion": "1.0",
        "id": "e1",
        "source": "urn:test",
        "type": "genesis.agent.rated",
        "time": "2026-11-23T08:00:00Z",
        "data": RATED,
    }
    return json.dumps({name: value for name, value in {**event, **changes}.items() if value is not ...}).encode()


def refusal(body: bytes, event_type: str = "genesis.agent.rated") -> Problem:
    with pytest.raises(Problem) as raised:
        read_webhook(body, event_type, "genesis", "msg_1", "test")
    return raised.value


def status_of(read: Callable[[], object]) -> int:
    try:
        read()
    except Problem as problem:
        return problem.status
    return 200


def test_a_webhook_becomes_its_event() -> None:
    """Id, time and data come from where the contract says."""
    incoming = read_webhook(webhook(), "genesis.agent.rated", "genesis", "msg_1", "plant/test")
    assert incoming.event == AgentRated(
        event_id=event_id("genesis", "msg_1"),
        agent_id=UUID(AGENT),
        occurred_at=datetime(2026, 11, 23, 8, 0, 0, 123456, UTC),
        rater_id=UUID(AGENT),
        rating=4,
    )
    assert incoming.source == "plant/test"


def test_the_type_may_be_left_out() -> None:
    """The route says the type; the body need not."""
    assert (
        read_webhook(webhook(type=None), "genesis.agent.rated", "p", "m", "s").event.event_type == "genesis.agent.rated"
    )


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (webhook(type="genesis.agent.available"), "#/type"),
        (webhook(timestamp=None), "#/timestamp"),
        (webhook(timestamp="2026-11-23T08:00:00"), "#/timestamp"),
        (webhook(timestamp="0001-01-01T00:00:00+14:00"), "#/timestamp"),
        (webhook({**RATED, "rating": 6}), "#/data/rating"),
        (webhook({**RATED, "rating": True}), "#/data/rating"),
        (webhook({**RATED, "rating": 10**400}), "#/data/rating"),
        (webhook({**RATED, "agent_id": "x"}), "#/data/agent_id"),
        (webhook({"agent_id": AGENT}), "#/data/rater_id"),
        (webhook({**RATED, "event_id": AGENT}), "#/data/event_id"),
        (webhook({**RATED, "surprise": 1}), "#/data/surprise"),
        (b"[]", "#"),
    ],
)
def test_what_does_not_fit_is_pointed_at(body: bytes, pointer: str) -> None:
    """A 422 names the field by a JSON pointer."""
    problem = refusal(body)
    assert (problem.status, problem.errors[0].pointer) == (422, pointer)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"type":"\xff"}',
        b"\xef\xbb\xbf{}",
        b'{"type":"\\ud800"}',
        b'{"x":' + b"[" * 200_000,
    ],
    ids=["empty", "cut", "not UTF-8", "bad UTF-8 inside", "byte order mark", "lone surrogate", "deep"],
)
def test_what_is_not_json_is_400(body: bytes) -> None:
    """Malformed bodies are 400, never an exception."""
    assert refusal(body).status == 400


def test_nul_characters_are_refused_where_they_stand() -> None:
    """Postgres can't hold NUL, so it never gets that far."""
    problem = refusal(webhook({**ONBOARDED, "name": "a\0b"}, type=None), "genesis.agent.onboarded")
    assert (problem.status, problem.errors[0].pointer) == (422, "#/data/name")
    assert problem.errors[0].detail == "NUL characters are not allowed"


def test_long_unknown_names_are_not_thrown_back_whole() -> None:
    """What the sender wrote is echoed in part at most."""
    assert len(refusal(webhook({**RATED, "x" * 100_000: 1})).body()) < 1000


def test_a_cloud_event_becomes_its_event() -> None:
    """Any outside event type comes in by its CloudEvent; the source and a good traceparent are kept."""
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    body = cloud_event(type="genesis.agent.onboarded", data=ONBOARDED, traceparent=traceparent, subject="ignored")
    incoming = read_cloud_event(body, "genesis")
    assert isinstance(incoming.event, AgentOnboarded)
    assert incoming.event.event_id == cloud_event_id("genesis", "urn:test", "e1")
    assert (incoming.source, incoming.traceparent) == ("urn:test", traceparent)


def test_a_cloud_event_is_another_one_by_its_source() -> None:
    """Two systems that count from 1 send two events, in either mode; a copy from one of them is the same event."""
    attributes = {"specversion": "1.0", "id": "1", "type": "genesis.agent.rated", "time": "2026-11-23T08:00:00Z"}
    body = json.dumps(RATED).encode()

    def ids_of(source: str) -> set[UUID]:
        structured = read_cloud_event(cloud_event(id="1", source=source), "genesis")
        binary = read_binary(body, {**attributes, "source": source}, "genesis")
        return {structured.event.event_id, binary.event.event_id}

    assert len(ids_of("urn:hr")) == len(ids_of("urn:payroll")) == 1
    assert ids_of("urn:hr") != ids_of("urn:payroll")


def test_a_malformed_traceparent_is_dropped() -> None:
    """A trace is never worth an error."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert read_cloud_event(cloud_event(traceparent="00-zz"), "genesis").traceparent is None
    for unusable in ([[]] * 50_000, "0" * 100_000, {"a": 1}, 1, None):
        assert read_cloud_event(cloud_event(traceparent=unusable), "genesis").traceparent is None
    escaped = cloud_event(traceparent="?").replace(b"?", b"".join(b"\\u%04x" % each for each in trace.encode()))
    assert read_cloud_event(escaped, "genesis").traceparent == trace


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"type": "plant.operation.recorded"}, "#/type"),
        ({"type": "genesis.unheard.of"}, "#/type"),
        ({"specversion": "0.3"}, "#/specversion"),
        ({"id": ""}, "#/id"),
        ({"id": "a\nb"}, "#/id"),
        ({"source": "x y"}, "#/source"),
        ({"time": None}, "#/time"),
        ({"time": ...}, "#/time"),
        ({"id": None}, "#/id"),
        ({"time": "9999-12-31T23:59:59-14:00"}, "#/time"),
        ({"data": None}, "#/data"),
        ({"data": ...}, "#/data"),
        ({"data_base64": "e30="}, "#/data_base64"),
        ({"data": ..., "data_base64": "%"}, "#/data_base64"),
        ({"data": ..., "data_base64": "e30="}, "#/data_base64/agent_id"),
        ({"datacontenttype": ""}, "#/datacontenttype"),
        ({"data": {**RATED, "rating": 0}}, "#/data/rating"),
        ({"datacontenttype": "text/xml"}, "#/datacontenttype"),
    ],
)
def test_cloud_events_that_do_not_fit_are_pointed_at(changes: dict[str, object], pointer: str) -> None:
    """A CloudEvent's 422 names the field too, inside data as well."""
    with pytest.raises(Problem) as raised:
        read_cloud_event(cloud_event(**changes), "genesis")
    assert (raised.value.status, raised.value.errors[0].pointer) == (422, pointer)


@pytest.mark.parametrize(
    "changes",
    [
        {"datacontenttype": None, "dataschema": None, "subject": None, "comexample": None},
        {"traceparent": None},
        {"traceparent": 7},
        {"traceparent": {"a": [1]}},
        {"datacontenttype": "application/json; charset=utf-8"},
        {"datacontenttype": "APPLICATION/JSON"},
        {"datacontenttype": "text/json"},
        {"datacontenttype": "application/vnd.example+json; v=1"},
        {"data": ..., "data_base64": base64.b64encode(json.dumps(RATED).encode()).decode()},
    ],
)
def test_cloud_events_are_read_as_wide_as_the_standard(changes: dict[str, object]) -> None:
    """Null is the same as left out, every JSON type is JSON, data may be base64, and no trace costs the event."""
    incoming = read_cloud_event(cloud_event(**changes), "genesis")
    assert (incoming.event, incoming.traceparent) == (read_cloud_event(cloud_event(), "genesis").event, None)


ATTRIBUTES = {
    "specversion": "1.0", "id": "e1", "source": "urn:test", "type": "genesis.agent.rated",
    "time": "2026-11-23T08:00:00Z",
}  # fmt: skip


def test_a_binary_event_keeps_its_trace() -> None:
    """An extension attribute like any other; one that is malformed is dropped."""
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    body = json.dumps(RATED).encode()
    assert read_binary(body, {**ATTRIBUTES, "traceparent": traceparent}, "genesis").traceparent == traceparent
    assert read_binary(body, {**ATTRIBUTES, "traceparent": "00-zz"}, "genesis").traceparent is None


def test_a_leap_second_is_the_second_after_it() -> None:
    """In a webhook, in either mode of CloudEvents, and inside the data; elsewhere a second 60 is no time."""
    leap, after = "2016-12-31T23:59:60Z", datetime(2017, 1, 1, tzinfo=UTC)
    assert read_webhook(webhook(timestamp=leap), "genesis.agent.rated", "p", "m", "s").event.occurred_at == after
    assert read_cloud_event(cloud_event(time=leap), "genesis").event.occurred_at == after
    body = json.dumps(RATED).encode()
    assert read_binary(body, {**ATTRIBUTES, "time": leap}, "genesis").event.occurred_at == after
    data = {"agent_id": AGENT, "available": True, "available_from": leap}
    read = read_cloud_event(cloud_event(type="genesis.agent.available", data=data, time=leap), "genesis").event
    assert isinstance(read, AgentAvailable)
    assert (read.occurred_at, read.available_from) == (after, after)
    assert refusal(webhook(timestamp="2016-12-30T23:59:60Z")).errors[0].pointer == "#/timestamp"


def test_rules_over_several_fields_hold() -> None:
    """An amendment without the state it speaks of is refused; one with it comes in."""
    state = {"name": "A", "skill_ids": [], "status": "onboarded", "available": True}
    data: dict[str, object] = {"entity_id": AGENT, "entity_type": "agent"}
    with pytest.raises(Problem) as raised:
        read_cloud_event(cloud_event(type="genesis.entity.amended", data=data), "genesis")
    assert (raised.value.status, raised.value.errors[0].pointer) == (422, "#/data")
    incoming = read_cloud_event(cloud_event(type="genesis.entity.amended", data={**data, "agent": state}), "genesis")
    assert isinstance(incoming.event, EntityAmended)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    ["type", "timestamp", "data", "id", "source", "time", "specversion", "agent_id", "rating", "name"]
)


@settings(max_examples=300)
@given(
    st.binary(max_size=300) | st.dictionaries(FIELDS, JSON, max_size=8).map(lambda value: json.dumps(value).encode())
)
def test_any_body_is_an_event_or_a_client_error(body: bytes) -> None:
    """Random bytes and random JSON give an event or a 400 or 422, nothing else."""
    for event_type in ("genesis.agent.onboarded", "genesis.agent.rated"):
        assert status_of(lambda kind=event_type: read_webhook(body, kind, "genesis", "msg_1", "test")) in (
            200,
            400,
            422,
        )
    assert status_of(lambda: read_cloud_event(body, "genesis")) in (200, 400, 422)


def test_the_docstrings_are_right() -> None:
    """The examples in the modules hold."""
    assert doctest.testmod(payloads).failed == 0
    assert doctest.testmod(problems).failed == 0
