"""Which build of a read model an operator means: the one that readers see, the one beside it, the one before."""

from __future__ import annotations

from collections.abc import Sequence

from projections.rebuild.errors import RebuildRefused
from projections.rebuild.rebuilds import KnownBuild
from projections.stored_builds import StoredBuild


def live(known: Sequence[KnownBuild]) -> KnownBuild:
    """Return the build that readers see. Raises RebuildRefused."""
    for each in known:
        if each.live:
            return each
    raise RebuildRefused(
        f"Readers see no build of {known[0].model.name_of_model} yet.", why="None has caught up with the log.",
        next_step="plant projections list",
    )  # fmt: skip


def unfinished(known: Sequence[KnownBuild]) -> StoredBuild | None:
    """Return the rebuild to go on with, None to begin one. Raises RebuildRefused where another stands beside."""
    for each in known:
        if each.phase == "filling":
            return each.model
        if each.phase in ("kept", "retired") and not each.live:
            raise RebuildRefused(
                f"{each.key} is there beside the build that readers see.", why="There are two builds at most.",
                next_step=f"plant projections retire {each.model.name} --execute    # or swap it",
            )  # fmt: skip
    return None


def beside(known: Sequence[KnownBuild]) -> KnownBuild:
    """Return the build that is fed beside the live one. Raises RebuildRefused."""
    for each in reversed(known):
        if each.phase == "kept" and not each.live:
            return each
    filling = next((each for each in known if each.phase == "filling"), None)
    name = known[0].model.name_of_model
    raise RebuildRefused(
        f"There is no build of {name} beside the one that readers see.",
        why=f"{filling.key} is not filled yet." if filling else "Nobody has rebuilt it, or it is retired.",
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


def retirable(known: Sequence[KnownBuild], name: str) -> KnownBuild:
    """Return the build to retire: by its own name, or the one that readers do not see. Raises RebuildRefused."""
    own = [each for each in known if name in (each.key, each.model.name) and each.is_rebuild]
    meant = own or [each for each in known if not each.live and each.phase != "released"]
    if len(meant) == 1 and not meant[0].live:
        return meant[0]
    why = f"Readers see {meant[0].key}." if len(meant) == 1 else f"{len(meant)} builds could be meant."
    raise RebuildRefused(
        f"There is no build of {known[0].model.name_of_model} to retire.", why=why, next_step="plant projections list"
    )
