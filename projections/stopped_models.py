"""Read models that a partition's transaction goes on without, since Postgres refused what they write.

While nothing is refused, all models share one transaction and this costs nothing. A transaction that is refused is
rolled back and run a second time: the log first, then each model behind a savepoint of its own. The models that are
refused there are the ones to go on without. What a record is does not depend on it.

A statement that times out is no refusal: the server may be slow. A model goes where that happens to its statement
alone, with a single record, several times in a row, and the log's own statements are much quicker.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

from database.errors import DatabaseUnreachable
from projections import model_checkpoints
from projections.errors import BuildUnusable, ModelStatementEnded, ReadModelStopped
from projections.prepared import PreparedBatch
from projections.read_model import ReadModel
from projections.session import DataRefused, Session, StatementEnded
from projections.staged_changes import changes_of
from projections.staging import Staging
from runtime.errors import PlantError
from streams.errors import OwnershipLost

NOT_THE_MODELS = (DatabaseUnreachable, OwnershipLost)
"""Errors that say nothing about the statement that met them."""

TRIES: Final = 3
"""How often in a row a model's statement is given up with one record before its partition goes on without the model."""

TIMED_OUT: Final = "57014"

QUICKER: Final = 10
"""So many times faster is the rest of a transaction whose model is to blame for a timeout."""


def fold_apart(
    session: Session, staging: Staging, models: Iterable[ReadModel], prepared: PreparedBatch, *,
    began_seconds: float,
) -> dict[str, Exception]:  # fmt: skip
    """Fold a batch into each model by itself, and return the errors of those that were refused, by key.

    Among them are the models whose statement was given up with a single record. Runs in the caller's transaction, which
    began at `began_seconds` of the monotonic clock and holds what the other models wrote. What the caller left to be
    run with the next statement is run first, and its errors are raised.
    """
    session.run_waiting()
    log_seconds = time.monotonic() - began_seconds
    staged: set[str] = set()
    refused = {}
    for model in models:
        session.script("SAVEPOINT model")
        try:
            staged |= _fold(session, staging, model, prepared, staged, log_seconds)
        except Exception as error:  # a refusal of Postgres, or a defect in making the model's rows
            ended = isinstance(error, ModelStatementEnded) and len(prepared.batch) == 1
            if isinstance(error, NOT_THE_MODELS) and not ended:
                raise
            session.forget_waiting()
            session.script("ROLLBACK TO SAVEPOINT model")
            refused[model.key] = error
        session.script("RELEASE SAVEPOINT model")
    return refused


def _fold(
    session: Session, staging: Staging, model: ReadModel, prepared: PreparedBatch, staged: set[str], log_seconds: float,
) -> set[str]:  # fmt: skip
    """Fold a batch into one model; returns the names of the tables that it has filled."""
    frames = staging.frames(
        prepared.events, prepared.staged_offsets, model.reads, partition=prepared.batch.partition,
        effective_offsets=prepared.effective_offsets, changes=changes_of(session, prepared),
    )  # fmt: skip
    staging.fill(session, {table: frame for table, frame in frames.items() if table not in staged})
    run_folds(session, model, model.folds(frames.keys()), log_seconds)
    return set(frames)


def run_folds(session: Session, model: ReadModel, folds: Sequence[str], log_seconds: float) -> None:
    """Run statements of a model. `log_seconds` is how long the log's statements before them have taken.

    Raises ModelStatementEnded where Postgres ends one and the model is to blame, StatementEnded where all is slow.
    """
    if not folds:
        return
    began_seconds = time.monotonic()
    try:
        # A constraint that waits for the commit would otherwise be refused there, when nobody knows whose it is.
        session.script(*folds, "SET CONSTRAINTS ALL IMMEDIATE")
    except StatementEnded as error:
        seconds = time.monotonic() - began_seconds
        if error.sqlstate == TIMED_OUT and log_seconds * QUICKER > seconds:
            raise
        raise ModelStatementEnded(model, error) from error


def stop_model(
    session: Session, model: ReadModel, topic: str, partition: int, error: Exception
) -> ReadModelStopped:  # fmt: skip
    """Write down why a model was refused on a partition, in the caller's transaction; returns that as an error."""
    reason = reason_of(error)
    next_offset = model_checkpoints.note_stopped(session, topic, partition, model.key, reason)
    stopped = ReadModelStopped(model, topic, partition, next_offset, reason)
    stopped.__cause__ = error
    return stopped


def reason_of(error: Exception) -> str:
    """Return a sentence on why a model was refused, without values of events."""
    if isinstance(error, DataRefused):
        return f"its rows are refused: {error} (SQLSTATE {error.sqlstate})."
    if isinstance(error, ModelStatementEnded):
        return f"its statement is ended with a single record, {TRIES} times in a row: {error.why} ({error.sqlstate})."
    if isinstance(error, BuildUnusable):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, PlantError):
        return f"its statement fails: {error.why}" if error.why else str(error)
    return f"making its rows fails with {type(error).__name__}, a defect."


def is_defect(error: BaseException | None) -> bool:
    """Return whether the error is none that Plant raises on purpose, so that its traceback is needed."""
    return not isinstance(error, DataRefused | PlantError | None)
