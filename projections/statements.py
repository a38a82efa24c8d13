"""Statements of a script of SQL, cut where Postgres would cut them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

_TOKEN: Final = re.compile(
    r"""
      (?P<comment>--[^\n]*)
    | (?P<block>/\*)
    | (?P<escaped>(?<![\w$])[eE]'(?:[^'\\]|\\.|'')*')
    | (?P<text>'(?:[^']|'')*')
    | (?P<name>"(?:[^"]|"")*")
    | (?P<dollar>(?<![\w$])\$(?:[^\W\d]\w*)?\$)
    | (?P<end>;)
    """,
    re.VERBOSE | re.DOTALL,
)
"""Where a `;` may stand that ends nothing (Postgres's documentation, "Lexical Structure"), and one that ends."""
_SPACE: Final = re.compile(r"\s+")
_BLOCK: Final = re.compile(r"/\*|\*/")


def split_statements(text: str) -> list[str]:
    """Return the statements of a script, without comments. Each ends with a `;`, which the last one may lack.

    >>> split_statements("-- a; b\\nSELECT 1; -- c;\\nSELECT ';', $$;$$ /* ; /* ; */ */;\\n")
    ['SELECT 1', "SELECT ';', $$;$$"]
    """
    statements = ("".join(text for text, _ in parts).strip() for parts in _statements(text))
    return [statement for statement in statements if statement]


def plain_statements(text: str) -> list[str]:
    """Return the statements of a script, without comments and with one space for all white space outside of literals.

    >>> plain_statements("SELECT 1,  -- one\\n    '2  3' ;")
    ["SELECT 1, '2  3'"]
    """
    statements = (_plain(parts) for parts in _statements(text))
    return [statement for statement in statements if statement]


def _plain(parts: Iterable[tuple[str, bool]]) -> str:
    """Return a statement of its parts, each with whether it is a literal."""
    made = ""
    for text, literal in parts:
        part = text if literal else _SPACE.sub(" ", text)
        made += part[1:] if not literal and made.endswith(" ") and part.startswith(" ") else part
    return made.strip()


def _statements(text: str) -> Iterator[list[tuple[str, bool]]]:
    """Yield the parts of each statement, comments left out, and whether a part is a literal or a quoted name."""
    parts, at = list[tuple[str, bool]](), 0
    while (token := _TOKEN.search(text, at)) is not None:
        parts.append((text[at : token.start()], False))
        at = token.end()
        match token.lastgroup:
            case "end":
                yield parts
                parts = []
            case "comment":
                pass
            case "block":
                at = _end_of_block(text, at)
                parts.append((" ", False))
            case "dollar":
                closing = text.find(token[0], at)
                at = len(text) if closing < 0 else closing + len(token[0])
                parts.append((text[token.start() : at], True))
            case _:
                parts.append((token[0], True))
    yield [*parts, (text[at:], False)]


def _end_of_block(text: str, at: int) -> int:
    """Return where a comment ends that began before `at`; comments nest."""
    depth = 1
    while depth and (mark := _BLOCK.search(text, at)) is not None:
        depth += 1 if mark[0] == "/*" else -1
        at = mark.end()
    return at if not depth else len(text)
