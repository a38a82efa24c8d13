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
from ingress.connections import IDLE_SECONDS, BoundedConnection, make_room, sweep
from ingress.errors import AddressInUse, ReadyFileUnwritable
from ingress.health import Readiness
from ingress.routes import build_app
from runtime.settings import Settings

BACKLOG: Final = 2048
GRACE_SECONDS: Final = 15
DATABASE_PATIENCE_SECONDS: Final = 30.0
DATABASE_RETRY_SECONDS: Final = 1.0
READY_POLL_SECONDS: Final = 0.05


def run(settings: Settings, *, host: str, port: int, ready_file: Path | None, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; then take no more connections, answer what was accepted, and return.

    Port 0 is any free one. `say` gets one line with the address; `ready_file` appears once webhooks can be taken and
    holds `{"host", "port", "pid", "url"}`. Raises AddressInUse, ReadyFileUnwritable, DatabaseUnreachable, and
    TooMuchPrivilege where the database role could rewrite the log.
    """
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # a line a bad request, and what we say ourselves
    if ready_file is not None:
        _clear(ready_file)
    make_room()
    _collect_garbage_seldom()
    uvloop.run(_serve(settings, _listen(host, port), ready_file, say))


def _collect_garbage_seldom() -> None:
    """Full collections walk the window of repeats, for a tenth of a second each: have a hundredth as many."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1000)


class Server(uvicorn.Server):
    """uvicorn's server, with our way with signals (they end the process with exit code 0) and our announcement."""

    def __init__(self, config: uvicorn.Config, when_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._when_started = when_started

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


async def _serve(
    settings: Settings, listener: socket.socket, ready_file: Path | None, say: Callable[[str], None]
) -> None:
    await _refuse_too_much_privilege(settings)
    app = build_app(settings)
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
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
    )
    server = Server(config, when_started=lambda: say(f"Listening on {url}"))
    tasks = [asyncio.create_task(sweep(server.server_state), name="sweep")]
    if ready_file is not None:
        address = {"host": host, "port": port, "pid": os.getpid(), "url": url}
        tasks.append(asyncio.create_task(_write_when_ready(app.state.readiness, ready_file, address), name="ready"))
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


async def _write_when_ready(readiness: Readiness, path: Path, address: dict[str, object]) -> None:
    """Write the file when webhooks can be taken; whoever waits for it never sees half of it."""
    while True:
        if not await readiness.faults():
            break
        await asyncio.sleep(READY_POLL_SECONDS)
    beside = _beside(path)
    beside.write_bytes(msgspec.json.encode(address))
    beside.replace(path)


def _clear(path: Path) -> None:
    """Remove an earlier ready file, and see that a new one can be written: whoever waits for it would wait for ever."""
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


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        raise AddressInUse(
            f"Can't listen on {host}:{port}.", why=f"{error}.", next_step="plant ingress --port 0"
        ) from error
    listener.setblocking(False)
    return listener
