"""Wiring of the API for readers: settings in, a process that answers readers out."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple
from uuid import UUID

import msgspec
from litestar import Litestar

from api.endpoint_changes import EndpointParts
from api.endpoint_requests import EndpointRequests
from api.health import ReadReadiness
from api.reads import Reads
from api.routes import ReaderApp, make_reader_admin_app, make_reader_app
from api.token_cache import AccessTokenCache
from api.token_store import TokenStore
from database.connector import Database, connect
from deliveries.endpoint_starts import read_start
from deliveries.endpoint_store import EndpointStore
from deliveries.guard.connections import DeliveryClient
from operations.operator_actions import OperatorAction, publish_action
from operations.services.least_privilege import require_least_privilege
from projections.checkpoint_poller import CheckpointPoller
from runtime.clock import Clock, SystemClock
from runtime.lifecycle import run_service, tune_gc
from runtime.settings import Settings
from server.admin_address import admin_address
from server.connections import limit_connections
from server.http_server import (
    address_of,
    bind_admin_socket,
    bind_socket,
    clear_ready_file,
    serve_http,
)
from signing.master_key import MasterKeys
from streams.producer import EventProducer
from streams.topics import OPERATIONS_TOPIC

SERVICE: Final = "api"
USUAL_PORT: Final = 8082
GC_THRESHOLDS: Final = (50_000, 50, 1000)
DATABASE_TIMEOUT_SECONDS: Final = 30.0
UPDATE_GAUGES_EVERY_SECONDS: Final = 5.0


class ReaderApi(NamedTuple):
    """Two applications and the parts that they are wired to. The lifespan of `app` starts and stops them."""

    app: ReaderApp
    admin_app: Litestar
    database: Database
    store: TokenStore
    tokens: AccessTokenCache
    reads: Reads
    readiness: ReadReadiness


def build_api(settings: Settings, *, clock: Clock | None = None) -> ReaderApi:
    """Return the API for readers, wired. It connects to Postgres when the application's lifespan begins.

    Raises ConfigurationError where an address is missing.
    """
    clock = clock or SystemClock()
    database = connect(bounded(settings), "api")
    store = TokenStore(database)
    tokens = AccessTokenCache(store, clock)
    poller = CheckpointPoller(database, replica=True)
    reads = Reads(settings, database, tokens, poller, clock)
    readiness = ReadReadiness(tokens)
    changing = connect(bounded(settings), "endpoints") if settings.database_endpoints_url else None
    endpoints = None if changing is None else EndpointRequests(settings, changing, tokens, clock, reads.limits)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        tokens.start()
        updating = asyncio.create_task(_update_gauges(reads), name="update-gauges")
        try:
            async with _changing_endpoints(settings, endpoints, clock):
                yield
        finally:
            updating.cancel()
            await asyncio.gather(updating, return_exceptions=True)
            await poller.close()
            await tokens.stop()
            await database.close()
            if changing is not None:
                await changing.close()

    app = make_reader_app(reads, readiness, lifespan, endpoints)
    return ReaderApi(app, make_reader_admin_app(), database, store, tokens, reads, readiness)


class ActionRecorder:
    """Records actions on `plant.operations`, through one producer that connects when it is first needed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connecting = asyncio.Lock()
        self._producer: EventProducer | None = None

    async def record(self, action: str, target: str, reason: str, actor: str, operation_id: UUID) -> None:
        """Record an action. It may be done only once this has returned. Raises KafkaUnavailable, TopicMissing."""
        async with self._connecting:
            if self._producer is None:
                producer = EventProducer(self._settings, topics=(OPERATIONS_TOPIC,))
                await producer.start()
                self._producer = producer
        made = OperatorAction(action=action, target=target, reason=reason, actor=actor, operation_id=operation_id)
        await publish_action(self._producer, made)

    async def close(self) -> None:
        """Disconnect."""
        if self._producer is not None:
            await self._producer.stop()


@contextlib.asynccontextmanager
async def _changing_endpoints(
    settings: Settings, endpoints: EndpointRequests | None, clock: Clock
) -> AsyncIterator[None]:
    """Let endpoints be changed as long as the block lasts."""
    if endpoints is None:
        yield
        return
    client, recorder = DeliveryClient(settings), ActionRecorder(settings)
    try:
        endpoints.start(EndpointParts(settings, client, recorder.record, partial(read_start, settings), clock))
        yield
    finally:
        await client.close()
        await recorder.close()


def serve_api(settings: Settings, *, host: str, port: int, ready_file: Path | None, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; then take no more connections, answer what was accepted, and return.

    Port 0 is any free one. `say` gets one line with the addresses; `ready_file` appears once readers are answered and
    holds `{"host", "port", "pid", "url", "admin_url"}`. Raises AddressInUse, ReadyFileUnwritable, DatabaseUnreachable,
    TooMuchPrivilege where the database role could write what it reads, and MasterKeyUnusable where it changes
    endpoints and has no master key.
    """
    if ready_file is not None:
        clear_ready_file(ready_file, SERVICE)
    limit_connections()
    tune_gc(*GC_THRESHOLDS)
    listener = bind_socket(host, port, shared=False, service=SERVICE)
    admin = admin_address(settings.api_admin_address, port, service=SERVICE, usual_port=USUAL_PORT)
    admin_listener = bind_admin_socket(admin, SERVICE)
    run_service(_serve(settings, listener, admin_listener, ready_file, say))


async def _serve(
    settings: Settings,
    listener: socket.socket,
    admin_listener: socket.socket,
    ready_file: Path | None,
    say: Callable[[str], None],
) -> None:
    await require_least_privilege(settings, "api", DATABASE_TIMEOUT_SECONDS)
    if settings.database_api_replica_url:
        # The replica has the primary's roles, but its address may name another one.
        on_replica = msgspec.structs.replace(
            settings, database_api_url=settings.database_api_replica_url, database_api_replica_url=""
        )
        await require_least_privilege(on_replica, "api", DATABASE_TIMEOUT_SECONDS)
    if settings.database_endpoints_url:
        await require_least_privilege(settings, "endpoints", DATABASE_TIMEOUT_SECONDS)
        MasterKeys(settings).require()
        await _require_one_tenant(settings)
    api = build_api(settings)
    await api.store.assert_read_only()
    url, admin_url = address_of(listener).url, address_of(admin_listener).url
    await serve_http(
        api.app,
        listener,
        admin_app=api.admin_app,
        admin_listener=admin_listener,
        readiness=api.readiness,
        ready_file=ready_file,
        keep_alive_timeout_seconds=settings.api_keep_alive_timeout_seconds,
        when_started=lambda: say(f"Listening on {url}; metrics on {admin_url}"),
        when_ending=api.reads.stop,
        service=SERVICE,
    )


async def _require_one_tenant(settings: Settings) -> None:
    database = connect(settings, "endpoints")
    try:
        await EndpointStore(database, MasterKeys(settings)).assert_one_tenant()
    finally:
        await database.close()


def bounded(settings: Settings) -> Settings:
    """Return settings whose database sessions end a query, and a wait, that takes longer than a reader may."""
    seconds = settings.api_query_timeout_seconds
    return msgspec.structs.replace(
        settings,
        database_statement_timeout_seconds=min(seconds, settings.database_statement_timeout_seconds),
        database_lock_timeout_seconds=min(seconds, settings.database_lock_timeout_seconds),
        database_pool_wait_seconds=min(seconds, settings.database_pool_wait_seconds),
    )


async def _update_gauges(reads: Reads) -> None:
    while True:
        reads.limits.update_gauges()
        await asyncio.sleep(UPDATE_GAUGES_EVERY_SECONDS)
