"""What `plant projections verify` and `repair` do: comparing builds, and merging what they do not have alike."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from operations.cli.progress import rated
from operations.cli.rebuilding import builds_sharing_views, owner_session
from operations.operator_actions import OperatorAction, record
from projections.build_states import BuildName
from projections.rebuild import choice, comparison, rebuilds, swap
from projections.rebuild.comparison import NAMED_MAX
from projections.rebuild.errors import BuildLag, BuildMismatch
from projections.rebuild.registry_repair import RegistryRepair
from projections.rebuild.repair import BuildRepair
from projections.session import Session
from relay import outbox
from runtime.errors import NothingChecked
from runtime.settings import Settings

AGAIN_SECONDS: Final = 0.2

Found = TypeVar("Found")


def verify_rebuild(settings: Settings, name: str, wait_seconds: float) -> list[Mapping[str, Any]]:
    """Compare the build that readers see with the one beside it; returns a row a table.

    Raises BuildMismatch, with the rows on stderr, NothingChecked, and BuildLag when the time is over.
    """
    with owner_session(settings) as session:
        known = builds_sharing_views(session, BuildName.parse(name))
        live, beside = choice.live(known), choice.beside(known)
        found = _again(lambda: comparison.compare(session, live.model, beside.model), wait_seconds)
        if not found.rows:
            raise NothingChecked(
                f"Neither {live.key} nor {beside.key} has a row.", next_step="plant projections list --partitions"
            )
        for row in found.different:
            click.echo(f"{row.table}: {row.key} is {row.what} in {beside.key}", err=True)
        if not found.same:
            unlike = ", ".join(each.table for each in found.tables if not each.same)
            raise BuildMismatch(
                f"{beside.key} differs from {live.key}.", why=f"Rows of {unlike} are not the same.",
                next_step="see docs/runbooks/projections.md",
            )  # fmt: skip
        if beside.is_rebuild:
            key = (beside.model.name, beside.model.version)
            session.execute(swap.NOTE_VERIFIED, (*key, live.key, found.rows))
        return [{"build": beside.key, "with": live.key, **each._asdict()} for each in found.tables]


def _again(compare: Callable[[], Found], wait_seconds: float) -> Found:
    """Try again while workers bring one of the builds up."""
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            return compare()
        except BuildLag:
            if time.monotonic() > deadline:
                raise
        time.sleep(AGAIN_SECONDS)


async def repair_build(
    settings: Settings, name: str, execute: bool, wait_seconds: float, actor: str, reason: str
) -> list[Mapping[str, Any]]:
    """Merge rows of the rebuild into the build that readers see; returns a row a table. Without `execute` it is a plan.

    Rows are named on stderr. The registry has no rebuild: its entities are compared with a fold of the log.
    """
    if rebuilds.has_tables_apart(BuildName.parse(name).name):
        return await _repair_registry(settings, name, execute, wait_seconds, actor, reason)
    with owner_session(settings) as session:
        known = builds_sharing_views(session, BuildName.parse(name))
        live, beside = choice.live(known), choice.beside(known)
        repair = BuildRepair(session, live.model, beside.model)
        _again(repair.find, wait_seconds)
        for row in [row for each in repair.found for row in each.named]:
            click.echo(f"{row.table}: {row.key} is {row.what} in {live.key}", err=True)
        total = sum(each.rows for each in repair.found)
        if execute and total:
            action = OperatorAction(action="projections.repair", target=live.key, reason=reason, actor=actor)
            await record(settings, action)
            with rated(f"repairing {live.key}", total) as shown:
                repair.merge(shown, wait_seconds)
        return [
            {
                "build": live.key, "by": beside.key, "table": each.table, "changed": each.changed,
                "missing": each.missing, "added": each.added, "merged": each.rows if execute else 0,
            }
            for each in repair.found
        ]  # fmt: skip


async def _repair_registry(
    settings: Settings, name: str, execute: bool, wait_seconds: float, actor: str, reason: str
) -> list[Mapping[str, Any]]:
    """Fold entities over that differ; returns one row, with the rate of the fold."""
    with owner_session(settings) as owner, contextlib.closing(Session(settings.database_address("writer"))) as writer:
        read_model = BuildName.parse(name).name
        known = rebuilds.builds_of(owner, read_model)
        rebuilds.hold(owner, read_model, known)
        live = choice.live(known)
        unsent = [tenant for (tenant,) in owner.query(outbox.TENANTS)]
        repair = RegistryRepair(owner, writer, live.model, unsent)
        with repair.shadowed():
            began_at, events = time.monotonic(), repair.events()
            with rated(f"folding {live.key} into its shadow", events) as shown:
                repair.fill(shown)
            rate = round(events / (time.monotonic() - began_at))
            repair.find(wait_seconds)
            if not repair.compared and not repair.found:
                raise NothingChecked(
                    "The log has no entity, and neither have the tables.",
                    next_step="plant projections list --partitions",
                )
            for each in repair.found[:NAMED_MAX]:
                click.echo(f"{each.kind} {each.id} of {each.tenant} is {each.what} in {live.key}", err=True)
            counted = Counter(each.what for each in repair.found)
            todo, merged = counted["changed"] + counted["missing"], 0
            if execute and todo:
                action = OperatorAction(action="projections.repair", target=live.key, reason=reason, actor=actor)
                await record(settings, action)
                with rated(f"repairing {live.key}", todo) as shown:
                    merged = repair.merge(shown, wait_seconds)
            for entity, refusal in repair.refused.items():
                click.echo(f"{entity} was left as it is: {refusal}", err=True)
        return [
            {
                "build": live.key, "by": "a fold of the log", "table": "entities", "compared": repair.compared,
                "changed": counted["changed"], "missing": counted["missing"], "added": counted["added"],
                "merged": merged, "events": events, "events_per_second": rate,
            }
        ]  # fmt: skip
