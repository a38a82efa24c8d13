"""Problems: answers to requests that failed, as RFC 9457 has them, `application/problem+json`.

`type` is a URN of Plant's; each is listed in docs/reference/http.md, or docs/how-to/read.md for readers alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

PROBLEM_TYPE: Final = b"application/problem+json"
URN: Final = "urn:plant:problem:"

_TITLES: Final[dict[str, tuple[int, str]]] = {
    "malformed-headers": (400, "The webhook headers are missing or malformed"),
    "malformed-body": (400, "The body is not JSON"),
    "malformed-request": (400, "The request is not HTTP"),
    "signature": (401, "The signature was not accepted"),
    "forbidden": (403, "This producer may not send this"),
    "not-found": (404, "There is nothing here"),
    "method": (405, "This resource does not know this method"),
    "slow-request": (408, "The request did not arrive in time"),
    "id-reused": (409, "This id was used for another body"),
    "body-too-large": (413, "The body is too large"),
    "media-type": (415, "The content type is not supported"),
    "event": (422, "The event does not fit its schema"),
    "rate-limited": (429, "Too many events in too short a time"),
    "headers-too-large": (431, "The request headers are too large"),
    "unexpected": (500, "Plant failed"),
    "kafka-unavailable": (503, "The event is not safely stored"),
    "overloaded": (503, "Too much at once"),
    "starting": (503, "Plant is not ready"),
}


_READER_TITLES: Final[dict[str, tuple[int, str]]] = {
    "parameter": (400, "A parameter does not fit"),
    "cursor": (400, "The cursor is not one of this listing"),
    "unauthorized": (401, "A token is needed"),
    "scope": (403, "The token has no scope for this"),
    "no-row": (404, "The read model has no such row"),
    "too-many-requests": (429, "The token has too many requests under way"),
    "database-unavailable": (503, "The database does not answer"),
    "not-caught-up": (503, "The read model has not reached the position"),
    "query-timeout": (503, "The query took too long"),
}
"""Of the API for readers alone."""
_ENDPOINT_TITLES: Final[dict[str, tuple[int, str]]] = {
    "endpoint": (422, "An endpoint can't be like this"),
    "handshake": (422, "The receiver has not agreed to deliveries"),
    "no-endpoint": (404, "There is no such endpoint"),
    "no-delivery": (404, "There is no such delivery"),
    "no-redrive": (404, "There is no such redrive"),
    "redrive": (422, "A redrive can't be like this"),
    "too-many-redrives": (409, "The tenant has as many redrives under way as it may"),
    "no-search": (404, "There is no such search"),
    "search": (422, "A search can't be like this"),
    "too-many-searches": (409, "The tenant has as many searches that wait as it may"),
    "endpoint-state": (409, "The state of the endpoint does not allow this"),
    "endpoint-keys": (409, "The endpoint has two keys of this scheme"),
    "too-many-endpoints": (409, "The tenant has as many endpoints as it may"),
    "log-unavailable": (503, "Kafka does not answer"),
    "misconfigured": (503, "Plant is not set up for this"),
}
"""Of what the API answers about endpoints and deliveries."""
_ENDPOINTS_TOO: Final = (
    "malformed-body", "malformed-request", "parameter", "cursor", "unauthorized", "scope", "not-found", "method",
    "slow-request", "id-reused", "body-too-large", "media-type", "too-many-requests", "headers-too-large", "unexpected",
    "database-unavailable", "overloaded", "query-timeout", "starting",
)  # fmt: skip
_READERS_TOO: Final = (
    "malformed-request", "not-found", "method", "slow-request", "body-too-large", "headers-too-large", "unexpected",
    "overloaded", "starting",
)  # fmt: skip
"""Of both."""


_ALL_TITLES: Final = {**_ENDPOINT_TITLES, **_READER_TITLES, **_TITLES}


class FieldError(msgspec.Struct, frozen=True):
    """One field that does not fit; `pointer` is a JSON pointer into the body (RFC 6901, as a URI fragment)."""

    detail: str
    pointer: str


class ParameterError(msgspec.Struct, frozen=True):
    """One parameter of a query, a path or a header that does not fit."""

    detail: str
    parameter: str


class Problem(Exception):
    """A request that is answered with a problem; raise it from anywhere below a route."""

    def __init__(
        self,
        kind: str,
        detail: str = "",
        *,
        errors: Sequence[FieldError | ParameterError] = (),
        headers: tuple[tuple[bytes, bytes], ...] = (),
        reason: str = "",
        members: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(kind)
        self.kind = kind
        self.status, self.title = _ALL_TITLES[kind]
        self.detail = detail
        self.errors = errors
        self.headers = headers
        self.reason = reason or kind
        """For the log alone: may say what the sender must not know."""
        self.members = members or {}
        """Further members of the document (RFC 9457, 3.2)."""

    def document(self) -> dict[str, object]:
        """Return the JSON document as data."""
        document: dict[str, object] = {"type": URN + self.kind, "title": self.title, "status": self.status}
        if self.detail:
            document["detail"] = self.detail
        if self.errors:
            document["errors"] = self.errors
        return {**document, **self.members}

    def body(self) -> bytes:
        """Return the JSON document."""
        return msgspec.json.encode(self.document())

    def header_list(self) -> list[tuple[bytes, bytes]]:
        """Return the response headers, with length and type."""
        return [
            (b"content-type", PROBLEM_TYPE),
            (b"content-length", b"%d" % len(self.body())),
            *self.headers,
        ]

    def on_the_wire(self) -> bytes:
        """Return a whole HTTP/1.1 response that closes the connection, where there is no request to answer."""
        head = b"".join(b"%b: %b\r\n" % header for header in self.header_list())
        return b"HTTP/1.1 %d %b\r\n%bconnection: close\r\n\r\n%b" % (
            self.status,
            self.title.encode("ascii"),
            head,
            self.body(),
        )


CLOSE: Final = (b"connection", b"close")


def kinds() -> dict[str, tuple[int, str]]:
    """Return every kind that ingress answers with, with its status and title, for the reference page."""
    return dict(_TITLES)


def reader_kinds() -> dict[str, tuple[int, str]]:
    """Return every kind that the API for readers answers with, with its status and title, by status."""
    both = {kind: _TITLES[kind] for kind in _READERS_TOO} | _READER_TITLES
    return dict(sorted(both.items(), key=lambda item: (item[1][0], item[0])))


def endpoint_kinds() -> dict[str, tuple[int, str]]:
    """Return every kind that the API answers with about endpoints and deliveries, as `reader_kinds` does."""
    both = {kind: _ALL_TITLES[kind] for kind in _ENDPOINTS_TOO} | _ENDPOINT_TITLES
    return dict(sorted(both.items(), key=lambda item: (item[1][0], item[0])))


def retry_after(seconds: int) -> tuple[bytes, bytes]:
    """Return the Retry-After header."""
    return (b"retry-after", b"%d" % max(1, seconds))
