"""What every command that acts takes: who, and why. Both are recorded on `plant.operations` before the act."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

actor_option = click.option("--actor", default="", help="Account that acts.  [default: the system user]")


def reason_option(default: str) -> Callable[[F], F]:
    """`--reason`, with what is recorded where nothing is said."""
    return click.option("--reason", default=default, show_default=True, help="Why; kept for ever.")


def with_facts(reason: str, facts: Sequence[str]) -> str:
    """The reason as it is recorded: what was done in detail follows it in brackets.

    >>> with_facts("It is time.", ["scheme v1a", "overlap 24h"])
    'It is time. [scheme v1a; overlap 24h]'
    """
    return f"{reason} [{'; '.join(facts)}]" if facts else reason
