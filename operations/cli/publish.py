"""`plant publish`: a file of events onto the topic."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from operations.cli.listing import Output, output_option, show
from operations.cli.opened_files import opened
from operations.operator_actions import OperatorAction, actor_option, reason_option, record, with_facts
from runtime.errors import CheckFailed

if TYPE_CHECKING:
    from ingress.producers import StoredProducer
    from operations.event_lines import InvalidLine
    from operations.publish_checks import CheckedFile
    from operations.publish_pace import Pace
    from runtime.settings import Settings
    from schemas.sender_headers import EventOfSender
    from streams.record_position import RecordPosition

SHOWN_MAX = 20
PROGRESS_EVERY_SECONDS = 5.0
SOURCE = "plant/cli"


@click.command(name="publish")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--producer", default="cli", show_default=True, help="Producer of the events; part of their ids.")
@click.option("--skip-invalid", is_flag=True, help="Publish the good lines though others are bad.")
@output_option
@actor_option
@reason_option("Events are published from a file.")
def command(file: str, producer: str, skip_invalid: bool, output: Output, actor: str, reason: str) -> None:
    """Publish events from a file.

    FILE holds a JSON object a line: {"type", "data", "id"?, "timestamp"?}; - is stdin. Every line is checked before the
    first is sent, against the producer's policy too; its rate slows a run down. A run is one operator action.
    Publishing a file again stores nothing twice.

    \b
    Examples:
      plant publish events.jsonl
      plant publish events.jsonl --producer genesis \\
        --reason "they were lost upstream"
    """
    from ingress.keys import check_producer_name
    from operations.publish_checks import CheckedFile
    from operations.publish_pace import pace_of
    from runtime.settings import load_settings

    settings = load_settings()
    check_producer_name(producer)
    with opened(file) as lines:
        checked = CheckedFile(producer, datetime.now(UTC))
        checked.read(lines)
        if not skip_invalid:
            _refuse_invalid(file, checked)
        policy = asyncio.run(_policy(settings, producer))
        checked.hold_to(policy)
        if not skip_invalid:
            _refuse_invalid(file, checked)
        _tell_invalid(checked.invalid)
        checked.refuse_conflicts()
        lines.seek(0)
        tally = Tally(checked.count)
        if checked.count:
            why = with_facts(reason, [f"{checked.count} events", f"sha256 {checked.digest}"])
            action = OperatorAction(action="events.publish", target=producer, reason=why, actor=actor)
            pace = pace_of(policy, settings)
            tally.begin(producer, pace)
            try:
                asyncio.run(_send(settings, checked.sendable(lines, policy), pace, tally, action))
            except KeyboardInterrupt:
                tally.interrupted()
                raise
    tally.done()
    show(tally.rows(), output)


def _tell_invalid(invalid: list[InvalidLine]) -> None:
    for bad in invalid[:SHOWN_MAX]:
        click.echo(f"line {bad.number}: {bad.reason}", err=True)
    if len(invalid) > SHOWN_MAX:
        click.echo(f"and {len(invalid) - SHOWN_MAX} more bad lines", err=True)


def _refuse_invalid(file: str, checked: CheckedFile) -> None:
    """Raise CheckFailed where there are bad lines, once they were named."""
    if not checked.invalid:
        return
    _tell_invalid(checked.invalid)
    raise CheckFailed(
        f"{len(checked.invalid)} of {checked.count + len(checked.invalid)} lines can't be sent.",
        why="Nothing was sent.",
        next_step=f"plant publish {shlex.quote(file)} --skip-invalid",
    )


async def _send(
    settings: Settings, events: Iterator[EventOfSender], pace: Pace | None, tally: Tally, action: OperatorAction
) -> None:
    from operations.publish_pace import paced
    from schemas.sender_headers import OPERATION_HEADER
    from streams.producer import EventProducer
    from streams.topics import EVENTS_TOPIC

    action_header = (OPERATION_HEADER, str(action.operation_id).encode())
    async with EventProducer(settings, topics=(EVENTS_TOPIC,)) as kafka:
        await record(settings, action)
        async for position in kafka.publish_each(paced(events, pace), source=SOURCE, sender=(action_header,)):
            tally.add(position)


async def _policy(settings: Settings, producer: str) -> StoredProducer | None:
    """Return the producer's policy, None where it has neither one nor a key."""
    from database.connector import connect
    from ingress.producers import ProducerStore

    database = connect(settings, "operator")
    try:
        return next((each for each in await ProducerStore(database).all() if each.name == producer), None)
    finally:
        await database.close()


class Tally:
    """The count of acknowledged events, in all and by partition; it shows progress every few seconds."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._count = 0
        self._started = self._shown_at = 0.0
        self._partitions: dict[int, tuple[int, int, int]] = {}

    def begin(self, producer: str, pace: Pace | None) -> None:
        """Say how long it takes at least, where the producer's rate makes that long."""
        seconds = 0.0 if pace is None else pace.least_seconds(self._expected)
        if pace is not None and seconds >= PROGRESS_EVERY_SECONDS:
            rate = f"{producer} may send {pace.rate_per_second:g} events a second"
            click.echo(f"{rate}: this takes {seconds:,.0f} s or more", err=True)

    def add(self, position: RecordPosition) -> None:
        count, first, last = self._partitions.get(position.partition, (0, position.offset, position.offset))
        bounds = min(first, position.offset), max(last, position.offset)
        self._partitions[position.partition] = (count + 1, *bounds)
        self._count += 1
        now = time.monotonic()
        if self._count == 1:
            self._started = self._shown_at = now
        if now - self._shown_at >= PROGRESS_EVERY_SECONDS:
            self._shown_at = now
            rate = self._count / (now - self._started)
            left = (self._expected - self._count) / rate
            click.echo(f"  {self._count:,} of {self._expected:,}, {rate:,.0f}/s, {left:.0f} s left", err=True)

    def interrupted(self) -> None:
        """Say how far it came; more may be on the topic, whose acknowledgements were on their way."""
        count = f"{self._count:,} of {self._expected:,} events are acknowledged"
        click.echo(f"{count}. Run it again for the rest: nothing is stored twice.", err=True)

    def done(self) -> None:
        click.echo(f"published {self._count:,} events", err=True)

    def rows(self) -> list[dict[str, object]]:
        return [
            {"partition": partition, "events": count, "first_offset": first, "last_offset": last}
            for partition, (count, first, last) in sorted(self._partitions.items())
        ]
