"""Signatures checked in steps: any key is found, and no request is hashed without a bound."""

from __future__ import annotations

import asyncio
import doctest
import os
import time
from collections.abc import Sequence
from typing import cast

import pytest

from ingress import verification
from ingress.headers import RequestHeaders
from ingress.keys import Keyring
from ingress.verification import Verification, tries_max
from server.problems import CLOSE, Problem, retry_after
from signing.signatures import HmacKey, Key, SignatureRejected, Verified, sign, verify_signature

NOW_SECONDS = 1763884800
STAMP = b"%d" % NOW_SECONDS
KEYS = [HmacKey(id=str(number), owner=f"p{number}", secret=os.urandom(32)) for number in range(1_000)]


class Keys:
    """A keyring of many keys, which counts the keys that were tried and the most of one step."""

    def __init__(self, keys: Sequence[Key] = KEYS) -> None:
        self._keys = keys
        self.tried = self.step = 0

    def candidates(self, producer: str | None) -> Sequence[Key]:
        return self._keys if producer is None else [key for key in self._keys if key.owner == producer]

    def verify_with(
        self, keys: Sequence[Key], message_id: bytes, timestamp: bytes, signatures: bytes, body: bytes
    ) -> Verified | SignatureRejected:
        self.tried += len(keys)
        self.step = max(self.step, len(keys))
        return verify_signature(keys, message_id, timestamp, signatures, body, NOW_SECONDS)


def verification_of(keys: Keys) -> Verification:
    return Verification(cast("Keyring", keys))


def signed_by(secret: bytes, body: bytes, producer: str | None = None) -> RequestHeaders:
    return RequestHeaders("webhook", b"msg_1", STAMP, sign(secret, b"msg_1", STAMP, body), None, None, producer)


@pytest.mark.parametrize("size_bytes", [2, 20_000, 60_000])
@pytest.mark.parametrize("number", [0, 29, 30, 999])
async def test_any_key_is_found(number: int, size_bytes: int) -> None:
    """The first one, those at the ends of a step, and the last of a thousand."""
    body = bytes(size_bytes)
    verdict = await verification_of(Keys()).verify(signed_by(KEYS[number].secret, body), body)
    assert verdict == Verified(KEYS[number])


async def test_a_step_and_a_request_hash_a_bounded_number_of_bytes() -> None:
    """Nobody's signature is tried on a thousand keys in steps; a large body is tried on as many as the bound allows."""
    for size_bytes, tried, reason in ((300, 1_000, "no_match"), (256 * 1024, tries_max(256 * 1024), "too_many_tries")):
        keys, body = Keys(), bytes(size_bytes)
        verdict = await verification_of(keys).verify(signed_by(b"nobody", body), body)
        assert (verdict, keys.tried) == (SignatureRejected(reason), tried)  # type: ignore[arg-type]  # of two literals
        if size_bytes <= verification.THREAD_MIN_BYTES:
            assert keys.step * (size_bytes + verification.TRY_BYTES) <= verification.STEP_MAX_BYTES


def test_a_large_body_that_was_tried_on_all_keys_matches_none() -> None:
    """Only where keys are left that the bound did not allow, naming the producer would help."""
    body = bytes(256 * 1024)
    most = tries_max(len(body))
    for count, reason in ((most, "no_match"), (most + 1, "too_many_tries")):
        verdict = verification_of(Keys(KEYS[:count])).verify_now(signed_by(b"nobody", body), body)
        assert verdict == SignatureRejected(reason)  # type: ignore[arg-type]  # of two literals


async def test_a_request_that_names_its_producer_overtakes_those_that_do_not() -> None:
    """A hundred forged ones wait for their steps; it is verified at once. Beyond the bound they are 503."""
    verifier = verification_of(Keys())
    forged = [
        asyncio.create_task(verifier.verify(signed_by(b"nobody", b"{}"), b"{}"))
        for _ in range(verification.WAITING_MAX + 5)
    ]
    await asyncio.sleep(0)
    verdict = await verifier.verify(signed_by(KEYS[500].secret, b"{}", "p500"), b"{}")
    assert verdict == Verified(KEYS[500])
    assert sum(task.done() for task in forged) <= 5
    outcomes = await asyncio.gather(*forged, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, Problem)]
    assert (len(refused), refused[0].status) == (5, 503)


@pytest.mark.parametrize("size_bytes", [2, 60_000, verification.THREAD_MIN_BYTES])
async def test_what_is_hashed_at_once_is_bounded(size_bytes: int) -> None:
    """As many keys as the bound allows, and one at least; the others wait for their step."""
    keys, body = Keys(), bytes(size_bytes)
    verifying = asyncio.create_task(verification_of(keys).verify(signed_by(b"nobody", body), body))
    await asyncio.sleep(0)
    assert keys.tried == max(1, verification.FIRST_MAX_BYTES // (verification.TRY_BYTES + size_bytes))
    await verifying


@pytest.mark.parametrize(
    ("producer", "why"), [(None, verification.NAME_PRODUCER), ("p7", "Many signatures are being checked.")]
)
async def test_a_request_that_may_not_wait_is_told_why(producer: str | None, why: str) -> None:
    """It may come back in a second, on another connection; one without a producer's name can do something about it."""
    shared = [HmacKey(id=str(number), owner="p7", secret=os.urandom(32)) for number in range(100)]
    verifier = verification_of(Keys(shared))
    forged = signed_by(b"nobody", b"{}", producer)
    waiting = [asyncio.create_task(verifier.verify(forged, b"{}")) for _ in range(verification.WAITING_MAX)]
    await asyncio.sleep(0)
    with pytest.raises(Problem) as refused:
        await verifier.verify(forged, b"{}")
    assert (refused.value.kind, refused.value.detail) == ("overloaded", why)
    assert refused.value.headers == (retry_after(1), CLOSE)
    assert await asyncio.gather(*waiting) == [SignatureRejected("no_match")] * verification.WAITING_MAX
    assert await verifier.verify(forged, b"{}") == SignatureRejected("no_match")


async def test_a_large_body_is_not_hashed_on_the_loop() -> None:
    """The loop's thread spends next to nothing on a body of a batch."""
    body = bytes(2 * 1024 * 1024)
    headers = signed_by(KEYS[7].secret, body, "p7")
    started = time.thread_time()
    assert await verification_of(Keys()).verify(headers, body) == Verified(KEYS[7])
    assert time.thread_time() - started < 0.05


def test_the_docstrings_are_right() -> None:
    """The examples in the module hold."""
    assert doctest.testmod(verification).failed == 0


@pytest.mark.parametrize("size_bytes", [0, 2, 20_000])
async def test_a_request_whose_keys_are_all_tried_at_once_never_waits(size_bytes: int) -> None:
    """However many others wait: with as many keys as the bound allows it has its verdict, with one more it is 503."""
    body = bytes(size_bytes)
    first = verification.FIRST_MAX_BYTES // (verification.TRY_BYTES + size_bytes)
    for count in (first - 1, first, first + 1):
        keys = Keys(KEYS[:count])
        verifier = verification_of(keys)
        verifier._waiting = verification.WAITING_MAX
        if count <= first:
            assert await verifier.verify(signed_by(b"nobody", body), body) == SignatureRejected("no_match")
        else:
            with pytest.raises(Problem):
                await verifier.verify(signed_by(b"nobody", body), body)
        assert (keys.tried, verifier._waiting) == (min(count, first), verification.WAITING_MAX)
