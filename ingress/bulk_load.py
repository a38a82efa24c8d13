"""One bulk load whose signature was good: its lines, published as fast as Kafka takes them, each with a result line.

A load goes on while its sender may send: a revoked key, a disabled producer, or the longest time of a load stops it
between two chunks. The last line of the answer says then from which line the sender can go on.
"""

from __future__ import annotations

import asyncio
import mmap
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec
from litestar.types import Receive, Send

from ingress.batches import SubmittedEvent, await_results, is_overloaded, submit_each, unpaid
from ingress.producers import ProducerPolicy
from ingress.publishing import IngressPublisher
from server.bodies import PeerGone
from server.problems import Problem

CHUNK_LINES: Final = 250
CHUNK_MAX_BYTES: Final = 512 * 1024
BLANK_MAX_BYTES: Final = 1024 * 1024
IN_FLIGHT_CHUNKS: Final = 4
OVERLOADED_DELAY_SECONDS: Final = 0.05
POLL_EVERY_SECONDS: Final = 0.5
"""How often a load that waits looks at what could end it."""
NDJSON_TYPE: Final = (b"content-type", b"application/x-ndjson")

_NOT_BLANK: Final = re.compile(rb"[^ \t\r\n\v\f]")

CurrentPolicy = Callable[[], ProducerPolicy]
"""Returns the policy of the load's producer as of now. Raises Problem where the load may not go on."""


Refused = Callable[[Sequence[tuple[int, Problem]]], None]
"""Logs and counts lines that were refused, by their numbers."""


class Line(NamedTuple):
    """A line that is not blank, and its number in the body, from 1 on."""

    number: int
    content: bytes


class BodyLines:
    """The lines of a body, taken from its beginning; a line that is too long is cut one byte after the limit."""

    def __init__(self, body: mmap.mmap | bytes, line_max_bytes: int) -> None:
        self._body = body
        self._line_max_bytes = line_max_bytes
        self._start = 0
        self._size_bytes = len(body)
        self.number = 1
        """The number of the line at which the next `take` begins."""

    def at_end(self) -> bool:
        """Return whether every line was taken."""
        return self._start >= self._size_bytes

    def take(self, count: int) -> list[Line]:
        """Return up to so many lines, without blank ones; fewer, or none, where they or the blanks are long.

        One call looks at a bounded number of bytes, so that no other request waits for it.
        """
        lines: list[Line] = []
        budget_bytes = CHUNK_MAX_BYTES
        while len(lines) < count and budget_bytes > 0 and self._skip_blanks():
            content = self._body[self._start : min(self._line_end(), self._start + self._line_max_bytes + 1)]
            lines.append(Line(self.number, content))
            budget_bytes -= len(content)
            self._next_line()
        return lines

    def _skip_blanks(self) -> bool:
        """Go to the next line that is not blank, and return whether there is one within reach."""
        reach = min(self._size_bytes, self._start + BLANK_MAX_BYTES)
        found = _NOT_BLANK.search(self._body, self._start, reach)
        if found is not None and found.start() == self._start:
            return True
        blank = self._body[self._start : reach if found is None else found.start()]
        newlines = blank.count(b"\n")
        if newlines:
            self.number += newlines
            self._start += blank.rindex(b"\n") + 1
        elif found is None and not self.at_end():  # the rest, or a line that is too long
            self._next_line()
        return found is not None

    def _line_end(self) -> int:
        end = self._body.find(b"\n", self._start)
        return self._size_bytes if end < 0 else end

    def _next_line(self) -> None:
        self._start = self._line_end() + 1
        self.number += 1


class BulkLoad:
    """A load under way. Make it, then await :meth:`answer`."""

    def __init__(
        self,
        publisher: IngressPublisher,
        current_policy: CurrentPolicy,
        stop_reason: Callable[[], Problem | None],
        refused: Refused,
        traceparent: str | None,
        *,
        line_max_bytes: int,
    ) -> None:
        """`stop_reason` returns why the process, or the time that has passed, ends the load; None: nothing does.

        Raises Problem where the load may not begin.
        """
        self._publisher = publisher
        self._current_policy = current_policy
        self._policy = current_policy()
        self._stop_reason = stop_reason
        self._log_refused = refused
        self._traceparent = traceparent
        self._line_max_bytes = line_max_bytes
        self._waiting: deque[tuple[list[int], list[SubmittedEvent]]] = deque()
        """Numbers and publishes of the lines of each chunk that is not answered yet."""
        self._accepted = self._refused = 0
        self._stopped: Problem | None = None
        self._next_line = 0
        """The first line without a lasting result, once the load has stopped."""

    async def answer(self, body: mmap.mmap | bytes, receive: Receive, send: Send) -> None:
        """Publish every line and answer it while the connection is open. Raises PeerGone when it closes."""
        leaving = asyncio.create_task(_leaving(receive), name="bulk-peer")
        try:
            await send({"type": "http.response.start", "status": 200, "headers": [NDJSON_TYPE]})
            await self._publish(BodyLines(body, self._line_max_bytes), send, leaving)
            while self._waiting:
                await self._answer_chunk(send)
            await send({"type": "http.response.body", "body": self._last_line(), "more_body": False})
        finally:
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)

    async def _publish(self, lines: BodyLines, send: Send, leaving: asyncio.Task[None]) -> None:
        while not lines.at_end():
            in_flight = 0 if self._publisher.wait_seconds(self._policy) else IN_FLIGHT_CHUNKS - 1
            while self._stopped is None and len(self._waiting) > in_flight:
                await self._answer_chunk(send)
            await self._wait_for_rate(lines.number, leaving)
            if self._stopped is not None:
                return
            # At most what a slow producer may send in a second: so often it gets an answer, and a closed peer is seen.
            chunk = lines.take(max(1, min(CHUNK_LINES, int(self._policy.rate_per_second))))
            if chunk:
                await self._submit(chunk, leaving)
            await asyncio.sleep(0)  # where nothing else is waited for, others are served all the same

    async def _wait_for_rate(self, number: int, leaving: asyncio.Task[None]) -> None:
        """Return when the rate allows this line, or the load has stopped. Raises PeerGone."""
        while not leaving.done() and self._may_publish(number):
            seconds = self._publisher.wait_seconds(self._policy)
            if not seconds:
                return
            await asyncio.wait([leaving], timeout=min(seconds, POLL_EVERY_SECONDS))
        if leaving.done():
            raise PeerGone

    async def _submit(self, chunk: list[Line], leaving: asyncio.Task[None]) -> None:
        """Begin to publish lines in order; a line for which there is no room is tried again until there is."""
        self._publisher.consume(self._policy, len(chunk))
        submitted: list[SubmittedEvent] = []
        while len(submitted) < len(chunk):
            if leaving.done() or not self._may_publish(chunk[len(submitted)].number):
                self._publisher.restore(self._policy, len(chunk) - len(submitted))
                break
            rest = [line.content for line in chunk[len(submitted) :]]
            some = await submit_each(
                self._publisher, rest, self._policy, self._traceparent, item_max_bytes=self._line_max_bytes
            )
            full = next((at for at, each in enumerate(some) if is_overloaded(each)), None)
            submitted += some[:full]
            if full is not None:
                await asyncio.sleep(OVERLOADED_DELAY_SECONDS)
        self._waiting.append(([line.number for line in chunk[: len(submitted)]], submitted))

    async def _answer_chunk(self, send: Send) -> None:
        """Send the results of the oldest chunk. A line that is to be sent again stops the load."""
        numbers, submitted = self._waiting.popleft()
        results = await await_results(self._publisher, submitted)
        self._publisher.restore(self._policy, unpaid(results))
        body = b"".join(result.document + b"\n" for result in results)
        await send({"type": "http.response.body", "body": body, "more_body": True})
        numbered = list(zip(numbers, results, strict=True))
        self._log_refused([(number, result.problem) for number, result in numbered if result.problem is not None])
        for number, result in numbered:
            self._accepted += result.problem is None
            self._refused += result.problem is not None
            if result.problem is not None and result.problem.status >= 500:
                self._stop(result.problem, number)

    def _may_publish(self, number: int) -> bool:
        """Return whether this line may be published now; else the load has stopped before it."""
        try:
            reason = self._stop_reason()
            self._policy = self._current_policy()
        except Problem as problem:
            reason = problem
        if reason is not None:
            self._stop(reason, number)
        return self._stopped is None

    def _stop(self, reason: Problem, number: int) -> None:
        self._next_line = number if self._stopped is None else min(number, self._next_line)
        self._stopped = self._stopped or reason

    def _last_line(self) -> bytes:
        """Return the counts, and where the load has stopped also why, and the line from which to go on."""
        end: dict[str, object] = {
            "accepted": self._accepted, "refused": self._refused, "complete": self._stopped is None,
        }  # fmt: skip
        if self._stopped is not None:
            end |= {"next_line": self._next_line, "problem": self._stopped.document()}
        return msgspec.json.encode(end) + b"\n"


async def _leaving(receive: Receive) -> None:
    """Return when the connection closes, or the whole answer was sent."""
    while (await receive())["type"] != "http.disconnect":
        pass
