"""What `plant projections rebuild`, `verify`, `swap`, `rollback` and `retire` do, step by step, as the owner."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Final

import click

from operations.cli.progress import rated
from operations.operator_actions import OperatorAction, account, record, with_facts
from projections.build_states import BuildName
from projections.read_model import ReadModel
from projections.rebuild import choice, plan, rebuilds, retirement, swap
from projections.rebuild.end_offsets import end_offsets
from projections.rebuild.errors import RebuildInterrupted, SwapRefused
from projections.rebuild.fill import Filler, jobs_for, unfilled
from projections.rebuild.pace import RebuildPace
from projections.rebuild.topic_source import TopicSource
from projections.session import Session
from projections.stored_builds import StoredBuild
from runtime.settings import Settings

POLL_SECONDS: Final = 0.2


@contextlib.contextmanager
def owner_session(settings: Settings) -> Iterator[Session]:
    session = Session(settings.database_address("owner"))
    try:
        session.script("SET statement_timeout = 0", "SET application_name = 'plant-rebuild'")
        yield session
    finally:
        session.close()


def plan_rebuilds(
    settings: Settings, names: Sequence[str], max_rate: int | None, as_of: datetime | None
) -> list[Mapping[str, object]]:
    """Return what rebuilds would take, each by itself; nothing is changed."""
    with owner_session(settings) as session:
        events = sum(end_offsets(session, as_of).values()) if as_of else None
        return [_plan(session, name, max_rate, events) for name in _names(session, names)]


def _plan(session: Session, name: BuildName, max_rate: int | None, events: int | None) -> Mapping[str, object]:
    known = builds_sharing_views(session, name)
    source = rebuilds.source_of(known, name.name, name.version)
    live = choice.live_or_none(known)
    return {"of": source.key, **plan.plan(session, name.name, live.model if live else None, max_rate, events)._asdict()}


def builds_sharing_views(session: Session, name: BuildName) -> list[rebuilds.KnownBuild]:
    """Return the builds between which readers of what an operator names can be moved."""
    return choice.sharing_views(rebuilds.builds_of(session, name.name), name.version)


def _names(session: Session, names: Sequence[str]) -> list[BuildName]:
    """Return the builds to rebuild, in the order in which operators lock them: without names, all that can be."""
    parsed = [BuildName.parse(name) for name in names or rebuilds.rebuildable(session)]
    return list({name.name: name for name in sorted(parsed)}.values())


class Rebuilding:
    """One run of `plant projections rebuild`: of each of these builds, or of every one where none is named.

    `as_of` is the time up to which the log is folded, for looking at; without one workers have the rebuilds at the end.
    """

    def __init__(
        self, settings: Settings, builds: Sequence[str], actor: str, reason: str, as_of: datetime | None = None,
        source: str = "log",
    ) -> None:  # fmt: skip
        self._settings = settings
        self._builds = builds
        self._actor = actor or account()
        self._reason = reason
        self._as_of = as_of
        self._make_source = partial(TopicSource, settings) if source == "topic" else None

    def run(self, jobs: int | None, max_rate: int | None, wait_seconds: float) -> list[Mapping[str, object]]:
        """Begin rebuilds, or go on with them, fill them in one pass, and wait until workers have them."""
        with owner_session(self._settings) as session:
            models = self._begin(session)
            filled = self._fill(session, models, jobs, max_rate)
            for model in models:
                rebuilds.finish(session, model)
            if self._as_of is not None:
                return [{**filled[model.key], "schema": model.schema} for model in models]
            deadline = time.monotonic() + wait_seconds
            lags = [_wait_for_workers(session, model, deadline) for model in models]
        for model, lag in zip(models, lags, strict=True):
            if lag:
                click.echo(f"workers have to bring {model.key} up by {lag:,} more: plant projections list", err=True)
        return [{**filled[model.key], "lag": lag} for model, lag in zip(models, lags, strict=True)]

    def _begin(self, session: Session) -> list[StoredBuild]:
        """Return the rebuilds to fill. Nothing is recorded or made unless all of them can be."""
        names = _names(session, self._builds)
        for name in names:
            rebuilds.hold(session, name.name, rebuilds.builds_of(session, name.name))
        todo = []
        for name in names:
            known = builds_sharing_views(session, name)
            todo.append((rebuilds.source_of(known, name.name, name.version), choice.unfinished(known, self._as_of)))
        return [self._begin_one(session, *each) for each in todo]

    def _begin_one(self, session: Session, source: StoredBuild, unfinished: StoredBuild | None) -> StoredBuild:
        reason = with_facts(self._reason, [f"as of {self._as_of.isoformat()}"] if self._as_of else [])
        action = OperatorAction(
            action="projections.rebuild", target=(unfinished or source).key, reason=reason, actor=self._actor
        )
        asyncio.run(record(self._settings, action))
        if unfinished is not None:
            click.echo(f"going on with {unfinished.key}", err=True)
            return unfinished
        return rebuilds.begin(session, source, self._actor, self._reason, self._as_of)

    def _fill(
        self, session: Session, models: Sequence[StoredBuild], jobs: int | None, max_rate: int | None
    ) -> Mapping[str, Mapping[str, object]]:
        """Fill rebuilds to the log's end. Raises RebuildInterrupted on Ctrl-C, with what is done written down."""
        ends = end_offsets(session, self._as_of) if self._as_of else None
        partitions = unfilled(session, models, ends)
        done, began_at = dict.fromkeys((model.key for model in models), 0), time.monotonic()
        with rated(f"filling {', '.join(done)}", sum(each.lag for each in partitions)) as shown:
            adding = threading.Lock()

            def advance(model: ReadModel, count: int) -> None:
                with adding:
                    done[model.key] += count
                shown(count)

            filler = Filler(
                self._settings.database_address("owner"),
                models,
                advance,
                jobs=jobs,
                pace=RebuildPace(max_rate),
                ends=ends,
                make_source=self._make_source,
            )
            try:
                filler.run(session)
            except KeyboardInterrupt as error:
                more = ", ".join(f"{key} has {count:,} events more" for key, count in done.items())
                raise RebuildInterrupted(
                    why=f"{more} than before.",
                    next_step=f"plant projections rebuild {' '.join(_commanded(models))}    # goes on from there",
                ) from error
            finally:
                for model in models:
                    rebuilds.note_read(session, model, done[model.key], time.monotonic() - began_at)
        seconds, used = time.monotonic() - began_at, jobs_for(len(partitions), jobs)
        return {
            key: {
                "build": key, "events": count, "seconds": round(seconds, 1),
                "events_per_second": round(count / seconds), "jobs": used,
            }
            for key, count in done.items()
        }  # fmt: skip


def _commanded(models: Sequence[StoredBuild]) -> list[str]:
    return [model.name_of_model for model in models]


def _wait_for_workers(session: Session, model: StoredBuild, deadline: float) -> int:
    """Wait until a build shares the log's checkpoint, or nobody is there to bring it up; returns what it lacks."""
    while True:
        now = rebuilds.following(session, model)
        if not now.owned or (not now.behind and not now.apart) or time.monotonic() > deadline:
            return now.lag
        time.sleep(POLL_SECONDS)


async def swap_rebuild(
    settings: Settings, name: str, force: bool, wait_seconds: float, actor: str, reason: str | None
) -> str:
    """Move readers to the rebuild. Raises SwapRefused unless it was verified with what they see, or it is forced.

    There is nothing to verify with where it is the first of its shape: nobody reads its views yet.
    """
    with owner_session(settings) as session:
        known = builds_sharing_views(session, BuildName.parse(name))
        live, target = choice.live_or_none(known), choice.beside(known)
        if live is not None and target.verified_with != live.key and not force:
            raise SwapRefused(
                f"{target.key} was not verified with {live.key}.", why="Nobody knows whether they are the same.",
                next_step=f"plant projections verify {name}",
            )  # fmt: skip
        if live is not None:
            swap.require_alike(session, live.model, target.model)
        default = "The rebuild is verified." if live else "It is the first of its shape."
        action = OperatorAction(action="projections.swap", target=target.key, reason=reason or default, actor=actor)
        await record(settings, action)
        swap.move(session, target, live, wait_seconds=wait_seconds)
        if live is None:
            views = ", ".join(f"read_models.{table}{target.view_suffix}" for table in target.model.tables)
            return f"readers see {target.key} as {views}; what they saw before is there as it was"
        return f"readers see {target.key}; {live.key} is fed until it is retired"


async def roll_back(settings: Settings, name: str, wait_seconds: float, actor: str, reason: str) -> str:
    """Move readers back to the build that the live one has replaced."""
    with owner_session(settings) as session:
        known = builds_sharing_views(session, BuildName.parse(name))
        live = choice.live(known)
        target = choice.replaced(known, live)
        action = OperatorAction(action="projections.rollback", target=target.key, reason=reason, actor=actor)
        await record(settings, action)
        swap.move(session, target, live, wait_seconds=wait_seconds)
        return f"readers see {target.key} again; {live.key} is fed until it is retired"


async def retire_build(
    settings: Settings, name: str, execute: bool, wait_seconds: float, actor: str, reason: str
) -> str:
    """Retire the build of a read model that readers do not see."""
    read_model = StoredBuild(BuildName.parse(name).name, 1, "", "").name_of_model
    with owner_session(settings) as session:
        known = rebuilds.builds_of(session, read_model)
        build = choice.retirable(known, name)
        if not execute:
            dropped = "views and tables" if build.live else "tables"
            return f"{build.key} would be retired, and its {dropped} dropped: --execute does it"
        action = OperatorAction(action="projections.retire", target=build.key, reason=reason, actor=actor)
        await record(settings, action)
        if not retirement.retire(session, build, wait_seconds=wait_seconds):
            return f"{build.key} is fed no more, but workers still have it: retire it again to drop its tables"
        return f"{build.key} is retired"
