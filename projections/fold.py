"""Folding a read model from the event log in Postgres, rather than from Kafka.

The live path and this one share decoding, staging and apply.sql, and a fold is a function of the sequence alone, so
both give the same tables. A read model that is behind the log (a new one, say) catches up here before its partition
is read; a check that folds from zero into a schema of its own uses the same function.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy

from database.errors import DatabaseUnreachable
from database.statistics import refresh_statement
from projections import checkpoints, model_checkpoints
from projections.checkpoints import PROJECTOR
from projections.errors import ReadModelAhead
from projections.parking_log import ParkingLog
from projections.read_model import ReadModel
from projections.session import Session
from projections.staging import Staging
from projections.stopped_models import run_statement
from runtime.logging import get_logger
from schemas.batch_decoder import decode_batch
from schemas.errors import UnknownSchema
from schemas.polars_import import polars as pl
from streams.errors import AppliedEventUnreadable, OwnershipLost, SchemaNewer
from streams.topics import logical_topic

log = get_logger(__name__)

FOLD_RECORDS = 10_000
"""Records of a slice, which is one transaction."""

QUICK_SECONDS = 5.0
"""A slice that took no longer than this lets the next one grow, after one that was halved."""

_APPLIED = """
SELECT "offset", value FROM log_records
WHERE topic = $1 AND partition = $2 AND "offset" >= $3 AND "offset" < $4 AND disposition = 'applied'
ORDER BY "offset" LIMIT $5
"""


def fold_slice(
    session: Session,
    staging: Staging,
    model: ReadModel,
    schema: str,
    topic: str,
    partition: int,
    offsets: tuple[int, int],
    records_max: int | None = None,
) -> int:
    """Fold up to `records_max` applied records of a partition, from `offsets[0]` and below `offsets[1]`, into a schema.

    With them come the events that control records between them release; a slice ends at the control record with which
    these come to as many. Without a bound these are FOLD_RECORDS. Runs in the caller's transaction. Returns the offset
    to go on from; `offsets[1]` when nothing is left. Raises SchemaNewer or AppliedEventUnreadable where a record can't
    be decoded: no event is left out without a word.
    """
    limit = records_max or FOLD_RECORDS
    began_seconds = time.monotonic()
    rows = session.frame(_APPLIED, (topic, partition, *offsets, limit))
    after = int(rows["offset"][-1]) + 1 if rows.height == limit else offsets[1]
    parking = ParkingLog(topic, partition)
    released, after = parking.released(session, offsets[0], after, limit)
    rows = rows.filter(pl.col("offset") < after)
    log_seconds = time.monotonic() - began_seconds
    if rows.height or released:
        own = rows["offset"].to_list()
        staged_offsets = [*own, *(each.event.offset for each in released)]
        values = [*rows["value"].to_list(), *parking.event_values(session, released)]
        events = decoded_frames(topic, partition, staged_offsets, values)
        effective = [*own, *(each.effective_offset for each in released)]
        frames = staging.frames(events, staged_offsets, model.reads, partition=partition, effective_offsets=effective)
        if frames:
            staging.fill(session, frames)
            run_statement(session, model, model.apply_in(schema), log_seconds)
    return after


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


def catch_up(
    session: Session,
    staging: Staging,
    model: ReadModel,
    topic: str,
    partition: int,
    token: int,
    interrupted: threading.Event,
    records_max: int | None = None,
) -> None:
    """Bring a read model up to the log's end, slice by slice, each in a transaction under the fence.

    A slice that Postgres gives up is halved, and slices grow again once they are quick. Afterwards the model's tables
    are analysed: until then Postgres takes them for as small as they were. `records_max` bounds the first slice. Raises
    OwnershipLost once `interrupted` is set, and ModelStatementEnded where Postgres ends the model's statement with one
    record: what is folded by then is kept.
    """
    folded, records_max = False, records_max or FOLD_RECORDS
    while True:
        if interrupted.is_set():
            raise OwnershipLost(why=f"The partition was given up before {model.name} had caught up.")
        session.begin()
        fence = checkpoints.lock_fence(session, PROJECTOR, topic, partition, token)
        start, stop = fence.model_offset(model.key), fence.next_offset
        if start > stop:
            raise ReadModelAhead(
                f"The read model {model.name} is ahead of the log on {topic}/{partition}.",
                why=f"Its checkpoint is {start}, the log's {stop}: it holds records that the log has lost.",
                next_step="plant audit verify",
            )
        if start == stop:
            session.rollback()
            if folded:
                session.script(refresh_statement(f"{model.schema}.{table}" for table in model.tables))
            return
        folded = True
        started = time.monotonic()
        try:
            after = fold_slice(session, staging, model, model.schema, topic, partition, (start, stop), records_max)
            session.script(model_checkpoints.advance_model_statement(topic, partition, model.key, after), "COMMIT")
        except DatabaseUnreachable as error:
            if records_max == 1:
                raise
            session.rollback()  # raises as well where the connection is gone
            records_max //= 2
            log.warning("model.slice_halved", model=model.name, topic=topic, partition=partition, why=error.why)
            continue
        if time.monotonic() - started < QUICK_SECONDS:
            records_max = min(FOLD_RECORDS, records_max * 2)
        log.info("model.folded", model=model.name, topic=topic, partition=partition, next_offset=after)
