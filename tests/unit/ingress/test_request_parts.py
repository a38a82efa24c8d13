"""The parts of a request's way that need no network: headers, bodies, the window of repeats, problems, keys, lines."""

from __future__ import annotations

import asyncio
import doctest
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from litestar.types import Receive

from ingress import limits, problems, rates
from ingress.deduplication import DeduplicationCache, IdReused
from ingress.errors import BadProducerName
from ingress.headers import read_request_headers
from ingress.keys import StoredKey, check_producer_name
from ingress.limits import Admission, BodyReader, PeerGone, drain
from ingress.problems import FieldError, Problem, retry_after
from runtime.clock import FixedClock, SystemClock
from streams.pending_publish import PendingPublish
from streams.record_position import RecordPosition

NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
GOOD = [
    (b"host", b"x"),
    (b"content-type", b"application/json"),
    (b"webhook-id", b"msg_1"),
    (b"webhook-timestamp", b"1763884800"),
    (b"webhook-signature", b"v1,abc"),
]


def without(name: bytes, *more: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return [header for header in GOOD if header[0] != name] + list(more)


@pytest.mark.parametrize(
    "kind", [b"application/json", b"Application/JSON; charset=UTF-8", b'application/json;charset="utf-8"']
)
def test_good_headers_are_read(kind: bytes) -> None:
    """JSON in UTF-8 is accepted however it is spelled."""
    headers = read_request_headers(without(b"content-type", (b"content-type", kind)), cloud_event=False)
    assert (headers.message_id, headers.signatures, headers.content_length) == (b"msg_1", b"v1,abc", None)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([*GOOD, (b"webhook-id", b"msg_2")], 400),
        ([*GOOD, (b"webhook-signature", b"v1,abc")], 400),
        (without(b"webhook-id"), 400),
        (without(b"webhook-timestamp"), 400),
        (without(b"webhook-signature"), 400),
        (without(b"webhook-id", (b"webhook-id", b"a b")), 400),
        (without(b"webhook-id", (b"webhook-id", b"")), 400),
        (without(b"webhook-id", (b"webhook-id", b"x" * 257)), 400),
        (without(b"webhook-timestamp", (b"webhook-timestamp", b"1.5")), 400),
        ([*GOOD, (b"content-length", b"0x10")], 400),
        (without(b"content-type"), 415),
        (without(b"content-type", (b"content-type", b"text/plain")), 415),
        (without(b"content-type", (b"content-type", b"application/json; charset=latin-1")), 415),
        (without(b"content-type", (b"content-type", b"application/cloudevents+json")), 415),
        ([*GOOD, (b"content-encoding", b"gzip")], 415),
    ],
)
def test_bad_headers_are_refused(headers: list[tuple[bytes, bytes]], status: int) -> None:
    """Missing, doubled and malformed headers are 400; other content types and encodings 415."""
    with pytest.raises(Problem) as raised:
        read_request_headers(headers, cloud_event=False)
    assert raised.value.status == status


def peer(*pieces: bytes, gone: bool = False, endless: bool = False) -> Receive:
    """A peer that sends these pieces, then leaves, stalls for ever, or has ended with the last."""
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": piece, "more_body": gone or endless or index < len(pieces) - 1}
        for index, piece in enumerate(pieces)
    ]

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        if gone:
            return {"type": "http.disconnect"}
        return await asyncio.get_running_loop().create_future()

    return receive


async def test_bodies_are_read_whole() -> None:
    """In one piece or several."""
    reader = BodyReader(10, Admission(1))
    assert await reader.read(peer(b"0123456789"), b"10") == b"0123456789"
    assert await reader.read(peer(b"012", b"345", b"6789"), None) == b"0123456789"


@pytest.mark.parametrize("pieces", [(b"0123456789a",), (b"01234", b"56789", b"a"), (b"0123456789a", b"b")])
async def test_too_much_is_refused_as_soon_as_it_is(pieces: tuple[bytes, ...]) -> None:
    """413 comes with the first byte too many, or with the declared length."""
    with pytest.raises(Problem) as raised:
        await BodyReader(10, Admission(1)).read(peer(*pieces), None)
    assert raised.value.status == 413
    with pytest.raises(Problem) as raised:
        await BodyReader(10, Admission(1)).read(peer(endless=True), b"11")
    assert raised.value.status == 413


async def test_bodies_share_one_bound() -> None:
    """Many large bodies at once are 503, and the room is free again when one has gone or was answered."""
    admission = Admission(10, bytes_max=100)
    reader = BodyReader(100, admission)
    slow = asyncio.create_task(reader.read(peer(b"x" * 60, endless=True), None))
    await asyncio.sleep(0)
    with pytest.raises(Problem) as raised:
        await reader.read(peer(b"y" * 30, b"y" * 30), None)
    assert (raised.value.status, retry_after(1) in raised.value.headers) == (503, True)
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)
    for _ in range(3):
        admission.enter()
        assert await reader.read(peer(b"y" * 30, b"y" * 30), None) == b"y" * 60
        with pytest.raises(Problem):
            await reader.read(peer(b"y" * 60), None)
        admission.leave(60)


def test_requests_share_one_bound() -> None:
    """One more than allowed is 503; a request that was answered makes room."""
    admission = Admission(2)
    admission.enter()
    admission.enter()
    with pytest.raises(Problem) as raised:
        admission.enter()
    assert raised.value.status == 503
    admission.leave(0)
    admission.enter()


async def test_a_peer_that_leaves_is_noticed() -> None:
    """A connection closed halfway ends the request without an answer."""
    with pytest.raises(PeerGone):
        await BodyReader(10, Admission(1)).read(peer(b"01", gone=True), None)


async def test_a_refused_peer_is_heard_out_for_a_while() -> None:
    """What is still on its way is read and dropped, up to a bound, whether the peer ends, leaves or stalls."""
    await drain(peer(b"x", b"y"))
    await drain(peer(b"x", gone=True))
    await drain(peer(b"x" * 1024 * 1024, endless=True))
    started = asyncio.get_running_loop().time()
    await drain(peer(b"x", endless=True))
    assert asyncio.get_running_loop().time() - started < 3


def publish(offset: int | None = None, error: Exception | None = None) -> PendingPublish:
    answer: asyncio.Future[RecordPosition] = asyncio.get_running_loop().create_future()
    if error is not None:
        answer.set_exception(error)
    elif offset is not None:
        answer.set_result(RecordPosition("t", 0, offset))
    return PendingPublish(answer, 0)


async def test_the_window_gives_copies_the_same_publish() -> None:
    """A message seen before gets the first one's publish, running or done; another body is refused."""
    window: DeduplicationCache = DeduplicationCache()
    first = publish()
    assert window.get(b"a", b"1", 0) is None
    window.put(b"a", b"1", first, 0)
    assert window.get(b"a", b"1", 1) is first
    with pytest.raises(IdReused):
        window.get(b"a", b"2", 1)


async def test_the_window_forgets_failures() -> None:
    """A publish that failed or was dropped is tried anew, with any body."""
    window: DeduplicationCache = DeduplicationCache()
    window.put(b"a", b"1", publish(error=OSError()), 0)
    assert window.get(b"a", b"2", 0) is None
    cancelled = publish()
    cancelled.answer.cancel()
    window.put(b"b", b"1", cancelled, 0)
    assert window.get(b"b", b"1", 0) is None


async def test_the_window_is_bounded_in_entries_and_age() -> None:
    """The oldest entries give way, and none outlives its age."""
    window: DeduplicationCache = DeduplicationCache(entries_max=2, age_max_seconds=10)
    for number, name in enumerate((b"a", b"b", b"c")):
        window.put(name, b"1", publish(number), now_seconds=number)
    assert (len(window), window.get(b"a", b"1", 3)) == (2, None)
    assert window.get(b"c", b"1", 12) is not None
    assert window.get(b"b", b"1", 12) is None
    window.evict_expired(12)
    assert len(window) == 1
    window.evict_expired(13)
    assert len(window) == 0


def test_a_problem_is_rfc_9457() -> None:
    """A problem has type, title, status, and names its fields."""
    problem = Problem("event", "d", errors=(FieldError("Expected `int`", "#/data/x"),), headers=(retry_after(0),))
    document = msgspec.json.decode(problem.body())
    assert document["type"] == "urn:plant:problem:event"
    assert (document["status"], document["detail"]) == (422, "d")
    assert document["errors"] == [{"detail": "Expected `int`", "pointer": "#/data/x"}]
    assert (b"retry-after", b"1") in problem.header_list()
    assert problem.on_the_wire().startswith(b"HTTP/1.1 422 ")


def test_every_problem_is_in_the_reference() -> None:
    """docs/reference/http.md lists every kind of problem with its status."""
    page = (Path(problems.__file__).parent.parent / "docs" / "reference" / "http.md").read_text()
    for kind, (status, _) in problems.kinds().items():
        assert f"| {status} | `{problems.URN}{kind}` |" in page


@pytest.mark.parametrize("name", ["", "A", "-a", "a b", "a\n", "x" * 64])
def test_bad_producer_names_are_refused(name: str) -> None:
    """Names that the database would refuse, or that hold a newline, are refused first."""
    with pytest.raises(BadProducerName):
        check_producer_name(name)


def test_a_key_has_a_state() -> None:
    """active, pending, expired or revoked."""
    key = StoredKey(id=uuid4(), producer="p", created_at=NOW, not_before=NOW, expires_at=None, revoked_at=None)
    changed = msgspec.structs.replace
    assert key.state(NOW) == "active"
    assert key.state(NOW - timedelta(1)) == "pending"
    assert changed(key, expires_at=NOW).state(NOW) == "expired"
    assert changed(key, expires_at=NOW, revoked_at=NOW).state(NOW) == "revoked"


def test_clocks_tell_the_time() -> None:
    """The system's clock is in UTC; the fixed one moves when told to."""
    assert SystemClock().now().tzinfo is UTC
    clock = FixedClock(NOW)
    clock.set(NOW + timedelta(seconds=5))
    assert (clock.now(), clock.monotonic_seconds()) == (NOW + timedelta(seconds=5), 5)


def test_refusals_do_not_fill_the_log() -> None:
    """The example in the module holds."""
    assert doctest.testmod(limits).failed == 0
    assert doctest.testmod(rates).failed == 0
    assert doctest.testmod(rates).attempted > 3
