"""What a stack writes down: processes, ports and versions in `stack.json`; addresses and secrets in `stack.env`."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from devstack.postgres import DATABASE, ROLES, SUPERUSER, address
from devstack.processes import ProcessRecord

STACK_FILE = "stack.json"
ENVIRON_FILE = "stack.env"
LOCK_FILE = "stack.lock"

HEADER = """\
# Written by `plant up`. Addresses and passwords of the local stack; readable by you alone.
# The superuser is for `plant up`, tests and demonstrations; no service of Plant connects as it.
"""


class StackState(msgspec.Struct, frozen=True, kw_only=True):
    """What `stack.json` holds. Ports outlive the processes, so that addresses stay the same."""

    kafka_version: str
    postgres_version: str
    kafka_port: int | None = None
    controller_port: int | None = None
    postgres_port: int | None = None
    kafka: ProcessRecord | None = None
    postgres: ProcessRecord | None = None


class StateFolder:
    """The written state of one home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._writing = threading.Lock()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time starts or stops this stack."""
        if not self.home.exists():
            self.home.mkdir(parents=True)
            self.home.chmod(0o755)  # Whatever the umask: the system user that runs Postgres for root walks through it.
        with (self.home / LOCK_FILE).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def read(self, fresh: StackState) -> StackState:
        """The last state; `fresh` where none was written or it can't be read."""
        try:
            return msgspec.json.decode((self.home / STACK_FILE).read_bytes(), type=StackState)
        except (FileNotFoundError, msgspec.DecodeError):
            return fresh

    def change(self, fresh: StackState, **changes: object) -> StackState:
        with self._writing:
            state = msgspec.structs.replace(self.read(fresh), **changes)
            content = msgspec.json.format(msgspec.json.encode(state), indent=2)
            _write(self.home / STACK_FILE, content.decode() + "\n", mode=0o644)
            return state

    def environ(self) -> dict[str, str]:
        """The lines of `stack.env`; empty before the first start."""
        try:
            lines = (self.home / ENVIRON_FILE).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return {}
        pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
        return {name: value for name, _, value in pairs}

    def write_environ(self, kafka_port: int, postgres_port: int) -> dict[str, str]:
        """Write addresses at these ports; secrets are kept from the last file, or made."""
        known = self.environ()
        lines = {
            "PLANT_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{kafka_port}",
            **{url_name(role): address(role, _secret(known, role), postgres_port) for role in ROLES},
            url_name(SUPERUSER): address(SUPERUSER, _secret(known, SUPERUSER), postgres_port, DATABASE),
            "PLANT_MASTER_KEY": known.get("PLANT_MASTER_KEY") or base64.b64encode(secrets.token_bytes(32)).decode(),
        }
        content = HEADER + "".join(f"{name}={value}\n" for name, value in lines.items())
        _write(self.home / ENVIRON_FILE, content, mode=0o600)
        return lines


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
