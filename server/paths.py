"""Paths as a server's applications read them."""

from __future__ import annotations

from typing import cast
from urllib.parse import unquote

from litestar.types import HTTPScope


def with_slashes_encoded(scope: HTTPScope) -> HTTPScope:
    """Return a scope whose encoded slashes part no segments of the path: a name may hold one (RFC 3986, 2.2)."""
    raw_path = scope["raw_path"].replace(b"%2F", b"%252F").replace(b"%2f", b"%252F")
    return cast("HTTPScope", {**scope, "path": unquote(raw_path.decode("latin-1"))})
