"""Bulk loads: NDJSON, one structured CloudEvent on each line, each answered with a line while Kafka takes them.

The signature covers the whole body, so the body is kept in a file until it has been checked; then its events are
published as fast as Kafka takes them, the producer's rate allows, and the sender reads the results. Memory holds a
thousand events at any time; while the signature is checked, the body twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO, Final

import msgspec
from litestar.types import Receive, Send

from ingress.batches import SubmittedEvent, await_results, is_overloaded, submit_each
from ingress.headers import RequestHeaders
from ingress.limits import PeerGone, receive_part, too_large
from ingress.problems import CLOSE, Problem, retry_after
from ingress.producers import ProducerPolicy
from ingress.publishing import IngressPublisher
from runtime import metrics
from signing.signatures import TOLERANCE_SECONDS

CHUNK_LINES: Final = 250
IN_FLIGHT_CHUNKS: Final = 4
OVERLOADED_DELAY_SECONDS: Final = 0.05
RATE_POLL_EVERY_SECONDS: Final = 1.0
ARRIVAL_TIMEOUT_SECONDS: Final = float(TOLERANCE_SECONDS)
"""An upload that takes longer has a timestamp that is too old when its signature is checked."""
NDJSON_TYPE: Final = (b"content-type", b"application/x-ndjson")

Verify = Callable[[RequestHeaders, bytes], ProducerPolicy]
"""Returns the policy of the producer that signed. Raises Problem. Called in a thread."""


class BulkIntake:
    """Receiver of NDJSON requests, a few at a time."""

    def __init__(
        self, publisher: IngressPublisher, *, body_max_bytes: int, line_max_bytes: int, streams_max: int
    ) -> None:
        self._publisher = publisher
        self._body_max_bytes = body_max_bytes
        self._line_max_bytes = line_max_bytes
        self._streams_max = streams_max
        self._streams = 0
        self.stopping = False
        """Set when the process ends: bulk loads stop between two chunks, and their last line says so."""

    async def __call__(self, headers: RequestHeaders, receive: Receive, send: Send, verify: Verify) -> int:
        """Answer one request and return the status. Raises Problem and PeerGone before the answer has begun."""
        if headers.producer is None:
            raise Problem("malformed-headers", "plant-producer is missing: it says whose key signed.", headers=(CLOSE,))
        if self._streams >= self._streams_max:
            raise Problem("overloaded", "Many bulk loads are under way.", headers=(retry_after(5), CLOSE))
        self._streams += 1
        metrics.INGRESS_STREAMS.set(self._streams)
        try:
            with tempfile.TemporaryFile() as spool:
                await self._spool(spool, headers, receive)
                with _mapped(spool) as body:
                    policy = await asyncio.to_thread(verify, headers, body[:])
                    self._publisher.require_enabled(policy)  # its rate slows it down, and does not refuse it
                    await self._answer_lines(body, policy, headers.traceparent, receive, send)
        except OSError as error:
            why = f"The body can't be kept: {error.strerror}."
            raise Problem("overloaded", "Try again later.", headers=(retry_after(30), CLOSE), reason=why) from error
        finally:
            self._streams -= 1
            metrics.INGRESS_STREAMS.set(self._streams)
        return 200

    async def _spool(self, spool: IO[bytes], headers: RequestHeaders, receive: Receive) -> None:
        if headers.content_length is not None and int(headers.content_length) > self._body_max_bytes:
            raise too_large(self._body_max_bytes)
        size_bytes, more = 0, True
        try:
            async with asyncio.timeout(ARRIVAL_TIMEOUT_SECONDS):
                while more:
                    part, more = await receive_part(receive)
                    size_bytes += len(part)
                    if size_bytes > self._body_max_bytes:
                        raise too_large(self._body_max_bytes)
                    spool.write(part)
        except TimeoutError:
            why = (
                f"A bulk load has to arrive within {ARRIVAL_TIMEOUT_SECONDS:g} s: its signature is good for no longer."
            )
            raise Problem("slow-request", why, headers=(CLOSE,)) from None
        spool.flush()

    async def _answer_lines(
        self, body: mmap.mmap | bytes, policy: ProducerPolicy, traceparent: str | None, receive: Receive, send: Send
    ) -> None:
        """Publish and answer while the connection is open. Raises PeerGone when it closes."""
        leaving = asyncio.create_task(_leaving(receive), name="bulk-peer")
        try:
            await self._publish(body, policy, traceparent, send, leaving)
        finally:
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)

    async def _publish(
        self,
        body: mmap.mmap | bytes,
        policy: ProducerPolicy,
        traceparent: str | None,
        send: Send,
        leaving: asyncio.Task[None],
    ) -> None:
        """Publish every line. The last line of the answer counts them, and says whether that was all."""
        await send({"type": "http.response.start", "status": 200, "headers": [NDJSON_TYPE]})
        waiting: deque[list[SubmittedEvent]] = deque()
        counts = {"accepted": 0, "refused": 0}
        stopped: Problem | None = None
        # At most what a slow producer may send in a second: so often it gets an answer, and a closed peer is noticed.
        chunk_lines = max(1, min(CHUNK_LINES, int(policy.rate_per_second)))
        for lines in chunks(body, self._line_max_bytes, chunk_lines):
            in_flight = 0 if self._publisher.wait_seconds(policy) else IN_FLIGHT_CHUNKS - 1
            while stopped is None and len(waiting) > in_flight:
                stopped = await self._answer(waiting.popleft(), counts, send)
            await self._wait_for_rate(policy, leaving)
            if leaving.done():
                raise PeerGone
            if stopped is None and self.stopping:
                stopped = Problem("starting", "This process is ending.")
            if stopped is not None:
                break
            self._publisher.consume(policy, len(lines))
            waiting.append(await self._submit(lines, policy, traceparent))
        while waiting:
            stopped = await self._answer(waiting.popleft(), counts, send) or stopped
        end: dict[str, object] = {**counts, "complete": stopped is None}
        if stopped is not None:
            end["problem"] = stopped.document()
        await send({"type": "http.response.body", "body": msgspec.json.encode(end) + b"\n", "more_body": False})

    async def _submit(
        self, lines: list[bytes], policy: ProducerPolicy, traceparent: str | None
    ) -> list[SubmittedEvent]:
        """Begin to publish lines in order; a line for which there is no room is tried again until there is."""
        submitted: list[SubmittedEvent] = []
        while len(submitted) < len(lines):
            rest = lines[len(submitted) :]
            some = submit_each(self._publisher, rest, policy, traceparent, item_max_bytes=self._line_max_bytes)
            full = next((at for at, each in enumerate(some) if is_overloaded(each)), None)
            submitted += some[:full]
            if full is not None:
                await asyncio.sleep(OVERLOADED_DELAY_SECONDS)
        return submitted

    async def _answer(self, submitted: list[SubmittedEvent], counts: dict[str, int], send: Send) -> Problem | None:
        """Send the chunk's results. Return a problem where nothing more should be tried."""
        results = await await_results(self._publisher, submitted)
        body = b"".join(result.document + b"\n" for result in results)
        await send({"type": "http.response.body", "body": body, "more_body": True})
        refused = [result.problem for result in results if result.problem is not None]
        counts["refused"] += len(refused)
        counts["accepted"] += len(results) - len(refused)
        return next((problem for problem in refused if problem.status >= 500), None)

    async def _wait_for_rate(self, policy: ProducerPolicy, leaving: asyncio.Task[None]) -> None:
        while (seconds := self._publisher.wait_seconds(policy)) and not self.stopping and not leaving.done():
            await asyncio.wait([leaving], timeout=min(seconds, RATE_POLL_EVERY_SECONDS))


async def _leaving(receive: Receive) -> None:
    """Return when the connection closes, or the whole answer was sent."""
    while (await receive())["type"] != "http.disconnect":
        pass


@contextlib.contextmanager
def _mapped(spool: IO[bytes]) -> Iterator[mmap.mmap | bytes]:
    """Map the file's bytes; an empty file can't be mapped."""
    if not spool.tell():
        yield b""
        return
    with mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield mapped


def chunks(body: mmap.mmap | bytes, line_max_bytes: int, chunk_lines: int) -> Iterator[list[bytes]]:
    """Yield the lines in chunks, without blank ones; a line that is too long is cut one byte after the limit."""
    chunk: list[bytes] = []
    start, size = 0, len(body)
    while start < size:
        end = body.find(b"\n", start)
        end = size if end < 0 else end
        line = body[start : min(end, start + line_max_bytes + 1)]
        if line.strip():
            chunk.append(line)
        if len(chunk) == chunk_lines:
            yield chunk
            chunk = []
        start = end + 1
    if chunk:
        yield chunk
