"""The bounds of connections, by the event loop's time instead of waiting, and over a socket of this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from prometheus_client import REGISTRY
from uvicorn.config import Config
from uvicorn.server import ServerState

from server import connections
from server.connections import BoundedConnection, Stage
from server.heads import LargeHeads
from server.peers import peer_of
from server.unread_answers import UnreadAnswers

DEADLINE_SECONDS = 120
KEEP_ALIVE_TIMEOUT_SECONDS = 75
REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nab"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answer 204 once the body is whole; a request to /signed proves its peer."""
    while (await receive()).get("more_body"):
        pass
    peer = peer_of(scope)
    assert peer is not None
    if scope["path"] == "/signed":
        peer.prove()
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def connection() -> BoundedConnection:
    config = Config(
        application, http=BoundedConnection, ws="none", log_config=None, timeout_keep_alive=KEEP_ALIVE_TIMEOUT_SECONDS
    )
    config.load()
    return BoundedConnection(config, ServerState(), {})


@pytest.mark.parametrize(
    ("stage", "body_bytes", "timeout_seconds"),
    [
        ("head", 0, connections.HEAD_TIMEOUT_SECONDS),
        ("body", 0, connections.BODY_TIMEOUT_SECONDS),
        ("body", 10 * connections.BODY_BYTES_PER_SECOND_MIN, connections.BODY_TIMEOUT_SECONDS + 10),
        ("answer", 0, connections.REQUEST_TIMEOUT_SECONDS),
        ("idle", 0, KEEP_ALIVE_TIMEOUT_SECONDS),
    ],
)
async def test_each_stage_has_its_timeout(stage: Stage, body_bytes: int, timeout_seconds: float) -> None:
    """A body has longer, the more of it has come."""
    peer = connection()
    peer.stage, peer.since, peer.body_bytes = stage, 1_000.0, body_bytes
    assert not peer.overdue(1_000.0 + timeout_seconds - 0.1)
    assert peer.overdue(1_000.0 + timeout_seconds + 0.1)


@asynccontextmanager
async def serving(app: Any = application, state: ServerState | None = None, **options: Any) -> AsyncIterator[int]:
    config, state = Config(app, http=BoundedConnection, ws="none", log_config=None, **options), state or ServerState()
    config.load()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: BoundedConnection(config, state, {}), "127.0.0.1", 0)
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def connected(port: int, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which one request was answered with 204."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204 ")
    return reader, writer


async def test_one_connection_too_many_is_503(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all others have sent signed requests it is answered and closed; when one has closed the next is served."""
    monkeypatch.setattr(BoundedConnection, "connections_max", 1)
    signed = REQUEST.replace(b" / ", b" /signed ")
    async with serving() as port:
        reader, writer = await connected(port, signed)
        refused, other = await asyncio.open_connection("127.0.0.1", port)
        answer = await refused.read()
        other.close()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        writer.write(REQUEST)
        await reader.readuntil(b"204 ")
        writer.close()
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(REQUEST)
            line = await reader.readline()
            writer.close()
            if line.startswith(b"HTTP/1.1 204 "):
                return
            await asyncio.sleep(0)


async def test_a_full_table_closes_the_oldest_connection_that_signed_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers' connections, idle or answered, make room for the next; one that has sent a signed request stays."""
    monkeypatch.setattr(BoundedConnection, "connections_max", 3)
    async with serving() as port:
        reader, writer = await connected(port, REQUEST.replace(b" / ", b" /signed "))
        strangers = [await connected(port, REQUEST) for _ in range(2)]
        for number in range(20):
            strangers.append(await connected(port, REQUEST))
            await strangers[number][0].read()
        writer.write(REQUEST)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204 ")
        for _, each in [*strangers, (reader, writer)]:
            each.close()


async def test_a_body_without_end_behind_its_answer_is_cut_off() -> None:
    """A refusal that did not wait for the body does not let it go on for ever."""

    async def refuse(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async with serving(refuse) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        sent_bytes = 0
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(b"10000\r\n" + bytes(65536) + b"\r\n")
                await writer.drain()
                sent_bytes += 65536
        writer.close()
        assert sent_bytes < 100 * connections.UNREAD_MAX_BYTES


async def test_overdue_connections_are_closed_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop turns while many are looked at, however many time out at once."""
    monkeypatch.setattr(connections, "CLOSE_OVERDUE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(connections, "CLOSED_A_STEP", 1)
    seen = 0

    class Counted(BoundedConnection):
        def overdue(self, now: float) -> bool:
            nonlocal seen
            seen += 1
            return False

    state, config = ServerState(), connection().config
    state.connections = {Counted(config, state, {}) for _ in range(50)}
    closing = asyncio.create_task(connections.close_overdue(state))
    for turn in range(1, 30):
        await asyncio.sleep(0)
        assert seen <= turn
    assert seen > 1
    closing.cancel()


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer the body and how it came, at once where that can be done, else as ASGI has it."""
    peer = peer_of(scope)
    assert peer is not None
    body, how = peer.take_body(scope), b"taken"
    if body is None:
        body, how, more = b"", b"received", True
        while more:
            message = await receive()
            assert message["type"] == "http.request"
            body, more = body + message["body"], message["more_body"]
    headers = [(b"content-length", b"%d" % len(body)), (b"x-body", how)]
    if peer.answer(scope, 200, headers, body):
        assert not peer.answer(scope, 200, headers, body)
        return
    await send({"type": "http.response.start", "status": 200, "headers": [*headers, (b"x-answer", b"sent")]})
    await send({"type": "http.response.body", "body": body})


ECHOED = REQUEST.replace(b"x\r\n", b"x\r\nconnection: close\r\n")
OLD = b"POST / HTTP/1.0\r\ncontent-length: 2\r\n\r\nab"
HEAD = b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n"


async def test_a_whole_request_is_answered_at_once() -> None:
    """Its body is taken as it came, and its answer has what uvicorn's has; the connection stays for the next one."""
    async with serving(echo) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(REQUEST)
            head = await reader.readuntil(b"\r\n\r\n")
            assert (head, await reader.readexactly(2)) == (
                b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-body: taken\r\n\r\n",
                b"ab",
            )
        writer.close()


async def test_default_headers_are_in_every_answer() -> None:
    """uvicorn's own, such as the date, come first."""
    state = ServerState()
    state.default_headers = [(b"date", b"today")]
    async with serving(echo, state) as port:
        for request in (REQUEST, ECHOED):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            assert (await reader.readuntil(b"ab")).startswith(
                b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 2\r\n"
            )
            writer.close()


async def test_requests_sent_ahead_are_answered_in_order() -> None:
    """Each with its own body, whether the last one has arrived to its end or not."""
    ahead = [REQUEST.replace(b"\r\n\r\nab", b"\r\n\r\n%02d" % number) for number in range(10)]
    async with serving(echo) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"".join(ahead)[:-1])
        for number in range(9):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            assert await reader.readexactly(2) == b"%02d" % number
        writer.write(b"9")
        assert (await reader.readuntil(b"\r\n\r\n")).endswith(b"x-body: received\r\n\r\n")
        assert await reader.readexactly(2) == b"09"
        writer.close()


@pytest.mark.parametrize(
    ("request_bytes", "body"), [(ECHOED, b"ab"), (OLD, b"ab"), (HEAD, b"")], ids=["1.1", "1.0", "HEAD"]
)
async def test_what_ends_a_connection_is_answered_by_uvicorn(request_bytes: bytes, body: bytes) -> None:
    """Where no other request may follow, or the method is HEAD, it knows the rules of the answer."""
    async with serving(echo) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes)
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"x-answer: sent" in head
        if request_bytes is not HEAD:
            assert (b"connection: close" in head, await reader.read()) == (True, b"ab")
        writer.close()


async def test_a_peer_that_has_closed_has_no_body_and_no_answer() -> None:
    """The application reads the disconnect instead."""
    started, closed, seen = asyncio.Event(), asyncio.Event(), []

    async def late(scope: Any, receive: Any, send: Any) -> None:
        peer = peer_of(scope)
        assert peer is not None
        await receive()
        started.set()
        await closed.wait()
        seen.extend((peer.take_body(scope), peer.answer(scope, 200, [], b""), (await receive())["type"]))

    state = ServerState()
    async with serving(late, state) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        await started.wait()
        writer.close()
        while state.connections:
            await asyncio.sleep(0)
        closed.set()
        while len(seen) < 3:
            await asyncio.sleep(0)
    assert seen == [None, False, "http.disconnect"]


async def test_an_idle_connection_is_closed_after_its_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """One second after its last answer, and nothing is counted against the peer."""
    monkeypatch.setattr(connections, "CLOSE_OVERDUE_EVERY_SECONDS", 0.0)
    state = ServerState()
    closing = asyncio.create_task(connections.close_overdue(state))
    async with serving(state=state, timeout_keep_alive=1) as port:
        reader, writer = await connected(port, REQUEST)
        since = asyncio.get_running_loop().time()
        assert await reader.read() == b""
        assert asyncio.get_running_loop().time() - since > 0.9
        writer.close()
    closing.cancel()
    assert REGISTRY.get_sample_value("plant_server_peers_cut_off_total", {"reason": "slow_idle"}) is None


FIELDS = b"".join(b"x%03d:\r\n" % number for number in range(1_000))


async def test_large_heads_have_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that never end hold no more than the budget: the oldest are closed with 503, and good requests served."""
    monkeypatch.setattr(connections, "LargeHeads", partial(LargeHeads, 1_000_000))
    async with serving() as port:
        strangers = []
        for number in range(30):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\n" + FIELDS)
            strangers.append((reader, writer))
            if number >= 10:
                assert (await strangers[number - 10][0].read()).startswith(b"HTTP/1.1 503 ")
        _, writer = await connected(port, REQUEST)
        for _, each in [*strangers, (reader, writer)]:
            each.close()


async def test_requests_sent_ahead_have_the_same_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits behind a request that is long to answer is counted, heads and bodies; answers release it."""
    monkeypatch.setattr(connections, "LargeHeads", partial(LargeHeads, 1_000_000))
    answering = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await answering.wait()
        await application(scope, receive, send)

    state, ahead = ServerState(), REQUEST.replace(b": 2\r\n\r\nab", b": 50000\r\n\r\n" + b"x" * 50_000)
    async with serving(slow, state) as port:
        peers = []
        for _ in range(30):
            peers.append(await asyncio.open_connection("127.0.0.1", port))
            peers[-1][1].write(REQUEST + ahead * 2)
        while state.total_requests == 0 and len(state.connections) > 12:
            await asyncio.sleep(0)
        assert 500_000 < vars(state)["large_heads"].size_bytes <= 1_000_000
        answering.set()
        answered = [(await reader.readline()).startswith(b"HTTP/1.1 204 ") for reader, _ in peers]
        assert answered.count(True) >= 5
        for _, writer in peers:
            writer.close()
        while state.connections:
            await asyncio.sleep(0)
        assert vars(state)["large_heads"].size_bytes == 0


async def test_answers_that_nobody_reads_have_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest connections go, and what waits for their peers; whoever reads gets the whole answer."""
    budget_bytes, answer_bytes, peers_max = 64 * 2**20, 16 * 2**20, 12
    monkeypatch.setattr(connections, "UnreadAnswers", partial(UnreadAnswers, budget_bytes))

    async def large(scope: Any, receive: Any, send: Any) -> None:
        peer = peer_of(scope)
        assert peer is not None
        while (await receive()).get("more_body"):
            pass
        assert peer.answer(scope, 200, [(b"content-length", b"%d" % answer_bytes)], bytes(answer_bytes))

    state = ServerState()
    async with serving(large, state) as port:
        peers = []
        for number in range(1, peers_max + 1):
            peers.append(await asyncio.open_connection("127.0.0.1", port))
            peers[-1][1].write(REQUEST)
            while state.total_requests < number:
                await asyncio.sleep(0)
            assert vars(state)["unread_answers"].size_bytes <= budget_bytes
        while len(state.connections) == peers_max:
            await asyncio.sleep(0)
        reader, _ = peers[-1]
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(answer_bytes) == bytes(answer_bytes)
        for _, writer in peers:
            writer.close()
        while state.connections:
            await asyncio.sleep(0)
        assert vars(state)["unread_answers"].size_bytes == 0


async def test_an_answered_request_holds_no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle connections, whose requests had large heads, hold none of the budget, nor the heads themselves."""
    state = ServerState()
    monkeypatch.setattr(connections, "LargeHeads", partial(LargeHeads, 1_000_000))
    async with serving(state=state) as port:
        large = REQUEST.replace(b"host: x\r\n", b"host: x\r\n" + FIELDS)
        peers = [await connected(port, large) for _ in range(30)]
        assert vars(state)["large_heads"].size_bytes == 0
        assert all(each.cycle.scope["headers"] == [] for each in state.connections)
        reader, writer = peers[0]
        writer.write(large + large + REQUEST)
        for _ in range(3):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204 ")
        for _, each in peers:
            each.close()


async def test_requests_far_ahead_of_their_answers_end_the_connection() -> None:
    """No more are answered than may be pipelined, and the one that was being read."""
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST * 500)
        try:
            answers = await reader.read()
        except ConnectionResetError:
            answers = b""
        writer.close()
        assert answers.count(b"HTTP/1.1 204 ") <= connections.PIPELINED_MAX + 1


async def streaming(scope: Any, receive: Any, send: Any) -> None:
    """Answer the method in two parts, without a length."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["method"].encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b" it was"})


async def sized(scope: Any, receive: Any, send: Any) -> None:
    """Answer two bytes, with a length, and the method."""
    headers = [(b"content-length", b"2"), (b"x-method", scope["method"].encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


async def exchange(app: Any, request: bytes) -> tuple[bytes, bytes]:
    """Send these bytes and return head and body of all that is answered until the connection closes."""
    async with serving(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return head.lower(), body


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\nconnection: close", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nhost: x\r\nconnection: close", 400),
        (b"GET / HTTP/1.1\r\nhost: x/y\r\nconnection: close", 400),
        (b"GET / HTTP/1.1\r\nhost: a b\r\nconnection: close", 400),
        (b"GET / HTTP/1.1\r\nhost: x:y\r\nconnection: close", 400),
        (b"GET / HTTP/1.0\r\nhost: x\r\nhost: x", 400),
        (b"POST / HTTP/1.0\r\ntransfer-encoding: chunked", 400),
        (b"GET / HTTP/1.1\r\nhost:\r\nconnection: close", 200),
        (b"GET / HTTP/1.1\r\nhost: [::1]:8080\r\nconnection: close", 200),
        (b"GET / HTTP/1.1\r\nHost: ex-ample.org:80\r\nconnection: close", 200),
        (b"GET / HTTP/1.0", 200),
        (b"GET / HTTP/1.0\r\nhost: x", 200),
    ],
)
async def test_a_request_has_one_host(head: bytes, status: int) -> None:
    """None, two or no host at all is 400 in HTTP/1.1; HTTP/1.0 may leave it out, and has no chunks."""
    answered, _ = await exchange(sized, head + b"\r\n\r\n")
    assert answered.startswith(b"http/1.1 %d " % status)


async def test_an_old_peer_gets_an_answer_that_ends_with_the_connection() -> None:
    """HTTP/1.0 has no chunks; an answer with a length keeps it; HTTP/1.1 gets chunks as before."""
    head, body = await exchange(streaming, b"GET / HTTP/1.0\r\n\r\n")
    assert (b"transfer-encoding" in head, b"connection: close" in head, body) == (False, True, b"GET it was")
    head, body = await exchange(sized, b"GET / HTTP/1.0\r\n\r\n")
    assert (b"content-length: 2" in head, body) == (True, b"ok")
    head, body = await exchange(streaming, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert (b"transfer-encoding: chunked" in head, body) == (True, b"3\r\nGET\r\n7\r\n it was\r\n0\r\n\r\n")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_head_is_answered_as_a_get_without_a_body(version: bytes) -> None:
    """The application sees GET; the headers are those of its answer."""
    request = b"HEAD / HTTP/%b\r\nhost: x\r\nconnection: close\r\n\r\n" % version
    head, body = await exchange(sized, request)
    assert (head.startswith(b"http/1.1 200 "), b"content-length: 2" in head, body) == (True, True, b"")
    assert b"x-method: get" in head
    head, body = await exchange(streaming, request)
    assert (head.startswith(b"http/1.1 200 "), body) == (True, b"")
