"""`plant consume`: events, decoded, as they stand on the topic."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from operations.cli.listing import Output, output_option, show

if TYPE_CHECKING:
    from runtime.settings import Settings
    from streams.consume import Received
    from streams.record_position import RecordPosition
    from streams.start import Start

FOLLOWED_JSON = "With --follow there is no end of a JSON array; use --output jsonl."


@click.command(name="consume")
@click.option("--type", "types", multiple=True, help="Only this event type; may be given several times.")
@click.option(
    "--from", "start", default="earliest", show_default=True, metavar="earliest|latest|TIME|OFFSET", help="Start here."
)
@click.option("--partition", "partitions", type=int, multiple=True, help="Only this partition.")
@click.option("--topic", default="genesis.events", show_default=True, help="Topic to read.")
@click.option("--follow", is_flag=True, help="Keep reading when the end is reached.")
@click.option("--limit", type=click.IntRange(1), help="Stop after so many events.")
@output_option
def command(
    types: tuple[str, ...],
    start: str,
    partitions: tuple[int, ...],
    topic: str,
    follow: bool,
    limit: int | None,
    output: Output,
) -> None:
    """Print events from the topic."""
    from runtime.settings import load_settings
    from schemas.events import EVENT_TYPES
    from streams.start import parse_start

    unknown = [name for name in types if name not in EVENT_TYPES]
    if unknown:
        raise click.BadParameter(f"{unknown[0]} is none of {', '.join(EVENT_TYPES)}", param_hint="--type")
    if follow and output == "json" and limit is None:
        raise click.UsageError(FOLLOWED_JSON)
    printer = _Printer(output)
    reading = _read(
        load_settings(),
        printer,
        types=types or None,
        start=parse_start(start),
        follow=follow,
        topic=topic,
        partitions=partitions or None,
        limit=limit,
    )
    asyncio.run(reading)
    printer.finish()


async def _read(
    settings: Settings,
    printer: _Printer,
    *,
    types: tuple[str, ...] | None,
    start: Start,
    follow: bool,
    topic: str,
    partitions: tuple[int, ...] | None,
    limit: int | None,
) -> None:
    from streams.consume import consume

    count = 0
    events = consume(
        settings,
        types=types,
        start=start,
        follow=follow,
        topic=topic,
        partitions=partitions,
        on_undecodable=_tell_undecodable,
    )
    async with aclosing(events):
        async for received in events:
            printer.event(received)
            count += 1
            if count == limit:
                return


class _Printer:
    """Prints events as they come; a JSON array only when they have ended."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._rows: list[dict[str, object]] = []
        self._headed = False

    def event(self, received: Received) -> None:
        if self._output == "table":
            self._line(received)
        elif self._output == "jsonl":
            show([_row(received)], "jsonl")
        else:
            self._rows.append(_row(received))

    def finish(self) -> None:
        if self._output == "json":
            show(self._rows, "json")

    def _line(self, received: Received) -> None:
        event, position = received.event, received.position
        if not self._headed:
            self._headed = True
            click.secho(f"{'position':<12}  {'appended':<23}  {'type':<26}  {'entity':<36}  event id", bold=True)
        shown_position = f"{position.partition}@{position.offset}"
        appended = received.timestamp.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        click.echo(f"{shown_position:<12}  {appended}  {event.event_type:<26}  {event.entity_id}  {event.event_id}")


def _row(received: Received) -> dict[str, object]:
    import msgspec

    return {
        "topic": received.position.topic,
        "partition": received.position.partition,
        "offset": received.position.offset,
        "timestamp": received.timestamp,
        "type": received.event.event_type,
        "event": msgspec.to_builtins(received.event),
        "headers": [_header(name, value) for name, value in received.headers],
    }


def _header(name: str, value: bytes | None) -> tuple[str, str | None]:
    """Return the header in printable form, whatever bytes a producer put there."""
    shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return shown, None if value is None else value.decode("utf-8", "backslashreplace")


def _tell_undecodable(position: RecordPosition, reason: str) -> None:
    click.echo(f"{position}: not an event: {reason}", err=True)
