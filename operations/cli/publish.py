"""`plant publish`: a file of events onto the topic."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING

import click

from operations.cli.listing import Output, output_option, show
from operations.operator_actions import OperatorAction, actor_option, reason_option, record, with_facts
from runtime.errors import CheckFailed, ConfigurationError

if TYPE_CHECKING:
    from ingress.producers import StoredProducer
    from operations.event_lines import InvalidLine
    from operations.publish_checks import EventIds
    from runtime.settings import Settings
    from schemas.sender_headers import EventOfSender
    from streams.record_position import RecordPosition

SHOWN_MAX = 20
PROGRESS_EVERY_SECONDS = 5.0
READ_BYTES = 1024 * 1024
SOURCE = "plant/cli"
STDIN = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")


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
    first is sent, against the producer's policy too. A run is one operator action. Publishing a file again stores
    nothing twice.

    \b
    Examples:
      plant publish events.jsonl
      plant publish events.jsonl --producer genesis \\
        --reason "they were lost upstream"
    """
    from ingress.keys import check_producer_name
    from operations.publish_checks import EventIds, refuse_disabled
    from runtime.settings import load_settings

    settings = load_settings()
    check_producer_name(producer)
    now = datetime.now(UTC)
    with _opened(file) as lines:
        ids = EventIds()
        count, invalid = _check(lines, producer, now, None, ids)
        if not skip_invalid:
            _refuse_invalid(file, count, invalid)
        policy = asyncio.run(_policy(settings, producer))
        refuse_disabled(policy)
        if policy is not None and policy.event_types is not None:
            lines.seek(0)
            ids = EventIds()
            count, invalid = _check(lines, producer, now, policy, ids)
        if invalid:
            _tell_invalid(invalid)
        if not skip_invalid:
            _refuse_invalid(file, count, invalid, told=True)
        ids.refuse_conflicts()
        del ids
        lines.seek(0)
        tally = Tally(count)
        if count:
            why = with_facts(reason, [f"{count} events", f"sha256 {_digest(lines)}"])
            action = OperatorAction(action="events.publish", target=producer, reason=why, actor=actor)
            try:
                asyncio.run(_send(settings, lines, now, policy, tally, action))
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


def _refuse_invalid(file: str, count: int, invalid: list[InvalidLine], *, told: bool = False) -> None:
    """Raise CheckFailed where there are bad lines, once they were named."""
    if not invalid:
        return
    if not told:
        _tell_invalid(invalid)
    raise CheckFailed(
        f"{len(invalid)} of {count + len(invalid)} lines can't be sent.",
        why="Nothing was sent.",
        next_step=f"plant publish {shlex.quote(file)} --skip-invalid",
    )


async def _send(
    settings: Settings,
    lines: IO[bytes],
    now: datetime,
    policy: StoredProducer | None,
    tally: Tally,
    action: OperatorAction,
) -> None:
    from operations.event_lines import InvalidLine, number_lines
    from operations.publish_checks import permitted
    from schemas.sender_headers import OPERATION_HEADER
    from streams.producer import EventProducer
    from streams.topics import EVENTS_TOPIC

    def valid_events() -> Iterator[EventOfSender]:
        for _, read in permitted(number_lines(lines, action.target, now), policy):
            if not isinstance(read, InvalidLine):
                yield read

    action_header = (OPERATION_HEADER, str(action.operation_id).encode())
    async with EventProducer(settings, topics=(EVENTS_TOPIC,)) as kafka:
        await record(settings, action)
        async for position in kafka.publish_each(valid_events(), source=SOURCE, sender=(action_header,)):
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


def _digest(lines: IO[bytes]) -> str:
    """Return the SHA-256 of the whole file, in hex; it is read from its start, and back there afterwards."""
    digest = hashlib.sha256()
    while part := lines.read(READ_BYTES):
        digest.update(part)
    lines.seek(0)
    return digest.hexdigest()


def _check(
    lines: IO[bytes], producer: str, now: datetime, policy: StoredProducer | None, ids: EventIds
) -> tuple[int, list[InvalidLine]]:
    """Return how many lines may be sent, and the lines that may not; the former's ids are added to `ids`."""
    from operations.event_lines import InvalidLine, number_lines
    from operations.publish_checks import permitted

    count, invalid = 0, []
    for number, read in permitted(number_lines(lines, producer, now), policy):
        if isinstance(read, InvalidLine):
            invalid.append(read)
        else:
            ids.add(read, number)
            count += 1
    return count, invalid


@contextmanager
def _opened(file: str) -> Iterator[IO[bytes]]:
    """Open the file, which is read twice; a pipe, stdin say, is copied to a temporary file for that."""
    from operations.cli.main import CLOSED_STREAMS

    if file in STDIN and "stdin" in CLOSED_STREAMS:
        raise ConfigurationError(
            "There is nothing to read.", why="The standard input is closed.", next_step="plant publish FILE"
        )
    with contextlib.ExitStack() as stack:
        lines: IO[bytes] = sys.stdin.buffer if file == "-" else stack.enter_context(open(file, "rb"))
        if not lines.seekable() or file in STDIN:
            copy = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(lines, copy)
            copy.seek(0)
            lines = copy
        yield lines


class Tally:
    """The count of acknowledged events, in all and by partition; it shows progress every few seconds."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._count = 0
        self._started = self._shown_at = 0.0
        self._partitions: dict[int, tuple[int, int, int]] = {}

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
