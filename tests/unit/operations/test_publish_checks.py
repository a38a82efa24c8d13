"""A file is read once to check it, and what is sent is what was checked."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from uuid import uuid4

import pytest

from ingress.producers import StoredProducer
from operations.publish_checks import READ_MAX_BYTES, CheckedFile
from runtime.errors import CheckFailed

NOW = datetime(2026, 1, 1, tzinfo=UTC)
AGENT = str(uuid4())
RATED = "genesis.agent.rated"
AVAILABLE = "genesis.agent.available"


def available(**more: object) -> bytes:
    return json.dumps({"type": AVAILABLE, "data": {"agent_id": AGENT, "available": True}, **more}).encode() + b"\n"


def onboarded() -> bytes:
    return json.dumps({"type": "genesis.skill.validated", "data": {}}).encode() + b"\n"


def may_send(*event_types: str, disabled_at: datetime | None = None) -> StoredProducer:
    return StoredProducer(
        name="genesis",
        event_types=list(event_types),
        rate_per_second=None,
        burst=None,
        binary_mode=False,
        created_at=None,
        disabled_at=disabled_at,
        active_keys=1,
        pending_keys=0,
    )


def checked(*lines: bytes) -> CheckedFile:
    file = CheckedFile("genesis", NOW)
    file.read(io.BytesIO(b"".join(lines)))
    return file


def test_one_reading_finds_all() -> None:
    """Counts, bad lines with their numbers, and the digest."""
    lines = [available(id="a"), b"\n", b"{\n", available(id="b"), onboarded()]
    file = checked(*lines)
    assert (file.count, [line.number for line in file.invalid]) == (2, [3, 5])
    assert file.digest == sha256(b"".join(lines)).hexdigest()


def test_types_that_the_producer_may_not_send_are_bad_lines() -> None:
    """In their order among the others; their ids clash with no other line."""
    lines = [available(id="a"), b"{\n", available(id="a", timestamp="2025-01-01T00:00:00Z")]
    file = checked(*lines)
    with pytest.raises(CheckFailed, match="Lines 1 and 3 have the same id"):
        file.refuse_conflicts()
    file.hold_to(may_send(RATED))
    file.refuse_conflicts()
    assert (file.count, [line.number for line in file.invalid]) == (0, [1, 2, 3])
    assert file.invalid[0].reason == f"The producer may not send {AVAILABLE}."
    assert list(file.sendable(io.BytesIO(b"".join(lines)), may_send(RATED))) == []


def test_a_disabled_producer_sends_nothing() -> None:
    """Whatever the file holds."""
    with pytest.raises(CheckFailed, match="genesis may send nothing"):
        checked().hold_to(may_send(disabled_at=NOW))


def test_a_file_that_changed_since_it_was_checked_is_named() -> None:
    """What was recorded with the operator's action would not be what was sent."""
    lines = [available(id="a"), available(id="b")]
    file = checked(*lines)
    assert len(list(file.sendable(io.BytesIO(b"".join(lines)), None))) == 2

    def sent() -> Iterator[object]:
        return file.sendable(io.BytesIO(b"".join([*lines, available(id="c")])), None)

    with pytest.raises(CheckFailed, match="changed while it was published"):
        list(sent())


@pytest.mark.parametrize("begin", [b"x", b" ", b"{"])
def test_a_line_without_end_is_bad_and_never_held(begin: bytes) -> None:
    """Not even where white space alone would be left of it; lines after it are read, and all is hashed."""
    largest: list[int] = []

    class Watched(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            line = super().readline(size)
            largest.append(len(line))
            return line

    content = begin * (5 * READ_MAX_BYTES + 1) + b"\n" + available(id="a") + begin * READ_MAX_BYTES
    file = CheckedFile("genesis", NOW)
    file.read(Watched(content))
    assert [(line.number, "longer than" in line.reason) for line in file.invalid] == [(1, True), (3, True)]
    assert (file.count, file.digest) == (1, sha256(content).hexdigest())
    assert max(largest) <= READ_MAX_BYTES
