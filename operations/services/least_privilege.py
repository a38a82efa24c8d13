"""The check that a service connects to the database with no more rights than its role needs."""

from __future__ import annotations

import asyncio

from database.connector import connect
from database.errors import DatabaseUnreachable
from runtime.settings import DatabaseRole, Settings

RETRY_SECONDS = 1.0


async def require_least_privilege(settings: Settings, role: DatabaseRole, wait_timeout_seconds: float = 0) -> None:
    """Raise TooMuchPrivilege where the database role could rewrite the log.

    A database that is not reachable is tried again until the timeout; then DatabaseUnreachable is raised.
    """
    database = connect(settings, role)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_timeout_seconds
    try:
        while True:
            try:
                return await database.assert_least_privilege()
            except DatabaseUnreachable:
                if loop.time() >= deadline:
                    raise
                await asyncio.sleep(RETRY_SECONDS)
    finally:
        await database.close()
