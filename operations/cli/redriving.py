"""The work of `plant dead-letters redrive` and `skip`: a plan, the operator action, and the control records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import IO, TYPE_CHECKING, Final

import click
import msgspec

from database.connector import connect
from operations.cli.dead_letter_options import Handling
from operations.cli.listing import show
from operations.cli.opened_files import opened
from operations.cli.progress import counting
from operations.dead_letters.choice import Choice, NamedRecords, Repairs, SearchedRecords
from operations.dead_letters.controls import Control, as_is_of, skip_of
from operations.dead_letters.errors import ControlIneffective
from operations.dead_letters.plan import Plan
from operations.dead_letters.publishing import Ineffective, PublishedRanges, await_effects, publish_controls
from operations.dead_letters.repairs import RepairsFile
from operations.dead_letters.search import DeadLetterSearch
from operations.dead_letters.waiting_record import unread_at
from operations.operator_actions import OperatorAction, record, with_facts
from projections.dead_letter_rows import DeadLetterRows
from runtime.process import escaped
from runtime.settings import Settings, load_settings
from streams.producer import EventProducer

if TYPE_CHECKING:
    from operations.dead_letters.search import Search
    from streams.record_position import RecordPosition

SHOWN_MAX: Final = 20
REASON_MAX_CHARACTERS: Final = 9_000
"""The operator action adds its facts, and a control record holds 10,000."""


@asynccontextmanager
async def open_search() -> AsyncIterator[tuple[Settings, DeadLetterSearch]]:
    """Give the settings, and a search through the log as `plant_auditor`."""
    settings = load_settings()
    database = connect(settings, "auditor")
    try:
        yield settings, DeadLetterSearch(DeadLetterRows(database))
    finally:
        await database.close()


def redrive_repaired(file: str, handling: Handling) -> None:
    """Redrive the dead letters of a file as the events that it has for them."""
    with opened(file, copied=True) as lines:
        asyncio.run(_redrive_repaired(lines, handling))


async def _redrive_repaired(lines: IO[bytes], handling: Handling) -> None:
    async with open_search() as (settings, search):
        repairs = RepairsFile(lines, handling.reason)
        await _handle(settings, search, Repairs(search, repairs), "redrive", handling)
        if repairs.resolved:
            click.echo(f"{repairs.resolved:,} lines are left out: redriven or skipped before.", err=True)


def redrive_as_is(positions: Sequence[RecordPosition], asked: Search, handling: Handling) -> None:
    """Redrive dead letters with the bytes that they have."""
    asyncio.run(_redrive_as_is(positions, asked, handling))


async def _redrive_as_is(positions: Sequence[RecordPosition], asked: Search, handling: Handling) -> None:
    make = partial(as_is_of, reason=handling.reason)
    async with open_search() as (settings, search):
        choice: Choice = SearchedRecords(search, asked, make, whole=True)
        if positions:
            choice = NamedRecords(search, positions, make, whole=True)
        await _handle(settings, search, choice, "redrive", handling)


def skip_chosen(positions: Sequence[RecordPosition], asked: Search, handling: Handling) -> None:
    """Skip dead letters, or records at which their partitions wait."""
    asyncio.run(_skip_chosen(positions, asked, handling))


async def _skip_chosen(positions: Sequence[RecordPosition], asked: Search, handling: Handling) -> None:
    make = partial(skip_of, reason=handling.reason)
    async with open_search() as (settings, search):
        choice: Choice = SearchedRecords(search, asked, make, whole=False)
        if positions:
            unread = unread_at(settings, search.rows)
            choice = NamedRecords(search, positions, make, whole=False, unread=unread)
        await _handle(settings, search, choice, "skip", handling)


async def _handle(settings: Settings, search: DeadLetterSearch, choice: Choice, verb: str, handling: Handling) -> None:
    """Show the plan; with `--execute` record the action, publish, and wait where that is asked."""
    _require_reason(handling.reason)
    action = OperatorAction(action=f"dead_letters.{verb}", target="", reason=handling.reason, actor=handling.actor)
    plan = await _plan(choice)
    rows = plan.rows()
    show(rows[:SHOWN_MAX] if handling.output == "table" else rows, handling.output)
    if handling.output == "table" and len(rows) > SHOWN_MAX:
        click.echo(f"and {len(rows) - SHOWN_MAX:,} more groups", err=True)
    for line in plan.left_out_shown:
        click.echo(f"left out: {escaped(line)}", err=True)
    if plan.left_out:
        click.echo(f"{plan.left_out:,} dead letters are left out.", err=True)
    if not handling.execute:
        click.echo(f"{plan.count:,} control records to publish. Nothing was done: --execute does it.", err=True)
    elif not plan.count:
        click.echo("0 control records published.", err=True)
    else:
        await _execute(settings, search, choice, plan, action, handling)


async def _plan(choice: Choice) -> Plan:
    plan = Plan()
    async for planned in choice.planned():
        if isinstance(planned, Control):
            plan.add(planned)
        else:
            plan.leave_out(planned)
    return plan


async def _execute(
    settings: Settings, search: DeadLetterSearch, choice: Choice, plan: Plan, action: OperatorAction, handling: Handling
) -> None:
    facts = [f"{plan.count} records"]
    action = msgspec.structs.replace(action, target=plan.target, reason=with_facts(handling.reason, facts))
    published = PublishedRanges()
    async with EventProducer(settings, topics=sorted(plan.topics)) as producer:
        await record(settings, action)
        try:
            with counting("control records", plan.count) as advance:
                async for position in publish_controls(producer, choice.controls(), action):
                    published.add(position)
                    advance(1)
        finally:
            rest = "" if published.count == plan.count else f" of {plan.count:,}; run it again for the rest"
            click.echo(f"{published.count:,} control records published{rest}.", err=True)
    if handling.wait:
        _tell_effects(published, await await_effects(search.rows, published, action.operation_id, handling.timeout))


def _tell_effects(published: PublishedRanges, ineffective: Sequence[Ineffective]) -> None:
    """Print how many took effect, and the first that did not. Raises ControlIneffective unless others did it before."""
    for each in ineffective[:SHOWN_MAX]:
        why = "its event can't take effect" if each.resolved_at is None else "one before it took effect"
        named = f"{each.position.topic}/{each.position.partition}/{each.poison_offset}"
        click.echo(f"{each.position}: without effect on {named}: {why}", err=True)
    click.echo(f"{published.count - len(ineffective):,} of {published.count:,} control records took effect.", err=True)
    lost = [each for each in ineffective if each.resolved_at is None]
    if lost:
        named = f"{lost[0].position.topic}/{lost[0].position.partition}/{lost[0].poison_offset}"
        raise ControlIneffective(
            f"{len(lost):,} control records had no effect.",
            why=f"The first is that on {named}: its event is not the key's entity's, or its id was applied before for"
            " another event.",
            next_step=f"plant dead-letters show {named}",
        )


def _require_reason(reason: str) -> None:
    """Raise a usage error for a reason that no control record can hold."""
    if not 0 < len(reason) <= REASON_MAX_CHARACTERS or "\x00" in reason:
        raise click.BadParameter(
            f"it has 1 to {REASON_MAX_CHARACTERS:,} characters, and no NUL character.", param_hint="--reason"
        )
