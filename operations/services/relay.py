"""Wiring of a relay process: settings in, a running relay out."""

from __future__ import annotations

import asyncio

from database import schema_revision
from operations.services.least_privilege import require_least_privilege
from operations.services.readiness import ServiceReadiness
from relay.relay import Relay
from runtime.lifecycle import serve_metrics, stop_on_signals
from runtime.probes import Probes
from runtime.settings import Settings


def build_relay(settings: Settings, events_topic: str, dead_topic: str) -> Relay:
    """Return a relay of changes to `events_topic` and of dead letters to `dead_topic`; it has not started."""
    return Relay(settings, events_topic=events_topic, dead_topic=dead_topic)


async def serve_relay(
    settings: Settings, events_topic: str, dead_topic: str, once_lock_seconds: float | None = None
) -> Relay:
    """Relay until SIGINT or SIGTERM, or once, waiting so long for the lock; the relay says what it has published.

    Raises SchemaBehind, TooMuchPrivilege, DatabaseUnreachable, and what the relay raises.
    """
    await asyncio.to_thread(schema_revision.require_current_schema, settings.database_address("writer"))
    await require_least_privilege(settings, "writer")
    relay = build_relay(settings, events_topic, dead_topic)
    with stop_on_signals(relay.stop):
        if once_lock_seconds is not None:
            await relay.once(once_lock_seconds)
            return relay
        readiness = ServiceReadiness(settings, "writer")
        readiness.own_faults = dict  # it waits for both, and needs nothing else
        serve_metrics(settings.relay_metrics_address, "relay", Probes(readiness))
        await relay.serve()
    return relay
