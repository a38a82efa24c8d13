"""SQLAlchemy's engine for one server and role, with the settings of its sessions and its metrics."""

from __future__ import annotations

from functools import partial
from typing import Final

import asyncpg
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from database.address import connect_arguments, shown
from database.driver import DriverConnection
from database.statement_log import StatementLog
from runtime import metrics
from runtime.settings import DatabaseRole, Settings

CANCEL_TIMEOUT_SECONDS: Final = 5
"""How long past the statement timeout a server may take to report that it has cancelled a statement."""

CLIENT_CHECK_SECONDS: Final = 2
"""How often a server that runs a statement checks that its client is still connected."""


def make_engine(settings: Settings, role: DatabaseRole, address: str) -> tuple[AsyncEngine, StatementLog]:
    """Return the engine and the log of its statements. Does not connect yet. Raises BadDatabaseAddress."""
    arguments = connect_arguments(
        address,
        application_name=f"plant {role}",
        answer_timeout_seconds=settings.database_statement_timeout_seconds + CANCEL_TIMEOUT_SECONDS,
        statement_timeout=f"{settings.database_statement_timeout_seconds}s",
        lock_timeout=f"{settings.database_lock_timeout_seconds}s",
        idle_in_transaction_session_timeout=f"{settings.database_idle_in_transaction_timeout_seconds}s",
        # The server ends a statement whose client is gone, rather than run it to its end.
        client_connection_check_interval=f"{CLIENT_CHECK_SECONDS}s",
        # A quote is escaped by doubling it, whatever the database or the role set.
        standard_conforming_strings="on",
        # A search for neighbours goes on until it has what passes its filters, policies among them. Set here, it costs
        # a search no round trip.
        **{"hnsw.iterative_scan": "relaxed_order"},
    )
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=partial(asyncpg.connect, **arguments, connection_class=DriverConnection),
        pool_size=settings.database_pool_size,
        max_overflow=0,
        pool_recycle=settings.database_pool_recycle_seconds,
        hide_parameters=True,
    )
    gauge = metrics.DATABASE_CONNECTIONS_OPEN.labels(role)
    event.listen(engine.sync_engine, "connect", lambda *_: gauge.inc())
    event.listen(engine.sync_engine, "close", lambda *_: gauge.dec())
    event.listen(engine.sync_engine, "close_detached", lambda *_: gauge.dec())
    name = arguments["server_settings"]["application_name"]
    statements = StatementLog(role, name, shown(address), settings.database_slow_query_milliseconds / 1000)
    statements.listen(engine.sync_engine)
    return engine, statements
