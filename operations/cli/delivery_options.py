"""The options by which `plant deliveries` is told which deliveries to look at."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, get_args
from uuid import UUID

import click
from click.shell_completion import CompletionItem

from operations.cli.moments import read_bound

if TYPE_CHECKING:
    from deliveries.state.delivery_rows import DeliveryCursor, DeliveryFilter
    from schemas.delivery_records import DeliveryState

F = TypeVar("F", bound=Callable[..., Any])

EVENT_TIMES: Final = "TIME|10m|2d"
STATUS_CODES: Final = range(100, 1000)


class ReasonType(click.ParamType):
    """A status code, or the class of an error. Completes the classes."""

    name = "reason"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the reason as it was written; fail for a text that is none."""
        reason = str(value)
        is_code = len(reason) == 3 and reason.isascii() and reason.isdecimal() and int(reason) in STATUS_CODES
        if not is_code and reason not in _error_classes():
            self.fail(f"{reason[:80]!r} is no status code, and none of {', '.join(_error_classes())}", param, ctx)
        return reason

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in _error_classes() if name.startswith(incomplete)]


class EventTypeType(click.ParamType):
    """The type of an event: a line of text, whether or not there is such a type."""

    name = "type"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text; fail for one that no type can be, such as bytes that are no UTF-8."""
        text = str(value)
        if not text or not text.isprintable():
            self.fail(f"{text[:80]!r} is no event type", param, ctx)
        return text


class CursorType(click.ParamType):
    """The place behind a delivery, as a list that has more prints it."""

    name = "cursor"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> DeliveryCursor:
        """Return the cursor; fail for a text that is none."""
        from deliveries.state.delivery_rows import DeliveryCursor

        time, _, delivery = str(value).partition("/")
        try:
            occurred_at, delivery_id = datetime.fromisoformat(time), UUID(delivery)
            if occurred_at.tzinfo is not None:
                occurred_at = occurred_at.astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(f"{str(value)[:80]!r} is no cursor that a list has printed", param, ctx)
        if occurred_at.tzinfo is None:
            self.fail(f"{time!r} has no time zone", param, ctx)
        return DeliveryCursor(occurred_at, delivery_id)


class DeliveryOptions(NamedTuple):
    """What the options ask for; None where one is not given."""

    endpoint_id: UUID | None
    event_id: UUID | None
    event_type: str | None
    state: DeliveryState | None
    since: str | None
    until: str | None
    reason: str | None

    def filter(self) -> DeliveryFilter:
        """Return what is asked for. Raises UnknownStart, and a usage error for a time that is none."""
        from deliveries.state.delivery_rows import DeliveryFilter
        from runtime.clock import SystemClock

        now = SystemClock().now()
        status_code = int(self.reason) if self.reason is not None and self.reason.isdecimal() else None
        return DeliveryFilter(
            endpoint_id=self.endpoint_id,
            event_id=self.event_id,
            type=self.event_type,
            state=self.state,
            since=read_bound("--since", self.since, now),
            before=read_bound("--until", self.until, now),
            error_class=self.reason if status_code is None else None,
            status_code=status_code,
        )


def _error_classes() -> tuple[str, ...]:
    from deliveries.outcomes import ErrorClass

    return get_args(ErrorClass)


_FILTERS: Final = (
    click.option("--endpoint", "endpoint_id", type=click.UUID, metavar="ID", help="Only those to this endpoint."),
    click.option("--event", "event_id", type=click.UUID, metavar="ID", help="Only those of this event."),
    click.option(
        "--type", "event_type", type=EventTypeType(), metavar="TEXT", help="Only those of events of this type."
    ),
    click.option("--since", metavar=EVENT_TIMES, help="Only those of events at this time or later."),
    click.option("--until", metavar=EVENT_TIMES, help="Only those of events before this time."),
)
_REASON_HELP: Final = "Only those whose last attempt had this status code (503) or error (timeout)."
_STATE: Final = click.option(
    "--state",
    type=click.Choice(["waiting", "delivered", "dead", "cancelled"]),
    help="Only those in this state.  [default: all]",
)


def delivery_options(function: F) -> F:
    """Give a command the options of a filter, as one argument `options`."""
    reason = click.option("--reason", type=ReasonType(), metavar="CODE|ERROR", help=_REASON_HELP)
    return _packed(function, (*_FILTERS[:3], _STATE, *_FILTERS[3:], reason))


def redriven_options(function: F) -> F:
    """Give a command the options of a filter but for the state, as one argument `options`.

    Its `--reason` is that of the operator.
    """
    error = click.option("--error", "death", type=ReasonType(), metavar="CODE|ERROR", help=_REASON_HELP)
    return _packed(function, (*_FILTERS, error))


def _packed(function: F, options: Sequence[Callable[[F], F]]) -> F:
    @functools.wraps(function)
    def packed(**given: Any) -> Any:
        own_reason = {"reason": given.pop("death")} if "death" in given else {}
        names = [name for name in DeliveryOptions._fields if name not in own_reason]
        chosen = DeliveryOptions(**{name: given.pop(name, None) for name in names}, **own_reason)
        return function(options=chosen, **given)

    for option in reversed(options):
        packed = option(packed)
    return packed  # type: ignore[return-value]  # it takes the same options
