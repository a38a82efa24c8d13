"""Which build of a read model an operator means: the one that readers see, the one beside it, the one before."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from projections.rebuild.errors import RebuildRefused
from projections.rebuild.rebuilds import KnownBuild
from projections.stored_builds import StoredBuild


def sharing_views(known: Sequence[KnownBuild], version: int | None) -> list[KnownBuild]:
    """Return the builds that share views with those of a version; without one, with the latest that readers see.

    A version of another shape has views of its own. Raises RebuildRefused where there is no such version.
    """
    meant = [each for each in known if version in (None, each.model.version)]
    if not meant:
        raise RebuildRefused(
            f"There is no version {version} of {known[0].model.name_of_model}.",
            why="The database keeps no build of it.", next_step="plant projections list",
        )  # fmt: skip
    latest = max([each for each in meant if each.live] or meant, key=lambda each: each.model.version)
    return [each for each in known if each.view_suffix == latest.view_suffix]


def live_or_none(known: Sequence[KnownBuild]) -> KnownBuild | None:
    """Return the build that readers see; None while there are no views of this shape."""
    return next((each for each in known if each.live), None)


def live(known: Sequence[KnownBuild]) -> KnownBuild:
    """Return the build that readers see. Raises RebuildRefused."""
    if (build := live_or_none(known)) is not None:
        return build
    raise RebuildRefused(
        f"Readers see no build of {known[0].model.name_of_model} yet.", why="None has caught up with the log.",
        next_step="plant projections list",
    )  # fmt: skip


def unfinished(known: Sequence[KnownBuild], as_of: datetime | None = None) -> StoredBuild | None:
    """Return the rebuild to go on with, None to begin one. Raises RebuildRefused where another stands beside.

    Builds of the log up to a time stand beside none; of each time there is one.
    """
    for each in known:
        if each.phase == "filling" and same_moment(each.as_of, as_of):
            return each.model
        if each.is_past and same_moment(each.as_of, as_of):
            raise RebuildRefused(
                f"{each.key} is the log as of that time already.", why="Nobody feeds it, so it is as it was.",
                next_step=f"plant projections retire {each.model.name} --execute    # to make it again",
            )  # fmt: skip
        if as_of is not None or each.as_of is not None:
            continue
        if each.phase in ("kept", "retired") and not each.live:
            raise RebuildRefused(
                f"{each.key} is there beside the build that readers see.", why="There are two builds at most.",
                next_step=f"plant projections retire {each.model.name} --execute    # or swap it",
            )  # fmt: skip
    return None


def same_moment(text: str | None, moment: datetime | None) -> bool:
    """Return whether a build's time is this one; none is the same as none."""
    return (text and datetime.fromisoformat(text)) == moment


def beside(known: Sequence[KnownBuild]) -> KnownBuild:
    """Return the build that is fed beside the live one. Raises RebuildRefused."""
    for each in reversed(known):
        if each.phase == "kept" and not each.live:
            return each
    name, why = known[0].model.name_of_model, "Nobody has rebuilt it, or it is retired."
    for each in known:
        if each.as_of is not None:
            why = f"{each.key} is the log as of {each.as_of}, for looking at: readers never see it."
        elif each.phase == "filling":
            why = f"{each.key} is not filled yet."
    raise RebuildRefused(
        f"There is no build of {name} beside the one that readers see.",
        why=why,
        next_step=f"plant projections rebuild {name}",
    )


def replaced(known: Sequence[KnownBuild], shown: KnownBuild) -> KnownBuild:
    """Return the build that readers saw before the last swap. Raises RebuildRefused."""
    for each in known:
        if each.key == shown.replaced and each.phase == "kept":
            return each
    raise RebuildRefused(
        f"There is no build to go back to from {shown.key}.",
        why=f"{shown.replaced} is retired." if shown.replaced else "Readers were never moved to it by a swap.",
        next_step=f"plant projections rebuild {shown.model.name_of_model}",
    )


def is_succeeded(known: Sequence[KnownBuild], build: KnownBuild) -> bool:
    """Return whether readers see a later version under other names, so that those of this build can go."""
    later = (each for each in known if each.live and each.model.version > build.model.version)
    return any(each.view_suffix != build.view_suffix for each in later)


def retirable(known: Sequence[KnownBuild], name: str) -> KnownBuild:
    """Return the build to retire: by its own name, or the one that readers do not see. Raises RebuildRefused.

    One that readers see can be named where a later version has views of its own: its views go with it.
    """
    own = [each for each in known if name == each.key or (name == each.model.name and each.is_rebuild)]
    meant = own or [each for each in known if each.is_past or (not each.live and each.phase != "released")]
    if len(meant) == 1 and (not meant[0].live or is_succeeded(known, meant[0])):
        return meant[0]
    why = f"Readers see {meant[0].key}." if len(meant) == 1 else f"{len(meant)} builds could be meant."
    raise RebuildRefused(
        f"There is no build of {known[0].model.name_of_model} to retire.", why=why, next_step="plant projections list"
    )
