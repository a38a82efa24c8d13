"""What an endpoint's state and keys do not allow. Pure; the store asks again inside of its transaction."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from deliveries.endpoints import TRANSITIONS, Endpoint, EndpointAction, EndpointState
from deliveries.errors import EndpointStateRefused, TooManyEndpointKeys
from deliveries.stored_secrets import StoredEndpointKey
from signing.signatures import Scheme


def refuse_action(endpoint: Endpoint, action: EndpointAction) -> None:
    """Raise EndpointStateRefused where the endpoint's state does not allow an action."""
    states, _ = TRANSITIONS[action]
    if endpoint.state not in states:
        raise EndpointStateRefused(
            f"The endpoint {endpoint.id} is {endpoint.state}.",
            why=f"{action} is for endpoints that are {' or '.join(sorted(states))}.",
            next_step=f"plant endpoints show {endpoint.id}",
        )


def refuse_rotation(endpoint_id: UUID, state: EndpointState, keys: Sequence[StoredEndpointKey], scheme: Scheme) -> None:
    """Raise EndpointStateRefused for a removed endpoint, TooManyEndpointKeys for one with two keys of a scheme."""
    if state == "removed":
        raise EndpointStateRefused(f"The endpoint {endpoint_id} is removed.", next_step="plant endpoints add --help")
    ends = [key.expires_at for key in keys if key.kind == scheme and key.expires_at is not None]
    if ends:
        raise TooManyEndpointKeys(
            why=f"The older one signs until {max(ends):%Y-%m-%dT%H:%M:%SZ}.",
            next_step=f"plant endpoints show {endpoint_id}",
        )


def is_repeated_rotation(keys: Sequence[StoredEndpointKey], key_id: UUID | None) -> bool:
    """Return whether a key was made by the same request, and none has followed it."""
    return any(key.id == key_id and key.expires_at is None for key in keys)
