"""A fold of the log: what a slice reads, stages and runs, and that no event is left out without a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast
from uuid import UUID

import msgspec
import pytest

from audit.canonical import headers_bytes
from projections import fold
from projections.fold import decoded_frames, fold_slice
from projections.parking import WaitingRecord
from projections.parking_log import ReleasedEvent
from projections.read_model import READ_MODELS, ReadModel
from projections.session import Session
from projections.staged_names import EVENT_TABLES
from projections.staging import Staging
from schemas import codec
from schemas.examples import examples
from schemas.polars_import import polars as pl
from schemas.sender_headers import change_headers, sender_headers
from streams.errors import AppliedEventUnreadable, PartitionStopped, SchemaNewer
from tests.support.made_models import made_model

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


RATED = examples()["genesis.agent.rated"]
TABLE = "staged_agent_rated"
COLUMNS = '"offset", effective_offset, partition, rating'
PLAIN = made_model("plain", "", f"INSERT INTO __schema__.plain SELECT {COLUMNS} FROM {TABLE}")
OTHER = made_model("other", "", "INSERT INTO __schema__.other SELECT name FROM staged_skill_registered")
WITH_CHANGES = made_model(
    "changed", "", f"INSERT INTO __schema__.changed SELECT {COLUMNS}, change_tenant, change_version FROM {TABLE}"
)
CHANGED = headers_bytes([*sender_headers("plant.relay"), *change_headers("genesis", 7)])
LOG = """
SELECT "offset", {columns} FROM log_records
WHERE topic = $1 AND partition = $2 AND "offset" >= $3 AND "offset" < $4 AND disposition = 'applied' {of_types}
ORDER BY "offset" LIMIT $5
"""
OF_TYPES = "AND event_type = ANY ((SELECT string_to_array($6, ',')::log_event_type[])::log_event_type[])"


def value(rating: int) -> bytes:
    """Return a rating that has an id of its own."""
    return codec.encode(msgspec.structs.replace(RATED, event_id=UUID(int=rating), rating=rating))


class Log:
    """A session of a log whose applied records, all ratings, have these offsets. It keeps what is asked and done."""

    def __init__(self, *offsets: int) -> None:
        self.offsets = offsets
        self.reads: list[tuple[str, tuple[Any, ...]]] = []
        self.staged: list[tuple[str, list[dict[str, Any]], bool]] = []

    def frame(self, sql: str, parameters: tuple[Any, ...]) -> pl.DataFrame:
        self.reads.append((sql, parameters))
        first, until, limit = parameters[2:5]
        found = [offset for offset in self.offsets if first <= offset < until][:limit]
        values = [value(offset % 5 + 1) for offset in found]
        headers = [CHANGED if offset == self.offsets[0] else headers_bytes([]) for offset in found]
        entities = [bytes([offset]) for offset in found]
        return pl.DataFrame({"offset": found, "value": values, "headers": headers, "entity": entities})

    def copy(self, table: str, frame: pl.DataFrame, *, temporary: bool) -> None:
        self.staged.append((table, frame.to_dicts(), temporary))


class Parking:
    """The log of what waits: these events are released, and a slice with them ends here."""

    def __init__(self, released: Sequence[ReleasedEvent] = (), until: int | None = None) -> None:
        self.released_events, self.until = list(released), until
        self.asked: list[tuple[int, int, int]] = []

    def __call__(self, topic: str, partition: int) -> Parking:
        assert (topic, partition) == ("genesis.events", 3)
        return self

    def released(self, _: object, first: int, until: int, events_max: int) -> tuple[list[ReleasedEvent], int]:
        self.asked.append((first, until, events_max))
        return self.released_events, until if self.until is None else self.until

    def event_values(self, _: object, released: Sequence[ReleasedEvent]) -> list[bytes]:
        assert released is self.released_events
        return [value(5)] * len(released)

    def headers(self, _: object, offsets: Sequence[int]) -> Mapping[int, bytes]:
        return dict.fromkeys(offsets, headers_bytes([]))


class Folded(NamedTuple):
    """What became of a slice: where it goes on, what was asked of the log, staged rows, and statements run."""

    after: int
    reads: list[tuple[str, tuple[Any, ...]]]
    asked: list[tuple[int, int, int]]
    staged: list[tuple[str, list[dict[str, Any]], bool]]
    run: list[tuple[str, list[str], float]]


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that folds a slice of the offsets 10 to 19, where reading the log takes two seconds."""

    def run(log: Log, models: Sequence[ReadModel], parked: Parking | None = None, *args: Any, **options: Any) -> Folded:
        statements: list[tuple[str, list[str], float]] = []
        seconds = iter((100.0, 102.0))
        parking = parked or Parking()
        monkeypatch.setattr(fold.time, "monotonic", lambda: next(seconds))
        monkeypatch.setattr(fold, "ParkingLog", parking)
        monkeypatch.setattr("projections.staged_changes.ParkingLog", parking)
        monkeypatch.setattr(fold, "run_folds", lambda _, model, *rest: statements.append((model.key, *rest)))
        session = cast(Session, log)
        after = fold_slice(session, Staging(models), models, "genesis.events", 3, (10, 20), *args, **options)
        return Folded(after, log.reads, parking.asked, log.staged, statements)

    return run


def row(offset: int, effective_offset: int | None = None, *, rating: int | None = None) -> dict[str, Any]:
    return {
        "offset": offset,
        "partition": 3,
        "effective_offset": effective_offset or offset,
        "rating": rating or offset % 5 + 1,
    }


def statements_of(model: ReadModel, schema: str | None = None) -> tuple[str, list[str], float]:
    return model.key, model.folds(schema=schema), 2.0


@pytest.mark.parametrize(
    ("limit", "after", "rows"),
    [(None, 20, 3), (4, 20, 3), (3, 19, 3), (2, 13, 2), (1, 11, 1)],
    ids=["no bound", "fewer than the bound", "as many", "one is left", "two are left"],
)
def test_a_slice_is_read_staged_and_folded_once(folded: Any, limit: int | None, after: int, rows: int) -> None:
    """A slice with as many records as it may have ends behind the last of them, any other where it was to end."""
    log = Log(9, 10, 12, 18, 20)
    result = folded(log, [PLAIN, OTHER], None, limit)
    bound = limit or fold.FOLD_RECORDS
    assert result.after == after
    sql = LOG.format(columns="value", of_types="")
    assert result.reads == [(sql, ("genesis.events", 3, 10, 20, bound))]
    assert result.asked == [(10, after, bound)]
    assert result.staged == [(TABLE, [row(offset) for offset in (10, 12, 18)[:rows]], True)]
    assert result.run == [statements_of(PLAIN), (OTHER.key, [], 2.0)]


def test_a_slice_without_records_stages_and_runs_nothing(folded: Any) -> None:
    """It goes on where it was to end; so does one of a log that has records elsewhere alone."""
    result = folded(Log(9, 20), [PLAIN])
    assert (result.after, result.staged, result.run) == (20, [], [])


def test_events_that_are_released_follow_the_slices_own(folded: Any) -> None:
    """They stand at their offsets and take effect at their control record's, and records behind that one wait."""
    released = [ReleasedEvent(WaitingRecord(4, bytes(16)), 12), ReleasedEvent(WaitingRecord(6, bytes(16)), 12)]
    result = folded(Log(10, 13, 14), [PLAIN], Parking(released, until=13))
    late = [row(4, 12, rating=5), row(6, 12, rating=5)]
    assert (result.after, result.asked) == (13, [(10, 20, fold.FOLD_RECORDS)])
    assert result.staged == [(TABLE, [row(10), *late], True)]
    alone = folded(Log(), [PLAIN], Parking(released, until=13))
    assert (alone.after, alone.staged, len(alone.run)) == (13, [(TABLE, late, True)], 1)


def test_changes_are_read_where_a_model_names_them(folded: Any) -> None:
    """With the headers of the slice's own records and of released ones; then no record is left out before it."""
    released = [ReleasedEvent(WaitingRecord(4, bytes(16)), 12)]
    result = folded(Log(10, 11), [WITH_CHANGES], Parking(released), reduce_records=lambda rows: rows.head(1))
    assert [sql for sql, _ in result.reads] == [LOG.format(columns="value, headers", of_types="")]
    none = {"change_tenant": None, "change_version": None}
    rows = [{**row(10), "change_tenant": "genesis", "change_version": 7}, {**row(11), **none}]
    assert result.staged == [(TABLE, [*rows, {**row(4, 12, rating=5), **none}], True)]


def test_a_slice_may_be_reduced_before_and_after_it_is_decoded(folded: Any) -> None:
    """Records by what the log says of them, staged rows by what the models make of them; into any schema."""

    def last(frames: dict[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
        return {table: frame.tail(1) for table, frame in frames.items()}

    def without_first(rows: pl.DataFrame) -> pl.DataFrame:
        assert rows["entity"].to_list() == [b"\x0a", b"\x0b", b"\x0c"]
        return rows.tail(2)

    result = folded(Log(10, 11, 12), [PLAIN], reduce=last, reduce_records=without_first, schema="other_schema")
    assert [sql for sql, _ in result.reads] == [LOG.format(columns="value, entity_id AS entity", of_types="")]
    assert result.staged == [(TABLE, [row(12)], True)]
    assert result.run == [statements_of(PLAIN, "other_schema")]
    assert folded(Log(10, 11, 12), [PLAIN], reduce_records=without_first).staged == [(TABLE, [row(11), row(12)], True)]


def test_only_the_types_that_models_read_are_read_where_it_is_asked_for(folded: Any) -> None:
    """In one text; all of them have no condition, and none has one where headers are read with them."""
    result = folded(Log(), [PLAIN, OTHER], only_types_read=True)
    ((sql, parameters),) = result.reads
    assert sql == LOG.format(columns="value", of_types=OF_TYPES)
    assert parameters[:5] == ("genesis.events", 3, 10, 20, fold.FOLD_RECORDS)
    assert sorted(parameters[5].split(",")) == ["genesis.agent.rated", "genesis.skill.registered"]
    everything = made_model("every", "", 'INSERT INTO __schema__.every SELECT "offset" FROM staged_events')
    assert everything.reads == EVENT_TABLES
    for model in (everything, WITH_CHANGES):
        ((sql, parameters),) = folded(Log(), [model], only_types_read=True).reads
        assert (OF_TYPES in sql, len(parameters)) == (False, 5)


def test_records_may_come_from_elsewhere_than_the_log(folded: Any) -> None:
    """All between the offsets, whatever their number."""
    source = Log(10, 11)

    def applied(*asked: object) -> pl.DataFrame:
        assert asked == (log, "genesis.events", 3, (10, 20))
        return source.frame("", (None, None, 10, 20, 9))

    log = Log()
    result = folded(log, [PLAIN], None, 2, applied=applied)
    assert (result.after, result.reads, result.asked) == (20, [], [(10, 20, 2)])
    assert result.staged == [(TABLE, [row(10), row(11)], True)]


@pytest.mark.parametrize("first_row", [0, 7])
def test_decoded_rows_are_numbered_from_the_first(first_row: int) -> None:
    """Whatever types take turns; the number comes first, and the fields are the event's."""
    skill = codec.encode(examples()["genesis.skill.registered"])
    frames = decoded_frames("genesis.events", 0, [5, 6, 7], [value(1), skill, value(2)], first_row)
    assert list(frames) == ["genesis.agent.rated", "genesis.skill.registered"]
    rated, registered = frames.values()
    assert (rated.columns[0], rated["row"].dtype) == ("row", pl.Int64)
    assert (rated["row"].to_list(), rated["rating"].to_list()) == ([first_row, first_row + 2], [1, 2])
    assert registered["row"].to_list() == [first_row + 1]


@pytest.mark.parametrize("first_bad", [0, 1, 2])
def test_the_first_record_that_can_not_be_decoded_is_named(first_bad: int) -> None:
    """By its offset, topic and partition, wherever it stands."""
    for bad, error in ((GOOD + b"\0", AppliedEventUnreadable), (codec.WIRE_PREFIX.pack(0, 99) + GOOD[5:], SchemaNewer)):
        values = [GOOD] * first_bad + [bad] * (3 - first_bad)
        with pytest.raises(error) as stopped:
            decoded_frames("genesis.events-2", 3, [7, 8, 9], values)
        assert f"offset {7 + first_bad}" in stopped.value.why
        assert "genesis.events-2/3" in str(stopped.value)
