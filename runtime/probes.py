"""`/metrics`, `/livez` and `/readyz` of a service that is no HTTP server: a worker, a dispatcher, a deliverer, a relay.

A thread serves them, so a loop that is stuck gets an answer too: both probes are asked of the loop itself, within a
deadline. `/livez` fails where the loop does not turn, which only a restart helps; `/readyz` fails where the service
can't do its work now, be it that something else is away.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterable, Mapping
from concurrent.futures import CancelledError
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Final, Protocol, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

LIVE_TIMEOUT_SECONDS: Final = 20.0
"""A loop that has not turned for so long is stuck: the longest step of a busy one is far below a second."""
READY_TIMEOUT_SECONDS: Final = 4.0
CHECK_EVERY_SECONDS: Final = 1.0


class ProbedService(Protocol):
    """What a service tells of itself."""

    async def faults(self) -> Mapping[str, str]:
        """Return what is missing, by part; empty when the service can do its work."""


class Probes:
    """The probes of the service that runs in this loop. It asks the service once a second at most."""

    def __init__(self, service: ProbedService) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._asking = asyncio.Lock()
        self._asked_at = float("-inf")
        self._faults: Mapping[str, str] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer `/livez` or `/readyz`, from another thread than the loop's."""
        if environ["PATH_INFO"] == "/livez":
            faults = self._ask(self._turn(), LIVE_TIMEOUT_SECONDS)
        else:
            faults = self._ask(self._ready(), READY_TIMEOUT_SECONDS)
        status = "503 Service Unavailable" if faults else "200 OK"
        start_response(status, [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
        return [json.dumps(dict(faults) or {"status": "ok"}).encode()]

    def _ask(self, question: Coroutine[None, None, Mapping[str, str]], timeout_seconds: float) -> Mapping[str, str]:
        try:
            answer = asyncio.run_coroutine_threadsafe(question, self._loop)
        except RuntimeError:  # the loop is closed
            question.close()
            return {"loop": "The service has ended."}
        try:
            return answer.result(timeout_seconds)
        except TimeoutError:
            answer.cancel()
            return {"loop": f"No answer within {timeout_seconds:g} s."}
        except CancelledError:
            return {"loop": "The service is ending."}

    async def _turn(self) -> Mapping[str, str]:
        return {}

    async def _ready(self) -> Mapping[str, str]:
        async with self._asking:
            if self._loop.time() - self._asked_at >= CHECK_EVERY_SECONDS:
                self._faults = await self._service.faults()
                self._asked_at = self._loop.time()
            return self._faults


class _ProbeServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _NoLog(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def make_probe_server(host: str, port: int, probes: Probes | None) -> WSGIServer:
    """Return a server that listens, and answers once `serve_forever` runs. Raises OSError."""
    exposed = cast("WSGIApplication", make_wsgi_app())

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if probes is not None and environ["PATH_INFO"] in ("/livez", "/readyz"):
            return probes(environ, start_response)
        return exposed(environ, start_response)

    server = _ProbeServer((host, port), _NoLog)
    server.set_app(answer)
    return server
