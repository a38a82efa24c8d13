"""The HTTP server of an ingress process: one bound socket, a ready file, a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import uvicorn

from ingress.errors import AddressInUse, ReadyFileUnwritable
from ingress.health import Readiness
from ingress.routes import IngressApp
from ingress.server.connections import BoundedConnection, close_overdue
from runtime.lifecycle import stop_on_signals, temp_path

BACKLOG: Final = 2048
SHUTDOWN_TIMEOUT_SECONDS: Final = 15


class Address(msgspec.Struct, frozen=True):
    """Where a process serves, as its ready file says."""

    host: str
    port: int
    pid: int
    url: str


class Server(uvicorn.Server):
    """uvicorn's server, ended by signals with exit code 0, with callbacks for its start and its end."""

    def __init__(
        self,
        config: uvicorn.Config,
        when_started: Callable[[], None],
        when_ending: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._when_started = when_started
        self._when_ending = when_ending

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._when_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with stop_on_signals(self._end):
            yield

    def _end(self) -> None:
        self.force_exit = self.should_exit  # a second signal waits for nobody
        self.should_exit = True
        self._when_ending()


async def serve_http(
    app: IngressApp,
    listener: socket.socket,
    *,
    readiness: Readiness,
    ready_file: Path | None,
    keep_alive_timeout_seconds: int,
    when_started: Callable[[], None],
    when_ending: Callable[[], None],
) -> None:
    """Serve on a bound socket until SIGTERM or SIGINT; then answer what was accepted, and return."""
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # it logs a line a bad request, and what we log ourselves
    config = uvicorn.Config(
        app,
        http=BoundedConnection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=keep_alive_timeout_seconds,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_SECONDS,
        backlog=BACKLOG,
    )
    server = Server(config, when_started, when_ending)
    tasks = [asyncio.create_task(close_overdue(server.server_state), name="close-overdue")]
    if ready_file is not None:
        writing = _write_when_ready(readiness, ready_file, address_of(listener))
        tasks.append(asyncio.create_task(writing, name="ready-file"))
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def end_with_parent(pipe: int) -> None:
    """End this process, as SIGTERM does, when nobody holds the pipe's other end any more."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        loop.remove_reader(pipe)
        os.kill(os.getpid(), signal.SIGTERM)

    loop.add_reader(pipe, end)


async def _write_when_ready(readiness: Readiness, path: Path, address: Address) -> None:
    await readiness.wait()
    write_ready_file(path, address)


def write_ready_file(path: Path, address: Address) -> None:
    """Write the address to the ready file, in one step: a reader never sees half of it."""
    temporary = temp_path(path)
    temporary.write_bytes(msgspec.json.encode(address))
    temporary.replace(path)


def clear_ready_file(path: Path) -> None:
    """Remove an earlier ready file, and check that a new one can be written: else somebody waits for it without end.

    Raises ReadyFileUnwritable.
    """
    try:
        path.unlink(missing_ok=True)
        temp_path(path).touch()
        temp_path(path).unlink()
    except OSError as error:
        raise ReadyFileUnwritable(
            f"{path} can't be written.", why=f"{error.strerror}.", next_step="plant ingress --ready-file ready.json"
        ) from error


def address_of(bound_socket: socket.socket) -> Address:
    """Return the address of a bound socket."""
    host, port = bound_socket.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    return Address(host, port, os.getpid(), url)


@contextlib.contextmanager
def shared_port(host: str, port: int) -> Iterator[socket.socket]:
    """Hold a port for several processes of one deployment: bind it and never listen, so that it stays theirs.

    The kernel lets any process of this user share such a port. So a probe looks for one that listens there, and a lock,
    a name in the network's namespace, keeps out another deployment that begins. Raises AddressInUse.
    """
    if port:
        bind_socket(host, port, shared=False).close()
    with contextlib.closing(bind_socket(host, port, shared=True)) as bound_socket:
        port = address_of(bound_socket).port
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as lock:
            if sys.platform == "linux":  # others have no names without a file
                try:
                    lock.bind(f"\0plant-ingress {host} {port}")
                except OSError as error:
                    raise _address_in_use(host, port, "Another plant ingress with several processes has it.") from error
            yield bound_socket


def bind_socket(host: str, port: int, *, shared: bool) -> socket.socket:
    """Return a socket at the address, which others of this user may bind too if it is shared. Raises AddressInUse."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound_socket = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Connections that have closed keep their listener's flags, and must not keep a new probe from the port.
        bound_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound_socket.bind((host, port))
    except (OSError, OverflowError) as error:
        bound_socket.close()
        raise _address_in_use(host, port, f"{error}.") from error
    bound_socket.setblocking(False)
    return bound_socket


def _address_in_use(host: str, port: int, why: str) -> AddressInUse:
    return AddressInUse(f"Can't listen on {host}:{port}.", why=why, next_step="plant ingress --port 0")
