"""Folding a read model from the event log in Postgres, rather than from Kafka.

The live path and this one share decoding, staging and apply.sql, and a fold is a function of the sequence alone, so
both give the same tables. Read models that lag behind the log (new ones, say) are fed with it, and a check that folds
from zero into a schema of its own uses the same function.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set

import numpy

from projections.parking_log import ParkingLog
from projections.read_model import ReadModel
from projections.session import Session
from projections.staged_changes import changes_in, released_changes
from projections.staged_names import EVENT_TABLES, table_of
from projections.staging import Staging
from projections.stopped_models import run_folds
from schemas.batch_decoder import decode_batch
from schemas.errors import UnknownSchema
from schemas.events import EVENT_TYPES
from schemas.polars_import import polars as pl
from streams.errors import AppliedEventUnreadable, SchemaNewer
from streams.topics import logical_topic

FOLD_RECORDS = 10_000
"""Records of a slice, which is one transaction."""

ENTITY = "entity"
"""The column of bytes by which the entities of records are told apart."""

_APPLIED = """
SELECT "offset", {columns} FROM log_records
WHERE topic = $1 AND partition = $2 AND "offset" >= $3 AND "offset" < $4 AND disposition = 'applied' {of_types}
ORDER BY "offset" LIMIT $5
"""
# The array is made once, by the query in parentheses, and not for each row.
_OF_TYPES = "AND event_type = ANY ((SELECT string_to_array($6, ',')::log_event_type[])::log_event_type[])"

Reduce = Callable[[dict[str, pl.DataFrame]], dict[str, pl.DataFrame]]
"""Leaves rows out of the staging tables of a slice that do not matter to what its models make of it."""


ReduceRecords = Callable[[pl.DataFrame], pl.DataFrame]
"""Leaves applied records out of `offset`, `value` and `entity` before they are decoded, as Reduce does after it."""

Applied = Callable[[Session, str, int, tuple[int, int]], pl.DataFrame]
"""Returns `offset`, `value` and `entity` of the applied records of a partition between two offsets, in order."""


def fold_slice(
    session: Session,
    staging: Staging,
    models: Sequence[ReadModel],
    topic: str,
    partition: int,
    offsets: tuple[int, int],
    records_max: int | None = None,
    *,
    schema: str | None = None,
    reduce: Reduce = dict,
    reduce_records: ReduceRecords | None = None,
    only_types_read: bool = False,
    applied: Applied | None = None,
) -> int:
    """Fold up to `records_max` applied records of a partition, from `offsets[0]` and below `offsets[1]`, into models.

    They are decoded and staged once, as far as `reduce` leaves them. Each model's tables are those of its build, or
    those in `schema`. With `only_types_read` records of other types are neither read nor counted: the bound on offsets
    is then all that bounds what the database looks through. `applied` has the records from elsewhere than the log, all
    that are between the offsets, for models that need no headers.

    With them come the events that control records between them release; a slice ends at the control record with which
    these come to as many. Without a bound these are FOLD_RECORDS. Runs in the caller's transaction. Returns the offset
    to go on from; `offsets[1]` when nothing is left. Raises SchemaNewer or AppliedEventUnreadable where a record can't
    be decoded: no event is left out without a word.
    """
    limit = records_max or FOLD_RECORDS
    began_seconds = time.monotonic()
    reads = frozenset[str]().union(*(model.reads for model in models))
    with_headers = staging.has_changes(reads)
    if applied is not None:
        rows = applied(session, topic, partition, offsets)
    else:
        tables = reads if only_types_read else EVENT_TABLES
        with_entities = reduce_records is not None
        rows = _applied(session, topic, partition, offsets, limit, tables, with_headers, with_entities)
    after = int(rows["offset"][-1]) + 1 if applied is None and rows.height == limit else offsets[1]
    parking = ParkingLog(topic, partition)
    released, after = parking.released(session, offsets[0], after, limit)
    rows = rows.filter(pl.col("offset") < after)
    if reduce_records is not None and not with_headers:
        rows = reduce_records(rows)
    log_seconds = time.monotonic() - began_seconds
    if rows.height or released:
        own = rows["offset"].to_list()
        staged_offsets = [*own, *(each.event.offset for each in released)]
        values = [*rows["value"].to_list(), *parking.event_values(session, released)]
        events = decoded_frames(topic, partition, staged_offsets, values)
        effective = [*own, *(each.effective_offset for each in released)]
        places = [each.event.offset for each in released]
        frames = staging.frames(
            events, staged_offsets, reads, partition=partition, effective_offsets=effective,
            changes=lambda: [
                *changes_in(rows["headers"].to_list()), *released_changes(session, topic, partition, places)
            ],
        )  # fmt: skip
        staging.fill(session, reduce(frames))
        for model in models:
            run_folds(session, model, model.folds(frames.keys(), schema), log_seconds)
    return after


def _applied(
    session: Session, topic: str, partition: int, offsets: tuple[int, int], limit: int, tables: Set[str],
    with_headers: bool, with_entities: bool,
) -> pl.DataFrame:  # fmt: skip
    """Return applied records of the types that these staging tables are for, with headers where they are asked for."""
    columns = "value, headers" if with_headers else f"value, entity_id AS {ENTITY}" if with_entities else "value"
    parameters = (topic, partition, *offsets, limit)
    if with_headers or tables >= EVENT_TABLES:
        return session.frame(_APPLIED.format(columns=columns, of_types=""), parameters)
    types = ",".join(each for each in EVENT_TYPES if table_of(each) in tables)
    return session.frame(_APPLIED.format(columns=columns, of_types=_OF_TYPES), (*parameters, types))


def decoded_frames(
    topic: str, partition: int, offsets: Sequence[int], values: Sequence[bytes], first_row: int = 0
) -> dict[str, pl.DataFrame]:
    """Return the decoded columns of events that the log holds, by type; `row` counts from `first_row` on.

    Raises SchemaNewer or AppliedEventUnreadable, with the offset: this worker may be older than the one that wrote it.
    """
    try:
        decoded, rejected = decode_batch(values, topic=logical_topic(topic))
    except UnknownSchema as error:
        raise SchemaNewer(topic, partition, offsets[error.row], error.schema_id) from error
    if rejected:
        raise AppliedEventUnreadable(topic, partition, offsets[rejected[0].row], rejected[0].reason)
    return {
        group.event_type: group.frame.insert_column(
            0, pl.Series("row", numpy.asarray(group.rows, numpy.int64) + first_row, dtype=pl.Int64)
        )
        for group in decoded
    }
