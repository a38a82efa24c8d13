"""The root of every error that Plant raises on purpose.

Each package has its own tree in `errors.py`, rooted here. A class docstring is the default message; `why` and
`next_step` complete the three lines a person sees: what, why, and one command to run next.
"""

from __future__ import annotations

import inspect
from typing import ClassVar


class PlantError(Exception):
    """Plant could not do what was asked."""

    exit_code: ClassVar[int] = 1
    """0 good, 1 unexpected, 2 usage, 3 the check said no, 4 something needed is unreachable."""

    def __init__(self, what: str = "", *, why: str = "", next_step: str = "") -> None:
        self.what = what or inspect.cleandoc(type(self).__doc__ or "").split("\n")[0]
        self.why = why
        self.next_step = next_step
        super().__init__(self.what)

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, self.why) if part)


def drop_frames(error: BaseException) -> None:
    """Let go of the frames that an error, and those before it, passed: their variables may hold a whole batch.

    For an error that is kept. Its text stays; log its traceback before, where that is needed.
    """
    chain: list[BaseException | None] = [error]
    seen: set[int] = set()
    while chain:
        each = chain.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            chain += [each.__cause__, each.__context__]


class ConfigurationError(PlantError):
    """A setting is missing or has a value that cannot be used."""

    exit_code = 2


class Unreachable(PlantError):
    """Something Plant needs does not answer."""

    exit_code = 4


class CheckFailed(PlantError):
    """The check said no."""

    exit_code = 3


class NothingChecked(CheckFailed):
    """Nothing was checked, so nothing is good."""


class NothingListed(CheckFailed):
    """A filter names nothing that is known."""
