"""The Litestar application of the API for readers: its routes, and how its errors are answered."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

from litestar import Litestar, Response, get
from litestar.handlers import HTTPRouteHandler

from api.endpoint_requests import RESOURCE_NAMES, EndpointRequests
from api.health import ReadReadiness
from api.openapi import reader_openapi_text
from api.reads import Reads
from api.resources import RESOURCES
from server.error_handlers import error_handlers
from server.health import health_routes
from server.metrics_route import metrics_route
from server.route_app import Handle, RouteApp

Lifespan = Callable[[Litestar], AbstractAsyncContextManager[None]]


class ReaderApp(RouteApp):
    """The application; its resources are found directly."""

    reads: Reads
    endpoints: EndpointRequests | None
    """None where this process changes no endpoints."""

    def find(self, path: str) -> Handle | None:
        _, *segments = path.split("/")
        if self.endpoints is not None and segments and segments[0] in RESOURCE_NAMES:
            return partial(self.endpoints, resource=segments[0], segments=segments[1:])
        resource = RESOURCES.get(segments[0]) if segments else None
        return None if resource is None else partial(self.reads, resource=resource, segments=segments[1:])


def make_reader_app(
    reads: Reads, readiness: ReadReadiness, lifespan: Lifespan, endpoints: EndpointRequests | None = None
) -> ReaderApp:
    """Return the application on these parts; `lifespan` starts and stops them."""
    app = ReaderApp(
        route_handlers=[*health_routes(readiness), _openapi_route()],
        lifespan=[lifespan],
        exception_handlers=error_handlers({}),
        openapi_config=None,
        logging_config=None,
        debug=False,
    )
    app.reads, app.endpoints = reads, endpoints
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
