"""Cursors: where the next page of a listing begins, in a form that says nothing to its reader.

A cursor holds the key of the last row that was seen, and a digest of that key, the listing, its filters and the
tenant. So a cursor of another listing, or one that was changed on its way, is refused instead of answered wrongly. It
is no secret and gives no right: it names a place in an order, and a page is read with the rights of the token.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

from server.problems import ParameterError, Problem

DIGEST_BYTES: Final = 12
CURSOR_MAX_CHARACTERS: Final = 3_000
"""A cursor of a search has another one in it, with a name of 200 characters, each of up to six bytes there: 2,310."""
_BETWEEN: Final = "\x00"
"""Between the parts of a key: Postgres's text can't hold it."""


def encode_cursor(key: Sequence[str], listing: str, filters: Mapping[str, str], tenant: str) -> str:
    """Return the cursor behind the row with this key, whose parts are texts.

    >>> cursor = encode_cursor(["a"], "/agents", {"status": "active"}, "genesis")
    >>> decode_cursor(cursor, "/agents", {"status": "active"}, "genesis", 1)
    ['a']
    """
    text = _BETWEEN.join(key).encode()
    return base64.urlsafe_b64encode(_digest(text, listing, filters, tenant) + text).rstrip(b"=").decode("ascii")


def decode_cursor(cursor: str, listing: str, filters: Mapping[str, str], tenant: str, parts: int) -> list[str]:
    """Return the parts of the key in a cursor. Raises Problem (400) where it is not one of this listing."""
    try:
        if len(cursor) > CURSOR_MAX_CHARACTERS:
            raise ValueError
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        digest, text = raw[:DIGEST_BYTES], raw[DIGEST_BYTES:]
        key = text.decode().split(_BETWEEN)
        if digest != _digest(text, listing, filters, tenant) or len(key) != parts:
            raise ValueError
    except (ValueError, binascii.Error):
        raise Problem(
            "cursor",
            "Take `next` of the page before, and ask with the same filters; without a cursor a listing begins anew.",
            errors=(ParameterError("It is not a cursor of this listing with these filters.", "cursor"),),
        ) from None
    return key


def _digest(text: bytes, listing: str, filters: Mapping[str, str], tenant: str) -> bytes:
    named = [listing, tenant, *(part for name in sorted(filters) for part in (name, filters[name]))]
    digest = hashlib.sha256(text)
    for each in named:
        encoded = each.encode()
        digest.update(b"%d:" % len(encoded) + encoded)
    return digest.digest()[:DIGEST_BYTES]
