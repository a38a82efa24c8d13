"""Statements of a script of SQL, cut where Postgres would cut them."""

from __future__ import annotations

import re
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
_BLOCK: Final = re.compile(r"/\*|\*/")


def split_statements(text: str) -> list[str]:
    """Return the statements of a script, without comments. Each ends with a `;`, which the last one may lack.

    >>> split_statements("-- a; b\\nSELECT 1; -- c;\\nSELECT ';', $$;$$ /* ; /* ; */ */;\\n")
    ['SELECT 1', "SELECT ';', $$;$$"]
    """
    statements, parts, at = [], list[str](), 0
    while (token := _TOKEN.search(text, at)) is not None:
        parts.append(text[at : token.start()])
        at = token.end()
        match token.lastgroup:
            case "end":
                statements.append("".join(parts).strip())
                parts = []
            case "comment":
                pass
            case "block":
                at = _end_of_block(text, at)
                parts.append(" ")
            case "dollar":
                closing = text.find(token[0], at)
                at = len(text) if closing < 0 else closing + len(token[0])
                parts.append(text[token.start() : at])
            case _:
                parts.append(token[0])
    statements.append("".join([*parts, text[at:]]).strip())
    return [statement for statement in statements if statement]


def _end_of_block(text: str, at: int) -> int:
    """Return where a comment ends that began before `at`; comments nest."""
    depth = 1
    while depth and (mark := _BLOCK.search(text, at)) is not None:
        depth += 1 if mark[0] == "/*" else -1
        at = mark.end()
    return at if not depth else len(text)
