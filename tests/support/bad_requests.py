"""The catalogue of what can be wrong with a request, and what is answered: data for a test and for a page.

`python -m tests.support.bad_requests` writes docs/reference/errors.md.
`tests/integration/ingress/test_bad_requests.py` sends each.
"""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from ingress.routes import AT_ADMIN_ADDRESS
from schemas.events import NIL_ID
from server.problems import kinds
from tests.support import ROOT
from tests.support.webhooks import CLOUD_EVENTS, RATED, Sender

PAGE: Final = ROOT / "docs" / "reference" / "errors.md"
AGENT: Final = "72d76358-5032-530d-b5a7-ee89ea19f5a4"
DATA: Final = {"agent_id": AGENT, "rater_id": AGENT, "rating": 4}
PAYLOAD: Final = {"type": "genesis.agent.rated", "timestamp": "2026-11-23T08:00:00Z", "data": DATA}
EVENT: Final = {
    "specversion": "1.0",
    "id": "e1",
    "source": "urn:example",
    "type": "genesis.agent.rated",
    "time": "2026-11-23T08:00:00Z",
    "data": DATA,
}
JSON, STRUCTURED = "application/json", "application/cloudevents+json"
BATCH, LINES = "application/cloudevents-batch+json", "application/x-ndjson"

Headers = list[tuple[str, str]]
Change = Callable[[Headers], Headers]


@dataclass(frozen=True)
class Case:
    """A request that is wrong in one way, and its answer. `detail` and `pointer` are what the problem document says."""

    section: str
    what: str
    status: int
    kind: str = ""
    detail: str = ""
    pointer: str = ""
    body: bytes = field(default=json.dumps(PAYLOAD).encode(), repr=False)
    path: str = RATED
    method: str = "POST"
    content_type: str = JSON
    timestamp: Callable[[], str] | None = None
    change: Change | None = None
    message_id: str = "msg_1"

    def headers(self, sender: Sender) -> list[tuple[bytes, bytes]]:
        """Signed as it should be, then changed."""
        signed = sender.headers(self.body, message_id=self.message_id, content_type=self.content_type)
        if self.timestamp is not None:
            signed["webhook-timestamp"] = self.timestamp()
        headers = list(signed.items()) if self.change is None else self.change(list(signed.items()))
        return [(name.encode(), value.encode("latin-1")) for name, value in headers]


def _with(name: str, value: str, headers: Headers) -> Headers:
    return [*(header for header in headers if header[0] != name), (name, value)]


def _without(name: str, headers: Headers) -> Headers:
    return [header for header in headers if header[0] != name]


def _resigned(change: Callable[[str], str], headers: Headers) -> Headers:
    return [(name, change(value) if name == "webhook-signature" else value) for name, value in headers]


def _twice(name: str, value: str, headers: Headers) -> Headers:
    return [*headers, (name, value), (name, value)]


def _again(name: str, value: str, headers: Headers) -> Headers:
    return [*headers, (name, value)]


def _seconds_from_now(seconds: int) -> str:
    return str(int(time.time()) + seconds)


def _payload(**changes: Any) -> bytes:
    return json.dumps({**PAYLOAD, **changes}).encode()


def _data(**changes: Any) -> bytes:
    return _payload(data={**DATA, **changes})


def _raw_data(text: str) -> bytes:
    """The payload with data as it stands here, for what `json` would not write."""
    return b'{"timestamp":"2026-11-23T08:00:00Z","data":' + text.encode() + b"}"


def _event(**changes: Any) -> bytes:
    return json.dumps({**EVENT, **changes}).encode()


def _less(name: str, whole: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in whole.items() if key != name}


def cases() -> Iterator[Case]:
    """Every case, by section."""
    yield from _of_headers()
    yield from _of_signatures()
    yield from _of_timestamps()
    yield from _of_content()
    yield from _of_json()
    yield from _of_fields()
    yield from _of_cloud_events()
    yield from _of_batches()
    yield from _of_resources()


def _of_headers() -> Iterator[Case]:
    case = partial(Case, "Headers", status=400, kind="malformed-headers")
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        yield case(f"no `{name}`", detail=f"{name} is missing", change=partial(_without, name))
        yield case(f"`{name}` twice", detail=f"{name} comes more than once", change=partial(_again, name, "1"))
    yield case(
        "`content-type` twice", detail="content-type comes more than once", change=partial(_again, "content-type", JSON)
    )
    visible = "webhook-id must be 1 to 256 visible ASCII characters without { and ["
    yield case("an empty `webhook-id`", detail=visible, change=partial(_with, "webhook-id", ""))
    yield case("a space in `webhook-id`", detail=visible, change=partial(_with, "webhook-id", "msg 1"))
    yield case(
        "a character out of ASCII in `webhook-id`", detail=visible, change=partial(_with, "webhook-id", "msg_\xe9")
    )
    for character in ("{", "["):
        yield case(f"`{character}` in `webhook-id`", detail=visible, change=partial(_with, "webhook-id", character))
    yield case("a `webhook-id` of 257 characters", detail=visible, change=partial(_with, "webhook-id", "x" * 257))
    for name, value in (("plant-producer", "genesis"), ("traceparent", "00-0-0-00")):
        yield case(f"`{name}` twice", detail=f"{name} comes more than once", change=partial(_twice, name, value))


def _of_signatures() -> Iterator[Case]:
    case = partial(Case, "Signatures", status=401, kind="signature")
    for what, value in (
        ("an empty `webhook-signature`", ""),
        ("a version without a signature", "v1"),
        ("a version and a comma", "v1,"),
        ("a signature that is not base64", "v1,%%%%"),
        ("a signature of the wrong length", "v1,AAAA"),
        ("base64 with `-` and `_`", "v1," + "-_" * 21 + "A="),
        ("an unknown version only", "v9,AAAA"),
        ("a signature of another message", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
        ("a `v1a` signature where the producer has no such key", "v1a," + "A" * 86 + "=="),
        ("commas between signatures", "v1,AAAA,v1,AAAA"),
        ("17 signatures", " ".join(["v1,AAAA"] * 17)),
        ("characters beyond ASCII", "v1,\xe9\xe9\xe9\xe9"),
    ):
        yield case(what, change=partial(_with, "webhook-signature", value))
    yield case("`V1` for `v1`", change=partial(_resigned, str.upper))
    yield case("an empty `plant-producer`", change=partial(_again, "plant-producer", ""))
    yield case("another body than was signed", change=partial(_with, "webhook-id", "msg_2"))
    yield case("another producer's name in `plant-producer`", change=partial(_again, "plant-producer", "somebody"))

    for number, (what, change) in enumerate(
        (
            ("base64 without its padding is taken", lambda value: value.rstrip("=")),
            ("a good signature behind a bad one is taken", "v1,AAAA {}".format),
        )
    ):
        yield Case("Signatures", what, 200, change=partial(_resigned, change), message_id=f"signed_{number}")


def _of_timestamps() -> Iterator[Case]:
    whole = "webhook-timestamp must be a whole number of seconds since 1970"
    case = partial(Case, "Timestamps", status=400, kind="malformed-headers", detail=whole)
    for value in ("123.9", "+123", "-123", "1e9", "0x7b", "", "1 2", "123,9", "١٢٣".encode().decode("latin-1")):
        shown = {"": "an empty timestamp", "1 2": "a space inside"}.get(value, f"`{value}`")
        if not value.isascii():
            shown = "digits of another script"
        yield case(shown, change=partial(_with, "webhook-timestamp", value))
    case = partial(Case, "Timestamps", status=401, kind="signature")
    yield case("more than five minutes old", timestamp=partial(_seconds_from_now, -301))
    yield case("more than five minutes ahead", timestamp=partial(_seconds_from_now, 301))
    yield case("13 digits, as milliseconds have", timestamp=lambda: str(int(time.time() * 1000)))


def _of_content() -> Iterator[Case]:
    case = partial(Case, "Content", status=415, kind="media-type", detail="Send application/json, in UTF-8.")
    yield case("no content type", change=partial(_without, "content-type"))
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", STRUCTURED):
        yield case(f"`{kind}`", content_type=kind)
    for encoding in ("gzip", "br"):
        detail = "Send the body without a content encoding."
        yield case(
            f"`content-encoding: {encoding}`", detail=detail, change=partial(_again, "content-encoding", encoding)
        )
    yield from _of_compressed_loads()
    yield Case(
        "Content",
        "a body of more than 256 KiB",
        413,
        "body-too-large",
        "At most 262144 bytes are read.",
        body=b"x" * 262_145,
    )


def _of_compressed_loads() -> Iterator[Case]:
    case = partial(Case, "Content", path=CLOUD_EVENTS, content_type="application/x-ndjson")
    packed, start = gzip.compress(b"{}\n", mtime=0), "The gzip content"
    detail = "Send the body of a bulk load without a content encoding, or with gzip."
    yield case("a bulk load in `br`", 415, "media-type", detail, change=partial(_compressed, "br"))
    for what, body, detail in (
        ("no gzip content", b"{}", "The body is no gzip content, which content-encoding says that it is."),
        ("cut off", packed[:-1], f"{start} is cut off in line 2; nothing was stored."),
        (
            "followed by more",
            packed + b"x",
            f"{start} is followed by something else in line 2; nothing was stored.",
        ),
    ):
        change = partial(_compressed, "gzip")
        yield case(f"a bulk load in `gzip`: {what}", 400, "malformed-body", detail, body=body, change=change)


def _compressed(encoding: str, headers: Headers) -> Headers:
    return [*headers, ("content-encoding", encoding), ("plant-producer", "genesis")]


def _of_json() -> Iterator[Case]:
    case = partial(Case, "JSON", status=400, kind="malformed-body", detail="The body is not JSON in UTF-8.")
    for what, body in (
        ("an empty body", b""),
        ("half an object", b'{"timestamp":'),
        ("two values", _payload() + b" {}"),
        ("bytes that are not UTF-8", _payload().replace(b"genesis.agent", b"\xff\xfe")),
        ("bytes that are not UTF-8, in a field that is not read", _payload(x="??").replace(b"??", b"\xff\xfe")),
        ("single quotes", b"{'timestamp': 1}"),
        ("a comma after the last", _payload()[:-1] + b",}"),
        ("`NaN`", _raw_data('{"rating":NaN}')),
        ("`Infinity`", _raw_data('{"rating":Infinity}')),
        ("a number that begins with 0", _raw_data('{"rating":04}')),
        ("a control character in a text", _raw_data('{"agent_id":"\n"}')),
        ("half a surrogate pair", _raw_data('{"agent_id":"\\ud800"}')),
    ):
        yield case(what, body=body)
    for what, body in (
        ("no JSON", b"hello"),
        ("a byte order mark", b"\xef\xbb\xbf" + _payload()),
        ("UTF-16", json.dumps(PAYLOAD).encode("utf-16")),
        ("a comment", b"/* */ {}"),
        ("a text for the object", b'"x"'),
        ("`null` for the object", b"null"),
        ("a number for the object", b"1"),
        ("digits and a dot, as an id and a timestamp end", b"1763884800." + _payload()),
    ):
        yield case(what, detail="The body must begin with {, [ or white space.", body=body)
    yield case("100,000 arrays in each other", detail="The body is nested too deeply.", body=b'{"x":' + b"[" * 100_000)
    got = "Expected `object`, got `array`"
    yield Case("JSON", "an array for the object", 422, "event", detail=got, pointer="#", body=b"[]")
    twice = (
        b'{"timestamp":"2026-11-23T08:00:00Z","timestamp":"2026-11-24T08:00:00Z","data":'
        + json.dumps(DATA).encode()
        + b"}"
    )
    yield Case("JSON", "a key twice: the last one counts", 200, body=twice, message_id="twice")
    yield Case("JSON", "an unknown key next to `data`: it is skipped", 200, body=_payload(x=1), message_id="unknown")


def _of_fields() -> Iterator[Case]:
    case = partial(Case, "Fields", status=422, kind="event")
    for name in DATA:
        missing = f"Object missing required field `{name}`"
        yield case(f"no `{name}`", detail=missing, pointer=f"#/data/{name}", body=_payload(data=_less(name, DATA)))
    yield case(
        "an unknown field in `data`", detail="Object contains unknown field `x`", pointer="#/data/x", body=_data(x=1)
    )
    yield case(
        "no `data`",
        detail="Object missing required field `data`",
        pointer="#/data",
        body=json.dumps(_less("data", PAYLOAD)).encode(),
    )
    yield case(
        "no `timestamp`",
        detail="Object missing required field `timestamp`",
        pointer="#/timestamp",
        body=json.dumps(_less("timestamp", PAYLOAD)).encode(),
    )
    yield case(
        "the type of another webhook",
        detail="Expected genesis.agent.rated",
        pointer="#/type",
        body=_payload(type="genesis.agent.onboarded"),
    )
    rating = partial(case, pointer="#/data/rating")
    for value, got in (("5", "str"), (None, "null"), (True, "bool"), ([4], "array"), ({}, "object"), (4.5, "float")):
        yield rating(
            f"`{json.dumps(value)}` for a whole number", detail=f"Expected `int`, got `{got}`", body=_data(rating=value)
        )
    yield rating("0 where 1 is the least", detail="Expected `int` >= 1", body=_data(rating=0))
    yield rating("6 where 5 is the most", detail="Expected `int` <= 5", body=_data(rating=6))
    yield rating("a number of 31 digits", detail="Expected `int` <= 5", body=_data(rating=10**30))
    yield rating("`1e400`", detail="Number out of range", body=_raw_data(json.dumps(DATA).replace("4}", "1e400}")))
    agent = partial(case, pointer="#/data/agent_id")
    for value in ("", "x", AGENT[:-1], "{" + AGENT + "}", f"urn:uuid:{AGENT}"):
        yield agent(
            f"`{value}` for an id" if value else "an empty id", detail="Invalid UUID", body=_data(agent_id=value)
        )
    yield agent("a number for an id", detail="Expected `uuid`, got `int`", body=_data(agent_id=7))
    time_ = partial(case, pointer="#/timestamp")
    for value in ("yesterday", "2026-02-30T08:00:00Z", "2026-11-23", "0000-01-01T00:00:00Z", "2026-11-23T25:00:00Z"):
        yield time_(f"`{value}` for a time", detail="Invalid RFC3339 encoded datetime", body=_payload(timestamp=value))
    zone = "Expected `datetime` with a timezone component"
    yield time_("a time without a zone", detail=zone, body=_payload(timestamp="2026-11-23T08:00:00"))
    yield time_(
        "a time before the year 1 in UTC",
        detail="This time is outside the calendar",
        body=_payload(timestamp="0001-01-01T00:00:00+14:00"),
    )
    name = partial(
        Case, "Fields", status=422, kind="event", path="/webhook/genesis/agent-onboarded", pointer="#/data/name"
    )
    for what, text, detail in (
        ("a NUL character in a text", "a\x00b", "NUL characters are not allowed"),
        ("an empty name", "", "Expected `str` of length >= 1"),
        ("a name of 201 characters", "x" * 201, "Expected `str` of length <= 200"),
    ):
        yield name(
            what, detail=detail, body=_payload(type=None, data={"agent_id": AGENT, "name": text, "skill_ids": []})
        )
    yield name(
        "a number for a text",
        detail="Expected `str`, got `int`",
        body=_payload(type=None, data={"agent_id": AGENT, "name": 1, "skill_ids": []}),
    )
    for what, ids, detail, pointer in (
        ("a number in a list of ids", [AGENT, 1], "Expected `uuid`, got `int`", "#/data/skill_ids/1"),
        ("a text that is no id in a list of ids", ["x"], "Invalid UUID", "#/data/skill_ids/0"),
        ("an object for a list", {}, "Expected `array`, got `object`", "#/data/skill_ids"),
    ):
        data = {"agent_id": AGENT, "name": "A", "skill_ids": ids}
        yield name(what, detail=detail, pointer=pointer, body=_payload(type=None, data=data))
    truth = partial(case, path="/webhook/genesis/agent-available", pointer="#/data/available")
    for value, got in (("true", "str"), (1, "int"), (None, "null")):
        yield truth(
            f"`{json.dumps(value)}` for true or false",
            detail=f"Expected `bool`, got `{got}`",
            body=_payload(type=None, data={"agent_id": AGENT, "available": value}),
        )
    yield case(
        "the nil id for a skill",
        path="/webhook/genesis/agent-rated",
        detail="The nil id names nothing: leave the field out, or send null",
        pointer="#/data/skill_id",
        body=_payload(type=None, data={"agent_id": AGENT, "rater_id": AGENT, "rating": 5, "skill_id": str(NIL_ID)}),
    )
    score = partial(case, path="/webhook/genesis/skill-validated", pointer="#/data/score")
    for value, limit in ((101, "<= 100"), (-1, ">= 0")):
        yield score(
            f"a score of {value}",
            detail=f"Expected `int` {limit}",
            body=_payload(type=None, data={"skill_id": AGENT, "validator_id": AGENT, "score": value}),
        )
    yield case(
        "a number for a time",
        detail="Expected `datetime`, got `int`",
        pointer="#/timestamp",
        body=_payload(timestamp=1),
    )
    yield case("a list for `data`", detail="Expected `object`, got `array`", pointer="#/data", body=_payload(data=[]))
    many = {"agent_id": AGENT, "name": "A", "skill_ids": [AGENT] * 1_001}
    yield name(
        "a list of 1,001 ids",
        detail="Expected `array` of length <= 1000",
        pointer="#/data/skill_ids",
        body=_payload(type=None, data=many),
    )


def _of_cloud_events() -> Iterator[Case]:
    case = partial(Case, "CloudEvents", status=422, kind="event", path=CLOUD_EVENTS, content_type=STRUCTURED)
    for name in EVENT:
        missing = f"Object missing required field `{name}`"
        yield case(f"no `{name}`", detail=missing, pointer=f"#/{name}", body=json.dumps(_less(name, EVENT)).encode())
    yield case(
        "another `specversion`",
        detail="Invalid enum value '0.3'",
        pointer="#/specversion",
        body=_event(specversion="0.3"),
    )
    yield case(
        "a type that is not known",
        detail="This event type is not known",
        pointer="#/type",
        body=_event(type="genesis.x"),
    )
    yield case(
        "a type of Plant's own",
        detail="This event type is not known",
        pointer="#/type",
        body=_event(type="plant.operation.recorded"),
    )
    yield case(
        "a control record, whose data fit it",
        detail="plant.record.skipped is a control record, which operators alone publish",
        pointer="#/type",
        body=_event(type="plant.record.skipped", data={"poison_offset": 1, "reason": "mine"}),
    )
    plain = r"Expected `str` matching regex '^[!-~]{1,256}\\Z'"
    yield case("a space in `id`", detail=plain, pointer="#/id", body=_event(id="a b"))
    yield case("an empty `source`", detail=plain, pointer="#/source", body=_event(source=""))
    yield case(
        "data that is not JSON",
        detail="Expected application/json",
        pointer="#/datacontenttype",
        body=_event(datacontenttype="text/xml"),
    )
    yield case(
        "a field that does not fit",
        detail="Expected `int` <= 5",
        pointer="#/data/rating",
        body=_event(data={**DATA, "rating": 9}),
    )
    yield case("a number for `id`", detail="Expected `str`, got `int`", pointer="#/id", body=_event(id=1))
    skill = {"skill_id": AGENT, "name": "S", "description": "", "category": "magic"}
    yield case(
        "a word that is none of those allowed",
        detail="Invalid enum value 'magic'",
        pointer="#/data/category",
        body=_event(type="genesis.skill.registered", data=skill),
    )
    yield case(
        "an amended entity without its state",
        detail="agent must be set when entity_type is agent",
        pointer="#/data",
        body=_event(type="genesis.entity.amended", data={"entity_id": AGENT, "entity_type": "agent"}),
    )
    yield Case(
        "CloudEvents",
        "an extension attribute: it is skipped",
        200,
        path=CLOUD_EVENTS,
        content_type=STRUCTURED,
        body=_event(id="extended", extra="x"),
    )
    binary = partial(
        Case, "CloudEvents", status=400, kind="malformed-headers", path=CLOUD_EVENTS, body=json.dumps(DATA).encode()
    )
    attributes = [(f"ce-{name}", "msg_1" if name == "id" else str(EVENT[name])) for name in EVENT if name != "data"]
    for name, _ in attributes[1:]:
        less = [header for header in attributes if header[0] != name]
        yield binary(f"binary mode without `{name}`", detail=f"{name} is missing", change=partial(_and, less))
    again = [*attributes, ("ce-type", "genesis.agent.rated")]
    yield binary("binary mode with `ce-type` twice", detail="ce-type comes more than once", change=partial(_and, again))
    yield Case(
        "CloudEvents",
        "binary mode from a producer that has no leave for it",
        403,
        "forbidden",
        path=CLOUD_EVENTS,
        body=json.dumps(DATA).encode(),
        change=partial(_and, attributes),
    )
    other = [(name, "e1" if name == "ce-id" else value) for name, value in attributes]
    yield binary(
        "binary mode with a `ce-id` other than `webhook-id`",
        detail="ce-id must be equal to webhook-id, which is what was signed",
        change=partial(_and, other),
    )
    yield Case("CloudEvents", "`application/json` without `ce-` headers", 415, "media-type", path=CLOUD_EVENTS)


def _and(more: Headers, headers: Headers) -> Headers:
    return [*headers, *more]


def _of_batches() -> Iterator[Case]:
    named = partial(_with, "plant-producer", "genesis")
    case = partial(Case, "Batches and bulk loads", path=CLOUD_EVENTS, content_type=BATCH, change=named)
    array = "A batch is an array of CloudEvents."
    yield case("an object for the array", status=422, kind="event", detail=array, body=_event())
    yield case("an empty array", status=422, kind="event", detail="A batch holds at least one CloudEvent.", body=b"[]")
    yield case("half an array", status=400, kind="malformed-body", detail="The body is not JSON in UTF-8.", body=b"[{}")
    many = json.dumps([{}] * 1_001).encode()
    yield case(
        "1,001 events",
        status=413,
        kind="body-too-large",
        detail="A batch holds at most 1000 CloudEvents, and this one 1001.",
        body=many,
    )
    yield case(
        "a batch in which one event is wrong: 207, and a problem in its place",
        status=207,
        body=json.dumps([EVENT, 1]).encode(),
    )
    who = "plant-producer is missing: it says whose key signed."
    for what, content_type in (("batch", BATCH), ("bulk load", LINES)):
        yield case(
            f"a {what} without `plant-producer`",
            status=400,
            kind="malformed-headers",
            detail=who,
            content_type=content_type,
            body=_event(),
            change=None,
        )


def _of_resources() -> Iterator[Case]:
    yield Case("Resources", "a path that does not exist", 404, "not-found", path="/webhook/genesis/unknown")
    for what, method, path in (
        ("the registry's subjects", "GET", "/subjects"),
        ("a look-up in the registry", "POST", "/subjects/genesis.events-genesis.AgentRated"),
        ("a schema of the registry", "GET", "/schemas/ids/1"),
        ("the metrics", "GET", "/metrics"),
    ):
        yield Case(
            "Resources",
            f"{what}, at ingress's own address",
            404,
            "not-found",
            detail=AT_ADMIN_ADDRESS,
            method=method,
            path=path,
        )
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        yield Case("Resources", f"`{method}` on a webhook", 405, "method", method=method)


ELSEWHERE: Final = {
    "forbidden": "The producer is disabled, or may not send this type of event, or no binary CloudEvents.",
    "slow-request": "The head, the body or a bulk load did not arrive in its time.",
    "id-reused": "The id was used for another body, in the last ten minutes and the last 100,000 messages.",
    "rate-limited": "The producer has sent more than its rate and burst allow. `Retry-After` says when to go on.",
    "headers-too-large": "The head has more than 32 KiB.",
    "malformed-request": "What came is not HTTP/1.1: a length that is no number, no method, TLS on a plain port.",
    "kafka-unavailable": "Kafka has not acknowledged the event in time. Send it again with the same id.",
    "overloaded": "Too many requests, bytes, records or connections are under way, or this body took long while others "
    "needed its memory. Send it again with the same id.",
    "starting": "The process begins or ends. Send it again with the same id.",
    "unexpected": "A defect of Plant's. No input is known that leads to it, and tests look for one.",
}
"""Problems that one request by itself does not show, and when they are answered; they have tests of their own."""

HEAD: Final = """\
# What can be wrong with a request

Generated from the tests by `python -m tests.support.bad_requests`: each line is a request that is sent, and the answer
that it gets. How requests should be is in the [HTTP reference](http.md).

A problem has a `type`, which begins with `urn:plant:problem:`, and mostly a `detail`; where a field does not fit,
`errors` says which, by a JSON pointer into the body. A signature is refused without saying why; the server's log says
it. Nothing of a refused request is stored, except in a batch or a bulk load, where each event has its own answer.
"""


def page() -> str:
    """The page, from the cases."""
    text, section = HEAD, ""
    for case in cases():
        if case.section != section:
            section = case.section
            text += f"\n## {section}\n\n| what is wrong | status | problem | said |\n|---|---|---|---|\n"
        detail = re.sub(r"([|\\])", r"\\\1", case.detail) + (f", at `{case.pointer}`" if case.pointer else "")
        kind = f"`{case.kind}`" if case.kind else ""
        text += f"| {case.what} | {case.status} | {kind} | {detail} |\n"
    text += "\n## What depends on more than the request\n\n| when | status | problem |\n|---|---|---|\n"
    for kind, (status, _) in sorted(kinds().items(), key=lambda each: each[1][0]):
        if kind in ELSEWHERE:
            text += f"| {ELSEWHERE[kind]} | {status} | `{kind}` |\n"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
