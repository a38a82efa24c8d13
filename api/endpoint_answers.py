"""Endpoints, deliveries and attempts as answers hold them; no secret is in any but the two that show a new one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from deliveries.endpoints import Endpoint
from deliveries.new_endpoints import NewEndpoint
from deliveries.state.delivery_rows import RecordedAttempt, RecordedDelivery
from deliveries.stored_secrets import StoredEndpointKey
from signing.ed25519 import encode_public_key


def endpoint_document(endpoint: Endpoint, keys: Iterable[StoredEndpointKey]) -> dict[str, Any]:
    """Return an endpoint with its keys, of which the public halves alone are shown."""
    return {
        "id": endpoint.id,
        "tenant": endpoint.tenant,
        "state": endpoint.state,
        "state_reason": endpoint.state_reason,
        "state_changed_at": endpoint.state_changed_at,
        **msgspec.structs.asdict(endpoint.configuration),
        "header_names": endpoint.custom_header_names,
        "agreed_at": None if endpoint.agreement is None else endpoint.agreement.at,
        "agreed_rate_per_minute": None if endpoint.agreement is None else endpoint.agreement.rate_per_minute,
        "keys": [_key_document(key) for key in keys if key.endpoint_id == endpoint.id],
        "start_offsets": endpoint.start.offsets,
        "starts_at": endpoint.start.at,
        "created_at": endpoint.created_at,
        "configured_at": endpoint.configured_at,
    }


def new_endpoint_document(
    endpoint: Endpoint, keys: Iterable[StoredEndpointKey], new: NewEndpoint | None
) -> dict[str, Any]:
    """Return an endpoint as it was just added, with what verifies its requests: shown once, so not for a repeat."""
    return {
        **endpoint_document(endpoint, keys),
        "secret": None if new is None else new.shown_secret,
        "public_key": None if new is None else new.shown_public_key,
    }


def delivery_document(delivery: RecordedDelivery) -> dict[str, Any]:
    """Return a delivery."""
    return msgspec.structs.asdict(delivery)


def attempt_document(attempt: RecordedAttempt) -> dict[str, Any]:
    """Return an attempt; of request and answer there is the begin, and what is no UTF-8 is replaced."""
    document = msgspec.structs.asdict(attempt)
    del document["token"]
    for name in ("request", "answer"):
        document[name] = document[name].decode("utf-8", "replace")
    return document


def _key_document(key: StoredEndpointKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "scheme": key.kind,
        "public_key": None if key.public_key is None else encode_public_key(key.public_key),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
    }
