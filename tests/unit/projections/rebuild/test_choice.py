"""Which build an operator means, from those that have tables."""

from __future__ import annotations

import pytest

from projections.rebuild import choice
from projections.rebuild.errors import RebuildRefused
from projections.rebuild.rebuilds import KnownBuild
from projections.stored_builds import StoredBuild


def build(name: str, phase: str, *, live: bool = False, replaced: str | None = None) -> KnownBuild:
    who = "ada" if "_b" in name else None
    return KnownBuild(StoredBuild(name, 1, "", ""), phase, live, begun_by=who, replaced=replaced)


ALONE = [build("agents", "released", live=True)]
FILLING = [*ALONE, build("agents_b1", "filling")]
FILLED = [*ALONE, build("agents_b1", "kept")]
SWAPPED = [build("agents", "kept"), build("agents_b1", "kept", live=True, replaced="agents/1")]
HALF_RETIRED = [build("agents", "retired"), build("agents_b1", "kept", live=True, replaced="agents/1")]


def test_one_build_is_live() -> None:
    """None is where no build has caught up."""
    assert choice.live(SWAPPED).key == "agents_b1/1"
    with pytest.raises(RebuildRefused, match="Readers see no build of agents yet"):
        choice.live([build("agents", "released")])


def test_a_rebuild_that_was_begun_goes_on() -> None:
    """One begins where none is there; where another build stands beside, it has to go first."""
    assert choice.unfinished(ALONE) is None
    going_on = choice.unfinished(FILLING)
    assert going_on is not None
    assert going_on.key == "agents_b1/1"
    for builds in (FILLED, SWAPPED, HALF_RETIRED):
        with pytest.raises(RebuildRefused, match="is there beside the build"):
            choice.unfinished(builds)


def test_the_build_beside_is_one_that_workers_feed() -> None:
    """A rebuild, or after a swap what readers have left; not one that is filled still."""
    assert choice.beside(FILLED).key == "agents_b1/1"
    assert choice.beside(SWAPPED).key == "agents/1"
    with pytest.raises(RebuildRefused) as refused:
        choice.beside(FILLING)
    assert refused.value.why == "agents_b1/1 is not filled yet."
    with pytest.raises(RebuildRefused) as refused:
        choice.beside(ALONE)
    assert "Nobody has rebuilt it" in refused.value.why


def test_readers_go_back_to_what_was_replaced() -> None:
    """Unless it is retired, or nothing was."""
    assert choice.replaced(SWAPPED, choice.live(SWAPPED)).key == "agents/1"
    for builds in (HALF_RETIRED, FILLED):
        with pytest.raises(RebuildRefused, match="There is no build to go back to"):
            choice.replaced(builds, choice.live(builds))


@pytest.mark.parametrize(
    ("builds", "name", "retired"),
    [
        (FILLING, "agents", "agents_b1/1"), (FILLED, "agents", "agents_b1/1"), (FILLED, "agents_b1", "agents_b1/1"),
        (SWAPPED, "agents", "agents/1"), (HALF_RETIRED, "agents", "agents/1"),
    ],
)  # fmt: skip
def test_what_readers_do_not_see_is_retired(builds: list[KnownBuild], name: str, retired: str) -> None:
    """By its own name, or as the one beside; a half that is left as well."""
    assert choice.retirable(builds, name).key == retired


@pytest.mark.parametrize(("builds", "name"), [(ALONE, "agents"), (SWAPPED, "agents_b1")])
def test_what_readers_see_is_not_retired(builds: list[KnownBuild], name: str) -> None:
    """Neither the only build nor the live one of two."""
    with pytest.raises(RebuildRefused, match="There is no build of agents to retire"):
        choice.retirable(builds, name)
