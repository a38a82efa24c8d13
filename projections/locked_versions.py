"""The lock of the read models: the hash of each version's SQL, in `locked_versions.json`, where nothing ever changes.

Databases hold what a version has computed so far, so the same version never computes something else: a changed fold is
another version, with a build of its own. `plant projections check` refuses one under its old version.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from projections.read_model import ReadModel
from projections.staged_names import table_of
from runtime.errors import CheckFailed
from runtime.last_commit import committed_text
from schemas.events import EVENT_TYPES

LOCK_FILE: Final = Path(__file__).with_name("locked_versions.json")


class ReadModelsRefused(CheckFailed):
    """The read models can't be used as they are."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(
            f"The read models can't be used: {len(problems)} problem{'s' if len(problems) > 1 else ''}.",
            why="; ".join(problems),
            next_step="see docs/how-to/add-a-projection.md",
        )


class LockedVersion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A version of a read model, and the hash of its SQL (`read_model.sql_hash`)."""

    name: str
    version: int
    sha256: str
    functions: dict[str, str] = {}
    """Hashes of the functions of the database that its statements call."""

    @property
    def key(self) -> str:
        """Name in the checkpoints."""
        return f"{self.name}/{self.version}"


def locked_versions(file: Path = LOCK_FILE) -> list[LockedVersion]:
    """Return the versions that are locked, in the order in which they were."""
    return _read(file.read_text("utf-8"))


def versions_of_last_commit(file: Path = LOCK_FILE) -> list[LockedVersion] | None:
    """Return the versions that the last commit locks; None where there is nothing to compare with."""
    text = committed_text(file)
    return None if text is None else _read(text)


def _read(text: str) -> list[LockedVersion]:
    try:
        return msgspec.json.decode(text, type=list[LockedVersion])
    except msgspec.DecodeError as error:
        raise ReadModelsRefused([f"{LOCK_FILE.name}: {error}"]) from error


def render(versions: Sequence[LockedVersion]) -> str:
    """Return the text of the lock file: a line a version, so that additions merge.

    >>> print(render([LockedVersion("a", 1, "00")]), end="")
    [
    {"name":"a","version":1,"sha256":"00"}
    ]
    """
    return "[\n" + ",\n".join(msgspec.json.encode(each).decode() for each in versions) + "\n]\n"


def lock_problems(
    models: Iterable[ReadModel], locked: Sequence[LockedVersion], committed: Sequence[LockedVersion] | None
) -> list[str]:
    """Return what is wrong with read models and their lock; empty: all is well.

    `committed` are the versions in the last commit, or None where there is none to compare with.
    """
    models = list(models)
    problems = _shared_tables(models)
    hashes: dict[str, str] = {}
    functions = {each.key: each.functions for each in locked}
    for each in locked:
        if hashes.setdefault(each.key, each.sha256) != each.sha256:
            problems.append(f"{each.key}: it is locked twice")
    for model in models:
        problems += _fold_problems(model, locked)
        if model.key not in hashes:
            problems.append(f"{model.name}: version {model.version} is not locked; run: plant projections lock")
    for each in committed or ():
        if hashes.get(each.key) != each.sha256 or (each.functions and each.functions != functions.get(each.key)):
            problems.append(f"{each.key}: its line was changed or removed, but committed versions are permanent")
    return problems


def _shared_tables(models: Sequence[ReadModel]) -> list[str]:
    """Return the tables that two read models make: readers would see one of them alone, under the name of both."""
    makers: dict[str, str] = {}
    return [
        f"{model.name}: it makes the table {table}, as {makers[table]} does; readers have one view of a name"
        for model in models
        for table in model.tables
        if makers.setdefault(table, model.name) != model.name
    ]


def versions_to_lock(models: Iterable[ReadModel], locked: Sequence[LockedVersion]) -> list[LockedVersion]:
    """Return the lines to add so that every read model is locked. Raises ReadModelsRefused where a fold was changed."""
    models = list(models)
    if problems := [problem for model in models for problem in _fold_problems(model, locked)]:
        raise ReadModelsRefused(problems)
    known = {each.key for each in locked}
    return [
        LockedVersion(each.name, each.version, each.sha256, dict(each.functions))
        for each in models
        if each.key not in known
    ]


def _fold_problems(model: ReadModel, locked: Iterable[LockedVersion]) -> Iterator[str]:
    """Yield why a read model can't have the version that it has."""
    last = 0
    for each in (each for each in locked if each.name == model.name):
        last = max(last, each.version)
        if each.version == model.version and each.sha256 != model.sha256:
            yield (
                f"{model.name}: its SQL was changed and its version is still {model.version}; raise VERSION in"
                f" projections/{model.name}/__init__.py"
            )
        elif each.version == model.version and each.functions != model.functions:
            changed = sorted(name for name, _ in each.functions.items() ^ model.functions.items())
            yield (
                f"{model.name}: {', '.join(dict.fromkeys(changed))} in FUNCTIONS was changed and its version is still"
                f" {model.version}; raise VERSION in projections/{model.name}/__init__.py"
            )
    if model.version < last:
        yield f"{model.name}: version {model.version} is lower than {last}, which is locked; versions only rise"
    staged = {table_of(event_type) for event_type in EVENT_TYPES}
    for table in sorted(model.reads - staged):
        yield f"{model.name}: its apply.sql reads {table}, and no event type has this table"
