"""Listings of keys and producers that list nothing say so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import ModuleType
from uuid import UUID

import pytest

from ingress.key_rows import StoredKey
from operations.cli import keys, producers
from operations.cli.main import run
from runtime.settings import Settings

NOW = datetime(2026, 11, 27, tzinfo=UTC)
KEY = StoredKey(id=UUID(int=1), producer="genesis", created_at=NOW, not_before=NOW, expires_at=None, revoked_at=None)


class Store:
    """A store of keys or producers that holds these."""

    def __init__(self, rows: Sequence[StoredKey]) -> None:
        self._rows = rows

    async def all(self) -> list[StoredKey]:
        return list(self._rows)


def keep(monkeypatch: pytest.MonkeyPatch, module: ModuleType, *rows: StoredKey) -> None:
    """Let a command find these rows."""

    @asynccontextmanager
    async def store(_: Settings) -> AsyncIterator[Store]:
        yield Store(rows)

    monkeypatch.setattr(module, "_store", store)


def test_a_producer_without_keys_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 3; programs still get an empty list, and one with keys is good."""
    keep(monkeypatch, keys, KEY)
    assert run(["keys", "list", "--producer", "nope", "--output", "json"]) == 3
    shown = capsys.readouterr()
    assert shown.out == "[]\n"
    assert "No key is nope's." in shown.err
    assert run(["keys", "list", "--producer", "genesis"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("module", "noun"), [(keys, "keys"), (producers, "producers")])
def test_a_listing_of_nothing_says_so(
    module: ModuleType, noun: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing was asked for by name, so it is good."""
    keep(monkeypatch, module)
    assert run([noun, "list"]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err.startswith(f"There are no {noun}")) == ("", True)
