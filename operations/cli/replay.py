"""`plant replay`: a slice of history again, to a topic or to a file."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING
from uuid import UUID

import click

from operations.cli.consume import FORMS, EntityId
from operations.cli.listing import Output, output_option, show
from operations.operator_actions import OperatorAction, actor_option, reason_option, with_facts
from runtime.process import output_is_read

if TYPE_CHECKING:
    from operations.replay import Ranges
    from projections.replayed_events import ReplayFilter
    from runtime.settings import Settings


@click.command(name="replay")
@click.option("--from", "start", default="earliest", show_default=True, metavar=FORMS, help="Start here.")
@click.option("--to", "end", default="latest", show_default=True, metavar=FORMS, help="End before this.")
@click.option("--type", "types", multiple=True, help="Only this event type; may be given several times.")
@click.option("--entity", "entity_id", type=EntityId(), help="Only this entity's events.")
@click.option("--topic", default="genesis.events", show_default=True, help="Topic whose log is replayed.")
@click.option("--into", metavar="TOPIC", help="Write records to this topic, which is none of the catalogue's.")
@click.option("--stdout", "to_stdout", is_flag=True, help="Write lines that `plant publish` takes.")
@actor_option
@reason_option("A slice of history is needed again.")
@output_option
def command(
    start: str, end: str, types: tuple[str, ...], entity_id: UUID | None, topic: str, into: str | None,
    to_stdout: bool, actor: str, reason: str, output: Output,
) -> None:  # fmt: skip
    """Write a slice of history again, as the log has it.

    Only what took effect: no repeats, no poison, no control records. Events that waited, or were repaired, come where
    their control record released them, with the bytes that took effect. An entity's events come in order. Records of
    --into have the header plant_replayed, and nothing is dispatched.

    --from and --to take what `plant consume` takes, within the log: events that take effect between them.

    \b
    Examples:
      plant replay --from 2026-11-23T08:00Z --into a-day-again
      plant replay --entity 72d76358-5032-530d-b5a7-ee89ea19f5a4 --stdout
    """
    from operations.replay import ranges_of, refuse_catalogue
    from projections.replayed_events import ReplayFilter
    from runtime.clock import SystemClock
    from runtime.settings import load_settings
    from schemas.events import EVENT_TYPES
    from streams.start import parse_start

    if (into is None) == (not to_stdout):
        raise click.UsageError("Give one of --into TOPIC and --stdout.")
    if unknown := [name for name in types if name not in EVENT_TYPES]:
        raise click.BadParameter(f"{unknown[0]} is none of {', '.join(EVENT_TYPES)}", param_hint="--type")
    if into is not None:
        refuse_catalogue(into)
    settings, now = load_settings(), SystemClock().now()
    bounds = parse_start(start, now), parse_start(end, now, "--to")
    ranges = asyncio.run(ranges_of(settings, topic, *bounds, entity_id))
    wanted = ReplayFilter(frozenset(types) or None, entity_id)
    if into is None:
        count = _write_lines(settings, topic, ranges, wanted)
        click.echo(f"{count:,} events", err=True)
    else:
        facts = [f"{topic} from {start} to {end}", *types, *([] if entity_id is None else [str(entity_id)])]
        action = OperatorAction(action="events.replay", target=into, reason=with_facts(reason, facts), actor=actor)
        count = _write_topic(settings, topic, into, ranges, wanted, action)
        show([{"into": into, "events": count, "partitions": len(ranges)}], output)


def _write_lines(settings: Settings, topic: str, ranges: Ranges, wanted: ReplayFilter) -> int:
    """Write lines until all are written or nobody reads them; return how many."""
    from operations.replay import line_of, read_pages

    count = 0
    with contextlib.closing(read_pages(settings, topic, ranges, wanted)) as pages:
        for page in pages:
            if not output_is_read():
                break
            sys.stdout.buffer.write(b"".join(map(line_of, page.events)))
            count += len(page.events)
    sys.stdout.flush()
    return count


def _write_topic(
    settings: Settings, topic: str, into: str, ranges: Ranges, wanted: ReplayFilter, action: OperatorAction
) -> int:
    """Write records to a topic; return how many. Says how many were written where it fails."""
    from operations.replay import read_pages, replay_into

    written = 0

    def count(events: int) -> None:
        nonlocal written
        written += events

    try:
        with contextlib.closing(read_pages(settings, topic, ranges, wanted)) as pages:
            asyncio.run(replay_into(settings, into, pages, action, count))
    except BaseException:
        click.echo(f"{written:,} events are on {into}; run again, it writes all of them once more", err=True)
        raise
    return written
