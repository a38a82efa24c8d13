"""The Litestar application of the API for readers: its routes, and how its errors are answered."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import cast

from litestar import Litestar, Response, get
from litestar.enums import ScopeType
from litestar.handlers import HTTPRouteHandler
from litestar.types import HTTPScope, LifeSpanReceive, LifeSpanScope, LifeSpanSend, Receive, Scope, Send

from api.health import ReadReadiness
from api.openapi import reader_openapi_text
from api.reads import Reads
from api.resources import RESOURCES
from server.error_handlers import error_handlers
from server.health import health_routes
from server.metrics_route import metrics_route
from server.paths import with_slashes_encoded

Lifespan = Callable[[Litestar], AbstractAsyncContextManager[None]]


class ReaderApp(Litestar):
    """A Litestar application whose resources are found before its routing and middleware.

    Litestar's own way to a handler costs as much as everything else that a point read needs of this process.
    """

    reads: Reads

    async def __call__(
        self, scope: Scope | LifeSpanScope, receive: Receive | LifeSpanReceive, send: Send | LifeSpanSend
    ) -> None:
        if scope["type"] == ScopeType.HTTP:
            request = cast("HTTPScope", scope)
            if b"%2" in request.get("raw_path", b""):
                request = scope = with_slashes_encoded(request)
            _, *segments = request["path"].split("/")
            resource = RESOURCES.get(segments[0]) if segments else None
            if resource is not None:
                return await self.reads(request, cast("Receive", receive), cast("Send", send), resource, segments[1:])
        return await super().__call__(scope, receive, send)


def make_reader_app(reads: Reads, readiness: ReadReadiness, lifespan: Lifespan) -> ReaderApp:
    """Return the application on these parts; `lifespan` starts and stops them."""
    app = ReaderApp(
        route_handlers=[*health_routes(readiness), _openapi_route()],
        lifespan=[lifespan],
        exception_handlers=error_handlers({}),
        openapi_config=None,
        logging_config=None,
        debug=False,
    )
    app.reads = reads
    return app


def make_reader_admin_app() -> Litestar:
    """Return the application of the admin listener: `/metrics`."""
    return Litestar(
        route_handlers=[metrics_route()],
        exception_handlers=error_handlers({}),
        openapi_config=None,
        logging_config=None,
        debug=False,
    )


def _openapi_route() -> HTTPRouteHandler:
    text = reader_openapi_text().encode()

    @get("/openapi.json")
    async def openapi() -> Response[bytes]:
        """Return this API as OpenAPI 3.1."""
        return Response(text, headers={"cache-control": "max-age=60"}, media_type="application/json")

    return openapi
