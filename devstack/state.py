"""A stack's written state: processes, ports and versions in `stack.json`; addresses and secrets in `stack.env`."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from devstack import processes
from devstack.postgres import DATABASE, ROLES, SUPERUSER, address
from devstack.processes import ProcessRecord

STACK_FILE = "stack.json"
ENVIRON_FILE = "stack.env"
LOCK_FILE = "stack.lock"

HEADER = """\
# Written by `plant up`. Addresses and passwords of the local stack; readable by you alone.
# The superuser is for `plant up`, tests and demonstrations; no service of Plant connects as it.
"""


class BrokerState(msgspec.Struct, frozen=True, kw_only=True):
    """One Kafka broker: where it listens, and its process."""

    port: int | None = None
    controller_port: int | None = None
    process: ProcessRecord | None = None


class StackState(msgspec.Struct, frozen=True, kw_only=True):
    """What `stack.json` holds. Ports outlive the processes, so that addresses stay the same."""

    kafka_version: str
    postgres_version: str
    brokers: tuple[BrokerState, ...] = ()
    """In the order of their numbers, the first being 1."""
    postgres_port: int | None = None
    postgres: ProcessRecord | None = None

    @property
    def kafka(self) -> ProcessRecord | None:
        """The first broker's process."""
        return self.broker(1).process

    @property
    def kafka_port(self) -> int | None:
        """The first broker's port."""
        return self.broker(1).port

    @property
    def controller_port(self) -> int | None:
        """The first broker's port as a controller."""
        return self.broker(1).controller_port

    def broker(self, number: int) -> BrokerState:
        """Return the broker of this number, counted from 1; an empty state where there never was one."""
        return self.brokers[number - 1] if 0 < number <= len(self.brokers) else BrokerState()

    def with_broker(self, number: int, **changes: object) -> StackState:
        """Return the same state but for one broker."""
        brokers = list(self.brokers)
        brokers[number - 1] = msgspec.structs.replace(brokers[number - 1], **changes)
        return msgspec.structs.replace(self, brokers=tuple(brokers))


class StateFolder:
    """The written state of one home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._writing = threading.Lock()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of this stack: one process at a time starts or stops it.

        Nobody else may write to what is made meanwhile, whatever the umask.
        """
        before = os.umask(processes.WRITABLE_BY_OTHERS)
        os.umask(before | processes.WRITABLE_BY_OTHERS)
        try:
            if not self.home.exists():
                self.home.mkdir(parents=True)
                self.home.chmod(0o755)  # The system user that runs Postgres for root walks through it.
            with (self.home / LOCK_FILE).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        finally:
            os.umask(before)

    def read(self, fresh: StackState) -> StackState:
        """Return the last state; `fresh` where none was written or it can't be read."""
        try:
            written = msgspec.json.decode((self.home / STACK_FILE).read_bytes(), type=dict[str, Any])
            return msgspec.convert(_with_brokers(written), StackState)
        except (FileNotFoundError, msgspec.DecodeError):
            return fresh

    def change(self, fresh: StackState, edit: Callable[[StackState], StackState]) -> StackState:
        """Write down what `edit` makes of the last state. Safe from several threads."""
        with self._writing:
            state = edit(self.read(fresh))
            content = msgspec.json.format(msgspec.json.encode(state), indent=2)
            _write(self.home / STACK_FILE, content.decode() + "\n", mode=0o644)
            return state

    def environ(self) -> dict[str, str]:
        """Return the lines of `stack.env`; empty before the first start."""
        try:
            lines = (self.home / ENVIRON_FILE).read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError:
            return {}
        pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
        return {name: value for name, _, value in pairs}

    def write_environ(self, kafka_ports: Sequence[int], postgres_port: int) -> dict[str, str]:
        """Write addresses at these ports; secrets are kept from the last file, or made."""
        known = self.environ()
        lines = {
            "PLANT_KAFKA_BOOTSTRAP_SERVERS": ",".join(f"127.0.0.1:{port}" for port in kafka_ports),
            **({"PLANT_TOPIC_REPLICATION_FACTOR": str(len(kafka_ports))} if len(kafka_ports) > 1 else {}),
            **{url_name(role): address(role, _secret(known, role), postgres_port) for role in ROLES},
            url_name(SUPERUSER): address(SUPERUSER, _secret(known, SUPERUSER), postgres_port, DATABASE),
            "PLANT_MASTER_KEY": known.get("PLANT_MASTER_KEY") or base64.b64encode(secrets.token_bytes(32)).decode(),
        }
        content = HEADER + "".join(f"{name}={value}\n" for name, value in lines.items())
        _write(self.home / ENVIRON_FILE, content, mode=0o600)
        return lines


def _with_brokers(written: dict[str, Any]) -> dict[str, Any]:
    """Read a file from before there were several brokers: the one broker's fields stood next to the others."""
    if "brokers" in written or not written.keys() & {"kafka", "kafka_port"}:
        return written
    fields = {"port": "kafka_port", "controller_port": "controller_port", "process": "kafka"}
    return {**written, "brokers": [{field: written.get(former) for field, former in fields.items()}]}


def url_name(role: str) -> str:
    """`plant_writer` → `PLANT_DATABASE_WRITER_URL`; the superuser's is `PLANT_DATABASE_SUPERUSER_URL`."""
    short = "superuser" if role == SUPERUSER else role.removeprefix("plant_")
    return f"PLANT_DATABASE_{short.upper()}_URL"


def password(environ: Mapping[str, str], role: str) -> str:
    return urlsplit(environ[url_name(role)]).password or ""


def _secret(known: Mapping[str, str], role: str) -> str:
    return password(known, role) if url_name(role) in known else secrets.token_urlsafe(24)


def _write(path: Path, content: str, *, mode: int) -> None:
    """Replace a file in one step; it never exists with a wider mode."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(content)
    part.replace(path)
