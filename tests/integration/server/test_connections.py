"""`plant ingress` and peers that are slow, endless, greedy or not quite HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from uvicorn.config import Config
from uvicorn.server import ServerState

from database.connector import connect
from ingress.producers import PolicyChanges, ProducerStore
from runtime.settings import Settings
from server import connections
from server.connections import BoundedConnection, close_overdue
from tests.support.ingress_process import Running, answer_to, received_until_closed, request, request_head, started
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async
from tests.support.webhooks import CLOUD_EVENTS, RATED, rated

ALIVE = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest_asyncio.fixture
async def own_process(settings: Settings, tmp_path: Path) -> AsyncIterator[Running]:
    """A process whose producer is held to a rate of the test's own."""
    async with started(settings, tmp_path) as process:
        yield process


async def test_an_oversized_body_is_refused_while_it_is_still_sent(running: Running) -> None:
    """413 arrives though the peer goes on sending, and the connection closes."""

    def send() -> bytes:
        with closing(running.connect()) as peer:
            peer.sendall(request_head(running.sender, 10_000_000))
            try:
                for _ in range(30):
                    peer.sendall(b"x" * 10_000)
            except (BrokenPipeError, ConnectionResetError):
                pass
            return received_until_closed(peer)

    answer = await asyncio.to_thread(send)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer


async def test_an_endless_chunked_body_is_refused(running: Running) -> None:
    """Without a declared length the limit holds too."""

    def send() -> bytes:
        head = request_head(running.sender, 0).replace(b"content-length: 0", b"transfer-encoding: chunked")
        with closing(running.connect()) as peer:
            peer.sendall(head)
            try:
                for _ in range(200):
                    peer.sendall(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
            except (BrokenPipeError, ConnectionResetError):
                pass
            return received_until_closed(peer)

    assert (await asyncio.to_thread(send)).startswith(b"HTTP/1.1 413 ")


async def test_what_is_not_http_is_400(running: Running) -> None:
    """Garbage gets a problem and is closed."""

    def send() -> bytes:
        with closing(running.connect()) as peer:
            peer.sendall(b"\x16\x03\x01 garbage\r\n\r\n")
            return received_until_closed(peer)

    answer = await asyncio.to_thread(send)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"urn:plant:problem:malformed-request" in answer


async def test_an_endless_head_is_431(running: Running) -> None:
    """Headers without end are refused at the bound."""

    def send() -> bytes:
        with closing(running.connect()) as peer:
            peer.sendall(f"POST {RATED} HTTP/1.1\r\n".encode())
            try:
                for number in range(2000):
                    peer.sendall(f"x-{number}: {'y' * 100}\r\n".encode())
            except (BrokenPipeError, ConnectionResetError):
                pass
            return received_until_closed(peer)

    assert (await asyncio.to_thread(send)).startswith(b"HTTP/1.1 431 ")


def trickled(peer: socket.socket, first: bytes, more: bytes) -> bytes:
    """What is answered to a peer that never stops sending, and hardly sends anything."""
    answer = b""
    peer.sendall(first)
    peer.settimeout(0.5)
    while True:
        try:
            piece = peer.recv(65536)
        except TimeoutError:
            with contextlib.suppress(OSError):
                peer.sendall(more)
        except ConnectionResetError:
            return answer
        else:
            if not piece:
                return answer
            answer += piece


async def test_slow_peers_are_cut_off_and_others_are_served(running: Running) -> None:
    """A peer that sends nothing is closed; a head and a body that trickle in are answered with 408."""

    def idle() -> bytes:
        with closing(running.connect()) as peer:
            return received_until_closed(peer)

    def slow_head() -> bytes:
        with closing(running.connect()) as peer:
            return trickled(peer, b"POST /", b"x")

    def slow_body() -> bytes:
        with closing(running.connect()) as peer:
            return trickled(peer, request_head(running.sender, 1000) + b'{"data"', b" ")

    slow = asyncio.gather(*(asyncio.to_thread(peer) for peer in (idle, slow_head, slow_body)))
    assert (await running.post(rated())).status_code == 200
    nothing, head, body = await slow
    assert (await running.post(rated())).status_code == 200
    assert nothing == b""
    assert head.startswith(b"HTTP/1.1 408 ")
    assert body.startswith(b"HTTP/1.1 408 ")


async def test_pipelined_requests_are_answered_in_order(running: Running) -> None:
    """Two requests sent at once over one connection get two answers, the first one's first."""

    def send() -> bytes:
        requests = [request(running.sender, body) for body in (rated(), b"{")]
        with closing(running.connect()) as peer:
            peer.sendall(b"".join(requests) + b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            return received_until_closed(peer)

    answers = (await asyncio.to_thread(send)).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200", b"400", b"200"]


async def test_a_peer_that_leaves_halfway_leaves_nothing_behind(running: Running) -> None:
    """A connection closed inside a body is counted until then and not afterwards; the next request is served."""
    peer = running.connect()
    await asyncio.to_thread(peer.sendall, request_head(running.sender, 1000) + b"{")
    await wait_until_async(lambda: shows(running, "plant_ingress_requests_in_flight 1.0"), "the request is counted")
    peer.close()
    await wait_until_async(
        lambda: shows(running, "plant_ingress_requests_in_flight 0.0"), "nothing is counted any more"
    )
    assert "plant_ingress_held_body_bytes 0.0" in await metrics_of(running)
    assert (await running.post(rated())).status_code == 200


async def test_a_peer_that_leaves_its_bulk_load_frees_its_place(own_process: Running) -> None:
    """A load that would go on for a minute ends when nobody reads its answer any more."""
    database = connect(own_process.settings, "operator")
    await ProducerStore(database).set("genesis", PolicyChanges(rate_per_second=50.0, burst=1))
    await database.close()
    await wait_until_async(lambda: refused_for_its_rate(own_process), "the rate is known")
    event = {"specversion": "1.0", "source": "urn:test", "type": "genesis.agent.rated", "time": "2026-11-23T08:00:00Z"}
    rating = json.loads(rated())["data"]
    body = b"".join(json.dumps({**event, "id": str(at), "data": rating}).encode() + b"\n" for at in range(3_000))
    kind = "application/x-ndjson"
    headers = {
        **own_process.sender.headers(body, content_type=kind),
        "plant-producer": "genesis",
        "content-length": len(body),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {CLOUD_EVENTS} HTTP/1.1\r\nhost: x\r\n{lines}\r\n".encode()
    with closing(own_process.connect()) as peer:
        await asyncio.to_thread(peer.sendall, head + body)
        assert (await asyncio.to_thread(peer.recv, 65536)).startswith(b"HTTP/1.1 200 ")
        assert "plant_ingress_streams 1.0" in await metrics_of(own_process)

    async def closed() -> bool:
        return "plant_ingress_streams 0.0" in await metrics_of(own_process)

    await wait_until_async(closed, "the stream is counted out")


async def refused_for_its_rate(running: Running) -> bool:
    answers = await asyncio.gather(*(running.post(rated()) for _ in range(10)))
    return any(answer.status_code == 429 for answer in answers)


async def metrics_of(running: Running) -> str:
    async with httpx.AsyncClient(base_url=running.admin_url, verify=False, timeout=DEADLINE_SECONDS) as client:
        return (await client.get("/metrics")).text


async def shows(running: Running, line: str) -> bool:
    return line in await metrics_of(running)


def statuses(answers: bytes) -> list[bytes]:
    return [answer[:3] for answer in answers.split(b"HTTP/1.1 ")[1:]]


async def test_a_peer_may_send_only_so_far_ahead(running: Running) -> None:
    """Thousands of requests sent without waiting are neither kept nor answered: a few are, then the connection ends."""
    answer = await asyncio.to_thread(answer_to, running, ALIVE * 20_000)
    assert 0 < len(statuses(answer)) <= connections.PIPELINED_MAX + 1
    assert (await running.post(rated())).status_code == 200


async def test_a_good_request_gets_its_own_answer_whatever_follows_it(running: Running) -> None:
    """Garbage sent behind a request ends the connection, after the request's 200 and without a word that could be
    taken for its answer.
    """
    for garbage in (b"\x16\x03\x01 garbage\r\n\r\n", b"GET http:// HTTP/1.1\r\n\r\n"):
        answer = await asyncio.to_thread(answer_to, running, request(running.sender, rated()) + garbage)
        assert statuses(answer) == [b"200"]


async def test_trailers_are_bounded_and_no_headers(running: Running) -> None:
    """A header in a trailer does not count as sent; trailers without end are cut off like an endless head."""
    lines = b"transfer-encoding: chunked\r\nconnection: close\r\n"
    chunked = request(running.sender, b"", lines).replace(b"content-length: 0\r\n", b"") + b"0\r\n"
    head, signature, rest = chunked.partition(b"webhook-signature: ")
    value, _, rest = rest.partition(b"\r\n")
    moved = head + rest + signature + value + b"\r\n\r\n"
    answer = await asyncio.to_thread(answer_to, running, moved)
    assert (statuses(answer), b"webhook-signature is missing" in answer) == ([b"400"], True)
    for endless in (b"x: y\r\n" * 20_000, b"x: " + b"y" * 100_000):
        answer = await asyncio.to_thread(answer_to, running, chunked + endless)
        assert answer == b"" or statuses(answer) == [b"431"]


@pytest.mark.parametrize("together", [True, False])
async def test_an_offered_upgrade_is_passed_over(running: Running, together: bool) -> None:
    """A body after `Upgrade` is the request's body, never another request; the connection goes on in HTTP/1.1."""
    body = rated()
    offered = request(running.sender, body, b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n")

    def send() -> bytes:
        with closing(running.connect()) as peer:
            if together:
                peer.sendall(offered + ALIVE)
                both = b""
                while len(statuses(both)) < 2 and (more := peer.recv(65536)):  # in one piece or in two
                    both += more
                return both
            peer.sendall(offered[: -len(body)])
            time.sleep(0.2)  # the head alone must be what the process reads first
            peer.sendall(body)
            first = peer.recv(65536)
            peer.sendall(ALIVE)
            return first + peer.recv(65536)

    assert statuses(await asyncio.to_thread(send)) == [b"200", b"200"]


async def test_a_body_that_comes_after_its_answer_is_passed_over(running: Running) -> None:
    """A refusal that did not wait for the body leaves the connection good for the next request."""

    def send() -> tuple[bytes, bytes]:
        with closing(running.connect()) as peer:
            peer.sendall(b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n")
            first = peer.recv(65536)
            peer.sendall(b"x" * 100_000 + ALIVE)
            return first, peer.recv(65536)

    first, second = await asyncio.to_thread(send)
    assert (statuses(first), statuses(second)) == ([b"404"], [b"200"])


async def test_a_peer_that_never_reads_its_answer_is_let_go() -> None:
    """An answer that nobody reads does not keep a connection open."""

    async def large(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % 2**25)]})
        await send({"type": "http.response.body", "body": bytes(2**25)})

    loop, state = asyncio.get_running_loop(), ServerState()
    config = Config(large, http=BoundedConnection, ws="none", log_config=None, timeout_keep_alive=1)
    server = await loop.create_server(lambda: BoundedConnection(config, state, {}), "127.0.0.1", 0)
    sweeping = asyncio.create_task(close_overdue(state))
    with closing(socket.create_connection(server.sockets[0].getsockname())) as peer:
        peer.sendall(ALIVE)
        await wait_until_async(lambda: state.total_requests and not state.connections, "the idle connection is closed")
    sweeping.cancel()
    server.close()


@pytest.mark.parametrize(("hard", "connections_max"), [(20_000, 10_000), (500, 189)])
def test_connections_leave_files_for_the_process_itself(hard: int, connections_max: int) -> None:
    """The soft limit on open files is raised as far as it goes; where that is little, fewer are taken.

    Of 300 files left the admin listener's connections have 37, and those that wait at each of two listeners as many."""
    program = f"""
import resource
from server.connections import BoundedConnection, limit_connections
resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}))
limit_connections()
print(BoundedConnection.connections_max)
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(answer) == connections_max
