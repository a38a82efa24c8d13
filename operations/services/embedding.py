"""Wiring of the service that computes embeddings: settings in, embeddings of the catalogue's skills out."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from database import schema_revision
from database.connector import Database, connect
from database.errors import DatabaseUnreachable
from entities.embedding import Embedder
from entities.ngram_embedder import NgramEmbedder
from operations.services.least_privilege import require_least_privilege
from operations.services.readiness import ServiceReadiness
from projections.marketplace.skill_embeddings import embed_skills
from runtime.lifecycle import serve_metrics, stop_on_signals
from runtime.logging import get_logger
from runtime.probes import Probes
from runtime.settings import Settings

log = get_logger(__name__)

POLL_SECONDS: Final = 5.0
"""From one walk over the catalogue to the next."""


def build_embedder() -> Embedder:
    """Return the embedder of this deployment, the built-in one; an adapter with a model is put in here."""
    return NgramEmbedder()


async def serve_embeddings(settings: Settings, *, once: bool, poll_seconds: float = POLL_SECONDS) -> int:
    """Embed new and changed skills until SIGINT or SIGTERM, or once; return how many they were.

    While the database is unreachable, it is tried again, but not with `once`. Raises SchemaBehind, TooMuchPrivilege,
    DatabaseUnreachable at the start, ConfigurationError, and EmbedderBroken.
    """
    await asyncio.to_thread(schema_revision.require_current_schema, settings.database_address("embedder"))
    await require_least_privilege(settings, "embedder")
    database, embedder = connect(settings, "embedder"), build_embedder()
    try:
        if once:
            return await embed_skills(database, embedder)
        readiness = ServiceReadiness(settings, "embedder", kafka=False)
        readiness.own_faults = dict
        serve_metrics(settings.embedder_metrics_address, "embedder", Probes(readiness))
        return await _embed_until_stopped(database, embedder, poll_seconds)
    finally:
        await database.close()


async def _embed_until_stopped(database: Database, embedder: Embedder, poll_seconds: float) -> int:
    stopping, embedded = asyncio.Event(), 0
    with stop_on_signals(stopping.set):
        while not stopping.is_set():
            try:
                if count := await embed_skills(database, embedder, stopping.is_set):
                    embedded += count
                    log.info("skills.embedded", count=count, model=embedder.model)
            except DatabaseUnreachable as error:
                log.warning("skills.database_unreachable", why=error.why)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), poll_seconds)
    return embedded
