"""Bulk loads: NDJSON, one structured CloudEvent on each line, each answered with a line while Kafka takes them.

The signature covers the whole body, so the body is kept in a file until it has been checked; then its events are
published as fast as Kafka takes them, the producer's rate allows, and the sender reads the results. Memory holds a
thousand events at any time; while the signature is checked, the body twice. A compressed body is opened into a second
file, after the signature was checked and in a place of those that publish, and counts as what comes out of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Final

from litestar.types import Receive, Send

from ingress.arrivals import Arrival, Arrivals, BodyReader
from ingress.bulk_load import BulkLoad, CurrentPolicy, Refused
from ingress.bulk_places import BulkPlaces
from ingress.gzip_content import open_gzip
from ingress.headers import RequestHeaders
from ingress.publishing import IngressPublisher
from runtime.clock import Clock
from server.problems import CLOSE, Problem, retry_after
from signing.signatures import TOLERANCE_SECONDS

ARRIVAL_TIMEOUT_SECONDS: Final = float(TOLERANCE_SECONDS)
"""An upload that takes longer has a timestamp that is too old when its signature is checked."""
FILE_BYTES: Final = 4 * 1024 * 1024
"""What a body counts before its first byte: an open file, so that there are never more than some seventy of them."""
PRODUCER_MISSING: Final = "plant-producer is missing: it says whose key signed."

Verify = Callable[[RequestHeaders, bytes], CurrentPolicy]
"""Returns the policy of the producer that signed. Raises Problem. Called in a thread."""


class BulkIntake:
    """Receiver of NDJSON requests, a few at a time."""

    def __init__(
        self,
        publisher: IngressPublisher,
        clock: Clock,
        *,
        body_max_bytes: int,
        line_max_bytes: int,
        streams_max: int,
        load_timeout_seconds: float,
    ) -> None:
        self._publisher = publisher
        self._clock = clock
        arriving_max_bytes = streams_max * (body_max_bytes + FILE_BYTES)
        self._arrivals = Arrivals(body_max_bytes, arriving_max_bytes, request_bytes=FILE_BYTES)
        self._bodies = BodyReader(body_max_bytes, self._arrivals)
        self._body_max_bytes = body_max_bytes
        self._line_max_bytes = line_max_bytes
        self._load_timeout_seconds = load_timeout_seconds
        self._places = BulkPlaces(streams_max)
        self.stopping = False
        """Set when the process ends: bulk loads stop between two chunks, and their last line says so."""

    async def __call__(
        self,
        headers: RequestHeaders,
        receive: Receive,
        send: Send,
        verify: Verify,
        refused: Refused,
        address: str | None = None,
    ) -> int:
        """Answer one request and return the status. Raises Problem and PeerGone before the answer has begun.

        `address` is that of the sender, where it is known.
        """
        if headers.producer is None:
            raise Problem("malformed-headers", PRODUCER_MISSING, headers=(CLOSE,))
        self._bodies.require_length(headers.content_length)
        with contextlib.ExitStack() as arriving:
            arriving.enter_context(self._places.arriving(headers.producer))
            arrival = self._arrivals.begin(address)
            arriving.callback(self._arrivals.end, arrival)
            with _new_spool() as spool:
                await self._spool(spool, receive, arrival)
                current_policy = await asyncio.to_thread(_verify_file, spool, headers, verify)
                async with self._places.publishing(current_policy().name):
                    arriving.close()
                    load = self._load(current_policy, headers, refused)
                    if headers.gzipped:
                        with _new_spool() as opened:
                            await asyncio.to_thread(_open_file, spool, opened, self._body_max_bytes)
                            await _answer(load, opened, receive, send)
                    else:
                        await _answer(load, spool, receive, send)
        return 200

    def _load(self, current_policy: CurrentPolicy, headers: RequestHeaders, refused: Refused) -> BulkLoad:
        """Return a load that begins now. The producer's rate slows it down, and does not refuse it."""
        deadline_seconds = self._clock.monotonic_seconds() + self._load_timeout_seconds

        def stop_reason() -> Problem | None:
            if self.stopping:
                return Problem("starting", "This process is ending.")
            if self._clock.monotonic_seconds() >= deadline_seconds:
                return Problem("overloaded", f"A bulk load lasts {self._load_timeout_seconds:g} s at most.")
            return None

        return BulkLoad(
            self._publisher,
            current_policy,
            stop_reason,
            refused,
            headers.traceparent,
            line_max_bytes=self._line_max_bytes,
        )

    async def _spool(self, spool: IO[bytes], receive: Receive, arrival: Arrival) -> None:
        def keep(part: bytes) -> None:
            with _storing():
                spool.write(part)

        try:
            async with asyncio.timeout(ARRIVAL_TIMEOUT_SECONDS):
                await self._bodies.read_into(keep, receive, arrival)
        except TimeoutError:
            why = (
                f"A bulk load has to arrive within {ARRIVAL_TIMEOUT_SECONDS:g} s: its signature is good for no longer."
            )
            raise Problem("slow-request", why, headers=(CLOSE,)) from None
        with _storing():
            spool.flush()


@contextlib.contextmanager
def _storing() -> Iterator[None]:
    """Map errors of the file to a Problem (503)."""
    try:
        yield
    except OSError as error:
        why = f"The body can't be kept: {error.strerror}."
        raise Problem("overloaded", "Try again later.", headers=(retry_after(30), CLOSE), reason=why) from error


def _new_spool() -> IO[bytes]:
    with _storing():
        return tempfile.TemporaryFile()


def _verify_file(spool: IO[bytes], headers: RequestHeaders, verify: Verify) -> CurrentPolicy:
    """Return what `verify` returns for a file's bytes. Raises Problem. Copying them takes as long as hashing them."""
    with _mapped(spool) as body:
        return verify(headers, body[:])


def _open_file(spool: IO[bytes], opened: IO[bytes], max_bytes: int) -> None:
    """Write the content of a gzip file into another one. Raises Problem: malformed (400), too large (413), no room."""

    def keep(content: bytes) -> None:
        with _storing():
            opened.write(content)

    with _mapped(spool) as body:
        open_gzip(body, keep, max_bytes)
    with _storing():
        opened.flush()


async def _answer(load: BulkLoad, spool: IO[bytes], receive: Receive, send: Send) -> None:
    with _mapped(spool) as body:
        await load.answer(body, receive, send)


@contextlib.contextmanager
def _mapped(spool: IO[bytes]) -> Iterator[mmap.mmap | bytes]:
    """Map the file's bytes; an empty file can't be mapped."""
    if not spool.tell():
        yield b""
        return
    with _storing():
        mapped = mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ)
    with mapped:
        yield mapped
