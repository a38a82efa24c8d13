"""What a token's holder is told of an error about endpoints and deliveries: each has a problem, and none is a 500."""

from __future__ import annotations

from typing import Final

from api.failures import SOON_SECONDS, read_problem
from database.error_translation import driver_error
from deliveries.errors import (
    ConfigurationRefused,
    DeliveriesMisconfigured,
    EndpointRefused,
    EndpointStateRefused,
    EndpointTenantRefused,
    EndpointUnresolved,
    HandshakeRefused,
    TooManyEndpointKeys,
    UnknownDelivery,
    UnknownEndpoint,
    UnknownExample,
    UnknownRedrive,
    UnknownSearch,
)
from runtime.errors import ConfigurationError
from server.problems import FieldError, Problem, retry_after
from signing.errors import SigningError
from streams.errors import StreamsError

READ_ONLY: Final = "25006"
"""The SQLSTATE of a change in a read-only transaction: on a standby, or by an administrator's setting."""


def endpoint_problem(error: BaseException) -> Problem | None:
    """Return the problem to answer with; None where the error is a fault of Plant's."""
    again = (retry_after(SOON_SECONDS),)
    match error:
        case EndpointRefused() | EndpointUnresolved():
            return _of_field(error.why or "Its name can't be resolved.", "url")
        case EndpointTenantRefused():
            return _of_field(error.why, "tenant")
        case ConfigurationRefused():
            return _of_field(error.why, error.field)
        case UnknownExample():
            return _of_field(error.why, "event_type")
        case HandshakeRefused():
            return Problem("handshake", error.why, errors=(FieldError(error.why, "#/url"),))
        case UnknownEndpoint():
            return Problem("no-endpoint")
        case UnknownDelivery():
            return Problem("no-delivery", error.why)
        case UnknownRedrive():
            return Problem("no-redrive")
        case UnknownSearch():
            return Problem("no-search")
        case EndpointStateRefused():
            return Problem("endpoint-state", f"{error.what} {error.why}".strip())
        case TooManyEndpointKeys():
            return Problem("endpoint-keys", error.why)
        case SigningError() | DeliveriesMisconfigured():
            return Problem("misconfigured", "Its operator finds the reason in its log.", reason=str(error))
        case StreamsError():
            return Problem(
                "log-unavailable", "Ask again with the same Idempotency-Key.", headers=again, reason=str(error)
            )
        case ConfigurationError():
            return Problem("misconfigured", "Its operator finds the reason in its log.", reason=str(error))
    if getattr(driver_error(error), "sqlstate", None) == READ_ONLY:
        return Problem("database-unavailable", "It takes no changes now.", headers=again, reason=str(error))
    return read_problem(error)


def _of_field(why: str, field: str) -> Problem:
    return Problem("endpoint", errors=(FieldError(why, f"#/{field}"),))
