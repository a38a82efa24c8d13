"""The Litestar application of webhooks: its routes, and how its errors are answered.

The webhook routes are plain ASGI handlers: they read raw bytes, which the signature covers, and are the hot path.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from litestar import Litestar, asgi
from litestar.types import (
    Receive,
    Scope,
    Send,
)

from ingress.contracts.routes import openapi_route
from ingress.health import Readiness
from ingress.intake import CLOUD_EVENTS_ROUTE, Intake
from server.error_handlers import error_handlers
from server.health import health_routes
from server.route_app import Handle, RouteApp

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
Lifespan = Callable[[Litestar], AbstractAsyncContextManager[None]]


class IngressApp(RouteApp):
    """The application; its webhook routes are found directly, and are registered as routes all the same."""

    webhooks: dict[str, Handle]

    def find(self, path: str) -> Handle | None:
        return self.webhooks.get(path)


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


def _handler(path: str, event_type: str | None, intake: Intake) -> Handle:
    async def receive_webhook(scope: Scope, receive: Receive, send: Send) -> None:
        await intake(scope, receive, send, path, event_type)

    return receive_webhook
