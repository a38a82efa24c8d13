"""What the options of `plant producers set` take: event types, and numbers or the default."""

from __future__ import annotations

import math

import click
from click.shell_completion import CompletionItem

DEFAULT = "default"


class EventTypes(click.ParamType):
    """Event types from outside, parted by commas, or `all`. Completes the last of them."""

    name = "event types"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> frozenset[str]:
        from schemas.json_events import is_accepted

        event_types = frozenset() if value == "all" else frozenset(part.strip() for part in value.split(","))
        for event_type in sorted(event_types):
            if not is_accepted(event_type):
                self.fail(f"no event type {event_type!r} comes in from outside", param, ctx)
        return event_types

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from schemas.events import EVENT_TYPES
        from schemas.json_events import is_accepted

        before, comma, last = incomplete.rpartition(",")
        choices = [name for name in EVENT_TYPES if is_accepted(name)] + ([] if comma else ["all"])
        return [CompletionItem(f"{before}{comma}{choice}") for choice in choices if choice.startswith(last)]


class NumberOrDefault(click.ParamType):
    """A number in a range, or `default`."""

    name = "number"

    def __init__(self, within: click.IntRange | click.FloatRange) -> None:
        self._within = within

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int | float | str:
        if value == DEFAULT:
            return DEFAULT
        number: int | float = self._within.convert(value, param, ctx)
        if math.isnan(number):  # compares with neither end of the range
            self.fail(f"{value!r} is not a number", param, ctx)
        return number

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(DEFAULT)] if DEFAULT.startswith(incomplete) else []


RATE = NumberOrDefault(click.FloatRange(min=0.001, max=1e9))
BURST = NumberOrDefault(click.IntRange(min=1, max=1_000_000_000))
