"""The local stack as operators use it: found by settings, migrated, with its topics made."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from runtime.errors import ConfigurationError
from runtime.settings import load_settings

try:
    from devstack.kafka import BrokerCount
    from devstack.postgres_binaries import PostgresMajor
    from devstack.progress import Progress
    from devstack.stack import Stack
except ModuleNotFoundError as error:
    raise ConfigurationError(
        "The local stack is not installed.",
        why=f"The package {error.name} is absent: services are installed without the local stack's packages.",
        next_step="make setup",
    ) from error


def stack_here(*, major: str | None = None, brokers: str | None = None, progress: Progress | None = None) -> Stack:
    """Return the stack of PLANT_HOME (`.plant` in the current folder by default)."""
    return Stack(
        Path(load_settings().home),
        postgres_major=cast(PostgresMajor, int(major)) if major else None,
        brokers=cast(BrokerCount, int(brokers)) if brokers else None,
        progress=progress,
    )


def prepare_stack(environ: Mapping[str, str], progress: Progress) -> None:
    """Migrate a stack's database and make its topics. `environ` takes precedence over the process's own."""
    from database import migrate
    from projections.install import install
    from streams import topics

    settings = load_settings({**os.environ, **environ})
    progress.say("Migrating the database")
    migrate.upgrade(settings.database_address("owner"))
    install(settings.database_address("owner"))
    progress.say("Making the topics")
    asyncio.run(topics.apply(settings))
