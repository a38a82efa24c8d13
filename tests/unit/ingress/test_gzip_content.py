"""Compressed bodies: opened in bounded steps up to the bound of a plain body, and named where they are no gzip."""

from __future__ import annotations

import gzip
import itertools
import random
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress import gzip_content
from ingress.gzip_content import MEMBERS_MAX, OPENED_BYTES, open_gzip
from server.problems import Problem

MAX_BYTES = 1024 * 1024
LINES = b"".join(b'{"line":%d}\n' % number for number in range(1000))


def opened(body: bytes, max_bytes: int = MAX_BYTES) -> bytes:
    parts: list[bytes] = []
    open_gzip(body, parts.append, max_bytes)
    assert all(len(part) <= OPENED_BYTES for part in parts)
    return b"".join(parts)


def problem_of(body: bytes, max_bytes: int = MAX_BYTES) -> Problem:
    with pytest.raises(Problem) as raised:
        opened(body, max_bytes)
    return raised.value


@given(parts=st.lists(st.binary(max_size=2000), min_size=1, max_size=5), level=st.integers(0, 9))
def test_content_comes_out_as_it_went_in(parts: list[bytes], level: int) -> None:
    """Of one member or several, empty ones too."""
    assert opened(b"".join(gzip.compress(part, level) for part in parts)) == b"".join(parts)


def test_content_larger_than_a_step_comes_out_whole() -> None:
    """Whether it can be compressed or not."""
    noise = random.Random(1).randbytes(600_000)
    assert opened(gzip.compress(noise)) == noise
    assert opened(gzip.compress(b"\n" * MAX_BYTES)) == b"\n" * MAX_BYTES


def test_the_bound_is_that_of_a_plain_body() -> None:
    """One byte more is 413, in one member or in the next."""
    assert problem_of(gzip.compress(b"x" * 101), 100).status == 413
    assert problem_of(gzip.compress(b"x" * 100) + gzip.compress(b"x"), 100).status == 413
    assert opened(gzip.compress(b"x" * 100), 100) == b"x" * 100


def test_a_bomb_costs_the_bound_and_no_more() -> None:
    """A gigabyte in a megabyte: what is kept stays within the bound, and a step within its own."""
    packer = zlib.compressobj(9, wbits=31)
    # Each part stands by itself after a full flush, so one serves for all.
    start, part = (packer.compress(bytes(1024 * 1024)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    bomb = start + part * 1023 + packer.flush()
    kept: list[int] = []
    with pytest.raises(Problem) as raised:
        open_gzip(bomb, lambda part: kept.append(len(part)), MAX_BYTES)
    assert raised.value.status == 413
    assert sum(kept) <= MAX_BYTES


@pytest.mark.parametrize("cut", [1, 8, 9, 100])
def test_a_body_that_is_cut_off_is_named_with_its_line(cut: int) -> None:
    """Also where all lines came and the checksum did not."""
    problem = problem_of(gzip.compress(LINES)[:-cut])
    assert (problem.kind, "is cut off in line" in problem.detail) == ("malformed-body", True)
    if cut <= 8:
        assert "in line 1001;" in problem.detail


def test_damage_and_what_follows_are_named_with_the_line() -> None:
    """A wrong checksum, noise behind the end, noise inside."""
    body = gzip.compress(LINES)
    checksum = body[:-8] + bytes([body[-8] ^ 1]) + body[-7:]
    inside = body[:200] + bytes(50) + body[250:]
    for damaged in (checksum, inside, b"\x1f\x8b\x08" + b"\xff" * 40):
        assert "is damaged in line" in problem_of(damaged).detail
    for followed in (body + b"x", body + bytes(512), body + b"\x1f\x8b\x00"):
        assert "is followed by something else in line 1001;" in problem_of(followed).detail
    assert "is cut off in line 1001;" in problem_of(body + b"\x1f\x8b").detail


@pytest.mark.parametrize("body", [b"", b"\x1f", b"\x1f\x8b\x08", gzip.compress(b"", mtime=0)[:10]])
def test_a_beginning_alone_is_cut_off(body: bytes) -> None:
    """Nothing at all is no gzip content either."""
    assert "is cut off in line 1;" in problem_of(body).detail


def test_members_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs memory and time, and may hold nothing."""
    empty = gzip.compress(b"")
    assert opened(empty * 50) == b""
    monkeypatch.setattr(gzip_content, "MEMBERS_MAX", 50)
    assert "more than 50 members" in problem_of(empty * 51).detail
    assert MEMBERS_MAX >= 64 * 1024 * 1024 // 65_280, "a block of bgzip is no larger"


def test_a_step_is_short() -> None:
    """No part takes the thread's own time for long, so that others have their turn; a busy machine may hit one once."""
    packer = zlib.compressobj(9, wbits=31)
    body = packer.compress(bytes(32 * 1024 * 1024)) + packer.flush()

    def longest() -> float:
        steps: list[float] = [time.thread_time()]
        open_gzip(body, lambda _: steps.append(time.thread_time()), 64 * 1024 * 1024)
        return max(after - before for before, after in itertools.pairwise(steps))

    assert any(longest() < 0.05 for _ in range(5))
