"""`plant demo`: the main job on real input, from an empty machine to a verified log."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any, Literal

import click

from operations.cli.listing import show

if TYPE_CHECKING:
    from operations.demo.outcome import DemoOutcome, Part

STARTED = time.monotonic()


@click.command(name="demo")
@click.option("--agents", type=click.IntRange(20, 100_000), default=300, show_default=True, help="Agents to make up.")
@click.option("--seed", type=int, default=7, show_default=True, help="Seed of what is made up.")
@click.option(
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How to print: for people, or for programs.",
)
def command(agents: int, seed: int, output: Literal["table", "json"]) -> None:
    """Run the main job on real input.

    Starts the local stack and a process of each service; publishes ESCO's ICT skills and occupations and made-up
    agents by signed webhooks; shows the read model; repairs a record that another program wrote past the limits;
    searches the marketplace; reads over HTTP with a token; delivers an event to a subscriber that fails at first;
    fills the entity tables from the log; shows each partition's position and the audit verdict; and tries to tamper
    with the log. What it started has ended when it ends; a stack that was up stays up. Data is kept.

    Run it again: ESCO's events are logged as repeats and change nothing, and agents of a new run are added.
    """
    import msgspec

    from operations.cli.progress import ShownProgress
    from operations.demo.run import Options, run_demo

    show_part = _show_part if output == "table" else lambda part: None
    outcome = run_demo(Options(agents=agents, seed=seed), ShownProgress(), show_part, STARTED)
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(outcome), indent=2).decode())
    else:
        _show_end(outcome)


def _show_part(part: Part) -> None:
    """Print one section to stdout."""
    import msgspec

    from operations.demo.delivering import DeliveryPart
    from operations.demo.mending import MendedRecord
    from operations.demo.outcome import (
        Audit,
        EntityTablesPart,
        MarketplacePart,
        Published,
        ReaderPart,
        ReadModelPart,
        RebuildPart,
    )
    from operations.demo.tampering import Forgery

    match part:
        case Published():
            _show_published(part)
        case ReadModelPart():
            _show_read_model(part)
        case MendedRecord():
            _show_mended(part)
        case MarketplacePart():
            _show_marketplace(part)
        case ReaderPart():
            _show_reader(part)
        case DeliveryPart():
            _show_delivery(part)
        case RebuildPart():
            _show_rebuild(part)
        case EntityTablesPart():
            _show_entity_tables(part)
        case Audit():
            _head(f"Audit: {part.verdict}, {part.entries:,} entries in {len(part.chains)} chains")
            rows = [msgspec.to_builtins(chain) for chain in part.chains]
            for row in rows:
                row["head_hash"] = (row["head_hash"] or "")[:16] + "…"
                row["verdict"] = "bad" if row["finding"] else "good" if row["entries"] else "empty"
            show(rows, "table", columns=("topic", "partition", "verdict", "entries", "head_offset", "head_hash"))
        case Forgery():
            _show_forgery(part)
        case list():
            rows = [msgspec.to_builtins(row) for row in part]
            if rows and "log_end" in rows[0]:
                _head("Positions (next offsets; lag in records)")
                show(rows, "table")
            else:
                _show_refusals(rows)


def _show_published(part: Any) -> None:
    from operations.demo.catalogue import ATTRIBUTION
    from operations.demo.run import generated_note

    _head(f"Published {part.published:,} events by signed webhooks")
    show([{"event_type": name, "events": count} for name, count in part.by_type.items()], "table")
    click.echo(f"published  {part.published_per_second:,.0f}/s over HTTP, each acknowledged by Kafka")
    click.echo(f"projected  {part.projected_per_second:,.0f}/s into event log, audit chain and read model")
    logged = ", ".join(f"{count:,} {name}" for name, count in part.dispositions.items())
    click.echo(f"logged     {logged}")
    if part.dispositions.get("repeat"):
        click.echo("           (repeats: events of an earlier run; they are logged, and change nothing)")
    click.echo(ATTRIBUTION)
    click.echo(generated_note(part.seed, part.run))


def _show_read_model(part: Any) -> None:
    _head(f"Read model agents: {part.agents:,} of this run, {part.available:,} available")
    rows = [
        {
            "agent (generated)": row.agent,
            "job role (ESCO)": row.job_role,
            "skills": row.skills,
            "some of them (ESCO)": row.some_skills,
            "status": row.status,
            "available": "yes" if row.available else "no",
        }
        for row in part.rows
    ]
    show(rows, "table")


def _show_mended(part: Any) -> None:
    _head("A record that could not be applied: found, repaired, redriven")
    click.echo(f"{part.position}: {part.reason} (another program wrote {part.written_rating})")
    shown = [("yes" if each else "no") for each in (part.available_before, part.available_after)]
    click.echo(f"the agent's next event, available {shown[0]} to {shown[1]}, was parked behind it")
    click.echo(f"redriven by {part.actor} with a rating of {part.repaired_rating}, at {part.control_record}")
    click.echo(f"both have taken effect, in their order: the agent is available: {shown[1]}")


def _show_marketplace(part: Any) -> None:
    _head(f"Marketplace: available now with {part.skill} or a similar skill, the best rated first")
    click.echo(f"similar (ESCO): {', '.join(part.similar_skills)}")
    rows = [
        {
            "agent (generated)": row.agent,
            "job role (ESCO)": row.job_role,
            "of these skills": ", ".join(row.skills),
            "ratings": row.ratings,
            "average": f"{row.bayesian_average:.2f}",
        }
        for row in part.rows
    ]
    show(rows, "table")


def _show_reader(part: Any) -> None:
    _head("Read through the API: the reader's own write, then a row of each other read model")
    click.echo(f"token plant_{part.token_prefix}_… with the scope {', '.join(part.scopes)} (plant tokens add)")
    click.echo(f"the agent's availability was changed by a webhook, at {part.position}")
    show(
        [{"request": _shortened(each.request), "status": each.status, "it says": each.shown} for each in part.reads],
        "table",
    )


def _show_delivery(part: Any) -> None:
    _head(f"A {part.event_type} delivered to a subscriber that failed at first: {part.state}")
    rows = [
        {
            "attempt": each.attempt,
            "after": f"{each.after_seconds:.2f} s",
            "answer": each.status_code,
            "outcome": each.outcome,
            "next": "" if each.next_after_seconds is None else f"due after {each.next_after_seconds:.0f} s",
        }
        for each in part.attempts
    ]
    show(rows, "table")
    click.echo(
        f"webhook-id {part.delivery_id} each time; {part.signatures_verified} of {part.requests} signatures verified"
    )


def _show_rebuild(part: Any) -> None:
    _head(
        f"Rebuild of {part.build.partition('/')[0].rpartition('_')[0]}, while {part.published_meanwhile} more came in"
    )
    rows = ", ".join(f"{count:,} of {table}" for table, count in part.compared.items())
    click.echo(f"filled     {part.events:,} events from the log in {part.seconds} s, as {part.build}")
    click.echo(f"compared   rows {rows}: the same as the live ones, in one snapshot")
    click.echo("swapped    readers see the rebuild; what they saw before is retired")


def _show_entity_tables(part: Any) -> None:
    _head("Entity tables: the read model registry was resumed, and filled from the log beside live projection")
    rows = [
        {"entity type": row.entity_type, "entities": row.entities, "versions in their chains": row.versions}
        for row in part.rows
    ]
    show(rows, "table")
    click.echo(f"plant entities check: {part.checked:,} entities, {part.findings:,} findings")


def _shortened(request: str) -> str:
    """Return a request with the ends of its ids left out.

    >>> _shortened("GET /agents/4228a261-6de2-546e-aab9-13a90b189527?at-least=genesis.events/3/1041")
    'GET /agents/4228a261-…?at-least=genesis.events/3/1041'
    """
    return re.sub(r"([0-9a-f]{8})-[0-9a-f-]{27}", r"\1-…", request)


def _show_refusals(rows: list[dict[str, Any]]) -> None:
    _head("Tampering with the log: refused")
    click.echo(rows[0]["statement"])
    for row in rows:
        click.echo(f"  as {row['role']:<12}  {row['error']}")


def _show_forgery(part: Any) -> None:
    _head("Tampering with a copy, as superuser with the triggers off: found")
    click.echo(f"byte {part.byte} of a {part.event_type} changed from {part.before} to {part.after}: {part.change}")
    click.echo(f"the verifier names {part.topic}/{part.partition} offset {part.offset}: {part.problem}")
    click.echo(f"  stored hash      {part.stored_hash}")
    click.echo(f"  recomputed hash  {part.recomputed_hash}")


def _show_end(outcome: DemoOutcome) -> None:
    stays = (
        "The stack was up before and stays up." if outcome.stack_stays_up else "Nothing is left running; data is kept."
    )
    _head(f"Done in {outcome.total_seconds:.0f} s. {stays}")
    click.echo("Next:")
    program = _program()
    if home := os.environ.get("PLANT_HOME"):
        program = f"PLANT_HOME={shlex.quote(home)} {program}"
    for line in outcome.next:
        click.echo(f"  {program}{line.removeprefix('plant')}")


def _program() -> str:
    """Return how a person calls this program from here: `plant`, or its path where that is not on the PATH."""
    here = os.path.realpath(sys.argv[0])
    if os.path.realpath(shutil.which("plant") or "") == here:
        return "plant"
    near = os.path.relpath(here)
    return here if near.startswith("..") else near


def _head(line: str) -> None:
    click.echo()
    click.secho(line, bold=True)
