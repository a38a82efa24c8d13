"""Wiring of a relay process: settings in, a running relay out."""

from __future__ import annotations

import asyncio
import signal

from database import migrate
from database.connector import connect
from relay.relay import Relay
from runtime.exposition import serve_metrics
from runtime.settings import Settings


async def serve_relay(
    settings: Settings, events_topic: str, dead_topic: str, once_lock_seconds: float | None = None
) -> Relay:
    """Relay until SIGINT or SIGTERM, or once, waiting so long for the lock; the relay says what it has published.

    Raises SchemaBehind, TooMuchPrivilege, DatabaseUnreachable, and what the relay raises.
    """
    await asyncio.to_thread(migrate.require_current_schema, settings.database_address("writer"))
    database = connect(settings, "writer")
    try:
        await database.assert_least_privilege()
    finally:
        await database.close()
    relay = Relay(settings, events_topic=events_topic, dead_topic=dead_topic)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, relay.stop)
    if once_lock_seconds is not None:
        await relay.once(once_lock_seconds)
        return relay
    serve_metrics(settings.relay_metrics_address, "relay")
    await relay.serve()
    return relay
