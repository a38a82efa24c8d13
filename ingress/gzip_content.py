"""Bodies of bulk loads that came compressed, opened once their signature was good, within the bound of a plain body."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Callable
from typing import Final

from ingress.arrivals import too_large
from server.problems import CLOSE, Problem

GZIP_START: Final = b"\x1f\x8b\x08"
READ_BYTES: Final = 64 * 1024
OPENED_BYTES: Final = 256 * 1024
"""The most that one step opens, however far it was compressed."""
MEMBERS_MAX: Final = 10_000
"""A gzip body may be several, one after the other (RFC 1952, section 2.2); each costs as much as some kilobytes."""
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS


def open_gzip(body: mmap.mmap | bytes, keep: Callable[[bytes], object], max_bytes: int) -> None:
    """Hand the content of a gzip body to `keep`, part by part. Call it in a thread.

    Raises Problem: body-too-large (413) at the first byte beyond `max_bytes`; malformed-body (400) where it is cut off,
    damaged, or followed by something else, with the line that was reached.
    """
    at = size_bytes = members = 0
    number = 1
    while at < len(body) or not members:
        members += 1
        if members > MEMBERS_MAX:
            raise _malformed(f"has more than {MEMBERS_MAX} members", number)
        if not GZIP_START.startswith(body[at : at + len(GZIP_START)]):
            raise _malformed("is followed by something else" if at else "is damaged", number)
        opener = zlib.decompressobj(_GZIP_WINDOW)
        while not opener.eof:
            part = opener.unconsumed_tail
            if not part:
                part = body[at : at + READ_BYTES]
                at += len(part)
                if not part:
                    raise _malformed("is cut off", number)
            try:
                content = opener.decompress(part, OPENED_BYTES)
            except zlib.error:
                raise _malformed("is damaged", number) from None
            size_bytes += len(content)
            if size_bytes > max_bytes:
                raise too_large(max_bytes)
            number += content.count(b"\n")
            keep(content)
        at -= len(opener.unused_data)


def _malformed(what: str, number: int) -> Problem:
    return Problem("malformed-body", f"The gzip content {what} in line {number}; nothing was stored.", headers=(CLOSE,))
