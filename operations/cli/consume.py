"""`plant consume`: events, decoded, as they stand on the topic."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

import click

from operations.cli.listing import Output, output_option, show
from runtime.process import escaped, output_is_read, shown_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from schemas.events import RecordValue
    from streams.consume import Received, ReceivedControl
    from streams.record_position import RecordPosition

FOLLOWED_JSON = "With --follow there is no end of a JSON array; use --output jsonl."
FOLLOWED_TO = "--follow has no end; leave out --follow, or --to and --as-of."
FORMS = "earliest|latest|TIME|10m|OFFSET|-10"


class EntityId(click.ParamType):
    """The id of an entity, which is the key of its records."""

    name = "ID"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> UUID:
        try:
            return UUID(str(value))
        except ValueError:
            self.fail(
                f"{str(value)[:80]!r} is no entity's id, such as 72d76358-5032-530d-b5a7-ee89ea19f5a4", param, ctx
            )


@click.command(name="consume")
@click.option("--type", "types", multiple=True, help="Only this event type; may be given several times.")
@click.option("--from", "start", default="earliest", show_default=True, metavar=FORMS, help="Start here.")
@click.option("--to", "end", metavar=FORMS, help="End before this.  [default: where the topic ends now]")
@click.option("--as-of", metavar="TIME|10m", help="What was there at this time: end before it.")
@click.option("--entity", "--key", "entity_id", type=EntityId(), help="Only this entity's events, from its partition.")
@click.option("--partition", "partitions", type=int, multiple=True, help="Only this partition.")
@click.option("--topic", default="genesis.events", show_default=True, help="Topic to read.")
@click.option("--follow", is_flag=True, help="Keep reading when the end is reached.")
@click.option("--limit", type=click.IntRange(1), help="Stop after so many events.")
@output_option
def command(
    types: tuple[str, ...],
    start: str,
    end: str | None,
    as_of: str | None,
    entity_id: UUID | None,
    partitions: tuple[int, ...],
    topic: str,
    follow: bool,
    limit: int | None,
    output: Output,
) -> None:
    """Print events from the topic.

    --from and --to take a time such as 2026-11-23T08:00Z (UTC where it names no zone), a duration
    before now (10s, 10m, 10h, 10d), an offset, or -10 for the last 10 offsets of each partition.
    Digits that may be a date are refused; offset:20261126 is an offset. --as-of takes a time or a duration.

    Control records are about the log, and no events: a line on stderr names each. With their type in
    --type they are printed like events.
    """
    from runtime.clock import SystemClock
    from runtime.settings import load_settings
    from schemas.control import CONTROL_TYPES
    from schemas.events import EVENT_TYPES
    from streams.consume import consume
    from streams.start import parse_start

    known = (*EVENT_TYPES, *CONTROL_TYPES)
    unknown = [name for name in types if name not in known]
    if unknown:
        raise click.BadParameter(f"{unknown[0]} is none of {', '.join(known)}", param_hint="--type")
    if follow and output == "json" and limit is None:
        raise click.UsageError(FOLLOWED_JSON)
    now = SystemClock().now()
    if as_of is not None:
        end = _end_as_of(as_of, end, now)
    if follow and end is not None:
        raise click.UsageError(FOLLOWED_TO)
    printer = _Printer(output, limit)
    events = consume(
        load_settings(),
        types=types or None,
        start=parse_start(start, now),
        end=None if end is None else parse_start(end, now, "--to"),
        entity_id=entity_id,
        follow=follow,
        topic=topic,
        partitions=partitions or None,
        on_undecodable=_tell_undecodable,
        on_control=printer.control if CONTROL_TYPES.keys() & set(types) else _tell_control,
    )
    count = asyncio.run(_print(events, printer, limit)) + printer.controls
    printer.finish()
    if count == 0 and (entity_id is not None or end is not None):
        whose = "" if entity_id is None else f" of {entity_id}"
        click.echo(f"{topic} has no such event{whose} from {start} to {end or 'latest'}.", err=True)


def _end_as_of(as_of: str, end: str | None, now: datetime) -> str:
    """Return the end that a moment is. Raises UsageError for what is none, and where there is another end."""
    from streams.start import parse_start

    if end is not None:
        raise click.UsageError("--as-of is an end; leave out one of --as-of and --to.")
    if not isinstance(parse_start(as_of, now, "--as-of"), datetime):
        raise click.BadParameter(f"{as_of} is no time, such as {now:%Y-%m-%dT%H:%MZ} or 10m", param_hint="--as-of")
    return as_of


async def _print(events: AsyncGenerator[Received], printer: _Printer, limit: int | None) -> int:
    """Print events, up to the limit or until nobody reads them; return how many."""
    count = 0
    async with aclosing(events):
        async for received in events:
            printer.event(received)
            count += 1
            if count == limit or not output_is_read():
                break
    return count


class _Printer:
    """Prints events as they come; a JSON array only when they have ended."""

    def __init__(self, output: Output, limit: int | None = None) -> None:
        self._output = output
        self._limit = limit
        self._rows: list[dict[str, object]] = []
        self._headed = False
        self.controls = 0
        """Control records that were printed."""

    def event(self, received: Received) -> None:
        self._print(received, received.event, str(received.event.entity_id))

    def control(self, received: ReceivedControl) -> None:
        if self.controls == self._limit:
            return
        self.controls += 1
        self._print(received, received.control, shown_bytes(received.key) or "-")

    def _print(self, received: Received | ReceivedControl, value: RecordValue, key: str) -> None:
        if self._output == "table":
            self._line(received, value, key)
        elif self._output == "jsonl":
            show([_row(received, value)], "jsonl")
        else:
            self._rows.append(_row(received, value))

    def finish(self) -> None:
        if self._output == "json":
            show(self._rows, "json")

    def _line(self, received: Received | ReceivedControl, value: RecordValue, key: str) -> None:
        position = received.position
        if not self._headed:
            self._headed = True
            click.secho(f"{'position':<12}  {'appended':<23}  {'type':<26}  {'entity':<36}  event id", bold=True)
        shown_position = f"{position.partition}@{position.offset}"
        appended = received.timestamp.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        click.echo(f"{shown_position:<12}  {appended}  {value.event_type:<26}  {escaped(key):<36}  {value.event_id}")


def _row(received: Received | ReceivedControl, value: RecordValue) -> dict[str, object]:
    import msgspec

    return {
        "topic": received.position.topic,
        "partition": received.position.partition,
        "offset": received.position.offset,
        "timestamp": received.timestamp,
        "type": value.event_type,
        "event": msgspec.to_builtins(value),
        "headers": [_header(name, value) for name, value in received.headers],
    }


def _header(name: str, value: bytes | None) -> tuple[str, str | None]:
    """Return the header in printable form, whatever bytes a producer put there."""
    shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return shown, shown_bytes(value)


def _tell_control(received: ReceivedControl) -> None:
    named = getattr(received.control, "poison_offset", None)
    about = "" if named is None else f", about the record at offset {named}"
    click.echo(f"{received.position}: a control record and no event: {received.control.event_type}{about}", err=True)


def _tell_undecodable(position: RecordPosition, reason: str) -> None:
    click.echo(f"{position}: not an event: {reason}", err=True)
