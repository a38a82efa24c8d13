"""Connections that are cut off, because their peers are idle, slow, endless or too many.

uvicorn closes idle connections, with a timer for each request, and nothing else. This protocol also bounds the bytes
that are read besides bodies, and the number of requests that may be sent ahead of their answers. Once a second a task
looks at the open connections and closes those that are idle, or whose head, body or answer is overdue; requests set no
timer. A request that has arrived whole is answered in one write. docs/decisions/0007-uvicorn-with-our-limits.md says
why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar, Final, Literal, assert_never, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from runtime import metrics
from runtime.lifecycle import raise_fd_limit
from server.corking import CorkedTransport
from server.framing import as_get, close_delimited, framing_fault
from server.heads import LargeHeads, head_cost, is_usual
from server.listening import WAITING_MAX, Listener
from server.peers import Header, keep_peer
from server.problems import Problem, retry_after
from server.shares import share_of_host
from server.turns import ReadingInTurns, turns_of
from server.unread_answers import UnreadAnswers

HEAD_TIMEOUT_SECONDS: Final = 10.0
BODY_TIMEOUT_SECONDS: Final = 20.0
BODY_BYTES_PER_SECOND_MIN: Final = 64 * 1024
"""Beyond the first seconds a body has to arrive this fast."""
REQUEST_TIMEOUT_SECONDS: Final = 60.0
"""For an answer, or for the next part of one."""
CLOSE_OVERDUE_EVERY_SECONDS: Final = 1.0
CLOSED_A_STEP: Final = 500
"""Connections that are looked at, and may be cut off, in one step of the event loop."""
HEAD_MAX_BYTES: Final = 32 * 1024
UNREAD_MAX_BYTES: Final = 4 * 1024 * 1024
"""What is dropped of a body whose request was answered; then its connection closes."""
PIPELINED_MAX: Final = 16
CONNECTIONS_MAX: Final = 10_000
ADMIN_CONNECTIONS_MAX: Final = 256
FEW_FILES_SHARE: Final = 8
"""Where there are few files, the admin listener's connections have one in so many, and those that wait as well."""
OWN_FILES: Final = 200
"""Files and sockets that the process needs for itself: Kafka, Postgres, libraries."""

Stage = Literal["head", "body", "answer", "idle"]


class TooFarAhead(Exception):
    """A peer that sends request after request and does not wait for the answers."""


class BadFraming(Exception):
    """A head that HTTP refuses."""


class BoundedConnection(HttpToolsProtocol):
    """One peer's connection. `stage` is the part that is awaited, `since` the event-loop time when it began.

    `head_bytes` counts what came since the last whole request and is no body: head, chunk framing, trailers.
    `body_bytes` counts the body. `answering` is the request that the application has.
    """

    connections_max: ClassVar[int] = CONNECTIONS_MAX

    stage: Stage = "head"
    since: float = 0.0
    head_bytes: int = 0
    body_bytes: int = 0
    proved: bool = False
    answering: RequestResponseCycle | None = None
    share: str = ""
    flow: ReadingInTurns
    corked: CorkedTransport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        self.corked = CorkedTransport(transport, self.loop, self._answered_a_part)
        super().connection_made(self.corked)
        self.share = share_of_host(self.client[0] if self.client else "")
        self.flow = ReadingInTurns(self.transport, turns_of(self.server_state, self.loop), self.share)
        self.since = self.loop.time()
        self.headers = []
        self.large_heads: dict[RequestResponseCycle, int] = {}
        unproved = self._unproved()
        if len(self.connections) > self.connections_max:
            oldest = next(iter(unproved), self)
            unproved.pop(oldest, None)
            oldest.cut_off(
                "too_many", Problem("overloaded", "There are too many connections.", headers=(retry_after(1),))
            )
            if oldest is self:
                return
        unproved[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._unproved().pop(self, None)
        self._all_large_heads().release(self)
        self._all_unread_answers().release(self)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Count what the peer does not read; where all connections hold too much, some are closed."""
        super().pause_writing()
        unread = self._all_unread_answers()
        for going in unread.hold(self, self.share, self.corked.get_write_buffer_size()):
            metrics.SERVER_PEERS_CUT_OFF.labels(reason="unread_answers").inc()
            self.loop.call_soon(going.transport.abort)  # not in the middle of a write

    def resume_writing(self) -> None:
        self._all_unread_answers().release(self)
        super().resume_writing()

    def take_body(self, scope: object) -> bytes | None:
        """Return the body of the request that is under way, if it has arrived to its end, and drop it here."""
        cycle = self.answering
        if cycle is None or cycle.scope is not scope or cycle.more_body or cycle.disconnected:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        return body

    def answer(self, scope: object, status: int, headers: Sequence[Header], body: bytes) -> bool:
        """Answer the request at once, and return True; False where uvicorn's own way is needed, which takes longer.

        That is where the connection closes behind the answer, or the peer does not read, or has closed.
        """
        cycle = self.answering
        if cycle is None or cycle.scope is not scope or cycle.disconnected or cycle.response_started:
            return False
        if not cycle.keep_alive or self.flow.write_paused:
            return False
        parts = [STATUS_LINE[status]]
        for name, value in (*cycle.default_headers, *headers):
            parts += (name, b": ", value, b"\r\n")
        parts += (b"\r\n", body)
        self.corked.write_at_once(b"".join(parts))
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        self.on_response_complete()
        return True

    @property
    def awaits_peer(self) -> bool:
        """Whether nobody has signed here, and the peer has not sent its request to the end."""
        return self.stage in ("head", "body") and not self.proved

    @property
    def awaits_peer_at_end(self) -> bool:
        """Whether the end of the process would wait for the peer."""
        return self.stage in ("head", "body") or self.flow.write_paused

    def prove(self) -> None:
        """Keep the connection when others are closed to make room: one of its requests was signed."""
        self.proved = self.flow.at_once = True
        self._unproved().pop(self, None)

    def break_off(self) -> None:
        """Close the connection in the middle of an answer, so that the peer sees that it is not whole."""
        self.cut_off("broken_answer", None)

    def _unproved(self) -> dict[BoundedConnection, None]:
        """Return the server's connections without a signed request, oldest first."""
        unproved: dict[BoundedConnection, None] = vars(self.server_state).setdefault("unproved", {})
        return unproved

    def _all_large_heads(self) -> LargeHeads:
        """Return those of all connections of the server."""
        heads: LargeHeads = vars(self.server_state).setdefault("large_heads", LargeHeads())
        return heads

    def _all_unread_answers(self) -> UnreadAnswers[BoundedConnection]:
        """Return those of all connections of the server."""
        answers: UnreadAnswers[BoundedConnection]
        answers = vars(self.server_state).setdefault("unread_answers", UnreadAnswers())
        return answers

    def data_received(self, data: bytes) -> None:
        if self.stage == "idle":
            self._enter("head")
        self.head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except HttpParserError as error:
            cause = error.__context__
            self.send_400_response(str(cause) if isinstance(cause, BadFraming) else "This is not HTTP/1.1.")
        if self.head_bytes > HEAD_MAX_BYTES:
            self.cut_off("large_head", Problem("headers-too-large", f"At most {HEAD_MAX_BYTES} bytes are read."))
        elif self.stage == "head" and not is_usual(self.head_bytes, len(self.headers)):
            self._hold_heads(head_cost(self.head_bytes, len(self.headers)))
        if not self.proved and not self.transport.is_closing():
            self._wait_for_a_turn(len(data))

    def _wait_for_a_turn(self, size_bytes: int) -> None:
        """Read on when it is the peer's turn. A request that is under way asks for one when it wants more."""
        idle = self.cycle is None or self.cycle.response_complete or self.stage == "head"
        self.flow.wait_for_a_turn(size_bytes, under_way=not idle)
        if idle:
            self.flow.resume_reading()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        keep_peer(self.scope, self)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        if len(self.pipeline) >= PIPELINED_MAX:
            raise TooFarAhead
        fault = framing_fault(self.parser.get_http_version(), self.headers)
        if fault is not None:
            raise BadFraming(fault)
        super().on_headers_complete()
        if self.pipeline or self.large_heads or not is_usual(self.head_bytes, len(self.headers)):
            self._keep_head()
        self.headers = []  # the request keeps its own; trailers are no part of it
        self._enter("body")

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if cycle.scope["method"] == "HEAD":
            app = as_get(app)
        if cycle.scope["http_version"] == "1.0":
            app = close_delimited(app, cycle)
        self.answering = cycle
        super()._start_asgi_task(cycle, app)

    def _keep_head(self) -> None:
        """Count the head that is whole, until its request was answered."""
        size_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        self.large_heads[self.cycle] = head_cost(size_bytes, len(self.headers))
        self._hold_heads()

    def _release_head(self) -> None:
        """Drop the head of the request that was answered: the connection may be idle for long."""
        if self.answering is not None and self.large_heads.pop(self.answering, 0):
            self.answering.scope["headers"] = []
            self._hold_heads()

    def _hold_heads(self, arriving_bytes: int = 0) -> None:
        """Count large heads; where all connections hold too many, the oldest without a whole request is closed."""
        heads, size_bytes = self._all_large_heads(), arriving_bytes + sum(self.large_heads.values())
        while (going := heads.hold(self, size_bytes)) is not None:
            heads.release(going)
            cast("BoundedConnection", going).cut_off(
                "large_heads", Problem("overloaded", "Many requests have large heads.", headers=(retry_after(1),))
            )
            if going is self:
                return

    def on_body(self, body: bytes) -> None:
        self.head_bytes -= len(body)
        self.body_bytes += len(body)
        super().on_body(body)
        if self.pipeline:
            self.large_heads[self.cycle] = self.large_heads.get(self.cycle, 0) + len(body)
            self._hold_heads()
        if self.cycle.response_complete and self.body_bytes > UNREAD_MAX_BYTES:
            self.cut_off("unread_body", None)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self.head_bytes = 0
        if self.stage == "body":  # else it was answered before its end
            self._enter("idle" if self.cycle.response_complete else "answer")
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self.large_heads:
            self._release_head()
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            # As uvicorn does it, but for a timer: `close_overdue` closes idle connections.
            self.flow.resume_reading()
            if self.pipeline:
                cycle, app = self.pipeline.pop()
                self._start_asgi_task(cycle, app)
        if self.stage == "answer":  # else a body is still arriving
            self._enter("idle" if self.cycle.response_complete else "answer")

    def send_400_response(self, msg: str) -> None:
        if self.stage == "answer":  # the requests before this one are good: answer them, then close
            metrics.SERVER_PEERS_CUT_OFF.labels(reason="not_http").inc()
            self.cycle.keep_alive = False
            self.flow.pause_reading()
        else:
            self.cut_off("not_http", Problem("malformed-request", msg))

    def overdue(self, now: float) -> bool:
        """Return whether the peer, or the answer, has taken too long."""
        match self.stage:
            case "head":
                return now - self.since > HEAD_TIMEOUT_SECONDS
            case "body":
                return now - self.since > BODY_TIMEOUT_SECONDS + self.body_bytes / BODY_BYTES_PER_SECOND_MIN
            case "answer":
                return now - self.since > REQUEST_TIMEOUT_SECONDS
            case "idle":
                return now - self.since > self.timeout_keep_alive
            case _:
                assert_never(self.stage)

    def cut_off(self, reason: str, problem: Problem | None) -> None:
        """Close the connection, after the problem where no answer has begun; the application sees a disconnect."""
        if self.transport.is_closing():
            return
        metrics.SERVER_PEERS_CUT_OFF.labels(reason=reason).inc()
        cycle = self.cycle
        arriving = self.stage == "head" or (self.stage == "body" and not cycle.response_started and not self.pipeline)
        if problem is not None and arriving:
            self.transport.write(problem.on_the_wire())
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()

    def _decline_upgrade(self, rest: bytes) -> None:
        """Handle a request that offers another protocol as one that does not (RFC 9110, 7.8).

        Java's client offers one with the first request of a connection. httptools would read the request's body as
        that protocol, and then as the next request; so a new parser gets the head without the offer, and the rest.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response("There is no proxy here.")
            return
        head = b"%b %b HTTP/%b\r\n" % (method, self.url, self.parser.get_http_version().encode())
        for name, value in self.headers:
            if name not in (b"connection", b"upgrade"):
                head += b"%b: %b\r\n" % (name, value)
        self.parser = HttpRequestParser(self)
        self.head_bytes = 0
        self.data_received(b"%b\r\n%b" % (head, rest))

    def _answered_a_part(self) -> None:
        """Begin the timeout of an answer again with each part that is written; a peer that does not read stops that."""
        if self.stage == "answer":
            self.since = self.loop.time()

    def _enter(self, stage: Stage) -> None:
        self.stage = stage
        self.body_bytes = 0
        self.since = self.loop.time()


class AdminConnection(BoundedConnection):
    """One connection to the admin listener, with the same bounds. Nobody signs there: the oldest makes room."""

    connections_max: ClassVar[int] = ADMIN_CONNECTIONS_MAX


async def close_overdue(state: ServerState) -> None:
    """Cut off overdue connections, once a second, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(CLOSE_OVERDUE_EVERY_SECONDS)
        now = loop.time()
        for number, connection in enumerate(list(state.connections), start=1):
            if number % CLOSED_A_STEP == 0:
                await asyncio.sleep(0)
            if isinstance(connection, BoundedConnection) and connection.overdue(now):
                if connection.transport.is_closing():
                    connection.transport.abort()
                elif connection.stage == "idle":
                    connection.transport.close()
                else:
                    connection.cut_off(f"slow_{connection.stage}", _too_slow(connection))


def cut_off_waiting(state: ServerState) -> None:
    """Cut off every connection whose peer has not sent its request to the end, or does not read its answer.

    Call it again: one that does not read does not let its connection close either.
    """
    ending = Problem("starting", "The process is ending.", headers=(retry_after(1),))
    for connection in list(state.connections):
        if isinstance(connection, BoundedConnection) and connection.awaits_peer_at_end:
            if connection.transport.is_closing():
                connection.transport.abort()
            else:
                connection.cut_off("ending", ending)


def _too_slow(connection: BoundedConnection) -> Problem | None:
    """Return the answer to a slow peer; none to one that never sent a byte."""
    if connection.stage == "head" and connection.head_bytes == 0:
        return None
    return Problem("slow-request", "The request took too long to arrive.")


def limit_connections() -> None:
    """Let this process open as many files as its connections need, or take fewer connections.

    A full table of files would keep it from reaching Kafka and Postgres again.
    """
    waiting = 2 * WAITING_MAX  # a listener each
    files = raise_fd_limit(CONNECTIONS_MAX + ADMIN_CONNECTIONS_MAX + waiting + OWN_FILES)
    if files is not None:
        few = max(1, (files - OWN_FILES) // FEW_FILES_SHARE)
        AdminConnection.connections_max = min(ADMIN_CONNECTIONS_MAX, few)
        Listener.waiting_max = min(WAITING_MAX, few)
        left = files - OWN_FILES - AdminConnection.connections_max - 2 * Listener.waiting_max
        BoundedConnection.connections_max = max(1, min(CONNECTIONS_MAX, left))
