"""Bulk loads before their first line is published: sizes, places, signers, files."""

from __future__ import annotations

import asyncio
import errno
import gzip
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import IO, Any

import msgspec
import pytest
from litestar.types import Receive

from ingress import bulk
from ingress.arrivals import Arrivals, BodyReader
from ingress.bulk import BulkIntake
from ingress.bulk_load import CurrentPolicy
from ingress.headers import RequestHeaders
from ingress.producers import ProducerPolicy
from ingress.publishing import IngressPublisher
from runtime.clock import FixedClock
from runtime.settings import Settings
from server.bodies import PeerGone
from server.problems import CLOSE, Problem, retry_after
from streams.producer import EventProducer
from streams.topics import EVENTS_TOPIC
from tests.support.asgi_peers import Answered, peer

POLICY = ProducerPolicy(name="genesis", event_types=None, rate_per_second=1e6, burst=10_000, disabled=False)
DEADLINE_SECONDS = 120
SETTINGS = Settings(kafka_bootstrap_servers="127.0.0.1:1")


def intake(streams_max: int = 1) -> BulkIntake:
    producer = EventProducer(SETTINGS, topics=(EVENTS_TOPIC,))
    clock = FixedClock(datetime(2026, 11, 23, tzinfo=UTC))
    return BulkIntake(
        IngressPublisher(producer, clock), clock, body_max_bytes=100, line_max_bytes=50, streams_max=streams_max,
        load_timeout_seconds=900,
    )  # fmt: skip


def signed(*_: object) -> CurrentPolicy:
    """Return that the producer signed, and may send."""
    return lambda: POLICY


def headers(
    content_length: bytes | None = None, producer: str | None = "genesis", *, gzipped: bool = False
) -> RequestHeaders:
    return RequestHeaders("lines", b"msg_1", b"1763884800", b"v1,abc", content_length, None, producer, gzipped=gzipped)


def unlogged(_: object) -> None:
    """Log nothing."""


async def problem_of(receiver: BulkIntake, receive: Receive, content_length: bytes | None = None) -> Problem:
    """The problem of a load whose signature is good; it must not come after the signature was checked."""

    def verify(_headers: RequestHeaders, _body: bytes) -> CurrentPolicy:
        raise AssertionError("verified")

    with pytest.raises(Problem) as raised:
        await receiver(headers(content_length), receive, Answered(), verify, unlogged)
    return raised.value


async def test_a_declared_length_beyond_the_limit_is_refused_unread() -> None:
    """413 without a byte of the body."""
    assert (await problem_of(intake(), peer(b"x", gone=True), b"101")).status == 413


@pytest.mark.parametrize("pieces", [(b"x" * 101,), (b"x" * 60, b"x" * 41), (b"x" * 50, b"x" * 50, b"x")])
async def test_a_chunked_body_is_refused_at_the_first_byte_too_many(pieces: tuple[bytes, ...]) -> None:
    """Without a declared length, while the rest still arrives."""
    assert (await problem_of(intake(), peer(*pieces, gone=True))).status == 413


async def test_a_body_of_just_the_limit_is_verified_whole() -> None:
    """The signature is checked over every byte that came."""
    verified: list[bytes] = []

    def verify(_headers: RequestHeaders, body: bytes) -> CurrentPolicy:
        verified.append(body)
        raise Problem("signature")

    with pytest.raises(Problem) as raised:
        await intake()(headers(b"100"), peer(b"x" * 60, b"y" * 40), Answered(), verify, unlogged)
    assert (raised.value.status, verified) == (401, [b"x" * 60 + b"y" * 40])


async def test_loads_that_arrive_take_no_place() -> None:
    """Nobody has signed them yet: many of them, refused ones and closed ones leave the one place to one that is."""
    receiver = intake(streams_max=1)
    receiver.stopping = True
    for _ in range(3):
        assert (await problem_of(receiver, peer(b"x" * 101))).status == 413
        with pytest.raises(PeerGone):
            await receiver(headers(), peer(b"x", gone=True), Answered(), signed, unlogged)
    arriving = [
        asyncio.create_task(receiver(headers(), peer(b"x" * 60, endless=True), Answered(), signed, unlogged))
        for _ in range(20)
    ]
    await asyncio.sleep(0)
    answered = Answered()
    assert await receiver(headers(), peer(b"{}\n"), answered, signed, unlogged) == 200
    assert receiver._arrivals.size_bytes <= 4 * (100 + bulk.FILE_BYTES)
    for task in arriving:
        task.cancel()
    await asyncio.gather(*arriving, return_exceptions=True)


async def test_a_load_under_way_holds_its_place() -> None:
    """The next one is refused before it is sent for nothing, with the seconds to wait; then the place is free."""
    receiver = intake(streams_max=1)
    async with receiver._places.publishing("genesis"):
        problem = await problem_of(receiver, peer(b"x"))
    assert (problem.kind, dict(problem.headers)[b"retry-after"]) == ("overloaded", b"5")
    assert (await problem_of(receiver, peer(b"x" * 101))).status == 413


async def test_a_load_has_to_arrive_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that stalls is 408."""
    monkeypatch.setattr(bulk, "ARRIVAL_TIMEOUT_SECONDS", 0.05)
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert (await problem_of(intake(), peer(b"x", endless=True))).status == 408


async def test_a_load_needs_a_producer_that_may_send() -> None:
    """400 without a name, 403 for a disabled one."""
    with pytest.raises(Problem) as nameless:
        await intake()(headers(producer=None), peer(b""), Answered(), signed, unlogged)

    def disabled() -> ProducerPolicy:
        raise Problem("forbidden", "This producer is disabled.")

    with pytest.raises(Problem) as forbidden:
        await intake()(headers(), peer(b"{}"), Answered(), lambda *_: disabled, unlogged)
    assert (nameless.value.status, forbidden.value.status) == (400, 403)


async def test_an_ending_process_stops_before_the_next_chunk() -> None:
    """The last line counts what was published, and says why that is not all."""
    receiver = intake()
    receiver.stopping = True
    answered = Answered()
    assert await receiver(headers(), peer(b"{}\n{}\n"), answered, signed, unlogged) == 200
    assert answered.body.startswith(
        b'{"accepted":0,"refused":0,"complete":false,"next_line":1,"problem":{"type":"urn:plant:problem:'
    )
    assert answered.body.count(b"\n") == 1


async def test_the_events_of_a_load_have_its_trace() -> None:
    """That of the request, which a line of its own may replace."""
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    traced = msgspec.structs.replace(headers(), traceparent=trace)
    assert intake()._load(lambda: POLICY, traced, unlogged)._traceparent == trace


async def test_a_compressed_load_is_opened_after_its_signature_was_checked() -> None:
    """The signature covers the bytes as they were sent; the lines are those of what comes out."""
    packed = gzip.compress(b"\n{}\n{}\n")
    verified: list[bytes] = []

    def verify(_headers: RequestHeaders, body: bytes) -> CurrentPolicy:
        verified.append(body)
        return lambda: POLICY

    receiver, answered = intake(), Answered()
    receiver.stopping = True
    assert await receiver(headers(gzipped=True), peer(packed[:5], packed[5:]), answered, verify, unlogged) == 200
    assert verified == [packed]
    assert b'"next_line":1' in answered.body


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (gzip.compress(b"x" * 101), 413),
        (gzip.compress(b"{}\n" * 5)[:-3], 400),
        (gzip.compress(b"{}\n" * 5) + b"x", 400),
        (gzip.compress(bytes(60_000)), 413),
    ],
    ids=["too large", "cut off", "followed", "bomb"],
)
async def test_a_compressed_load_that_cannot_be_opened_stores_nothing(body: bytes, status: int) -> None:
    """It is refused before the answer begins, keeps no place, and is not opened where its signature is not good."""
    receiver, answered = intake(), Answered()
    assert len(body) <= 100

    def stranger(_headers: RequestHeaders, _body: bytes) -> CurrentPolicy:
        raise Problem("signature")

    with pytest.raises(Problem) as unsigned:
        await receiver(headers(gzipped=True), peer(body), answered, stranger, unlogged)
    with pytest.raises(Problem) as raised:
        await receiver(headers(gzipped=True), peer(body), answered, signed, unlogged)
    assert (unsigned.value.status, raised.value.status, answered.body) == (401, status, b"")
    async with receiver._places.publishing("genesis"):
        pass


async def test_a_full_disk_refuses_a_compressed_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with the cause in the log, as for the body itself."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(_body: bytes, keep: Callable[[bytes], object], _max: int) -> None:
        with bulk._storing():
            full()

    monkeypatch.setattr(bulk, "open_gzip", fail)
    with pytest.raises(Problem) as raised:
        await intake()(headers(gzipped=True), peer(gzip.compress(b"{}")), Answered(), signed, unlogged)
    assert (raised.value.status, "No space left" in raised.value.reason) == (503, True)


@pytest.mark.parametrize("streams_max", [1, 3])
def test_arriving_bodies_have_a_budget_for_each_place(monkeypatch: pytest.MonkeyPatch, streams_max: int) -> None:
    """Of the largest body and its file; each counts its file before its first byte."""
    made: list[tuple[Any, ...]] = []
    monkeypatch.setattr(bulk, "Arrivals", lambda *sizes, **more: made.append((sizes, more)) or Arrivals(*sizes, **more))
    monkeypatch.setattr(bulk, "BodyReader", lambda *args: made.append(args) or BodyReader(*args))
    receiver = intake(streams_max)
    sizes = (100, streams_max * (100 + bulk.FILE_BYTES))
    assert made == [(sizes, {"request_bytes": bulk.FILE_BYTES}), (100, receiver._arrivals)]
    assert receiver._places._places_max == streams_max
    assert receiver.stopping is False


def test_a_load_is_made_of_the_request_and_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on until just before its time is over, counted from its begin; where the process ends, that is why."""
    made: list[tuple[Any, ...]] = []
    monkeypatch.setattr(bulk, "BulkLoad", lambda *args, **more: made.append((*args, more)))
    receiver = intake()
    now, clock = datetime(2026, 11, 23, tzinfo=UTC), receiver._clock
    assert isinstance(clock, FixedClock)
    clock.set(now + timedelta(seconds=1_000))
    traced = msgspec.structs.replace(headers(), traceparent="parent")
    receiver._load(signed(), traced, unlogged)
    ((publisher, policy, stop_reason, refused, traceparent, more),) = made
    assert (publisher, policy(), refused) == (receiver._publisher, POLICY, unlogged)
    assert (traceparent, more) == ("parent", {"line_max_bytes": 50})
    assert stop_reason() is None
    clock.set(now + timedelta(seconds=1_899.5))
    assert stop_reason() is None
    for seconds in (1_900, 1_901):
        clock.set(now + timedelta(seconds=seconds))
        ended = stop_reason()
        assert (ended.kind, ended.detail) == ("overloaded", "A bulk load lasts 900 s at most.")
    receiver.stopping = True
    assert (stop_reason().kind, stop_reason().detail) == ("starting", "This process is ending.")


async def test_a_body_counts_for_its_senders_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """From before its first byte until its line is published, or it was refused."""
    receiver, begun = intake(), list[object]()
    begin = receiver._arrivals.begin
    monkeypatch.setattr(receiver._arrivals, "begin", lambda address: begun.append(address) or begin(address))
    held: list[tuple[int, int]] = []

    def verify(_headers: RequestHeaders, _body: bytes) -> CurrentPolicy:
        held.append((len(receiver._arrivals), receiver._arrivals.body_bytes))
        raise Problem("signature")

    for address in ("192.0.2.1", None):
        with pytest.raises(Problem):
            await receiver(headers(), peer(b"x" * 60), Answered(), verify, unlogged, address)
    assert (begun, held, len(receiver._arrivals)) == (["192.0.2.1", None], [(1, 60), (1, 60)], 0)


async def test_who_is_refused_before_the_body_was_read_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason: no producer is named, or the body did not come in time."""
    with pytest.raises(Problem) as nameless:
        await intake()(headers(producer=None), peer(b""), Answered(), signed, unlogged)
    assert (nameless.value.kind, nameless.value.headers) == ("malformed-headers", (CLOSE,))
    assert nameless.value.detail == bulk.PRODUCER_MISSING
    monkeypatch.setattr(bulk, "ARRIVAL_TIMEOUT_SECONDS", 0.05)
    late = await problem_of(intake(), peer(b"x", endless=True))
    assert (late.kind, late.headers) == ("slow-request", (CLOSE,))
    assert "within 0.05 s" in late.detail


class FullDisk:
    """A file that keeps so many calls; then the disk is full."""

    def __init__(self, file: IO[bytes], calls: int) -> None:
        self._file = file
        self._left = calls

    def _use(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._use()
        self._file.write(data)

    def flush(self) -> None:
        self._use()
        self._file.flush()

    def tell(self) -> int:
        return self._file.tell()

    def fileno(self) -> int:
        self._use()
        return self._file.fileno()


@pytest.mark.parametrize("calls", [None, 0, 1, 2, 3], ids=["open", "write", "second part", "flush", "map"])
async def test_a_body_that_can_not_be_kept_is_503(monkeypatch: pytest.MonkeyPatch, calls: int | None) -> None:
    """At whatever step the disk is full: the sender is to come back, and the log says why."""

    open_real = tempfile.TemporaryFile

    def open_file() -> Any:
        if calls is None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return FullDisk(open_real(), calls)

    monkeypatch.setattr(bulk.tempfile, "TemporaryFile", open_file)
    problem = await problem_of(intake(), peer(b"x" * 60, b"y" * 40))
    why = os.strerror(errno.EMFILE if calls is None else errno.ENOSPC)
    assert (problem.kind, problem.detail, problem.headers) == (
        "overloaded", "Try again later.", (retry_after(30), CLOSE),
    )  # fmt: skip
    assert problem.reason == f"The body can't be kept: {why}."


def test_a_compressed_file_is_opened_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the bound, which is the body's own, and all of it can be read from the file."""
    opened_with: list[int] = []
    open_gzip = bulk.open_gzip

    def seen(body: Any, keep: Any, max_bytes: int) -> None:
        opened_with.append(max_bytes)
        open_gzip(body, keep, max_bytes)

    monkeypatch.setattr(bulk, "open_gzip", seen)
    content = b"0123456789" * 10
    with tempfile.TemporaryFile() as spool, tempfile.TemporaryFile() as opened:
        spool.write(gzip.compress(content))
        spool.flush()
        bulk._open_file(spool, opened, len(content))
        assert opened_with == [len(content)]
        assert os.pread(opened.fileno(), 1_000, 0) == content
        assert _mapped_bytes(opened) == content
    with tempfile.TemporaryFile() as empty:
        assert _mapped_bytes(empty) == b""


def _mapped_bytes(file: IO[bytes]) -> bytes:
    with bulk._mapped(file) as body:
        return body[:]


async def test_what_is_published_is_what_was_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or what comes out of it, with the peer that reads the answer; the body no longer counts as arriving then."""
    receiver, answered = intake(), Answered()
    seen: list[tuple[object, ...]] = []

    class Load:
        async def answer(self, body: Any, receive: object, send: object) -> None:
            seen.append((body[:], receive, send, len(receiver._arrivals), receiver._places._published))

    monkeypatch.setattr(receiver, "_load", lambda *_: Load())
    content = b"{}\n{}\n"
    for gzipped, body in ((False, content), (True, gzip.compress(content))):
        receive = peer(body)
        assert await receiver(headers(gzipped=gzipped), receive, answered, signed, unlogged) == 200
        assert seen.pop() == (content, receive, answered, 0, 1)
    assert receiver._places._published == 0
