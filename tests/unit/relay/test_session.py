"""Errors of the relay's own session with the database."""

from __future__ import annotations

import asyncpg
import pytest

from database.errors import DatabaseUnreachable
from relay.session import named_errors


@pytest.mark.parametrize(("message", "reason"), [("", "AdminShutdownError."), ("it ends", "it ends.")])
def test_an_ended_session_is_a_whole_sentence(message: str, reason: str) -> None:
    """Also where the driver gives no message."""
    with pytest.raises(DatabaseUnreachable) as raised, named_errors("h:5432/d as u"):
        raise asyncpg.AdminShutdownError(message)
    assert raised.value.why == f"h:5432/d as u: {reason}"
