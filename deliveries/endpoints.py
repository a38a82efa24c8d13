"""An endpoint: where a subscriber gets which events, how, and whether it gets them now."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final, Literal, NewType
from uuid import UUID, uuid4

import msgspec

from deliveries.errors import ConfigurationRefused, EndpointStateRefused, EndpointTenantRefused
from deliveries.signed_request import EndpointKeys, PayloadForm
from entities.vocabulary import DEFAULT_TENANT

EndpointId = NewType("EndpointId", UUID)
Ordering = Literal["none", "per_entity"]
AfterDeadLetter = Literal["proceed", "block"]
RetrySchedule = Literal["short", "long"]
EndpointState = Literal["active", "paused", "disabled", "removed"]
EndpointAction = Literal["pause", "resume", "disable", "enable", "remove"]

DESCRIPTION_MAX_CHARACTERS: Final = 500
RATE_MAX_PER_SECOND: Final = 100_000
TIMEOUT_MAX_SECONDS: Final = 15

TRANSITIONS: Final[Mapping[EndpointAction, tuple[frozenset[EndpointState], EndpointState]]] = {
    "pause": (frozenset({"active"}), "paused"),
    "resume": (frozenset({"paused"}), "active"),
    "disable": (frozenset({"active", "paused"}), "disabled"),
    "enable": (frozenset({"disabled"}), "active"),
    "remove": (frozenset({"active", "paused", "disabled"}), "removed"),
}
"""Each action: the states in which it can be done, and the one that it leads to."""


class EndpointConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """What a subscriber chooses. The URL is normalised (`endpoint_urls`)."""

    url: str
    event_types: tuple[str, ...]
    filter: dict[str, object] = {}
    """Fields of an event's data, by dotted path, and the values that they must have."""
    description: str = ""
    payload_form: PayloadForm = "standard"
    ordering: Ordering = "none"
    after_dead_letter: AfterDeadLetter = "proceed"
    """Under `per_entity`: what later events of an entity do once one of them is a dead letter."""
    retry_schedule: RetrySchedule = "short"
    rate_per_second: int | None = None
    timeout_seconds: int = TIMEOUT_MAX_SECONDS
    handshake: bool = False
    """Whether the receiver has to agree before anything is sent (`handshake.py`)."""

    def __post_init__(self) -> None:
        """Raise ConfigurationRefused for what the table would refuse."""
        if len(self.description) > DESCRIPTION_MAX_CHARACTERS or not self.description.isprintable():
            why = f"A description is one line of up to {DESCRIPTION_MAX_CHARACTERS} printable characters."
            raise ConfigurationRefused("description", why)
        if not 1 <= self.timeout_seconds <= TIMEOUT_MAX_SECONDS:
            raise ConfigurationRefused("timeout_seconds", f"A timeout is 1 to {TIMEOUT_MAX_SECONDS} seconds.")
        if self.rate_per_second is not None and not 1 <= self.rate_per_second <= RATE_MAX_PER_SECOND:
            raise ConfigurationRefused("rate_per_second", f"A rate is 1 to {RATE_MAX_PER_SECOND} deliveries a second.")
        if self.after_dead_letter == "block" and self.ordering == "none":
            why = "Only an endpoint with per-entity ordering can block behind a dead letter."
            raise ConfigurationRefused("after_dead_letter", why)


class EndpointStart(msgspec.Struct, frozen=True):
    """Where an endpoint's events begin: the first offset of each partition, from partition 0 on.

    `at` is the time that was asked for; None stands for the end of each partition as the endpoint was added.
    """

    offsets: tuple[int, ...]
    at: datetime | None = None


class ReceiverAgreement(msgspec.Struct, frozen=True):
    """What the receiver at an endpoint's URL has agreed to, and when; no rate stands for any."""

    at: datetime
    rate_per_minute: int | None = None


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint as it is stored, without its secrets."""

    id: EndpointId
    tenant: str
    configuration: EndpointConfiguration
    custom_header_names: tuple[str, ...]
    start: EndpointStart
    state: EndpointState
    state_reason: str | None
    state_changed_at: datetime
    created_at: datetime
    configured_at: datetime
    enabled_at: datetime | None = None
    """When it was last enabled after it had been disabled."""
    agreement: ReceiverAgreement | None = None
    """Of an endpoint with a handshake, always: without it there is none."""
    creation_digest: bytes | None = None
    """What it was made from, where that had an Idempotency-Key."""

    @property
    def rate_per_second(self) -> float | None:
        """The most deliveries a second: what was chosen, or less where the receiver allows less."""
        allowed = None if self.agreement is None else self.agreement.rate_per_minute
        rates = [
            rate
            for rate in (self.configuration.rate_per_second, None if allowed is None else allowed / 60)
            if rate is not None
        ]
        return min(rates, default=None)


class EndpointSecrets(msgspec.Struct, frozen=True):
    """What an endpoint's requests are signed with, and the headers of its subscriber. Its repr shows no value."""

    keys: EndpointKeys
    custom_headers: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        return f"EndpointSecrets({self.keys!r}, headers {', '.join(name for name, _ in self.custom_headers) or 'none'})"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [("keys", self.keys), ("header_names", [name for name, _ in self.custom_headers])]


def refuse_handshake(endpoint: Endpoint) -> None:
    """Raise EndpointStateRefused for an endpoint that asks no receiver to agree, or is removed."""
    if not endpoint.configuration.handshake or endpoint.state == "removed":
        why = "It is removed." if endpoint.state == "removed" else "It was added without a handshake."
        raise EndpointStateRefused(
            f"The receiver of endpoint {endpoint.id} is not asked.", why=why, next_step="plant endpoints add --help"
        )


def new_endpoint_id() -> EndpointId:
    """Return a random id."""
    return EndpointId(uuid4())


def check_endpoint_tenant(tenant: str) -> str:
    """Return the tenant, if endpoints can be its. Raises EndpointTenantRefused."""
    if tenant != DEFAULT_TENANT:
        raise EndpointTenantRefused(
            f"An endpoint can't be {tenant[:100]!r}'s.",
            why=f"Events carry no tenant yet, and all of them belong to {DEFAULT_TENANT!r}.",
        )
    return tenant
