"""Keys as `plant keys` lists them: for people by producer in 80 columns, for programs with every field."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING

import click

from operations.cli.listing import Output, show

if TYPE_CHECKING:
    from ingress.key_rows import StoredKey


def show_keys(keys: Sequence[StoredKey], output: Output, now: datetime) -> None:
    """Print keys, which come ordered by producer."""
    if output != "table":
        show([key_fields(key, now) for key in keys], output)
        return
    for producer, own in groupby(keys, key=lambda key: key.producer):
        click.secho(producer, bold=True)
        show([_line(key, now) for key in own], "table")


def key_fields(key: StoredKey, now: datetime) -> dict[str, object]:
    """Return everything about a key but its secret."""
    from signing.ed25519 import encode_public_key

    return {
        "id": str(key.id),
        "producer": key.producer,
        "scheme": key.scheme,
        "state": key.state(now),
        "public_key": None if key.public_key is None else encode_public_key(key.public_key),
        "created_at": key.created_at,
        "not_before": key.not_before,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    }


def _line(key: StoredKey, now: datetime) -> dict[str, object]:
    return {"id": key.id, "scheme": key.scheme, "state": key.state(now), "time (UTC)": _time_of_state(key, now)}


def _time_of_state(key: StoredKey, now: datetime) -> str:
    """Return since when or until when the key is in its state."""
    match key.state(now):
        case "revoked":
            return _in_seconds("since", key.revoked_at)
        case "expired":
            return _in_seconds("since", key.expires_at)
        case "pending":
            return _in_seconds("until", key.not_before)
    return _in_seconds("until", key.expires_at)


def _in_seconds(word: str, moment: datetime | None) -> str:
    return f"{word} {moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if moment else "no end"
