"""Parked entities of one partition: what becomes of a batch's records where poison or a control record is among them.

While no entity is parked, and a batch has neither, this costs a truth test a batch. Otherwise the records that may be
concerned are looked at one after another, in the order of the log: so any split into batches gives the same.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple
from uuid import UUID

from projections.errors import TooManyParkedEntities, TooManyParkedRecords
from projections.fold import decoded_frames
from projections.parking import ControlEffect, ParkedEntities, WaitingRecord
from projections.parking_log import ParkingLog, PoisonRecord, ReleasedEvent, event_values
from projections.poison_controls import PoisonControl
from projections.prepared import PreparedBatch
from projections.repeats import ID_REUSED, EventRecord, event_record, same_event
from projections.session import Session
from runtime import metrics
from schemas import codec
from schemas.errors import Undecodable, UnknownSchema
from schemas.polars_import import polars as pl
from streams.control_search import NamedPoison
from streams.errors import SchemaNewer
from streams.topics import logical_topic


class ParkingLimits(NamedTuple):
    """What a worker keeps of one partition at most."""

    entities: int = 10_000
    records: int = 200_000
    """Poison records and events in all queues. One control record may release them, in one transaction."""


DEFAULT_LIMITS: Final = ParkingLimits()

OWN_VALUES: Final = 100
"""Values of poison records that are read at a time."""

REDRIVEN, SKIPPED, REPEATED, NONE = "redriven", "skipped", "repeated", "none"
"""The effects of control records: `repeated` is a redriven event that the log has already, so its poison is skipped."""


class PartitionParking:
    """A partition's queues, as its owner keeps them from batch to batch."""

    def __init__(self, topic: str, partition: int, limits: ParkingLimits = DEFAULT_LIMITS) -> None:
        self._topic = topic
        self._partition = partition
        self._limits = limits
        self._log = ParkingLog(topic, partition)
        self._parked = ParkedEntities()
        self._named: Mapping[bytes, set[int]] = {}
        """The poison records that control records further on name, by key."""
        self._effects: Counter[str] = Counter()

    def open(self, session: Session, next_offset: int) -> None:
        """Read the queues from the log, which ends before `next_offset`."""
        self._parked = self._log.load(session, next_offset)
        self._show()

    def make_room(self, named: Collection[NamedPoison]) -> None:
        """Keep more for a while: what is parked behind poison records that control records further on name."""
        by_key: defaultdict[bytes, set[int]] = defaultdict(set)
        for key, offset in named:
            if key is not None:
                by_key[key].add(offset)
        self._named = by_key

    def judge(self, session: Session, prepared: PreparedBatch, seen: Mapping[bytes, EventRecord]) -> PreparedBatch:
        """Return a batch with its parked records, what its control records do, and the events that they release.

        Its records have dispositions; `seen` are the event ids that the log holds. Runs in the batch's transaction:
        call :meth:`commit` once that is committed. Raises TooManyParkedEntities, TooManyParkedRecords, or SchemaNewer
        for the first redrive of a waiting record whose bytes a later release may know.
        """
        self._parked.rollback()  # a transaction that was rolled back
        self._effects.clear()
        untouched = not self._parked or self._parked.keys.isdisjoint(prepared.batch.keys)
        if untouched and not prepared.parking and not prepared.poison_controls:
            return prepared
        batch = _JudgedBatch(session, self._log, self._parked, prepared, seen, self._limits, self._limits_now)
        judged = batch.judge()
        self._effects = batch.effects
        return judged

    def commit(self) -> None:
        """Keep what the last batch has changed: it is committed."""
        self._parked.commit()
        for effect, count in self._effects.items():
            metrics.WORKER_CONTROL_RECORDS.labels(effect).inc(count)
        if not self._parked:
            self._named = {}
        self._effects.clear()
        self._show()

    def close(self) -> None:
        """Take back what metrics show of the partition."""
        with contextlib.suppress(KeyError):
            metrics.WORKER_PARKED_ENTITIES.remove(self._topic, str(self._partition))

    def _limits_now(self) -> ParkingLimits:
        """Return the limits, and besides what waits behind poison records that are all named further on.

        That is as much again at most: what was named there may have no effect.
        """
        released = [
            queue
            for key, offsets in self._named.items()
            if (queue := self._parked.queue(key))
            and offsets.issuperset(each.offset for each in queue if each.is_poison)
        ]
        entities, records = self._limits
        return ParkingLimits(
            entities + min(entities, len(released)), records + min(records, sum(len(queue) for queue in released))
        )

    def _show(self) -> None:
        metrics.WORKER_PARKED_ENTITIES.labels(self._topic, self._partition).set(len(self._parked))


class _Outcome(NamedTuple):
    """The columns of a control record's row that say what it does; all null: nothing."""

    control_offset: int | None = None
    event_id: bytes | None = None
    entity_id: bytes | None = None


class _JudgedBatch:
    """One batch, judged record by record where a queue, poison or a control record may be concerned."""

    def __init__(
        self,
        session: Session,
        log: ParkingLog,
        parked: ParkedEntities,
        prepared: PreparedBatch,
        seen: Mapping[bytes, EventRecord],
        limits: ParkingLimits,
        limits_now: Callable[[], ParkingLimits],
    ) -> None:
        self._session = session
        self._log = log
        self._parked = parked
        self._limits = limits
        self._limits_now = limits_now
        self._prepared = prepared
        self._batch = prepared.batch
        self._ids: list[bytes | None] = prepared.rows["event_id"].to_list()
        self._dispositions: list[str] = prepared.rows["disposition"].to_list()
        self._reasons: dict[int, str | None] = {}
        self._gone: set[int] = set()
        self._outcomes: dict[int, _Outcome] = {}
        self._released: list[ReleasedEvent] = []
        self._parking = frozenset(prepared.parking)
        self._redriven = {control.event_id for control in prepared.poison_controls.values() if control.redrives}
        self._known = {event_id: seen[event_id] for event_id in self._redriven & seen.keys()}
        self._logged, self._resolved = self._read_named()
        self._own_values: dict[int, bytes] = {}
        self.effects: Counter[str] = Counter()

    def judge(self) -> PreparedBatch:
        """Return the batch as it goes into the log and the read models. Raises as PartitionParking.judge."""
        for row in self._concerned():
            if (control := self._prepared.poison_controls.get(row)) is not None:
                self._obey(row, control)
            elif row in self._parking:
                self._park(row)
            elif self._dispositions[row] != "control":
                self._judge_event(row)
        return self._judged()

    def _concerned(self) -> list[int]:
        """Return the rows to look at, ascending. Parked entities may be many, so their keys are not copied."""
        waiting, parking = self._parked.keys, {self._batch.keys[row] for row in self._parking}
        controls, redriven = self._prepared.poison_controls, self._redriven
        if not controls:
            return [row for row, key in enumerate(self._batch.keys) if key in waiting or key in parking]
        return [
            row
            for row, (key, event_id) in enumerate(zip(self._batch.keys, self._ids, strict=True))
            if key in waiting or key in parking or event_id in redriven or row in controls
        ]

    def _park(self, row: int) -> None:
        key, offset = self._batch.keys[row], self._batch.offsets[row]
        assert key is not None
        parks_another = key not in self._parked.keys
        self._parked.park(key, offset)
        self._check_room(offset, parks_another=parks_another)

    def _judge_event(self, row: int) -> None:
        """Let an event wait whose entity is parked; where its id is redriven in this batch, look again at repeats."""
        event_id, key = self._ids[row], self._batch.keys[row]
        if event_id is not None and event_id in self._redriven:
            self._find_repeat(row, event_id)
        if self._dispositions[row] == "applied":
            assert key is not None
            if self._parked.add(key, WaitingRecord(self._batch.offsets[row], event_id)):
                self._dispositions[row] = "parked"
                self._gone.add(row)
                self._check_room(self._batch.offsets[row])

    def _check_room(self, offset: int, *, parks_another: bool = False) -> None:
        """Raise TooManyParkedEntities or TooManyParkedRecords where more waits now than may."""
        parked, topic, partition = self._parked, self._batch.topic, self._batch.partition
        if (parks_another and len(parked) > self._limits.entities) or parked.records > self._limits.records:
            self._limits = self._limits_now()
        if parks_another and len(parked) > self._limits.entities:
            raise TooManyParkedEntities(topic, partition, offset, self._limits.entities)
        if parked.records > self._limits.records:
            raise TooManyParkedRecords(topic, partition, offset, self._limits.records)

    def _find_repeat(self, row: int, event_id: bytes) -> None:
        record = self._prepared.record(row)
        first = self._known.setdefault(event_id, record)
        if first is record:
            return
        is_repeat = same_event(first, record)
        self._dispositions[row] = "repeat" if is_repeat else "poison"
        self._reasons[row] = None if is_repeat else ID_REUSED
        self._gone.add(row)

    def _obey(self, row: int, control: PoisonControl) -> None:
        """Find what a control record does, and do it with the queues."""
        key, offset = self._batch.keys[row], self._batch.offsets[row]
        poison = self._waiting_poison(row, control.poison_offset)
        outcome, effect = _Outcome(), NONE
        if poison is not None and not control.redrives:
            outcome, effect = _Outcome(control.poison_offset, control.event_id), SKIPPED
        elif poison is not None and (record := self._event_of(row, control, poison)) is not None:
            first = self._known.setdefault(control.event_id, record)
            if first is record:
                assert key is not None
                outcome = _Outcome(control.poison_offset, control.event_id, UUID(key.decode()).bytes)
                effect = REDRIVEN
            elif same_event(first, record):
                outcome, effect = _Outcome(control.poison_offset), REPEATED
        self.effects[effect] += 1
        self._outcomes[row] = outcome
        if poison is None or outcome.control_offset is None:
            return
        self._resolved.add(control.poison_offset)
        event_id = control.event_id if control.redrives else None
        does = ControlEffect(offset, key, control.poison_offset, poison.has_parked, event_id, effect == REDRIVEN)
        self._released += (ReleasedEvent(event, offset) for event in self._parked.obey(does))

    def _waiting_poison(self, row: int, poison_offset: int) -> PoisonRecord | None:
        """Return the poison record that a control record names, if it has the same key and waits for one."""
        poison = self._logged.get(poison_offset)
        earlier = bisect_left(self._batch.offsets, poison_offset, 0, row)
        if earlier < row and self._batch.offsets[earlier] == poison_offset and self._dispositions[earlier] == "poison":
            batch = self._batch
            poison = PoisonRecord(batch.keys[earlier], batch.headers[earlier], earlier in self._parking)
        key = self._batch.keys[row]
        if poison is None or poison.key != key or poison_offset in self._resolved:
            return None
        return poison if not poison.has_parked or self._parked.waits(key, poison_offset) else None

    def _event_of(self, row: int, control: PoisonControl, poison: PoisonRecord) -> EventRecord | None:
        """Return the record of the event that a control record brings in; None where it is none of the key's entity.

        Raises SchemaNewer.
        """
        value = self._own_value(control.poison_offset) if control.value is None else control.value
        try:
            event = codec.decode(value, logical_topic(self._batch.topic))
        except UnknownSchema as error:
            batch = self._batch
            raise SchemaNewer(batch.topic, batch.partition, batch.offsets[row], error.schema_id) from error
        except Undecodable:
            return None
        if codec.key(event) != self._batch.keys[row] or event.event_id.bytes != control.event_id:
            return None
        assert value is not None
        return event_record(value, event.event_type, poison.headers)

    def _own_value(self, poison_offset: int) -> bytes | None:
        """Return the value of a poison record that is redriven as it is. They may be large: some are read at a time."""
        first = self._batch.offsets[0]
        if poison_offset >= first:
            return self._batch.values[bisect_left(self._batch.offsets, poison_offset)]
        if poison_offset not in self._own_values:
            controls = self._prepared.poison_controls.values()
            own = [each.poison_offset for each in controls if each.redrives and each.value is None]
            logged = [offset for offset in own[own.index(poison_offset) :] if offset < first]
            self._own_values = self._log.values(self._session, logged[:OWN_VALUES])
        return self._own_values[poison_offset]

    def _read_named(self) -> tuple[dict[int, PoisonRecord], set[int]]:
        """Return the poison records before the batch that its control records name, and which of them are resolved."""
        first = self._batch.offsets[0]
        named = [c.poison_offset for c in self._prepared.poison_controls.values() if c.poison_offset < first]
        logged = self._log.poison(self._session, named)
        have_parked_nothing = [offset for offset, poison in logged.items() if not poison.has_parked]
        return logged, self._log.resolved(self._session, have_parked_nothing)

    def _judged(self) -> PreparedBatch:
        rows = self._prepared.rows.with_columns(pl.Series("disposition", self._dispositions, dtype=pl.String))
        if self._reasons:
            reasons = rows["reason"].to_list()
            for row, reason in self._reasons.items():
                reasons[row] = reason
            rows = rows.with_columns(pl.Series("reason", reasons, dtype=pl.String))
        asked = None
        if self._outcomes:
            asked = rows["event_id"].is_not_null().to_numpy()
            rows = self._with_outcomes(rows)
        gone = pl.Series(list(self._gone), dtype=pl.Int64).implode()
        events = {name: frame.filter(~frame["row"].is_in(gone)) for name, frame in self._prepared.events.items()}
        events = {name: frame for name, frame in events.items() if frame.height}
        released = [(each.event.offset, each.effective_offset) for each in self._released]
        values = event_values([each.event for each in self._released], self._read_values) if released else []
        for name, frame in self._decoded(values).items():
            events[name] = pl.concat([events[name], frame]) if name in events else frame
        size_bytes = sum(map(len, values))
        return replace(
            self._prepared, rows=rows, events=events, released=released, released_bytes=size_bytes, asked=asked
        )

    def _with_outcomes(self, rows: pl.DataFrame) -> pl.DataFrame:
        columns = {name: rows[name].to_list() for name in ("event_id", "entity_id")}
        columns["control_offset"] = [None] * rows.height
        for row, outcome in self._outcomes.items():
            for name, value in outcome._asdict().items():
                columns[name][row] = value
        types = {"event_id": pl.Binary, "entity_id": pl.Binary, "control_offset": pl.Int64}
        return rows.with_columns(pl.Series(name, values, dtype=types[name]) for name, values in columns.items())

    def _decoded(self, values: Sequence[bytes]) -> dict[str, pl.DataFrame]:
        """Return the decoded columns of the released events by type; their rows come behind the batch's own."""
        if not values:
            return {}
        offsets = [each.event.offset for each in self._released]
        return decoded_frames(self._batch.topic, self._batch.partition, offsets, values, len(self._batch))

    def _read_values(self, offsets: Sequence[int]) -> dict[int, bytes]:
        first = self._batch.offsets[0]
        values = self._log.values(self._session, [offset for offset in offsets if offset < first])
        for offset in offsets:
            if offset >= first:
                values[offset] = self._batch.values[bisect_left(self._batch.offsets, offset)] or b""
        return values
