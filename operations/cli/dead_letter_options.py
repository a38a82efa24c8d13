"""The options by which `plant dead-letters` is told which records to look at, and how to act on them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from uuid import UUID

import click

from operations.cli.consume import EntityId
from operations.cli.listing import Output, output_option
from operations.cli.moments import read_bound
from operations.operator_actions import actor_option, reason_option

if TYPE_CHECKING:
    from operations.dead_letters.search import Search, StateFilter
    from streams.record_position import RecordPosition

F = TypeVar("F", bound=Callable[..., Any])

TIMES: Final = "TIME|10m|2d"


class PositionType(click.ParamType):
    """The position of a record, such as `genesis.events/3/42`; log lines write it `genesis.events/3@42`."""

    name = "position"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> RecordPosition:
        """Return the position; fail for a text that is none."""
        from streams.record_position import RecordPosition

        topic, *numbers = str(value).replace("@", "/").rsplit("/", 2)
        if not topic or len(numbers) != 2 or not _is_number(numbers[0], 31) or not _is_number(numbers[1], 63):
            self.fail(f"{str(value)[:80]!r} is not TOPIC/PARTITION/OFFSET, such as genesis.events/3/42", param, ctx)
        return RecordPosition(topic, int(numbers[0]), int(numbers[1]))


POSITION: Final = PositionType()


class Filters(NamedTuple):
    """What the options ask for; None where one is not given."""

    cause: str | None
    event_type: str | None
    entity_id: UUID | None
    topic: str | None
    partition: int | None
    since: str | None
    until: str | None

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return any(value is not None for value in self)

    def search(self, state: StateFilter) -> Search:
        """Return the search. Raises UnknownStart, and a usage error for a time that is none."""
        from operations.dead_letters.search import Search
        from projections.dead_letter_rows import RowFilter
        from runtime.clock import SystemClock

        now = SystemClock().now()
        rows = RowFilter(
            topic=self.topic,
            partition=self.partition,
            cause=self.cause,
            entity=self.entity_id,
            since=read_bound("--since", self.since, now),
            before=read_bound("--until", self.until, now),
        )
        return Search(rows=rows, event_type=self.event_type, state=state)


class Handling(NamedTuple):
    """How a command acts: whether at all, whether it waits, and what is recorded of it."""

    execute: bool
    wait: bool
    timeout: float
    output: Output
    actor: str
    reason: str


def search_options(function: F) -> F:
    """Give a command the options of a search, as one argument `filters`."""

    @functools.wraps(function)
    def packed(**options: Any) -> Any:
        filters = Filters(*(options.pop(name) for name in Filters._fields))
        return function(filters=filters, **options)

    options = (
        click.option("--cause", help="Only those with this text in their reason, in any case of letters."),
        click.option("--type", "event_type", help="Only this event type, by the header ce_type or by the value."),
        click.option("--entity", "entity_id", type=EntityId(), help="Only those whose key is this entity's id."),
        click.option("--topic", help="Only this topic.  [default: all that are logged]"),
        click.option("--partition", type=click.IntRange(min=0), help="Only this partition."),
        click.option("--since", metavar=TIMES, help="Only those appended at this time or later."),
        click.option("--until", metavar=TIMES, help="Only those appended before this time."),
    )
    for option in reversed(options):
        packed = option(packed)
    return packed  # type: ignore[return-value]  # it takes the same options


def handling_options(default_reason: str) -> Callable[[F], F]:
    """Give a command the options of a plan and its execution, as one argument `handling`."""

    def give(function: F) -> F:
        @functools.wraps(function)
        def packed(**options: Any) -> Any:
            handling = Handling(*(options.pop(name) for name in Handling._fields))
            return function(handling=handling, **options)

        options = (
            click.option("--execute", is_flag=True, help="Publish; without it only the plan is shown."),
            click.option("--wait", is_flag=True, help="Wait until workers have applied it; exit 3 without effect."),
            click.option(
                "--timeout", type=click.FloatRange(min=0), default=120, show_default=True, help="Seconds for --wait."
            ),
            output_option,
            actor_option,
            reason_option(default_reason),
        )
        for option in reversed(options):
            packed = option(packed)
        return packed  # type: ignore[return-value]  # it takes the same options

    return give


def _is_number(text: str, bits: int) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20 and int(text) < 2**bits
