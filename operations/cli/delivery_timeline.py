"""The attempts of a delivery as `plant deliveries show` prints them: a line each, then what was sent and came back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from deliveries.state.delivery_rows import RecordedAttempt
from runtime.process import escaped, shown_bytes

UNMADE = ("postponed", "cancelled")
"""Outcomes of what was no attempt."""


def attempt_line(attempt: RecordedAttempt) -> dict[str, Any]:
    """Return an attempt as JSON has it: what is no UTF-8 of a body stands there as escapes."""
    fields = msgspec.structs.asdict(attempt)
    return {**fields, "request": shown_bytes(attempt.request), "answer": shown_bytes(attempt.answer)}


def timeline(attempts: Sequence[RecordedAttempt]) -> Iterator[str]:
    """Yield the lines of a timeline. A request is shown where it is not that of the attempt before."""
    yield ""
    sent: bytes | None = None
    for attempt in attempts:
        yield escaped("  ".join(filter(None, _facts(attempt))))
        if attempt.request and attempt.request != sent:
            yield f"    sent    {_body(attempt.request)}"
            sent = attempt.request
        if attempt.answer:
            yield f"    answer  {_body(attempt.answer)}"


def _facts(attempt: RecordedAttempt) -> Iterator[str]:
    yield _time(attempt.attempted_at)
    yield f"attempt {attempt.attempt}" if attempt.outcome not in UNMADE else "no attempt"
    yield attempt.outcome
    yield "" if attempt.status_code is None else str(attempt.status_code)
    yield attempt.error_class or ""
    yield f"{attempt.duration_us / 1000:,.1f} ms" if attempt.outcome not in UNMADE else ""
    yield attempt.why
    yield f"next at {_time(attempt.next_attempt_at)}" if attempt.next_attempt_at is not None else attempt.state


def _time(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"


def _body(body: bytes) -> str:
    return escaped(shown_bytes(body) or "")
