"""Where the tests' Kafka and Postgres come from.

Four ways, in this order: addresses of all in the environment; a Postgres of one's own, PLANT_DATABASE_URL, next to a
Kafka that the project starts; containers, where a Docker engine answers and PLANT_TEST_CONTAINERS=1 asks for them; else
a stack that the project starts itself, for this run alone. Workers of pytest-xdist use what the main process started.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil

from devstack import postgres, processes, sql
from devstack.kafka import JAVA_OPTIONS, ONE_OF_SEVERAL
from devstack.progress import Silent
from devstack.stack import ROLES_SQL, Stack
from devstack.start_cache import ensure_start_cache
from tests.support import ROOT

COMPOSE_FILE = "docker-compose.kafka.yml"
NEEDED = ("PLANT_KAFKA_BOOTSTRAP_SERVERS", "PLANT_DATABASE_SUPERUSER_URL")
"""The superuser makes a database a test; the roles' passwords are in their own addresses."""
OWN_POSTGRES = "PLANT_DATABASE_URL"
"""A superuser's address. The tests make Plant's roles there, and set their passwords."""
UNSAFE_AND_QUICK = (
    "ALTER SYSTEM SET fsync = off",
    "ALTER SYSTEM SET full_page_writes = off",
    "ALTER SYSTEM SET autovacuum = off",
    "SELECT pg_reload_conf()",
)
"""For the server that all tests use: it is not killed, and its data goes. Those that kill one start their own."""
SHARED = "PLANT_TEST_SERVICES"
"""Where the main process tells its workers what it has started, as JSON."""

COMPOSE_RECORD = "compose-project.json"
"""Where a run that uses containers says which project is its own."""

MEMORY = Path("/dev/shm")
"""The file system in memory that Linux has."""
MEMORY_NEEDED_BYTES = 4 * 1024**3
"""What must be free there and in the machine before a stack is put there; a whole run takes some 0.5 GB."""

# Brokers of tests live for seconds or minutes, next to others: they start in half the time with one compiler.
os.environ.setdefault(JAVA_OPTIONS, shlex.join(ONE_OF_SEVERAL))


@dataclass(frozen=True)
class Services:
    """A Kafka and a Postgres with Plant's roles. `local` is there when the project itself runs them."""

    environ: Mapping[str, str]
    local: Stack | None = None

    @property
    def kafka_bootstrap_servers(self) -> str:
        return self.environ["PLANT_KAFKA_BOOTSTRAP_SERVERS"]

    @property
    def superuser_url(self) -> str:
        return self.environ["PLANT_DATABASE_SUPERUSER_URL"]


@contextlib.contextmanager
def services() -> Iterator[Services]:
    """The services of one test session."""
    if SHARED in os.environ:
        yield Services(json.loads(os.environ[SHARED]))
    elif all(os.environ.get(name) for name in NEEDED):
        yield Services({name: value for name, value in os.environ.items() if name.startswith("PLANT_")})
    elif os.environ.get(OWN_POSTGRES):
        with local_stack("session") as stack:
            yield Services({**stack.environ, **own_postgres(os.environ[OWN_POSTGRES])})
    elif os.environ.get("PLANT_TEST_CONTAINERS") == "1":
        with _containers() as environ:
            yield Services(environ)
    else:
        with local_stack("session") as stack:
            sql.execute(stack.environ["PLANT_DATABASE_SUPERUSER_URL"], UNSAFE_AND_QUICK)
            yield Services(stack.environ, stack)


@contextlib.contextmanager
def shared_services() -> Iterator[None]:
    """The services of a run whose tests are in other processes."""
    with services() as found:
        os.environ[SHARED] = json.dumps(dict(found.environ))
        try:
            yield
        finally:
            del os.environ[SHARED]


def own_postgres(url: str) -> dict[str, str]:
    """Make Plant's roles on a server, with passwords that follow from its superuser's; everyone's address there."""
    address = urlsplit(url)
    key = (address.password or "").encode()
    secrets = {role: hmac.digest(key, role.encode(), hashlib.sha256).hex() for role in postgres.ROLES}
    postgres.make_roles(url, secrets, ROLES_SQL)
    host_and_port = address.netloc.rpartition("@")[2]
    addresses = {
        role.removeprefix("plant_"): urlunsplit(address._replace(netloc=f"{role}:{secret}@{host_and_port}"))
        for role, secret in secrets.items()
    }
    return {f"PLANT_DATABASE_{name.upper()}_URL": found for name, found in {**addresses, "superuser": url}.items()}


@contextlib.contextmanager
def local_stack(name: str) -> Iterator[Stack]:
    """A stack of our own in a folder named by our pid, so that one of a killed test run can be recognised and ended."""
    with folder_of_this_run() as own:
        ensure_start_cache(Silent())
        stack = Stack(own / name)
        try:
            stack.up()
            yield stack
        finally:
            stack.down(delete_data=True)


def make_whole(stack: Stack) -> None:
    """Start again what has ended of a stack."""
    state = stack.state
    records = [*(broker.process for broker in state.brokers), state.postgres]
    if not all(processes.is_running(record) for record in records):
        stack.up()


@contextlib.contextmanager
def folder_of_this_run() -> Iterator[Path]:
    """A folder named by our pid, which the system user of Postgres can reach; it goes when it is empty."""
    for base in _bases():
        _end_abandoned(base)
    own = runs_folder() / str(os.getpid())
    own.mkdir(exist_ok=True)
    own.chmod(0o755)
    try:
        yield own
    finally:
        with contextlib.suppress(OSError):
            own.rmdir()


def runs_folder() -> Path:
    """Return the folder of all runs' stacks, which the system user of Postgres can enter.

    It is in memory where there is room, and TMPDIR names no other: making and dropping a database's 300 files takes a
    tenth of the processor time there.
    """
    *memory, disk = _bases()
    base = next((each for each in memory if _has_room(each.parent)), disk)
    base.mkdir(exist_ok=True)
    base.chmod(0o755)
    return base


def _bases() -> list[Path]:
    places = [Path(tempfile.gettempdir())] if "TMPDIR" in os.environ else [MEMORY, Path(tempfile.gettempdir())]
    return [place / f"plant-tests-{os.getuid()}" for place in places]


def _has_room(memory: Path) -> bool:
    if not os.access(memory, os.W_OK | os.X_OK):
        return False
    return min(shutil.disk_usage(memory).free, psutil.virtual_memory().available) >= MEMORY_NEEDED_BYTES


def _end_abandoned(base: Path) -> None:
    if not base.is_dir():
        return
    for folder in base.iterdir():
        if folder.name.isdigit() and not psutil.pid_exists(int(folder.name)):
            with contextlib.suppress(FileNotFoundError):  # another run has cleared it at the same time
                for entry in folder.iterdir():
                    if entry.name == COMPOSE_RECORD:
                        _take_down(json.loads(entry.read_text(encoding="utf-8")))
                    else:
                        Stack(entry).down(delete_data=True)
            shutil.rmtree(folder, ignore_errors=True)


def _take_down(record: Mapping[str, str]) -> None:
    """Remove a killed run's containers, networks and volumes from its engine, where that still answers."""
    if (socket := urlsplit(record["docker_host"])).scheme == "unix" and not Path(socket.path).exists():
        return
    environ = {**os.environ, "DOCKER_HOST": record["docker_host"]} if record["docker_host"] else None
    command = ["docker", "compose", "--project-name", record["project"], "down", "--volumes", "--remove-orphans"]
    try:
        subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", None) or str(error)
        print(f"Left in containers by a killed run: {why.strip()} Run: {shlex.join(command)}", file=sys.stderr)


@contextlib.contextmanager
def _containers() -> Iterator[dict[str, str]]:
    """Kafka and Postgres of the compose file, through testcontainers: a project and ports of this run's own.

    A developer's project of the file's own name is left alone: its volumes would go with it.
    """
    from testcontainers.compose import DockerCompose

    project = os.environ["COMPOSE_PROJECT_NAME"] = f"plant-tests-{os.getpid()}"
    kafka_port = processes.choose_port(None, set())
    os.environ.setdefault("PLANT_KAFKA_PORT", str(kafka_port))
    os.environ.setdefault("PLANT_POSTGRES_PORT", str(processes.choose_port(None, {kafka_port})))
    compose = DockerCompose(ROOT, compose_file_name=COMPOSE_FILE, services=["kafka", "postgres"], wait=True)
    with folder_of_this_run() as own, _recorded(own / COMPOSE_RECORD, project), compose:
        kafka, superuser_url = compose_addresses(os.environ)
        sql.execute(superuser_url, UNSAFE_AND_QUICK)
        yield {"PLANT_KAFKA_BOOTSTRAP_SERVERS": kafka, **own_postgres(superuser_url)}


@contextlib.contextmanager
def _recorded(path: Path, project: str) -> Iterator[None]:
    """Keep a record of the project until the block has ended well: by one that was left, the next run takes it down."""
    path.write_text(json.dumps({"project": project, "docker_host": os.environ.get("DOCKER_HOST", "")}), "utf-8")
    yield
    path.unlink()


def compose_addresses(environ: Mapping[str, str]) -> tuple[str, str]:
    """Return Kafka's address and that of Postgres's superuser, as the compose file publishes them by its defaults."""
    kafka_port = environ.get("PLANT_KAFKA_PORT", "9092")
    postgres_port = environ.get("PLANT_POSTGRES_PORT", "5432")
    password = environ.get("PLANT_SUPERUSER_PASSWORD", "plant-superuser-development")
    return f"127.0.0.1:{kafka_port}", f"postgresql://postgres:{password}@127.0.0.1:{postgres_port}/postgres"
