"""Read models that a partition's transaction goes on without, since Postgres refused what they write.

While nothing is refused, all models share one transaction and this costs nothing. A transaction that is refused is
rolled back and run a second time: the log first, then each model behind a savepoint of its own. The models that are
refused there are the ones to go on without. What a record is does not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterable

from database.errors import DatabaseUnreachable
from projections.prepared import PreparedBatch
from projections.read_model import ReadModel
from projections.session import DataRefused, Session
from projections.staging import Staging
from runtime.errors import PlantError
from streams.errors import OwnershipLost

NOT_THE_MODELS = (DatabaseUnreachable, OwnershipLost)
"""Errors that say nothing about the statement that met them."""


def fold_apart(
    session: Session, staging: Staging, models: Iterable[ReadModel], prepared: PreparedBatch, *, inline: bool
) -> dict[str, Exception]:
    """Fold a batch into each model by itself, and return the errors of those that were refused, by key.

    Runs in the caller's transaction, which holds what the other models wrote. What the caller left to be run with the
    next statement is run first, and its errors are raised.
    """
    session.run_waiting()
    staged: set[str] = set()
    refused = {}
    for model in models:
        session.script("SAVEPOINT model")
        try:
            staged |= _fold(session, staging, model, prepared, staged, inline=inline)
        except NOT_THE_MODELS:
            raise
        except Exception as error:  # a refusal of Postgres, or a defect in making the model's rows
            session.forget_waiting()
            session.script("ROLLBACK TO SAVEPOINT model")
            refused[model.key] = error
        session.script("RELEASE SAVEPOINT model")
    return refused


def _fold(
    session: Session, staging: Staging, model: ReadModel, prepared: PreparedBatch, staged: set[str], *, inline: bool
) -> set[str]:
    """Fold a batch into one model; returns the names of the tables that it has filled."""
    frames = staging.frames(prepared.events, prepared.batch.offsets, model.reads)
    statement: str | None = model.apply_sql if frames else None
    if inline:
        statement = staging.inline(model, frames)
    else:
        staging.fill(session, {table: frame for table, frame in frames.items() if table not in staged})
    if statement is not None:
        # A constraint that waits for the commit would otherwise be refused there, when nobody knows whose it is.
        session.script(statement, "SET CONSTRAINTS ALL IMMEDIATE")
    return set() if inline else set(frames)


def reason_of(error: Exception) -> str:
    """Return a sentence on why a model was refused, without values of events."""
    if isinstance(error, DataRefused):
        return f"its rows are refused: {error} (SQLSTATE {error.sqlstate})."
    if isinstance(error, PlantError):
        return f"its statement fails: {error.why}" if error.why else str(error)
    return f"making its rows fails with {type(error).__name__}, a defect."


def is_defect(error: BaseException | None) -> bool:
    """Return whether the error is none that Plant raises on purpose, so that its traceback is needed."""
    return not isinstance(error, DataRefused | PlantError | None)
