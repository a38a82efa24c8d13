"""Access tokens: their text, their hash, their scopes."""

from __future__ import annotations

import base64
import doctest
import hashlib
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from api import access_tokens
from api.access_tokens import AccessToken, check_scopes, check_tenant, new_token, read_token
from api.errors import UnknownScope, UnreadableTenant
from runtime.redaction import redact

NOW = datetime(2026, 11, 27, tzinfo=UTC)


def stored(*scopes: str, expires_at: datetime | None = None, revoked_at: datetime | None = None) -> AccessToken:
    return AccessToken(
        id=UUID(int=1), prefix="0123456789ab", name="tests", secret_hash=b"", scopes=scopes, tenant="genesis",
        created_at=NOW, expires_at=expires_at, revoked_at=revoked_at,
    )  # fmt: skip


def test_a_token_has_256_random_bits_and_its_hash_is_theirs() -> None:
    """Two tokens share nothing, and the hash is SHA-256 of the bytes that the text stands for."""
    first, second = new_token(), new_token()
    assert first.text != second.text
    assert first.prefix != second.prefix
    _, prefix, secret = first.text.split("_", 2)
    decoded = base64.urlsafe_b64decode(secret + "=")
    assert (len(decoded), prefix) == (32, first.prefix)
    assert read_token(first.text) == (first.prefix, hashlib.sha256(decoded).digest())


def test_one_text_is_the_token() -> None:
    """Texts that decode to the same bytes, or that have more around them, are none."""
    text = "plant_0123456789ab_" + "A" * 43
    assert read_token(text) is not None
    for wrong in (text[:-1] + "B", text + "=", text + "\n", " " + text, text.replace("plant", "PLANT"), text[:-1], ""):
        assert read_token(wrong) is None, wrong


def test_a_token_is_taken_out_of_log_lines() -> None:
    """Its prefix stays, so that an operator knows which one it was."""
    token = new_token()
    shown = redact(f"GET /agents with Bearer {token.text} failed")
    assert token.text not in shown
    assert f"plant_{token.prefix}_********" in shown
    assert token.text not in repr(token)


def test_scopes_cover_their_resources() -> None:
    """`read` is everything; a resource's own scope is that one alone."""
    assert stored("read").may("agents")
    assert stored("read:agents").may("agents")
    assert not stored("read:agents").may("skills")
    assert not stored("read:agentsx").may("agents")


def test_a_token_ends() -> None:
    """At its expiry, or when it is revoked, whichever comes first."""
    assert stored("read").state(NOW) == "active"
    assert stored("read", expires_at=NOW).state(NOW) == "expired"
    assert stored("read", expires_at=NOW + timedelta(seconds=1)).state(NOW) == "active"
    assert stored("read", revoked_at=NOW).state(NOW) == "revoked"


def test_unknown_scopes_and_tenants_are_refused() -> None:
    """Each error names what is known, or why it can't be."""
    with pytest.raises(UnknownScope, match="'write'") as raised:
        check_scopes(["write"], ["agents"])
    assert "read:agents" in raised.value.why
    with pytest.raises(UnreadableTenant, match="'acme'"):
        check_tenant("acme")
    assert check_tenant("genesis") == "genesis"


def test_the_examples_of_tokens_hold() -> None:
    """The docstrings say what the code does."""
    assert doctest.testmod(access_tokens).failed == 0
