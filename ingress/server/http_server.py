"""The ingress process: one event loop, one listening socket, an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import uvicorn
import uvloop

from database.connector import connect
from database.errors import DatabaseUnreachable
from ingress.errors import AddressInUse, ReadyFileUnwritable
from ingress.health import Readiness
from ingress.routes import build_app
from ingress.server.connections import IDLE_SECONDS, BoundedConnection, raise_fd_limit, reap_idle
from runtime.exposition import serve_metrics
from runtime.settings import Settings

BACKLOG: Final = 2048
GRACE_SECONDS: Final = 15
DATABASE_PATIENCE_SECONDS: Final = 30.0
DATABASE_RETRY_SECONDS: Final = 1.0
READY_SECONDS: Final = 20.0


class Address(msgspec.Struct, frozen=True):
    """Where a process serves, as its ready file says."""

    host: str
    port: int
    pid: int
    url: str


def run(
    settings: Settings,
    *,
    host: str,
    port: int,
    ready_file: Path | None,
    say: Callable[[str], None],
    parent_pipe: int | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; then take no more connections, answer what was accepted, and return.

    Port 0 is any free one. `say` gets one line with the address; `ready_file` appears once webhooks can be taken and
    holds `{"host", "port", "pid", "url"}`. With `parent_pipe` the port is shared with other processes, and this one
    ends when the pipe's other end does. Raises AddressInUse, ReadyFileUnwritable, DatabaseUnreachable, and
    TooMuchPrivilege where the database role could rewrite the log.
    """
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # a line a bad request, and what we say ourselves
    if ready_file is not None:
        clear_ready_file(ready_file)
    raise_fd_limit()
    _collect_garbage_seldom()
    serve_metrics(settings.ingress_metrics_address, "ingress")
    listener = bind_socket(host, port, shared=parent_pipe is not None)
    uvloop.run(_serve(settings, listener, ready_file, say, parent_pipe))


def _collect_garbage_seldom() -> None:
    """Full collections walk the window of repeats, for a tenth of a second each: have a hundredth as many."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1000)


class Server(uvicorn.Server):
    """uvicorn's server, with our way with signals (they end the process with exit code 0) and our announcement."""

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
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _end(self) -> None:
        self.force_exit = self.should_exit  # a second signal waits for nobody
        self.should_exit = True
        self._when_ending()


async def _serve(
    settings: Settings,
    listener: socket.socket,
    ready_file: Path | None,
    say: Callable[[str], None],
    parent_pipe: int | None,
) -> None:
    await _refuse_too_much_privilege(settings)
    # The others of the port answer until this process can; but not for ever, should nobody be able to.
    app = build_app(settings, ready_within_seconds=0 if parent_pipe is None else READY_SECONDS)
    address = address_of(listener)
    config = uvicorn.Config(
        app,
        http=BoundedConnection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        backlog=BACKLOG,
    )
    server = Server(config, lambda: say(f"Listening on {address.url}"), app.state.intake.stop)
    tasks = [asyncio.create_task(reap_idle(server.server_state), name="sweep")]
    if ready_file is not None:
        tasks.append(asyncio.create_task(_write_when_ready(app.state.readiness, ready_file, address), name="ready"))
    if parent_pipe is not None:
        asyncio.get_running_loop().add_reader(parent_pipe, _end_with_parent, parent_pipe)
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _refuse_too_much_privilege(settings: Settings) -> None:
    """Check the database role's rights; a database that is only starting is waited for."""
    database = connect(settings, "api")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DATABASE_PATIENCE_SECONDS
    try:
        while True:
            try:
                return await database.assert_least_privilege()
            except DatabaseUnreachable:
                if loop.time() > deadline:
                    raise
                await asyncio.sleep(DATABASE_RETRY_SECONDS)
    finally:
        await database.close()


def _end_with_parent(pipe: int) -> None:
    """Nobody holds the pipe's other end any more."""
    asyncio.get_running_loop().remove_reader(pipe)
    os.kill(os.getpid(), signal.SIGTERM)


async def _write_when_ready(readiness: Readiness, path: Path, address: Address) -> None:
    """Write the file when webhooks can be taken."""
    await readiness.wait()
    write_ready_file(path, address)


def write_ready_file(path: Path, address: Address) -> None:
    """Write where we serve; whoever waits for the file never sees half of it."""
    beside = _beside(path)
    beside.write_bytes(msgspec.json.encode(address))
    beside.replace(path)


def clear_ready_file(path: Path) -> None:
    """Remove an earlier ready file, and see that a new one can be written: whoever waits for it would wait for ever.

    Raises ReadyFileUnwritable.
    """
    try:
        path.unlink(missing_ok=True)
        _beside(path).touch()
        _beside(path).unlink()
    except OSError as error:
        raise ReadyFileUnwritable(
            f"{path} can't be written.", why=f"{error.strerror}.", next_step="plant ingress --ready-file ready.json"
        ) from error


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}")


def address_of(place: socket.socket) -> Address:
    """The address of a bound socket."""
    host, port = place.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    return Address(host, port, os.getpid(), url)


def bind_socket(host: str, port: int, *, shared: bool) -> socket.socket:
    """A socket at the address, which others of this user may bind too if it is shared. Raises AddressInUse."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    place = socket.socket(family, socket.SOCK_STREAM)
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR, 1)
        place.bind((host, port))
    except (OSError, OverflowError) as error:
        place.close()
        raise AddressInUse(
            f"Can't listen on {host}:{port}.", why=f"{error}.", next_step="plant ingress --port 0"
        ) from error
    place.setblocking(False)
    return place
