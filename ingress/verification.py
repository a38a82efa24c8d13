"""Signatures checked without holding up the event loop.

A try is a key and a hash of the body. A few tries are made at once; more of them in steps between which others are
served, one request at a time; large bodies are hashed in threads. Tries times bytes are bounded for each request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final

from ingress.headers import RequestHeaders
from ingress.keys import Keyring
from server.problems import CLOSE, Problem, retry_after
from signing.signatures import Ed25519Key, Key, SignatureRejected, Verified

TRY_BYTES: Final = 4 * 1024
"""What a try costs besides its bytes, as bytes that are hashed in the time."""
FIRST_MAX_BYTES: Final = 128 * 1024
"""What is hashed at once for each request, 0.4 ms: the keys that matched last, or those of the named producer."""
STEP_MAX_BYTES: Final = 1024 * 1024
"""What is hashed in one later step, 3 ms. One request at a time takes such steps."""
THREAD_MIN_BYTES: Final = 192 * 1024
"""Larger bodies are hashed in a thread. Below it, 0.6 ms at most, the change of threads costs more than the hash: with
batches of 500 ratings, 144 KB each, it took an eighth of the rate.
"""
REQUEST_MAX_BYTES: Final = 64 * 1024 * 1024
"""Tries times bytes of one request."""
TRIES_MIN: Final = 8
"""So many keys are tried however large the body is: those of one producer."""
WAITING_MAX: Final = 128
"""Requests that wait for further tries; all others are refused."""

NAME_PRODUCER: Final = "Name your producer in plant-producer: there are many keys."


class Verification:
    """The check of signatures against the keyring. One a process."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._stepping = asyncio.Lock()
        self._waiting = 0

    async def verify(self, headers: RequestHeaders, body: bytes) -> Verified | SignatureRejected:
        """Return the key that signed, or why none is accepted. Raises Problem (503) where many requests wait."""
        keys = self._keyring.candidates(headers.producer)
        if len(body) > THREAD_MIN_BYTES:
            return await asyncio.to_thread(self.verify_now, headers, body)
        first = max(1, FIRST_MAX_BYTES // (TRY_BYTES + len(body)))
        verdict = self._try(keys[:first], headers, body)
        if len(keys) <= first or isinstance(verdict, Verified) or verdict.reason != "no_match":
            return verdict
        tried = keys[: tries_max(len(body))]
        return _bounded(await self._verify_in_steps(tried[first:], headers, body), len(tried) < len(keys))

    def verify_now(self, headers: RequestHeaders, body: bytes) -> Verified | SignatureRejected:
        """Return the same at once; call it in a thread for a large body."""
        keys = self._keyring.candidates(headers.producer)
        tried = keys[: tries_max(len(body))]
        return _bounded(self._try(tried, headers, body), len(tried) < len(keys))

    async def _verify_in_steps(
        self, keys: Sequence[Key], headers: RequestHeaders, body: bytes
    ) -> Verified | SignatureRejected:
        if self._waiting >= WAITING_MAX:
            why = NAME_PRODUCER if headers.producer is None else "Many signatures are being checked."
            raise Problem("overloaded", why, headers=(retry_after(1), CLOSE))
        self._waiting += 1
        try:
            async with self._stepping:
                for some in _steps(keys, max(1, STEP_MAX_BYTES // (TRY_BYTES + len(body)))):
                    await asyncio.sleep(0)
                    verdict = self._try(some, headers, body)
                    if isinstance(verdict, Verified) or verdict.reason != "no_match":
                        return verdict
        finally:
            self._waiting -= 1
        return SignatureRejected("no_match")

    def _try(self, keys: Sequence[Key], headers: RequestHeaders, body: bytes) -> Verified | SignatureRejected:
        return self._keyring.verify_with(keys, headers.message_id, headers.timestamp, headers.signatures, body)


def tries_max(body_bytes: int) -> int:
    """Return how many keys are tried for a body.

    >>> tries_max(300), tries_max(256 * 1024), tries_max(64 * 1024 * 1024)
    (15265, 252, 8)
    """
    return max(TRIES_MIN, REQUEST_MAX_BYTES // (TRY_BYTES + body_bytes))


def _steps(keys: Sequence[Key], step: int) -> Iterator[Sequence[Key]]:
    """Yield the HMAC keys in steps, then all ed25519 keys: the bound on their checks counts those of one call."""
    hmac_keys = [key for key in keys if not isinstance(key, Ed25519Key)]
    for start in range(0, len(hmac_keys), step):
        yield hmac_keys[start : start + step]
    if len(hmac_keys) < len(keys):
        yield [key for key in keys if isinstance(key, Ed25519Key)]


def _bounded(verdict: Verified | SignatureRejected, some_left: bool) -> Verified | SignatureRejected:
    if some_left and isinstance(verdict, SignatureRejected) and verdict.reason == "no_match":
        return SignatureRejected("too_many_tries")
    return verdict
