"""`plant dead-letters`: find the records that could not be applied, and redrive or skip them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from operations.cli.dead_letter_options import POSITION, Filters, Handling, handling_options, search_options
from operations.cli.groups import CommandGroup
from operations.cli.listing import Output, RowPrinter, output_option, show
from runtime.process import output_is_read, shown_bytes

if TYPE_CHECKING:
    from uuid import UUID

    from operations.dead_letters.dead_letter import DeadLetter
    from operations.dead_letters.search import Search, StateFilter
    from streams.record_position import RecordPosition

WIDTHS: Final = {"position": 24, "appended_at": 20, "type": 24, "entity": 36, "parked": 6, "reason": 40}
ENTITIES_MAX: Final = 100_000
"""Entities whose parked events are counted for the last line of a list."""


@click.group(name="dead-letters", cls=CommandGroup)
def command() -> None:
    """Find, redrive and skip records that could not be applied."""


@command.command(name="list")
@search_options
@click.option(
    "--state",
    type=click.Choice(["waiting", "resolved", "all"]),
    default="waiting",
    show_default=True,
    help="Those that wait for an operator, those that were redriven or skipped, or both.",
)
@output_option
def list_dead_letters(filters: Filters, state: StateFilter, output: Output) -> None:
    """List poison records by topic, partition and offset, with the events that are parked behind each.

    The log is read as plant_auditor, some records at a time. JSON has the event of each, decoded as far as it can be:
    such lines, repaired, are what `redrive --repaired` reads.

    \b
    Examples:
      plant dead-letters list
      plant dead-letters list --cause "no schema" --since 2d
      plant dead-letters list --type genesis.agent.rated --output jsonl
    """
    asyncio.run(_list(filters.search(state), output))


async def _list(asked: Search, output: Output) -> None:
    from operations.cli.redriving import open_search

    printer, total = RowPrinter(output, WIDTHS), _ListCount()
    async with open_search() as (_, search):
        async for page in search.pages(asked, whole=output != "table", count_parked=True):
            for each in page:
                printer.row(_row(each) if output == "table" else each.line())
                total.add(each)
            if not output_is_read():
                break
    printer.finish()
    click.echo(total.line(), err=True)


class _ListCount:
    """The last line of a list: how many there are, and the parked events of each entity once."""

    def __init__(self) -> None:
        self._count = self._parked = 0
        self._at_least = False
        self._entities: set[UUID] = set()

    def add(self, dead_letter: DeadLetter) -> None:
        self._count += 1
        entity = dead_letter.row.entity_id
        if dead_letter.state == "resolved" or entity is None or entity in self._entities:
            return
        self._at_least |= dead_letter.parked.at_least or len(self._entities) == ENTITIES_MAX
        if len(self._entities) < ENTITIES_MAX:
            self._entities.add(entity)
            self._parked += dead_letter.parked.events

    def line(self) -> str:
        parked = f"{self._parked:,} or more" if self._at_least else f"{self._parked:,}"
        return f"{self._count:,} dead letters; {parked} events are parked behind those that wait."


def _row(dead_letter: DeadLetter) -> dict[str, Any]:
    from operations.dead_letters.errors import shown_position

    parked = dead_letter.parked
    return {
        "position": shown_position(dead_letter.position),
        "appended_at": dead_letter.row.created_at,
        "type": dead_letter.event_type,
        "entity": shown_bytes(dead_letter.row.key),
        "parked": f"{parked.events}+" if parked.at_least else parked.events,
        "reason": dead_letter.row.reason,
    }


@command.command(name="show")
@click.argument("position", type=POSITION, metavar="TOPIC/PARTITION/OFFSET")
@output_option
def show_dead_letter(position: RecordPosition, output: Output) -> None:
    """Show one dead letter: its reason, its bytes, what waits behind it, and what resolved it.

    Its value is decoded whatever limits it breaks, and shown in hex where it can't be.

    \b
    Examples:
      plant dead-letters show genesis.events/3/42
      plant dead-letters show genesis.events/3/42 --output json
    """
    line = asyncio.run(_read_one(position))
    if output == "table":
        show([{"field": name, "content": content} for name, content in _flat(line)], "table")
    else:
        show([line], output)


async def _read_one(position: RecordPosition) -> dict[str, Any]:
    import msgspec

    from operations.cli.redriving import open_search
    from operations.dead_letters.resolution import resolution_of
    from operations.dead_letters.waiting_record import unread_at

    async with open_search() as (settings, search):
        unread = unread_at(settings, search.rows)
        (found,) = [each async for each in search.at([position], whole=True, unread=unread)]
        parked = (await search.rows.parked([found.row])).get(found.row.offset, found.parked)
        resolution = await resolution_of(search.rows, found)
    line = msgspec.structs.replace(found, parked=parked).line(hex_max_bytes=found.row.value_bytes or 0)
    line["parked_first_offsets"] = parked.first_offsets
    line["resolution"] = None if resolution is None else msgspec.structs.asdict(resolution)
    return line


def _flat(fields: dict[str, Any], under: str = "") -> list[tuple[str, Any]]:
    """Return an object's fields as lines of a table, those of an object within it by their path."""
    flat: list[tuple[str, Any]] = []
    for name, value in fields.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{under}{name}.")
        elif name == "headers":
            flat += [(f"header {header}", content) for header, content in value]
        else:
            many = isinstance(value, Sequence) and not isinstance(value, str)
            flat.append((under + name, ", ".join(map(str, value)) if many else value))
    return flat


@command.command()
@click.argument("positions", type=POSITION, nargs=-1, metavar="[TOPIC/PARTITION/OFFSET]...")
@search_options
@click.option(
    "--repaired",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Lines of JSON with topic, partition, offset and event, as `list --output jsonl` writes them; - is stdin.",
)
@click.option("--as-is", is_flag=True, help="Redrive the records' own bytes, which are valid by now.")
@handling_options("Dead letters are redriven.")
def redrive(
    positions: tuple[RecordPosition, ...], filters: Filters, repaired: str | None, as_is: bool, handling: Handling
) -> None:
    """Let dead letters take effect: as repaired events, or as they are.

    A control record is published on each record's own partition. Its event, and those that are parked behind it, take
    effect there, in their order. A file is checked whole before anything is published. Running it again does the rest,
    and what was redriven before stays as it is.

    \b
    Examples:
      plant dead-letters redrive --repaired repaired.jsonl
      plant dead-letters redrive --repaired repaired.jsonl --execute --wait
      plant dead-letters redrive --as-is --cause "no schema has the id" --execute
    """
    from operations.cli.redriving import redrive_as_is, redrive_repaired

    if (repaired is None) == (not as_is):
        raise click.UsageError("Name a file with --repaired, or say --as-is.")
    if repaired is not None:
        if positions or filters.given:
            raise click.UsageError("The file of --repaired names its records: leave out positions and filters.")
        redrive_repaired(repaired, handling)
        return
    _require_choice(positions, filters)
    redrive_as_is(positions, filters.search("waiting"), handling)


@command.command()
@click.argument("positions", type=POSITION, nargs=-1, metavar="[TOPIC/PARTITION/OFFSET]...")
@search_options
@handling_options("Dead letters are skipped.")
def skip(positions: tuple[RecordPosition, ...], filters: Filters, handling: Handling) -> None:
    """Give dead letters up: they never take effect, and the events that are parked behind them do.

    A control record is published on each record's own partition. A record whose partition waits at it, since its
    schema is of a later release, can be skipped by its position. Running it again does the rest.

    \b
    Examples:
      plant dead-letters skip genesis.events/3/42
      plant dead-letters skip genesis.events/3/42 --reason "a test" --execute
      plant dead-letters skip --cause "too short" --until 2d --execute
    """
    from operations.cli.redriving import skip_chosen

    _require_choice(positions, filters)
    skip_chosen(positions, filters.search("waiting"), handling)


def _require_choice(positions: tuple[RecordPosition, ...], filters: Filters) -> None:
    """Raise a usage error unless records are named in one way."""
    if bool(positions) == filters.given:
        raise click.UsageError("Name records by their positions, or by filters such as --topic.")
