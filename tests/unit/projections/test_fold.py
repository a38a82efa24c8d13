"""A fold of the log: no event is left out without a word."""

from __future__ import annotations

from typing import Any, cast

import pytest

from projections.fold import fold_slice
from projections.read_model import READ_MODELS
from projections.session import Session
from projections.staging import Staging
from schemas import codec
from schemas.examples import examples
from schemas.polars_import import polars as pl
from streams.errors import AppliedEventUnreadable, PartitionStopped, SchemaNewer

NO_CONTROL_RECORDS: list[tuple[object, ...]] = [(False,)]
GOOD = codec.encode(examples()["genesis.agent.rated"])


class LoggedValues:
    """A session of a log that holds these values as applied, from offset 7 on."""

    def __init__(self, *values: bytes) -> None:
        self._values = values

    def query(self, sql: str) -> list[tuple[object, ...]]:
        return NO_CONTROL_RECORDS

    def frame(self, _sql: str, _parameters: Any) -> pl.DataFrame:
        return pl.DataFrame({"offset": range(7, 7 + len(self._values)), "value": self._values})


@pytest.mark.parametrize(
    ("value", "error", "why"),
    [
        (GOOD + b"\x00", AppliedEventUnreadable, "At offset 8: 1 unread bytes after the record"),
        (codec.WIRE_PREFIX.pack(0, 99) + GOOD[5:], SchemaNewer, "offset 8 has the schema id 99"),
    ],
    ids=["not an event", "of a later release"],
)
def test_an_applied_record_that_can_not_be_decoded_stops_the_fold(
    value: bytes, error: type[PartitionStopped], why: str
) -> None:
    """By name and offset: nothing is folded of its slice."""
    session = cast(Session, LoggedValues(GOOD, value, GOOD))
    with pytest.raises(error) as stopped:
        fold_slice(session, Staging(READ_MODELS), READ_MODELS[:1], "genesis.events", 0, (7, 10))
    assert why in stopped.value.why
