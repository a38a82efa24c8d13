"""The options of a plan to send deliveries again, and of its order."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import click

from deliveries.redrive.redrive_plan import RATE_PER_SECOND
from operations.cli.listing import Output, output_option
from operations.operator_actions import actor_option, reason_option

F = TypeVar("F", bound=Callable[..., Any])


class Ordering(NamedTuple):
    """What a command is told about its order."""

    execute: bool
    rate_per_second: int
    follow: bool
    output: Output
    actor: str
    reason: str


def ordering_options(default_reason: str) -> Callable[[F], F]:
    """Give a command the options of a plan and an order, as one argument `ordering`."""

    def give(function: F) -> F:
        @functools.wraps(function)
        def packed(**given: Any) -> Any:
            return function(ordering=Ordering(*(given.pop(name) for name in Ordering._fields)), **given)

        options = (
            click.option("--execute", is_flag=True, help="Order it; without it only the plan is shown."),
            click.option(
                "--rate", "rate_per_second", type=click.IntRange(1, 100_000), default=RATE_PER_SECOND,
                show_default=True, help="Most deliveries a second.",
            ),
            click.option(
                "--follow/--no-follow", default=True, show_default=True,
                help="Show how far the order is. It goes on without the command.",
            ),
            output_option,
            actor_option,
            reason_option(default_reason),
        )  # fmt: skip
        for option in reversed(options):
            packed = option(packed)
        return packed  # type: ignore[return-value]  # it takes the same options

    return give
