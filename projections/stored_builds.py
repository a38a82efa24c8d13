"""The SQL that builds keep: stored by the owner when a build is made, never changed, and run by workers.

`read_model_builds` holds the texts of a build's two files beside their hash. A worker runs what is stored there, and
compares the hash when it loads it; its own folders only say which versions its release brings. So a release that brings
version 2 goes on feeding version 1 for as long as readers see that one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

from projections.errors import BuildAltered, BuildMissing, FoldChanged, StagedRowsUnknown
from projections.fold_functions import require_functions
from projections.locked_versions import locked_versions
from projections.read_model import FoldStatement, ReadModel
from projections.session import DataRefused, NameUnknown, Session
from streams.errors import PartitionStopped

_STORE = """
INSERT INTO read_model_builds AS b (projection, version, tables, tables_sql, apply_sql, sha256, paused, view_suffix)
VALUES ($1, $2, string_to_array($3, ','), $4, $5, $6, $7, $8)
ON CONFLICT (projection, version) DO UPDATE
SET tables = excluded.tables, tables_sql = excluded.tables_sql, apply_sql = excluded.apply_sql, sha256 = excluded.sha256
WHERE b.sha256 IS NULL
"""

_HASHES = "SELECT projection, version, sha256 FROM read_model_builds WHERE sha256 IS NOT NULL"
_RETIRED = "SELECT true AS retired FROM read_model_builds WHERE projection = $1 AND version = $2 AND phase = 'retired'"

# A build that readers have left is fed no more, unless it is the one that the worker's release brings, or an operator
# keeps it. A rebuild that is filled is kept, and so is what readers have left for it.
_FED = """
FROM read_model_builds WHERE sha256 IS NOT NULL AND NOT paused AND (
    phase = 'kept'
    OR phase = 'released' AND (live OR projection || '/' || version = ANY (string_to_array($1, ',')))
)
"""
_KEYS = "SELECT projection || '/' || version AS key" + _FED
_LOAD = "SELECT projection, version, tables_sql, apply_sql, sha256" + _FED + "ORDER BY projection, version"


@dataclass(frozen=True)
class StoredBuild(ReadModel):
    """A read model as the owner stored it, with the hash that was stored beside it."""

    stored_sha256: str = ""

    @property
    def altered(self) -> bool:
        """Whether the texts are not those of the hash, so that they must not be run."""
        return self.sha256 != self.stored_sha256

    @cached_property
    def statements(self) -> tuple[FoldStatement, ...]:
        """The statements of its fold. Raises BuildAltered."""
        if self.altered:
            raise BuildAltered(self)
        return super().statements


def store(session: Session, model: ReadModel, view_suffix: str) -> None:
    """Write down that a build exists, and what it computes, as the owner. A new one may start paused.

    Its views have the names of its tables and the suffix, permanently.
    """
    texts = (model.tables_text, model.apply_text, model.sha256)
    session.execute(
        _STORE, (model.name, model.version, ",".join(model.tables), *texts, model.starts_paused, view_suffix)
    )


def is_retired(session: Session, model: ReadModel) -> bool:
    """Return whether an operator has retired a build: its tables are dropped, and are not to be made again."""
    return bool(session.query(_RETIRED, (model.name, model.version)))


def require_unchanged(session: Session, models: Iterable[ReadModel]) -> list[ReadModel]:
    """Return the models whose build the database does not keep. Raises FoldChanged where it keeps other SQL."""
    kept = {(name, version): sha256 for name, version, sha256 in session.query(_HASHES)}
    missing = []
    for model in models:
        sha256 = kept.get((model.name, model.version))
        if sha256 is None:
            missing.append(model)
        elif sha256 != model.sha256:
            raise FoldChanged(model, sha256)
    return missing


def require_builds(session: Session, models: Iterable[ReadModel]) -> None:
    """Raise BuildMissing or FoldChanged unless the database keeps the builds of a release as the release has them."""
    if missing := require_unchanged(session, models):
        raise BuildMissing(missing)


def load_builds(session: Session, release: Sequence[ReadModel]) -> list[StoredBuild]:
    """Return the builds that a worker feeds, as the owner stored them: those that readers see, and the release's.

    Builds that an operator has paused are left out, and so is one that the database does not keep.
    """
    functions = {each.key: each.functions for each in locked_versions()}
    return [
        StoredBuild(*row, functions=functions.get(f"{row[0]}/{row[1]}", {}))
        for row in session.query(_LOAD, (",".join(model.key for model in release),))
    ]


def fed_keys(session: Session, release: Sequence[ReadModel]) -> set[str]:
    """Return the keys of the builds that :func:`load_builds` would return now."""
    return {key for (key,) in session.query(_KEYS, (",".join(model.key for model in release),))}


def require_readable(session: Session, model: ReadModel, staged: Iterable[str], release: Set[str]) -> None:
    """Raise StagedRowsUnknown where a model's statement reads a table or a column that this worker does not stage, and
    FunctionsChanged where it calls a function that is not the one that it was locked with.

    `release` are the hashes of the models of the worker's release, which read nothing else and are passed; `staged` the
    names of the staging tables, which are there on the session. Postgres is asked about the columns. Raises
    BuildAltered where the SQL must not be run at all.
    """
    require_functions(session, model)
    if model.sha256 in release and not model.altered:
        return
    if unknown := sorted(model.reads.difference(staged)):
        raise StagedRowsUnknown(model, ", ".join(unknown))
    try:
        for fold in model.folds():
            session.query(f"EXPLAIN {fold}")
    except NameUnknown as error:
        raise StagedRowsUnknown(model, f"what is not there ({error.why})") from error
    except (DataRefused, PartitionStopped):
        return  # what else is wrong with it comes up when it is run
