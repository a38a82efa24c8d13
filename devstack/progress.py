"""How long work on the stack is shown: bars on a terminal, plain lines elsewhere, nothing in tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Bar(Protocol):
    def advance(self, size_bytes: int) -> None: ...


class Progress(Protocol):
    """`say` is one line on what happens now; `bar` is for downloads and may be advanced from several threads."""

    def say(self, line: str) -> None: ...

    def bar(self, title: str, total_bytes: int) -> AbstractContextManager[Bar]: ...


class Silent:
    """Shows nothing."""

    def say(self, line: str) -> None: ...

    def advance(self, size_bytes: int) -> None: ...

    @contextmanager
    def bar(self, title: str, total_bytes: int) -> Iterator[Bar]:
        yield self
