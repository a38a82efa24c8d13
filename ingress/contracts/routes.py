"""The route of the OpenAPI document."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from ingress.contracts.openapi import openapi_text
from ingress.contracts.registry_routes import A_MINUTE


def openapi_route(webhooks: Mapping[str, str | None]) -> HTTPRouteHandler:
    """Return the route; `webhooks` as for `openapi_text`."""

    @cache
    def document() -> tuple[bytes, str]:
        text = openapi_text(webhooks).encode()
        return text, f'"{hashlib.sha256(text).hexdigest()[:32]}"'

    @get("/openapi.json")
    async def openapi() -> Response[bytes]:
        """Return this process's HTTP API as OpenAPI 3.1."""
        text, etag = document()
        return Response(text, headers={"etag": etag, "cache-control": A_MINUTE}, media_type="application/json")

    return openapi
