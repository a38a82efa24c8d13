"""The request of an attempt, checked with the public library for receivers."""

from __future__ import annotations

import doctest
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from deliveries import signed_request
from deliveries.signed_request import AttemptRequest, EndpointKeys, OutgoingEvent, encode_payload, sign_attempt
from signing.ed25519 import PrivateKey
from signing.hmac_secrets import encode_secret
from signing.signatures import Ed25519Key, Verified, verify_signature

NEW, OLD = bytes(range(32)), bytes(range(32, 64))
PAIR, OLD_PAIR = PrivateKey(b"\x01" * 32), PrivateKey(b"\x02" * 32)
EVENT = OutgoingEvent(
    id="0197c1b2-0000-7000-8000-000000000001",
    type="genesis.agent.rated",
    source="plant/ingress",
    subject="0197c1b2-0000-7000-8000-000000000002",
    occurred_at=datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC),
    data='{"rating":5,"note":"schön"}'.encode(),
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)
DELIVERY = "dlv_0197c1b2"


def signed(keys: EndpointKeys, form: Any = "standard", **changes: Any) -> AttemptRequest:
    return sign_attempt(EVENT, form, keys, **{"delivery_id": DELIVERY, "now": datetime.now(UTC), **changes})


@pytest.mark.parametrize("form", ["standard", "cloud_event"])
def test_the_public_library_verifies_each_form(form: Any) -> None:
    """A receiver with the public library accepts the request, and refuses it when a byte of the body differs."""
    request = signed(EndpointKeys(secrets=(NEW,)), form)
    receiver = Webhook(encode_secret(NEW))
    assert receiver.verify(request.body, request.headers) == json.loads(request.body)
    with pytest.raises(WebhookVerificationError):
        receiver.verify(request.body.replace(b"5", b"6", 1), request.headers)


def test_both_keys_of_a_rotation_verify() -> None:
    """A receiver that has the new secret or the old one accepts the request; one with another secret does not."""
    request = signed(EndpointKeys(secrets=(NEW, OLD)))
    for secret in (NEW, OLD):
        assert Webhook(encode_secret(secret)).verify(request.body, request.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(encode_secret(bytes(32))).verify(request.body, request.headers)


@pytest.mark.parametrize("secrets", [(), (NEW,), (NEW, OLD)])
def test_ed25519_signatures_stand_next_to_the_others(secrets: tuple[bytes, ...]) -> None:
    """Each private key makes a v1a signature that its public half verifies; v1 receivers pass it over."""
    request = signed(EndpointKeys(secrets=secrets, private_keys=(PAIR, OLD_PAIR)))
    versions = [each.partition(",")[0] for each in request.headers["webhook-signature"].split(" ")]
    assert versions == ["v1"] * len(secrets) + ["v1a"] * 2
    for pair in (PAIR, OLD_PAIR):
        key = Ed25519Key(id="k", owner="subscriber", public_key=pair.public_key)
        values = [request.headers[f"webhook-{name}"].encode() for name in ("id", "timestamp", "signature")]
        assert verify_signature([key], *values, request.body, float(values[1])) == Verified(key)
    for secret in secrets:
        assert Webhook(encode_secret(secret)).verify(request.body, request.headers)


def test_attempts_differ_in_timestamp_and_signature_alone() -> None:
    """The id and the body of a delivery stay, so that a receiver knows a repeat."""
    now = datetime(2026, 3, 1, 13, tzinfo=UTC)
    first = signed(EndpointKeys(secrets=(NEW,)), now=now)
    later = signed(EndpointKeys(secrets=(NEW,)), now=now + timedelta(seconds=1))
    assert first.body == later.body
    changed = {name for name in first.headers if first.headers[name] != later.headers[name]}
    assert changed == {"webhook-timestamp", "webhook-signature"}
    assert first.headers["webhook-id"] == DELIVERY
    assert first.headers["webhook-timestamp"] == "1772370000"


def test_the_standard_payload() -> None:
    """The body has the type, the event's own time in UTC, and its data as it is."""
    request = signed(EndpointKeys(secrets=(NEW,)))
    assert request.headers["content-type"] == "application/json"
    assert json.loads(request.body) == {
        "type": "genesis.agent.rated",
        "timestamp": "2026-03-01T12:00:00.123456Z",
        "data": {"rating": 5, "note": "schön"},
    }


@pytest.mark.parametrize("subject", [None, "s"])
def test_the_cloud_event(subject: str | None) -> None:
    """The body is a structured CloudEvent with the event's id; a subject stands in it where there is one."""
    event = OutgoingEvent(
        id="e", type="t", source="s", occurred_at=EVENT.occurred_at.astimezone(), data=b"null", subject=subject
    )
    request = sign_attempt(event, "cloud_event", EndpointKeys(secrets=(NEW,)), delivery_id="d", now=EVENT.occurred_at)
    assert request.headers["content-type"] == "application/cloudevents+json"
    assert json.loads(request.body) == {
        "specversion": "1.0", "id": "e", "source": "s", "type": "t", "time": "2026-03-01T12:00:00.123456Z",
        "datacontenttype": "application/json", "data": None, **({} if subject is None else {"subject": subject}),
    }  # fmt: skip


def test_no_custom_header_replaces_one_of_ours() -> None:
    """Even a header that was not checked is overwritten by the one that Plant makes."""
    names = ("webhook-id", "webhook-timestamp", "webhook-signature", "content-type", "traceparent")
    request = signed(EndpointKeys(secrets=(NEW,)), custom_headers=[("x-a", "1"), *((name, "forged") for name in names)])
    assert "forged" not in request.headers.values()
    assert request.headers["x-a"] == "1"
    assert Webhook(encode_secret(NEW)).verify(request.body, request.headers)


@pytest.mark.parametrize(
    "traceparent",
    [None, "", "00-a-b-01", "00-" + "0" * 32 + "-b7ad6b7169203331-01", EVENT.traceparent + "\r\nHost: a",  # type: ignore[operator]  # it is set above
     "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
)  # fmt: skip
def test_a_trace_that_can_not_be_read_is_left_out(traceparent: str | None) -> None:
    """A `traceparent` is passed on when it is one; it came with a record, and a record may hold anything."""
    event = OutgoingEvent(
        id="e", type="t", source="s", occurred_at=EVENT.occurred_at, data=b"{}", traceparent=traceparent
    )
    request = sign_attempt(event, "standard", EndpointKeys(secrets=(NEW,)), delivery_id="d", now=EVENT.occurred_at)
    assert "traceparent" not in request.headers
    assert signed(EndpointKeys(secrets=(NEW,))).headers["traceparent"] == EVENT.traceparent


@pytest.mark.parametrize("delivery_id", ["", "a.b", "a b", "a\n", "ä", "a" * 65])
def test_a_delivery_id_has_no_dot(delivery_id: str) -> None:
    """What is signed is id, dot, time, dot, body: a dot in the id would let one signature stand for two messages."""
    with pytest.raises(ValueError, match="delivery's id"):
        signed(EndpointKeys(secrets=(NEW,)), delivery_id=delivery_id)


def test_keys_are_one_to_two_of_a_scheme() -> None:
    """An endpoint without a key would send unsigned requests, and one with three forgot to end a rotation."""
    for keys in ({}, {"secrets": (NEW,) * 3}, {"private_keys": (PAIR,) * 3}):
        with pytest.raises(ValueError, match="key"):
            EndpointKeys(**keys)  # type: ignore[arg-type]  # a mapping has values of one type


def test_no_secret_is_shown() -> None:
    """A repr, which may reach a log, holds neither keys nor bodies nor custom headers."""
    keys = EndpointKeys(secrets=(NEW,), private_keys=(PAIR,))
    request = signed(keys, custom_headers=[("authorization", "Bearer s3cret")])
    shown = f"{keys!r} {request!r} {keys.__rich_repr__()} {request.__rich_repr__()}"
    for hidden in ("s3cret", repr(NEW)[2:-1], repr(PAIR.seed)[2:-1], "rating"):
        assert hidden not in shown


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, st.sampled_from(["standard", "cloud_event"]), st.binary(min_size=24, max_size=64))
def test_any_data_arrives_and_verifies(data: Any, form: Any, secret: bytes) -> None:
    """Whatever the data and the secret are, the receiver reads the same data and accepts the signature."""
    event = OutgoingEvent(id="e", type="t", source="s", occurred_at=EVENT.occurred_at, data=json.dumps(data).encode())
    keys = EndpointKeys(secrets=(secret,))
    request = sign_attempt(event, form, keys, delivery_id=DELIVERY, now=datetime.now(UTC))
    assert Webhook(encode_secret(secret)).verify(request.body, request.headers)["data"] == data
    assert request.body == encode_payload(event, form)


def test_examples() -> None:
    """The examples in the docstrings hold."""
    assert doctest.testmod(signed_request).failed == 0
