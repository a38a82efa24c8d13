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
    record = server.start(port, password, lambda _: None)
    yield postgres.address("postgres", password, port, "postgres")
    server.stop(record)
    shutil.rmtree(server.data)
