"""The reduction of a chunk to what matters: the last rows of their keys, where every model that reads them says so.

It comes twice. Of a type whose key is the entity alone, earlier records of an entity are left out before they are
decoded, by what the log says of their entity. What is left is reduced by the decoded columns, before it is staged.
"""

from __future__ import annotations

from collections.abc import Sequence

from projections.fold import ENTITY
from projections.read_model import ReadModel
from projections.staged_names import table_of
from projections.staging import OFFSET
from schemas import codec
from schemas.errors import Undecodable
from schemas.events import EVENT_TYPES
from schemas.polars_import import polars as pl


def last_records(records: pl.DataFrame, models: Sequence[ReadModel]) -> pl.DataFrame:
    """Return applied records without those after which the chunk has one of the same schema about the same entity.

    Only records are left out of which no model needs more than the last of each entity. They come with `offset`, in
    order, `value` and `entity`, which is null where nothing is known of it.
    """
    prefix, entity = pl.col("value").bin.head(codec.WIRE_PREFIX.size), pl.col(ENTITY)
    reduced = [each for each in records.select(prefix.unique()).to_series() if _keyed_by_entity(each, models)]
    if not reduced:
        return records
    return records.filter(~prefix.is_in(reduced) | entity.is_null() | (entity + prefix).is_last_distinct())


def _keyed_by_entity(prefix: bytes | None, models: Sequence[ReadModel]) -> bool:
    """Return whether values that begin so are events of which the last of each entity is all that matters."""
    try:
        event_type = codec.registered(prefix).event.event_type
    except Undecodable:
        return False  # decoding says what is wrong
    event = EVENT_TYPES.get(event_type)
    return event is not None and _keys_of(table_of(event_type), models) == {(event.entity_field,)}


def last_rows(frames: dict[str, pl.DataFrame], models: Sequence[ReadModel]) -> dict[str, pl.DataFrame]:
    """Return staged rows without those that every model which reads them says do not matter: earlier ones of a key."""
    return {table: _last_rows(frame, _keys_of(table, models)) for table, frame in frames.items()}


def _keys_of(table: str, models: Sequence[ReadModel]) -> set[tuple[str, ...]]:
    """Return the keys by which models read the last rows of a table; none where one of them reads every row."""
    keys = {model.last_of.get(table, ()) for model in models if table in model.reads}
    return set() if () in keys else keys


def _last_rows(frame: pl.DataFrame, keys: set[tuple[str, ...]]) -> pl.DataFrame:
    if not keys:
        return frame
    last = [pl.col(OFFSET) == pl.col(OFFSET).max().over(key) for key in sorted(keys)]
    return frame.filter(pl.any_horizontal(last)).sort(OFFSET)
