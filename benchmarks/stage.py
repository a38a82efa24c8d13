"""What every benchmark stands on: its own local stack, clean databases with the production DDL, CPU time by part."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil

from database import migrate
from devstack import postgres, sql
from devstack.stack import Stack
from projections.install import install
from projections.session import Session
from runtime.settings import Settings, load_settings

HOME = Path(os.environ.get("PLANT_BENCH_HOME", ".plant/bench"))
PARTITIONS = 4


@dataclass(frozen=True)
class Stage:
    """A running stack and one clean database on it; `environ` is what a Plant process needs to use both."""

    stack: Stack
    environ: Mapping[str, str]
    superuser_url: str

    @property
    def settings(self) -> Settings:
        return load_settings(self.environ)

    def query(self, statement: str) -> list[tuple[object, ...]]:
        """One statement as the superuser."""
        session = Session(self.superuser_url)
        try:
            return session.query(statement)
        finally:
            session.close()

    def number(self, statement: str) -> int:
        """Return the one whole number that a statement asks for."""
        ((number,),) = self.query(statement)
        assert isinstance(number, int)
        return number

    def execute(self, statement: str) -> None:
        """One statement as the superuser, in the stage's database."""
        sql.execute(self.superuser_url, [statement])

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time that Kafka and Postgres have used so far."""
        state = self.stack.state
        parts = {"kafka": state.kafka, "postgres": state.postgres}
        return {name: tree_cpu_seconds(record.pid) for name, record in parts.items() if record is not None}


@contextmanager
def running_stack(home: Path = HOME, *, brokers: int = 1) -> Iterator[Stack]:
    """Yield the benchmarks' own stack, up and empty for the block."""
    stack = Stack(home, brokers=brokers)
    stack.down(delete_data=True)
    stack.up()
    try:
        yield stack
    finally:
        stack.down(delete_data=True)


@contextmanager
def clean_database(stack: Stack, **settings: str) -> Iterator[Stage]:
    """Yield a migrated, empty database and a consumer group of its own; both are gone after the block."""
    name = f"bench_{secrets.token_hex(4)}"
    superuser = stack.environ["PLANT_DATABASE_SUPERUSER_URL"]
    postgres.create_database(superuser, name)
    defaults = {
        "PLANT_CONSUMER_GROUP": name,
        "PLANT_LOG_LEVEL": "error",
        "PLANT_TOPIC_PARTITIONS": str(PARTITIONS),
    }
    environ = {**os.environ, **stack.environ, **defaults, **settings}
    for variable, address in stack.environ.items():
        if variable.startswith("PLANT_DATABASE_") and variable.endswith("_URL"):
            environ[variable] = urlunsplit(urlsplit(address)._replace(path=f"/{name}"))
    sql.execute(environ["PLANT_DATABASE_SUPERUSER_URL"], ["CREATE EXTENSION vector", postgres.SCHEMA_GRANT])
    migrate.upgrade(environ["PLANT_DATABASE_OWNER_URL"])
    install(environ["PLANT_DATABASE_OWNER_URL"])
    try:
        yield Stage(stack, environ, environ["PLANT_DATABASE_SUPERUSER_URL"])
    finally:
        postgres.drop_database(superuser, name)


@contextmanager
def process(stage: Stage, *command: str, program: str = sys.executable) -> Iterator[psutil.Process]:
    """Yield a process, of the project's Python where no other program is named; terminated at the end of the block.

    It has a session of its own, and so its own share of the processors, as a service of a machine or a container has:
    Linux divides them among sessions first. All services in one would share what each process of Postgres has.
    """
    started = subprocess.Popen([program, *command], env=dict(stage.environ), start_new_session=True)
    try:
        yield psutil.Process(started.pid)
    finally:
        started.terminate()
        started.wait(60)


def tree_cpu_seconds(pid: int) -> float:
    """CPU time of a process and its live children, and of children that it has waited for."""
    total = 0.0
    root = psutil.Process(pid)
    for member in [root, *root.children(recursive=True)]:
        try:
            times = member.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
        if member.pid == pid:
            total += times.children_user + times.children_system
    return total
