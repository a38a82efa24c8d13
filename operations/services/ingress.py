"""Wiring of ingress: settings in, a process that serves webhooks out, or several on one port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from litestar import Litestar

from database.connector import connect
from ingress.addresses import TrustedProxies
from ingress.admin import AdminApp, make_admin_app
from ingress.health import Readiness
from ingress.intake import Intake
from ingress.keys import Keyring, KeyStore
from ingress.producers import default_policy
from ingress.routes import IngressApp, make_app
from operations.services.least_privilege import require_least_privilege
from runtime.clock import Clock, SystemClock
from runtime.lifecycle import run_service, tune_gc
from runtime.settings import Settings
from schemas.external_registry import activate_registry
from server.admin_address import admin_address
from server.connections import limit_connections
from server.http_server import (
    Address,
    address_of,
    bind_admin_socket,
    bind_socket,
    clear_ready_file,
    end_with_parent,
    serve_http,
    shared_port,
    write_ready_file,
)
from server.processes import ProcessStart, run_several
from signing.master_key import MasterKeys
from streams.producer import EventProducer
from streams.topics import EVENTS_TOPIC

INGRESS_GC_THRESHOLDS: Final = (50_000, 50, 1000)
"""Full collections walk the deduplication cache, for a tenth of a second each: have a hundredth as many."""
DATABASE_TIMEOUT_SECONDS: Final = 30.0
READY_TIMEOUT_SECONDS: Final = 20.0
EVICT_EVERY_SECONDS: Final = 10.0


class Ingress(NamedTuple):
    """Two applications and the parts that they are wired to. The lifespan of `app` starts and stops them."""

    app: IngressApp
    admin_app: AdminApp
    intake: Intake
    keyring: Keyring
    readiness: Readiness


def build_ingress(
    settings: Settings,
    *,
    clock: Clock | None = None,
    producer: EventProducer | None = None,
    ready_timeout_seconds: float = 0,
) -> Ingress:
    """Return ingress, wired. It connects to Kafka and Postgres when the application's lifespan begins.

    Webhooks are answered with 503 until both have answered. The lifespan's start takes up to `ready_timeout_seconds`
    if they don't answer at once: a server listens after it.

    Raises ConfigurationError where an address or the master key is missing, and what `activate_registry` raises.
    """
    clock = clock or SystemClock()
    registry = activate_registry(settings)
    producer = producer or EventProducer(settings, topics=(EVENTS_TOPIC,))
    database = connect(settings, "ingress")
    keyring = Keyring(KeyStore(database, MasterKeys(settings).require()), clock, default_policy(settings))
    intake = Intake(settings, keyring, producer, clock)
    readiness = Readiness(keyring, producer, clock)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        keyring.start()
        producer.start_in_background()
        evicting = asyncio.create_task(_evict_expired(intake), name="evict-expired")
        try:
            if ready_timeout_seconds:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ready_timeout_seconds):
                        await readiness.wait()
            yield
        finally:
            evicting.cancel()
            await asyncio.gather(evicting, return_exceptions=True)
            await producer.stop()
            await keyring.stop()
            await database.close()

    admin_app = make_admin_app(registry, TrustedProxies(settings.ingress_trusted_proxies))
    return Ingress(make_app(intake, readiness, lifespan), admin_app, intake, keyring, readiness)


def serve_ingress(
    settings: Settings,
    *,
    host: str,
    port: int,
    ready_file: Path | None,
    say: Callable[[str], None],
    parent_pipe: int | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; then take no more connections, answer what was accepted, and return.

    Port 0 is any free one. `say` gets one line with the addresses; `ready_file` appears once webhooks can be taken and
    holds `{"host", "port", "pid", "url", "admin_url"}`. With `parent_pipe` the port is shared with other processes, and
    this one ends when the pipe's other end does. Raises AddressInUse, ReadyFileUnwritable, DatabaseUnreachable, and
    TooMuchPrivilege where the database role could rewrite the log.
    """
    if ready_file is not None:
        clear_ready_file(ready_file)
    limit_connections()
    tune_gc(*INGRESS_GC_THRESHOLDS)
    listener = bind_socket(host, port, shared=parent_pipe is not None)
    admin_listener = bind_admin_socket(admin_address(settings.ingress_admin_address, port))
    run_service(_serve(settings, listener, admin_listener, ready_file, say, parent_pipe))


async def _serve(
    settings: Settings,
    listener: socket.socket,
    admin_listener: socket.socket,
    ready_file: Path | None,
    say: Callable[[str], None],
    parent_pipe: int | None,
) -> None:
    await require_least_privilege(settings, "ingress", DATABASE_TIMEOUT_SECONDS)
    # The others of the port answer until this process can; but not without end, should nobody be able to.
    ready_timeout_seconds = 0 if parent_pipe is None else READY_TIMEOUT_SECONDS
    ingress = build_ingress(settings, ready_timeout_seconds=ready_timeout_seconds)
    await ingress.keyring.assert_read_only()
    if parent_pipe is not None:
        end_with_parent(parent_pipe)
    await serve_http(
        ingress.app,
        listener,
        admin_app=ingress.admin_app,
        admin_listener=admin_listener,
        readiness=ingress.readiness,
        ready_file=ready_file,
        keep_alive_timeout_seconds=settings.ingress_keep_alive_timeout_seconds,
        when_started=lambda: say(_listening(address_of(listener).url, address_of(admin_listener).url)),
        when_ending=ingress.intake.stop,
    )


def serve_several(
    settings: Settings, count: int, *, host: str, port: int, ready_file: Path | None, say: Callable[[str], None]
) -> None:
    """Serve with so many processes until SIGTERM or SIGINT; then they answer what they accepted.

    The first one has the admin address of the settings; the others take the ports after it. Raises AddressInUse,
    ReadyFileUnwritable, ProcessEnded.
    """
    if ready_file is not None:
        clear_ready_file(ready_file)
    admin = admin_address(settings.ingress_admin_address, port)
    with shared_port(host, port) as bound_socket:
        address = address_of(bound_socket)

        def command(start: ProcessStart) -> tuple[list[str], Mapping[str, str]]:
            program = [sys.executable, "-m", "operations", "ingress", "--host", host, "--port", str(address.port)]
            options = ["--ready-file", str(start.ready_file), "--processes", "1", "--parent-pipe", str(start.pipe)]
            own = admin._replace(port=admin.port + start.number if admin.port else 0)
            return [*program, *options], {"PLANT_INGRESS_ADMIN_ADDRESS": str(own)}

        def when_ready(first: Path) -> None:
            admin_url = msgspec.json.decode(first.read_bytes(), type=Address).admin_url
            say(_listening(f"{address.url} with {count} processes", admin_url))
            if ready_file is not None:
                write_ready_file(ready_file, msgspec.structs.replace(address, admin_url=admin_url))

        run_several(count, command, when_ready)


async def _evict_expired(intake: Intake) -> None:
    while True:
        await asyncio.sleep(EVICT_EVERY_SECONDS)
        while intake.evict_expired():  # noqa: ASYNC110 (in steps, between which others are served)
            await asyncio.sleep(0)
        intake.update_gauges()


def _listening(url: str, admin_url: str) -> str:
    return f"Listening on {url}; registry and metrics on {admin_url}"
