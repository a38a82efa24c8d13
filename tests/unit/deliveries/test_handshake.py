"""The handshake of CloudEvents' webhooks: which answers agree, and to what."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from deliveries.endpoints import Endpoint, EndpointConfiguration, EndpointStart, ReceiverAgreement, new_endpoint_id
from deliveries.errors import DeliveriesMisconfigured, HandshakeRefused
from deliveries.handshake import RATE_MAX_PER_MINUTE, read_agreement, request_origin
from runtime.settings import Settings

ORIGIN = "plant.example.com"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "origins", "rates", "allowed"),
    [
        (200, [ORIGIN], ["120"], 120),
        (204, ["*"], ["*"], None),
        (200, ["Plant.Example.COM"], [], None),
        (299, [" * "], [" 1 "], 1),
        (200, ["*"], ["9" * 19], RATE_MAX_PER_MINUTE),
    ],
)
def test_an_answer_agrees(status: int, origins: list[str], rates: list[str], allowed: int | None) -> None:
    """By our name or by `*`, at a rate or at any."""
    assert read_agreement(status, origins, rates, origin=ORIGIN) == allowed


@pytest.mark.parametrize(
    ("status", "origins", "rates"),
    [
        (200, [], ["120"]),
        (200, [ORIGIN, "*"], ["120"]),
        (200, [f"{ORIGIN}, *"], ["120"]),
        (200, ["example.com"], ["120"]),
        (200, [f"{ORIGIN}."], []),
        (200, [""], []),
        (302, ["*"], ["*"]),
        (405, ["*"], ["*"]),
        (101, ["*"], ["*"]),
        (500, ["*"], ["*"]),
        (200, ["*"], ["0"]),
        (200, ["*"], ["-1"]),
        (200, ["*"], ["1.5"]),
        (200, ["*"], ["１"]),
        (200, ["*"], [""]),
        (200, ["*"], ["1" * 20]),
        (200, ["*"], ["60", "*"]),
    ],
)
def test_any_other_answer_does_not(status: int, origins: list[str], rates: list[str]) -> None:
    """Another status, another origin or none, a rate that is none, a header twice."""
    with pytest.raises(HandshakeRefused):
        read_agreement(status, origins, rates, origin=ORIGIN)


@pytest.mark.parametrize("name", ["", "-a.example", "a..example", "https://a.example", "a b", "a\r\nx: y", "a" * 254])
def test_the_name_that_receivers_are_asked_by_is_a_name(name: str) -> None:
    """Nothing else of it gets into a header."""
    with pytest.raises(DeliveriesMisconfigured, match="No receiver can be asked"):
        request_origin(Settings(deliveries_origin=name))
    assert request_origin(Settings(deliveries_origin="Plant.Example.com")) == ORIGIN


@pytest.mark.parametrize(
    ("chosen", "allowed", "rate"),
    [(None, None, None), (10, None, 10), (None, 30, 0.5), (10, 120, 2.0), (1, 120, 1)],
)
def test_the_lower_rate_holds(chosen: int | None, allowed: int | None, rate: float | None) -> None:
    """What the endpoint was given, or less where its receiver allows less a minute."""
    configuration = EndpointConfiguration(
        url="https://example.com/", event_types=("*",), rate_per_second=chosen, handshake=True
    )
    endpoint = Endpoint(
        id=new_endpoint_id(), tenant="genesis", configuration=configuration, custom_header_names=(),
        start=EndpointStart((0,)), state="active", state_reason=None, state_changed_at=NOW, created_at=NOW,
        configured_at=NOW, agreement=ReceiverAgreement(NOW, allowed),
    )  # fmt: skip
    assert endpoint.rate_per_second == rate
    without = msgspec.structs.replace(endpoint, agreement=None)
    assert without.rate_per_second == chosen
