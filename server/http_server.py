"""The HTTP servers of a process: one for its peers, one for operators, a ready file, a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Final, Literal, cast

import msgspec
import uvicorn
from litestar import Litestar

from runtime.lifecycle import stop_on_signals, temp_path
from runtime.servers import ServerAddress
from server.connections import AdminConnection, BoundedConnection, close_overdue, cut_off_waiting
from server.errors import AddressInUse, ReadyFileUnwritable
from server.health import ReadinessCheck
from server.listening import Listener
from server.port_lock import PortTaken, hold_port_lock
from server.turns import TURNS_IN_STEP, turns_of

BACKLOG: Final = 2048
SHUTDOWN_TIMEOUT_SECONDS: Final = 15
PEER_END_TIMEOUT_SECONDS: Final = 8.0
"""At the end of the process: for a peer that has not sent its request to the end, or does not read."""
ADMIN_END_TIMEOUT_SECONDS: Final = 0.5
CUT_OFF_EVERY_SECONDS: Final = 0.25
INGRESS: Final = "ingress"
"""The service that errors name in their next step, where no other is given."""


class Address(msgspec.Struct, frozen=True):
    """Where a process serves, as its ready file says."""

    host: str
    port: int
    pid: int
    url: str
    admin_url: str = ""


class TurnsServer(uvicorn.Server):
    """uvicorn's server on one bound socket, whose connections are accepted in turns, and hold up its end for no long.

    uvicorn itself waits for all of them, then cancels their tasks and logs a traceback for each.
    """

    turns_in_step: ClassVar[int] = TURNS_IN_STEP

    def __init__(self, config: uvicorn.Config, peer_timeout_seconds: float, service: str = INGRESS) -> None:
        super().__init__(config)
        self._service = service
        self._peer_timeout_seconds = peer_timeout_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        cutting_off = asyncio.create_task(self._cut_off_waiting(), name="cut-off-waiting")
        try:
            await super().shutdown(sockets)
        finally:
            cutting_off.cancel()
            await asyncio.gather(cutting_off, return_exceptions=True)

    async def _cut_off_waiting(self) -> None:
        await asyncio.sleep(self._peer_timeout_seconds)
        while True:
            cut_off_waiting(self.server_state)
            await asyncio.sleep(CUT_OFF_EVERY_SECONDS)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then listen. Raises AddressInUse where somebody else listens there meanwhile."""
        await super().startup([])
        (bound_socket,) = sockets or []
        turns = turns_of(self.server_state, asyncio.get_running_loop(), self.turns_in_step)
        try:
            listener = Listener(bound_socket, self._make_protocol, turns, backlog=self.config.backlog)
        except OSError as error:
            host, port = bound_socket.getsockname()[:2]
            raise _address_in_use(host, port, f"{error}.", _any_port(self._service)) from error
        self.servers.append(cast("asyncio.Server", listener))  # what uvicorn calls of one

    def _make_protocol(self) -> asyncio.Protocol:
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


class Server(TurnsServer):
    """The server of peers, ended by signals with exit code 0, with callbacks for its start and its end."""

    def __init__(
        self,
        config: uvicorn.Config,
        when_started: Callable[[], None],
        when_ending: Callable[[], None],
        service: str = INGRESS,
    ) -> None:
        super().__init__(config, PEER_END_TIMEOUT_SECONDS, service)
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


class AdminServer(TurnsServer):
    """The server of the admin listener, ended by that of peers."""

    turns_in_step = 1
    """A look-up takes some 2 ms of the event loop, which peers' requests share."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve_http(
    app: Litestar,
    listener: socket.socket,
    *,
    admin_app: Litestar,
    admin_listener: socket.socket,
    readiness: ReadinessCheck,
    ready_file: Path | None,
    keep_alive_timeout_seconds: int,
    when_started: Callable[[], None],
    when_ending: Callable[[], None],
    service: str = INGRESS,
) -> None:
    """Serve on bound sockets until SIGTERM or SIGINT; then answer what was accepted, and return.

    The admin listener answers from the start of `app`'s lifespan until its end. Raises AddressInUse.
    """
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # it logs a line a bad request, and what we log ourselves
    config = _config(app, BoundedConnection, "on", keep_alive_timeout_seconds)
    server = Server(config, when_started, when_ending, service)
    admin = AdminServer(
        _config(admin_app, AdminConnection, "off", keep_alive_timeout_seconds), ADMIN_END_TIMEOUT_SECONDS
    )
    states = (server.server_state, admin.server_state)
    tasks = [asyncio.create_task(close_overdue(state), name="close-overdue") for state in states]
    if ready_file is not None:
        address = msgspec.structs.replace(address_of(listener), admin_url=address_of(admin_listener).url)
        tasks.append(asyncio.create_task(_write_when_ready(readiness, ready_file, address), name="ready-file"))
    serving_admin = asyncio.create_task(admin.serve(sockets=[admin_listener]), name="admin")
    serving_admin.add_done_callback(lambda _: server.handle_exit(signal.SIGTERM, None))  # neither serves alone
    try:
        await server.serve(sockets=[listener])
    finally:
        admin.should_exit, admin.force_exit = True, server.force_exit
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await serving_admin


def _config(
    app: Litestar, protocol: type[BoundedConnection], lifespan: Literal["on", "off"], keep_alive_timeout_seconds: int
) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=keep_alive_timeout_seconds,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_SECONDS,
        backlog=BACKLOG,
    )


def end_with_parent(pipe: int) -> None:
    """End this process, as SIGTERM does, when nobody holds the pipe's other end any more."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        loop.remove_reader(pipe)
        os.kill(os.getpid(), signal.SIGTERM)

    loop.add_reader(pipe, end)


async def _write_when_ready(readiness: ReadinessCheck, path: Path, address: Address) -> None:
    await readiness.wait()
    write_ready_file(path, address)


def write_ready_file(path: Path, address: Address) -> None:
    """Write the address to the ready file, in one step: a reader never sees half of it."""
    temporary = temp_path(path)
    temporary.write_bytes(msgspec.json.encode(address))
    temporary.replace(path)


def clear_ready_file(path: Path, service: str = INGRESS) -> None:
    """Remove an earlier ready file, and check that a new one can be written: else somebody waits for it without end.

    Raises ReadyFileUnwritable.
    """
    try:
        path.unlink(missing_ok=True)
        temp_path(path).touch()
        temp_path(path).unlink()
    except OSError as error:
        raise ReadyFileUnwritable(
            f"{path} can't be written.", why=f"{error.strerror}.", next_step=f"plant {service} --ready-file ready.json"
        ) from error


def address_of(bound_socket: socket.socket) -> Address:
    """Return the address of a bound socket."""
    host, port = bound_socket.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    return Address(host, port, os.getpid(), url)


@contextlib.contextmanager
def shared_port(host: str, port: int) -> Iterator[socket.socket]:
    """Hold a port for several processes of one deployment: bind it and never listen, so that it stays theirs.

    The kernel lets any process of this user share such a port. So a probe looks for one that listens there, and a lock
    keeps out another deployment that begins. Raises AddressInUse.
    """
    if port:
        bind_socket(host, port, shared=False).close()
    with contextlib.closing(bind_socket(host, port, shared=True)) as bound_socket:
        port = address_of(bound_socket).port
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(hold_port_lock(host, port))
            except PortTaken as error:
                raise _address_in_use(host, port, str(error), _any_port(INGRESS)) from error
            yield bound_socket


def bind_socket(host: str, port: int, *, shared: bool, service: str = INGRESS, next_step: str = "") -> socket.socket:
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
        raise _address_in_use(host, port, f"{error}.", next_step or _any_port(service)) from error
    bound_socket.setblocking(False)
    return bound_socket


def bind_admin_socket(address: ServerAddress, service: str = INGRESS) -> socket.socket:
    """Return a socket that listens at the admin address, before anybody accepts there. Raises AddressInUse."""
    next_step = f"PLANT_{service.upper()}_ADMIN_ADDRESS=127.0.0.1:0 plant {service}"
    bound_socket = bind_socket(address.host, address.port, shared=False, next_step=next_step)
    try:
        bound_socket.listen(BACKLOG)
    except OSError as error:
        bound_socket.close()
        raise _address_in_use(address.host, address.port, f"{error}.", next_step) from error
    return bound_socket


def _any_port(service: str) -> str:
    return f"plant {service} --port 0"


def _address_in_use(host: str, port: int, why: str, next_step: str) -> AddressInUse:
    return AddressInUse(f"Can't listen on {host}:{port}.", why=why, next_step=next_step)
