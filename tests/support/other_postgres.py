"""A Postgres of another version than the tests' own."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devstack import postgres, processes
from devstack.postgres import Postgres


@contextmanager
def fresh_postgres_16(folder: Path) -> Iterator[str]:
    """Yield the superuser's address of a Postgres 16 without Plant's roles; it is gone after the block."""
    server = Postgres(folder, 16)
    password = secrets.token_hex(8)
    port = processes.choose_port(None, set())
    records: list[processes.ProcessRecord] = []
    server.start(port, password, records.append)
    try:
        yield postgres.address("postgres", password, port, "postgres")
    finally:
        server.stop(records[0])
        shutil.rmtree(server.data)
