"""The Litestar application of webhooks: its routes, and how its errors are answered.

The webhook routes are plain ASGI handlers: they read raw bytes, which the signature covers, and are the hot path.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, cast
from urllib.parse import unquote

from litestar import Litestar, Request, Response, asgi
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException
from litestar.types import (
    ExceptionHandlersMap,
    HTTPScope,
    LifeSpanReceive,
    LifeSpanScope,
    LifeSpanSend,
    Receive,
    Scope,
    Send,
)

from ingress.contracts.routes import openapi_route
from ingress.health import Readiness, health_routes
from ingress.intake import CLOUD_EVENTS_ROUTE, Intake
from ingress.problems import PROBLEM_TYPE, Problem
from runtime.logging import get_logger

log = get_logger(__name__)

WEBHOOK_ROUTES: Final[dict[str, str | None]] = {
    "/webhook/genesis/agent-onboarded": "genesis.agent.onboarded",
    "/webhook/genesis/skill-validated": "genesis.skill.validated",
    "/webhook/genesis/agent-available": "genesis.agent.available",
    "/webhook/genesis/agent-rated": "genesis.agent.rated",
    CLOUD_EVENTS_ROUTE: None,
}
ADMIN_PATHS: Final = frozenset({"subjects", "schemas", "config", "mode", "metrics"})
"""First segments of the paths that the admin listener serves."""
AT_ADMIN_ADDRESS: Final = (
    "The schema registry and /metrics have an address of their own: the operator's PLANT_INGRESS_ADMIN_ADDRESS."
)
Handle = Callable[[Scope, Receive, Send], Awaitable[None]]
Lifespan = Callable[[Litestar], AbstractAsyncContextManager[None]]


class IngressApp(Litestar):
    """A Litestar application whose webhook routes are found before its routing and middleware.

    They are registered as routes all the same. Litestar's own way to a plain ASGI handler costs 60 µs a request,
    as much as everything that a webhook needs.
    """

    webhooks: dict[str, Handle]

    async def __call__(
        self, scope: Scope | LifeSpanScope, receive: Receive | LifeSpanReceive, send: Send | LifeSpanSend
    ) -> None:
        if scope["type"] == ScopeType.HTTP:
            request = cast("HTTPScope", scope)
            if b"%2" in request.get("raw_path", b""):
                request = scope = with_slashes_encoded(request)
            handle = self.webhooks.get(request["path"])
            if handle is not None:
                return await handle(request, cast("Receive", receive), cast("Send", send))
        return await super().__call__(scope, receive, send)


def with_slashes_encoded(scope: HTTPScope) -> HTTPScope:
    """Return a scope whose encoded slashes part no segments of the path: a name may hold one (RFC 3986, 2.2)."""
    raw_path = scope["raw_path"].replace(b"%2F", b"%252F").replace(b"%2f", b"%252F")
    return cast("HTTPScope", {**scope, "path": unquote(raw_path.decode("latin-1"))})


def make_app(intake: Intake, readiness: Readiness, lifespan: Lifespan) -> IngressApp:
    """Return the application on these parts; `lifespan` starts and stops them."""
    handlers = {path: _handler(path, event_type, intake) for path, event_type in WEBHOOK_ROUTES.items()}
    app = IngressApp(
        route_handlers=[
            *(asgi(path, copy_scope=False)(handle) for path, handle in handlers.items()),
            *health_routes(readiness),
            openapi_route(WEBHOOK_ROUTES),
        ],
        lifespan=[lifespan],
        exception_handlers=error_handlers(dict.fromkeys(ADMIN_PATHS, AT_ADMIN_ADDRESS)),
        openapi_config=None,
        logging_config=None,
        debug=False,
    )
    app.webhooks = handlers
    return app


def error_handlers(elsewhere: Mapping[str, str]) -> ExceptionHandlersMap:
    """Return what answers the errors of an application, all of them with problems.

    `elsewhere`: the first segments of the other listener's paths, with the detail of the 404 that they get here.
    """

    def answer_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
        if error.status_code == 404:
            detail = elsewhere.get(request.scope["path"].lstrip("/").partition("/")[0], "")
            return _answer_problem(request, Problem("not-found", detail))
        return _answer_http(request, error)

    return {Problem: _answer_problem, HTTPException: answer_http, Exception: _answer_unexpected}


def _handler(path: str, event_type: str | None, intake: Intake) -> Handle:
    async def receive_webhook(scope: Scope, receive: Receive, send: Send) -> None:
        await intake(scope, receive, send, path, event_type)

    return receive_webhook


def _answer_problem(_request: Request[Any, Any, Any], problem: Problem) -> Response[bytes]:
    headers = {name.decode("ascii"): value.decode("ascii") for name, value in problem.headers}
    return Response(
        problem.body(), status_code=problem.status, headers=headers, media_type=PROBLEM_TYPE.decode("ascii")
    )


def _answer_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Return Litestar's own errors as problems."""
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "GET")
        return _answer_problem(request, Problem("method", headers=((b"allow", allowed.encode("ascii")),)))
    if error.status_code < 500:
        return _answer_problem(request, Problem("malformed-request", error.detail))
    return _answer_unexpected(request, error)


def _answer_unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    log.error("request.failed", path=request.scope["path"], error=type(error).__name__, exc_info=error)
    return _answer_problem(request, Problem("unexpected"))
