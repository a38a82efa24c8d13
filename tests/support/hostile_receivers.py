"""Receivers that answer badly, and what becomes of the attempt: data for a test and for a page.

`python -m tests.support.hostile_receivers` writes docs/reference/attempts.md.
`tests/integration/deliveries/test_attempts.py` sends to each.
"""

from __future__ import annotations

import asyncio
import gzip
import zlib
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Final

from deliveries.attempts import WORDS
from deliveries.outcomes import AttemptOutcome, ErrorClass, OutcomeKind, classify
from tests.support import ROOT
from tests.support.raw_answers import Answer, chunked, closes_its_side, head, repeats, resets, sends, trickles, waits
from tests.support.unreached_endpoints import Endpoint, endpoints

PAGE: Final = ROOT / "docs" / "reference" / "attempts.md"
HANGING_TIMEOUT_SECONDS: Final = 1.0
"""Of attempts to receivers that never come to an end."""
MIB: Final = b"a" * 1024 * 1024
HUNDRED: Final = b"b" * 100
COLUMNS: Final = ("| the endpoint | status | error | outcome |", "|---|---|---|---|")


@dataclass(frozen=True)
class Receiver:
    """What a receiver does once it has the request, and what comes of the attempt."""

    does: str
    answer: Answer
    status_code: int | None
    error_class: ErrorClass | None = None
    truncated: bool = False
    hangs: bool = False

    @property
    def kind(self) -> OutcomeKind:
        """What the attempt means for the delivery."""
        return classify(AttemptOutcome(status_code=self.status_code, error_class=self.error_class))


def bomb(coding: str) -> Answer:
    """Return an answer of 64 MiB once it is decompressed; packed when it is first sent."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = packed_bomb(coding)
        writer.write(head(200, f"Content-Encoding: {coding}", length=len(body)) + body)
        await writer.drain()

    return answer


@cache
def packed_bomb(coding: str) -> bytes:
    """Return the body of such an answer."""
    packer = zlib.compressobj(1, wbits=zlib.MAX_WBITS | (16 if coding == "gzip" else 0))
    return b"".join(packer.compress(MIB) for _ in range(64)) + packer.flush()


def statuses() -> list[Receiver]:
    """Return a receiver for each status code that is no interim answer, and for some that have no name."""
    codes = [status.value for status in HTTPStatus if status >= 200]
    return [
        Receiver(
            f"answers {code}",
            sends(head(code, "Location: http://127.0.0.1:1/", length=None if code in (204, 304) else 0)),
            code,
        )
        for code in (*codes, 299, 499, 599, 999)
    ]


@cache
def receivers() -> list[Receiver]:
    """Return every receiver of the catalogue."""
    return [*statuses(), *_interim(), *_flooding(), *_hanging(), *_long(), *_breaking_off(), *_malformed()]


def _interim() -> list[Receiver]:
    other_protocol = sends(head(101, "Upgrade: x", "Connection: upgrade", length=None))
    return [
        Receiver("answers 200 after two interim answers", sends(head(103, length=None) * 2, head(200)), 200),
        Receiver("sends 200 after sixteen interim answers", sends(head(102, length=None) * 16, head(200)), 200),
        Receiver("sends 200 after seventeen", sends(head(102, length=None) * 17, head(200)), None, "protocol"),
        Receiver("sends interim answers one by one for ever", repeats(head(102, length=None)), None, "protocol"),
        Receiver("answers 101, another protocol", other_protocol, 101),
    ]


def _flooding() -> list[Receiver]:
    hints = head(103, *["Link: </a>"] * 100, length=None)
    return [
        Receiver("floods with interim answers", repeats(head(102, length=None) * 1_000), None, "protocol"),
        Receiver("floods with hints", repeats(hints * 50), None, "protocol"),
        Receiver("floods with answers that nobody asked for", repeats(head(200) * 1_000), 200),
    ]


def _hanging() -> list[Receiver]:
    return [
        Receiver(does, answer, status_code, "timeout", hangs=True)
        for does, answer, status_code in (
            ("sends nothing", waits, None),
            ("sends half of the head, and then nothing", sends(head(200)[:20], then=waits), None),
            ("sends the head a byte at a time", trickles(head(200, "X-Long: " + "a" * 1000)), None),
            ("sends half of the body, and then nothing", sends(head(200, length=200) + HUNDRED, then=waits), 200),
            ("sends the body a byte at a time", sends(head(200, length=1000), then=trickles(HUNDRED * 10)), 200),
        )
    ]


def _long() -> list[Receiver]:
    packed = gzip.compress(HUNDRED, mtime=0)
    line, lines = "a" * 65536, [f"X-{number}: a" for number in range(10_000)]
    endless = sends(b"HTTP/1.1 200 x\r\n", then=repeats(b"X-A: a\r\n" * 1000))
    return [
        Receiver("sends a body without end", sends(head(200, length=None), then=repeats(MIB)), 200, truncated=True),
        Receiver("sends 1 MiB", sends(head(200, length=len(MIB)) + MIB), 200, truncated=True),
        Receiver("sends 1 MiB in chunks", sends(chunked(MIB)), 200, truncated=True),
        Receiver("sends chunks of a byte", sends(chunked(*[b"b"] * 100)), 200),
        Receiver("sends a gzip body", sends(head(200, "Content-Encoding: gzip", length=len(packed)) + packed), 200),
        Receiver("sends 64 MiB as gzip", bomb("gzip"), 200, truncated=True),
        Receiver("sends 64 MiB as deflate", bomb("deflate"), 200, truncated=True),
        Receiver("sends a header of 64 KiB", sends(head(200, f"X-Long: {line}")), None, "answer_too_large"),
        Receiver("sends a reason of 64 KiB", sends(f"HTTP/1.1 200 {line}\r\n\r\n".encode()), None, "answer_too_large"),
        Receiver("sends 10,000 headers", sends(head(200, *lines)), None, "answer_too_large"),
        Receiver("sends a head without end", endless, None, "answer_too_large"),
    ]


def _breaking_off() -> list[Receiver]:
    half = head(200, length=200) + HUNDRED
    return [
        Receiver("closes after half of the body", sends(half), 200, "protocol"),
        Receiver("closes in the middle of a chunk", sends(chunked(HUNDRED)[:-40]), 200, "protocol"),
        Receiver("resets the connection after half of the body", sends(half, then=resets), 200, "protocol"),
        Receiver("closes without an answer", sends(), None, "connection"),
        Receiver("closes after half of the head", sends(head(200)[:20]), None, "connection"),
        Receiver("closes its side alone, without an answer", closes_its_side, None, "connection"),
        Receiver("resets the connection", resets, None, "connection"),
    ]


def _malformed() -> list[Receiver]:
    coded = [head(200, f"Content-Encoding: {coding}", length=len(HUNDRED)) + HUNDRED for coding in ("gzip", "x")]
    lengths = head(200, "Content-Length: 1", "Content-Length: 2", length=None) + b"ab"
    chunk = head(200, "Transfer-Encoding: chunked", length=None) + b"zz\r\n"
    return [
        Receiver("sends a gzip body that is none", sends(coded[0]), 200, "protocol"),
        Receiver("sends a body in an unknown coding", sends(coded[1]), 200),
        Receiver("sends a header's name with a blank in it", sends(head(200, "X A: a")), None, "protocol"),
        Receiver("sends two lengths", sends(lengths), None, "protocol"),
        Receiver("sends a negative length", sends(head(200, "Content-Length: -1", length=None)), None, "protocol"),
        Receiver("sends a chunk whose length is no number", sends(chunk), None, "protocol"),
        Receiver("sends HTTP/2", sends(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), None, "protocol"),
        Receiver("sends no HTTP", sends(b"220 mail.example ESMTP\r\n"), None, "protocol"),
        Receiver("sends a status code of two digits", sends(b"HTTP/1.1 20 OK\r\n\r\n"), None, "protocol"),
    ]


def page() -> str:
    """Return the page of all receivers and outcomes."""
    return "\n".join(
        [
            "<!-- Written by `python -m tests.support.hostile_receivers`; edits are lost. -->",
            "",
            "# Outcomes of attempts",
            "",
            "What comes of an attempt to deliver, by what the endpoint does. A test sends to each of these endpoints.",
            "",
            "- **delivered**: done.",
            "- **failed**: tried again after 1, 2, 4, 8 and 16 seconds, five times in all; a dead letter after that.",
            "- **throttled**: the same, and the endpoint is given time; `Retry-After` is honoured up to an hour.",
            "- **gone**: the endpoint is disabled.",
            "",
            "An attempt takes at most the endpoint's timeout, 15 seconds or less, for everything: resolving the name,",
            "connecting, sending, and reading the answer. At most 64 KiB of an answer's body are read, after",
            "decompression; then the connection is closed. An answer's head has up to 16 KiB a line and 128 headers.",
            "Redirects are not followed.",
            "",
            "## Receivers that answer",
            "",
            *COLUMNS,
            *(_row(each, "the rest is not read" if each.truncated else "") for each in receivers()),
            "",
            "## Endpoints that no request reaches",
            "",
            "Names, addresses, ports and TLS; and a few that are reached, for comparison. Where a name has several",
            "addresses, one that is refused is enough to refuse it.",
            "",
            *COLUMNS,
            *(_row(each) for each in endpoints()),
            "",
            "## Errors",
            "",
            "| error | meaning |",
            "|---|---|",
            *(f"| `{error_class}` | {words} |" for error_class, words in WORDS.items()),
            "",
        ]
    )


def _row(each: Receiver | Endpoint, remark: str = "") -> str:
    error = f"`{each.error_class}`" if each.error_class else remark
    return f"| {each.does} | {each.status_code or ''} | {error} | {each.kind} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
