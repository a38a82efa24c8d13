"""The routes of the contracts: the schema registry and the OpenAPI document."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache

from litestar import Response, Router, get

from ingress.contracts.openapi import openapi_text
from ingress.contracts.registry_routes import A_MINUTE, registry_routes
from schemas.registry import Registry


def contract_routes(registry: Registry, webhooks: Mapping[str, str | None]) -> Router:
    """Return the routes, for the registry whose ids this process writes."""

    @cache
    def document() -> bytes:
        return openapi_text(webhooks).encode()

    @get("/openapi.json")
    async def openapi() -> Response[bytes]:
        """Return this process's HTTP API as OpenAPI 3.1."""
        etag = f'"{hashlib.sha256(document()).hexdigest()[:32]}"'
        headers = {"etag": etag, "cache-control": A_MINUTE}
        return Response(document(), headers=headers, media_type="application/json")

    return Router(path="/", route_handlers=[openapi, registry_routes(registry)])
