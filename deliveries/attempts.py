"""An attempt: one signed request to an endpoint, and what came back, within bounds of time and memory."""

from __future__ import annotations

import base64
import contextlib
import html
import os
import re
import ssl
import time
import zlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Final
from urllib.parse import quote, unquote, urlsplit

import aiohttp
import msgspec

from deliveries.errors import EndpointRefused
from deliveries.guard.connections import DeliveryClient
from deliveries.guard.custom_headers import VALUE_MAX_BYTES
from deliveries.outcomes import AttemptOutcome, ErrorClass, parse_retry_after
from deliveries.signed_request import AttemptRequest
from schemas.delivery_records import EXCERPT_MAX_BYTES

ANSWER_MAX_BYTES: Final = 64 * 1024
"""Of an answer's body, after decompression. The rest is never read: the connection is closed instead."""
KEPT_MAX_BYTES: Final = EXCERPT_MAX_BYTES + 2 * VALUE_MAX_BYTES
"""Of what was read. More than is recorded or shown, by the longest value as JSON, so that none is cut off unseen."""

WORDS: Final[Mapping[ErrorClass, str]] = {
    "dns": "Its name can't be resolved.",
    "refused_address": "It may not be connected to.",
    "proxy": "The proxy refused, or could not be reached.",
    "connection": "No connection could be made, or it was closed before an answer came.",
    "tls": "TLS failed: a certificate is not accepted or not there, or there is no TLS that both speak.",
    "timeout": "No whole answer came in time.",
    "protocol": "What came is no HTTP, broke off, or can't be decoded.",
    "answer_too_large": "A line of the answer's head is too long, or there are too many.",
}

MASKED_VALUE_MIN_BYTES: Final = 4
MASKED_WORD_MIN_BYTES: Final = 8
"""Of a header's value that has several words, such as `Bearer …`: a receiver may write one of them down alone."""
MASKED_TEXTS_MAX: Final = 256
"""Values and words, as they are and escaped, that an answer is searched for. Each takes time of all endpoints."""

MASKED_LONG_BYTES: Final = 16
"""From so many on a part of a URL's path is taken for a token, whatever it is made of."""

_REMEMBERED: Final = 512
"""Values and URLs whose texts are kept, up to some 100 KB each: they change with an endpoint alone."""
_SEPARATORS: Final = re.compile(r"[,;=\"']+")
_SEGMENTS: Final = re.compile(r"[/?&=]+")

SIGNATURE_HEADER: Final = "webhook-signature"

_CHUNK_BYTES: Final = 16 * 1024
_SHOWN_HEADERS: Final = frozenset({"content-type", "webhook-id", "webhook-timestamp", "traceparent"})
_DECOMPRESSED: Final = frozenset({"gzip", "x-gzip", "deflate"})
_TOO_LARGE: Final = ("Got more than", "Too many headers")
"""How aiohttp begins to say that a line of the head, or their number, is over its bound: it has no class for that."""
_EITHER_HEAD: Final = zlib.MAX_WBITS | 32
"""Of gzip or of zlib, whichever is there."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an attempt. Its repr shows nothing of the answer, which is a stranger's, nor of what was sent."""

    outcome: AttemptOutcome
    duration_seconds: float
    why: str = ""
    """In words, where no whole answer came."""
    answer: bytes = b""
    """The begin of the answer's body, at most KEPT_MAX_BYTES, without what is secret of the request."""
    truncated: bool = False
    """Whether the answer's body goes on."""
    body: bytes = b""
    """What was sent."""

    def __repr__(self) -> str:
        return f"Attempt({self.outcome!r}, {len(self.answer)} bytes in {self.duration_seconds:.3f} s)"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [("outcome", self.outcome), ("answer_bytes", len(self.answer)), ("seconds", self.duration_seconds)]


async def send_attempt(
    client: DeliveryClient, url: str, request: AttemptRequest, *, timeout_seconds: float, now: datetime
) -> Attempt:
    """Send a request to an endpoint once, and return what came of it. Raises nothing but cancellation.

    A body that is longer than what is read of it is no failure; one that breaks off, or does not end within the time,
    is. `now` is the time that dates in `Retry-After` are compared with.
    """
    began_at = time.monotonic()
    answered = _Answer()
    error_class: ErrorClass | None = None
    why = ""
    try:
        async with client.send(url, request.headers, request.body, timeout_seconds=timeout_seconds) as response:
            answered.note_head(response, now)
            await answered.read(response)
    except (aiohttp.ClientError, EndpointRefused, OSError, TimeoutError, zlib.error, ValueError) as error:
        error_class = _error_class(error)
        why = _why(error, error_class)
    return Attempt(
        outcome=AttemptOutcome(
            status_code=answered.status_code, error_class=error_class, retry_after_seconds=answered.retry_after_seconds
        ),
        duration_seconds=time.monotonic() - began_at,
        why=why,
        answer=mask_echoes(bytes(answered.body[:KEPT_MAX_BYTES]), request, url),
        truncated=answered.truncated,
        body=request.body,
    )


class _Answer:
    """What has been read of an answer so far."""

    def __init__(self) -> None:
        self.status_code: int | None = None
        self.retry_after_seconds: float | None = None
        self.body = bytearray()
        self.truncated = False

    def note_head(self, response: aiohttp.ClientResponse, now: datetime) -> None:
        self.status_code = response.status
        retry_after = response.headers.get("Retry-After")
        self.retry_after_seconds = None if retry_after is None else parse_retry_after(retry_after, now)

    async def read(self, response: aiohttp.ClientResponse) -> None:
        """Read the body to its end or its bound; none of a body in a coding that we don't read. Close what goes on."""
        coding = response.headers.get("Content-Encoding", "identity").strip().lower()
        inflate = zlib.decompressobj(_EITHER_HEAD) if coding in _DECOMPRESSED else None
        readable = inflate is not None or coding == "identity"
        received_bytes = 0
        while chunk := await response.content.read(_CHUNK_BYTES):
            received_bytes += len(chunk)
            if inflate is not None:
                chunk = inflate.decompress(chunk, ANSWER_MAX_BYTES + 1 - len(self.body))
            if readable:
                self.body += chunk
            if max(len(self.body), received_bytes) > ANSWER_MAX_BYTES:
                del self.body[ANSWER_MAX_BYTES:]
                self.truncated = True
                response.close()
                return


def mask_echoes(answer: bytes, request: AttemptRequest, url: str = "") -> bytes:
    """Return an answer with asterisks where it repeats signatures or a subscriber's headers, which are kept encrypted,
    or the path of its URL, which may hold a token.

    Receivers that show what they got are common, and answers are kept. A value is found as it is or escaped as in JSON,
    HTML or a URL, and so are its longer words; credentials in base64 are too as they are decoded. No byte moves, so
    that nothing which was cut off comes into view. Where there are more of them than are searched for, all of the
    answer is asterisks.

    >>> mask_echoes(b"You sent Bearer abcdefgh.", AttemptRequest({"authorization": "Bearer abcdefgh"}, b""))
    b'You sent ***************.'
    """
    texts = _secret_texts(request, url) if answer else {}
    if len(texts) > MASKED_TEXTS_MAX:
        return b"*" * len(answer)
    for text in sorted(texts, key=len, reverse=True):  # a part of another one, first, would leave the rest of it
        answer = answer.replace(text, b"*" * len(text))
    return answer


def _secret_texts(request: AttemptRequest, url: str) -> dict[bytes, None]:
    """Return what of a request an answer is not to show, each once. Ends with the value that goes beyond the bound."""
    texts: dict[bytes, None] = {}
    for name, value in request.headers.items():
        if name in _SHOWN_HEADERS or len(value) < MASKED_VALUE_MIN_BYTES:
            continue
        texts_of = _texts_of if name == SIGNATURE_HEADER else _texts_of_header  # a signature is never the same again
        texts |= dict.fromkeys(texts_of(value))
        if len(texts) > MASKED_TEXTS_MAX:
            return texts
    return texts | dict.fromkeys(_texts_of_url(url))


def _texts_of(value: str) -> tuple[bytes, ...]:
    return _spelled([value, *_words(value)])


_texts_of_header: Final = lru_cache(_REMEMBERED)(_texts_of)


@lru_cache(_REMEMBERED)
def _texts_of_url(url: str) -> tuple[bytes, ...]:
    """Return the path of a URL with its query, and those parts of it that look like tokens."""
    parts = urlsplit(url)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    segments = [each for text in (target, unquote(target)) for each in _SEGMENTS.split(text) if _is_token(each)]
    whole = [text for text in (target, unquote(target)) if len(text) >= MASKED_WORD_MIN_BYTES]
    return _spelled([*whole, *segments])


def _spelled(texts: Iterable[str]) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(spelling for text in texts for spelling in _spellings(text)))


def _is_token(text: str) -> bool:
    """Return whether a part of a path is hardly a word: it is long, or mixes letters and digits, or their cases."""
    mixed = any(character.isdigit() for character in text) or (text.lower() != text != text.upper())
    return len(text) >= MASKED_LONG_BYTES or (len(text) >= MASKED_WORD_MIN_BYTES and mixed)


def _words(value: str) -> list[str]:
    """Return the longer words of a value, those that stand between blanks before their parts; decoded credentials."""
    words = value.split()
    if len(words) == 2 and words[0].lower() == "basic":
        with contextlib.suppress(ValueError):
            words += base64.b64decode(words[1], validate=True).decode().split(":", 1)
    parts = [part for word in words for part in _SEPARATORS.split(word)]
    return [word for word in dict.fromkeys([*words, *parts]) if len(word) >= MASKED_WORD_MIN_BYTES]


def _spellings(text: str) -> tuple[bytes, ...]:
    """Return a text as it is, as JSON has it in three ways, as HTML, and as part of a URL."""
    escaped = msgspec.json.encode(text)[1:-1]
    for_html = escaped.replace(b"&", rb"\u0026").replace(b"<", rb"\u003c").replace(b">", rb"\u003e")
    html_text, url_text = html.escape(text).encode(), quote(text, safe="").encode()
    return text.encode(), escaped, escaped.replace(b"/", rb"\/"), for_html, html_text, url_text


def failure_words(error: Exception) -> str:
    """Return why no answer came, in words that name neither an address nor anything of an answer."""
    return _why(error, _error_class(error))


def _error_class(error: Exception) -> ErrorClass:
    """Return the class of an error: the most particular one that its type tells."""
    match error:
        case EndpointRefused():
            return "refused_address"
        case TimeoutError():
            return "timeout"
        case aiohttp.ClientProxyConnectionError() | aiohttp.ClientHttpProxyError():
            return "proxy"
        case aiohttp.ClientConnectorDNSError():
            return "dns"
        case aiohttp.ClientSSLError() | aiohttp.ServerFingerprintMismatch() | ssl.SSLError():
            return "tls"
        case aiohttp.ClientOSError() if isinstance(error.__cause__, ssl.SSLError):
            return "tls"  # by TLS 1.3 a server asks for a certificate when the client has done with the handshake
        case aiohttp.ClientResponseError():
            return "answer_too_large" if error.message.startswith(_TOO_LARGE) else "protocol"
        case aiohttp.ClientPayloadError() | zlib.error():
            return "protocol"
        case aiohttp.ClientConnectionError():
            return "connection"
        case OSError():
            return "dns"
        case _:
            return "protocol"


def _why(error: Exception, error_class: ErrorClass) -> str:
    """Return the reason in words; never the text of an answer, nor an address that a name resolved to."""
    if isinstance(error, EndpointRefused):
        return error.why
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    match cause:
        case ssl.SSLCertVerificationError():
            return f"TLS failed: {getattr(cause, 'verify_message', str(cause)).removesuffix('.')}."
        case OSError(errno=None, strerror=str(words)) if error_class == "dns":
            return words
        case OSError(errno=int(number)) if error_class == "connection":
            return f"{WORDS[error_class]} {os.strerror(number)}."  # the error's own text names the address
        case _:
            return WORDS[error_class]
