"""A subscriber's HTTP server of a test's own, on an address of the loopback interface."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from tests.support.certificates import CertificateFiles


class Receiver:
    """Records the requests that it gets, and the names that TLS clients ask for (SNI)."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        """Method, path with query, headers with names in lower case, body."""
        self.server_names: list[str | None] = []
        self.connections = 0
        self.port = 0
        self.answer = web.Response
        self._handler = self.handle

    def replace_handler(self, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> None:
        """Let another function answer from now on."""
        self._handler = handler  # type: ignore[assignment]

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request by the present handler."""
        return await self._handler(request)  # type: ignore[arg-type]

    async def handle(self, request: web.Request) -> web.Response:
        """Record a request, and answer it."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((request.method, request.raw_path, headers, await request.read()))
        return self.answer()

    def note_server_name(self, _socket: object, name: str | None, _context: object) -> None:
        """Record what a TLS client asks for."""
        self.server_names.append(name)


@asynccontextmanager
async def receiver(
    host: str = "127.0.0.1", port: int = 0, certificate: CertificateFiles | None = None
) -> AsyncIterator[Receiver]:
    """Serve on this address and port, with TLS where there is a certificate."""
    made = Receiver()
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.certificate_file, certificate.key_file)
        context.sni_callback = made.note_server_name  # type: ignore[assignment]  # it returns None, which is allowed
    runner = web.ServerRunner(web.Server(made.serve))
    await runner.setup()
    site = web.TCPSite(runner, host, port, ssl_context=context)
    await site.start()
    made.port = runner.addresses[0][1]
    try:
        yield made
    finally:
        await runner.cleanup()
