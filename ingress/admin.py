"""The application of the admin listener: the schema registry and `/metrics`, apart from webhooks.

Its routes have the bounds that webhooks have: connections, time and framing by the server, bytes of bodies here. No
request takes long in the event loop, which it shares with webhooks.
"""

from __future__ import annotations

from typing import Final, cast

from litestar import Litestar
from litestar.enums import ScopeType
from litestar.types import HTTPScope, LifeSpanReceive, LifeSpanScope, LifeSpanSend, Receive, Scope, Send

from ingress.addresses import TrustedProxies
from ingress.arrivals import Arrivals, BodyReader
from ingress.contracts.registry_routes import LOOKUP_MAX_BYTES, registry_routes
from schemas.registry import Registry
from server.bodies import PeerGone, answer_problem
from server.error_handlers import error_handlers
from server.metrics_route import metrics_route
from server.paths import with_slashes_encoded
from server.problems import Problem

LOOKUPS_MAX_BYTES: Final = 8 * 1024 * 1024
"""For all bodies that arrive."""

AT_INGRESS_ADDRESS: Final = "Webhooks are sent to ingress's own address."


class AdminApp(Litestar):
    """A Litestar application whose bodies are read before its routing, within a budget of bytes."""

    proxies: TrustedProxies
    arrivals: Arrivals

    async def __call__(
        self, scope: Scope | LifeSpanScope, receive: Receive | LifeSpanReceive, send: Send | LifeSpanSend
    ) -> None:
        if scope["type"] != ScopeType.HTTP:
            return await super().__call__(scope, receive, send)
        request, sending = cast("HTTPScope", scope), cast("Send", send)
        try:
            receiving = await self._read(request, cast("Receive", receive))
        except PeerGone:
            return None
        except Problem as problem:
            return await answer_problem(problem, cast("Receive", receive), sending)
        if b"%2" in request.get("raw_path", b""):
            request = with_slashes_encoded(request)
        return await super().__call__(request, receiving, sending)

    async def _read(self, scope: HTTPScope, receive: Receive) -> Receive:
        """Return a `receive` that has the whole body of a look-up; other requests have none that is read.

        Raises Problem (413, 503), PeerGone.
        """
        if scope["method"] != "POST":
            return receive
        reader = BodyReader(LOOKUP_MAX_BYTES, self.arrivals)
        reader.require_length(dict(scope["headers"]).get(b"content-length"))
        arrival = self.arrivals.begin(self.proxies.address_of(scope))
        try:
            body = await reader.read(receive, arrival)
        finally:
            self.arrivals.end(arrival)
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_whole() -> object:
            return messages.pop() if messages else await receive()

        return cast("Receive", receive_whole)


def make_admin_app(registry: Registry, proxies: TrustedProxies) -> AdminApp:
    """Return the application, for the registry whose ids this process writes."""
    app = AdminApp(
        route_handlers=[registry_routes(registry), metrics_route()],
        exception_handlers=error_handlers({"webhook": AT_INGRESS_ADDRESS}),
        openapi_config=None,
        logging_config=None,
        debug=False,
    )
    app.proxies = proxies
    app.arrivals = Arrivals(LOOKUP_MAX_BYTES, LOOKUPS_MAX_BYTES)
    return app
