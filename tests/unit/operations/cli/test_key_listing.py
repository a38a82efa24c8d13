"""`plant keys list` as people read it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest

from ingress.key_rows import StoredKey
from operations.cli.key_listing import show_keys

NOW = datetime(2026, 11, 27, 12, 0, 0, 123456, tzinfo=UTC)
LATER = datetime(2027, 1, 31, 1, 30, 5, 999999, tzinfo=timezone(timedelta(hours=2)))


def key(
    producer: str,
    *,
    begins: datetime = NOW - timedelta(days=1),
    ends: datetime | None = None,
    revoked: datetime | None = None,
) -> StoredKey:
    return StoredKey(
        id=UUID("18fc4262-74cb-426e-acee-7c95908b01c1"),
        producer=producer,
        scheme="v1a",
        created_at=NOW,
        not_before=begins,
        expires_at=ends,
        revoked_at=revoked,
    )


def test_keys_fit_80_columns_with_times_in_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a producer is called, and in whichever zone a time comes: UTC, without parts of a second."""
    long_name = "a" * 63
    show_keys([key("genesis"), key("genesis", ends=LATER), key(long_name, revoked=NOW)], "table", NOW)
    show_keys([key("new", begins=LATER), key("old", ends=NOW)], "table", NOW)

    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if " " not in line] == ["genesis", long_name, "new", "old"]
    assert [line.split(maxsplit=2)[2] for line in lines if line.startswith("18fc")] == [
        "active  no end",
        "active  until 2027-01-30 23:30:05",
        "revoked  since 2026-11-27 12:00:00",
        "pending  until 2027-01-30 23:30:05",
        "expired  since 2026-11-27 12:00:00",
    ]
