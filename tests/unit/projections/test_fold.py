"""A fold of the log: no event is left out without a word, and a read model catches up slice by slice."""

from __future__ import annotations

import json
import re
import threading
import time
from typing import Any, cast

import pytest

from database.errors import DatabaseUnreachable
from projections import fold
from projections.errors import ReadModelAhead
from projections.fold import catch_up, fold_slice
from projections.read_model import READ_MODELS, ReadModel
from projections.session import Session
from projections.staging import Staging
from schemas import codec
from schemas.examples import examples
from schemas.polars_import import polars as pl
from streams.errors import AppliedEventUnreadable, OwnershipLost, PartitionStopped, SchemaNewer

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
        fold_slice(session, Staging(READ_MODELS), READ_MODELS[0], "agents_v1", "genesis.events", 0, (7, 10))
    assert why in stopped.value.why


MODEL = READ_MODELS[0]


class Log:
    """A session of a log whose applied records end at `end`, every second offset, and a model that lags."""

    def __init__(self, end: int, model: int = 0) -> None:
        self.checkpoints, self.end = {MODEL.key: model}, end
        self.scripts: list[tuple[str, ...]] = []
        self.asked: list[tuple[int, int, int]] = []
        self.folded: list[list[int]] = []
        self.open = False

    def begin(self) -> None:
        self.open = True

    def rollback(self) -> None:
        self.open = False

    def query(self, sql: str) -> list[tuple[object, ...]]:
        assert self.open
        if "'control'" in sql:
            return NO_CONTROL_RECORDS
        assert "FOR UPDATE" in sql
        checkpoint = {"next_offset": self.end, "caught_up": []}
        return [(7, json.dumps(checkpoint), json.dumps(self.checkpoints), None)]

    def frame(self, _sql: str, parameters: tuple[object, ...]) -> pl.DataFrame:
        topic, partition, *bounds = parameters
        assert (topic, partition) == ("genesis.events", 3)
        first, stop, limit = (int(str(each)) for each in bounds)
        self.asked.append((first, stop, limit))
        offsets = [offset for offset in range(first, stop) if offset % 2 == 0][:limit]
        return pl.DataFrame({"offset": offsets, "value": [GOOD] * len(offsets)}, schema=SCHEMA)

    def script(self, *statements: str) -> None:
        self.scripts.append(statements)
        if statements[-1] == "COMMIT":
            advance, _ = statements
            assert f"split_part('{MODEL.key}'" in advance
            self.checkpoints[MODEL.key] = int(re.findall(r", (\d+)\n", advance)[0])
            self.open = False

    def frames(
        self,
        events: dict[str, pl.DataFrame],
        offsets: list[int],
        reads: object,
        *,
        partition: int,
        effective_offsets: list[int],
    ) -> dict[str, pl.DataFrame]:
        """Staging's frames: the offsets that were folded, by event type."""
        assert (reads, partition, effective_offsets) == (MODEL.reads, 3, offsets)
        for frame in events.values():
            self.folded.append([offsets[row] for row in frame["row"]])
        return events

    def fill(self, session: object, _frames: object) -> None:
        assert session is self


SCHEMA = {"offset": pl.Int64, "value": pl.Binary}


class Statement:
    """The model's statement, which Postgres gives up with more than so many records."""

    def __init__(self, records_max: int = 1_000_000) -> None:
        self.records_max = records_max
        self.log_seconds: list[float] = []

    def __call__(self, session: Log, model: ReadModel, sql: str, log_seconds: float) -> None:
        assert (model, sql) == (MODEL, MODEL.apply_in(MODEL.schema))
        self.log_seconds.append(log_seconds)
        if len(session.folded[-1]) > self.records_max:
            raise DatabaseUnreachable(why="canceling statement due to statement timeout")


@pytest.fixture
def statement(monkeypatch: pytest.MonkeyPatch) -> Statement:
    made = Statement()
    monkeypatch.setattr(fold, "run_statement", made)
    return made


def caught_up(log: Log, records_max: int | None = None, *, interrupted: bool = False) -> None:
    over = threading.Event()
    if interrupted:
        over.set()
    session, staging = cast(Session, log), cast(Staging, log)
    catch_up(session, staging, MODEL, "genesis.events", 3, 7, over, records_max)


def test_a_model_catches_up_slice_by_slice(statement: Statement, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each slice goes on behind the last record of the one before, with its checkpoint, up to the log's end."""
    monkeypatch.setattr(fold, "FOLD_RECORDS", 4)
    log = Log(end=17, model=2)
    begun = time.monotonic()
    caught_up(log)
    assert log.folded == [[2, 4, 6, 8], [10, 12, 14, 16]]
    assert log.asked == [(2, 17, 4), (9, 17, 4)]
    assert log.checkpoints[MODEL.key] == 17
    assert [statements[-1] for statements in log.scripts[:-1]] == ["COMMIT"] * 2
    assert MODEL.tables[0] in log.scripts[-1][0]
    assert not log.open
    assert all(0 <= seconds < begun for seconds in statement.log_seconds)


def test_a_model_that_is_level_with_the_log_is_left_alone(statement: Statement) -> None:
    """Nothing is folded, analysed or kept open."""
    log = Log(end=5, model=5)
    caught_up(log)
    assert (log.folded, log.scripts, log.open) == ([], [], False)


def test_offsets_without_applied_records_are_passed(statement: Statement) -> None:
    """Nothing is left to fold, and the checkpoint is the log's."""
    log = Log(end=4, model=3)
    caught_up(log)
    assert (log.folded, log.checkpoints[MODEL.key]) == ([], 4)


def test_a_slice_that_is_given_up_is_halved_and_then_grows(
    statement: Statement, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again from the same offset; slices that are quick are doubled up to the usual size."""
    monkeypatch.setattr(fold, "FOLD_RECORDS", 8)
    statement.records_max = 3
    log = Log(end=8)
    caught_up(log)
    assert log.folded == [[0, 2, 4, 6], [0, 2, 4, 6], [0, 2], [4, 6]]
    assert [limit for _, _, limit in log.asked] == [8, 4, 2, 4]
    statement.records_max = 1_000
    log = Log(end=60)
    caught_up(log, 1)
    assert [limit for _, _, limit in log.asked] == [1, 2, 4, 8, 8, 8]


def test_slices_that_take_long_do_not_grow(statement: Statement, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were halved for it, or would be."""
    monkeypatch.setattr(fold, "QUICK_SECONDS", 0.0)
    log = Log(end=6)
    caught_up(log, 1)
    assert {limit for _, _, limit in log.asked} == {1}
    assert log.folded == [[0], [2], [4]]


def test_a_statement_that_is_given_up_with_one_record_is_the_models(statement: Statement) -> None:
    """There is nothing left to halve."""
    statement.records_max = 0
    log = Log(end=6)
    with pytest.raises(DatabaseUnreachable):
        caught_up(log, 2)
    assert [limit for _, _, limit in log.asked] == [2, 1]


def test_a_model_that_is_ahead_of_the_log_stops_the_partition(statement: Statement) -> None:
    """It holds what the log has lost: the error says both offsets."""
    with pytest.raises(ReadModelAhead) as caught:
        caught_up(Log(end=5, model=6))
    assert caught.value.what == f"The read model {MODEL.name} is ahead of the log on genesis.events/3."
    assert "Its checkpoint is 6, the log's 5" in caught.value.why
    assert caught.value.next_step == "plant audit verify"


def test_catching_up_ends_when_the_partition_moves(statement: Statement) -> None:
    """Before the next transaction."""
    log = Log(end=5)
    with pytest.raises(OwnershipLost, match=f"before {MODEL.name} had caught up"):
        caught_up(log, interrupted=True)
    assert not log.asked
