"""The stored log: which statements are asked, what becomes of their answers, and what is raised where none come."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from audit.verifier import stored_log
from audit.verifier.chain_range import Chain, ChainFault, UnjudgedEntries
from audit.verifier.chains import read_heads
from audit.verifier.decoded_columns import Layout, Layouts
from audit.verifier.errors import LogUnreadable, LogViewsAltered
from audit.verifier.heads import Head
from audit.verifier.log_tables import LogTable, Misplaced
from audit.verifier.stored_log import RangeVerdict, StoredLog, StoredRange, open_log
from database.address import connect_arguments
from database.errors import DatabaseUnreachable


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://u:secret@127.0.0.1:1/d", "127.0.0.1:1/d as u"),
        ("postgresql://u:secret@127.0.0.1:1,127.0.0.1:1/d", "127.0.0.1:1,127.0.0.1:1/d as u"),
    ],
    ids=["one server", "several"],
)
def test_an_unreachable_log_is_no_verdict(address: str, shown: str) -> None:
    """The error names the address without its password, and no form of the address hides that nothing answers."""
    with pytest.raises(DatabaseUnreachable) as caught:
        read_heads(address)
    assert caught.value.why == f"{shown}: nothing listens there."
    assert caught.value.exit_code == 4


CHAIN = Chain("t", 3)
IDS = [bytes([number]) * 16 for number in range(5)]


class Connection:
    """An asyncpg connection that gives these answers to these statements, and keeps what it is asked."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {getattr(stored_log, name): answer for name, answer in answers.items()}
        self.asked: list[tuple[Any, ...]] = []

    async def _answer(self, sql: str, *parameters: Any) -> Any:
        self.asked.append((sql, *parameters))
        answer = self.answers[sql]
        return answer(*parameters) if callable(answer) else answer

    fetch = fetchrow = fetchval = _answer

    async def execute(self, sql: str) -> None:
        self.asked.append((sql,))

    @asynccontextmanager
    async def transaction(self, **options: Any) -> AsyncIterator[None]:
        self.asked.append(("BEGIN", options))
        yield
        self.asked.append(("END",))

    async def copy_from_query(self, sql: str, *parameters: Any, output: Any, format: str) -> None:
        self.asked.append((sql, *parameters, format))
        for part in (b"one", b"two"):
            await output(part)


def table(partition: int, first: int, *ends: int, name: str = "log.t", of: Chain | None = None) -> LogTable:
    """A table of 64 offsets that holds records at these."""
    bounds = f"FOR VALUES FROM ('{first}') TO ('{first + 64}')"
    chain = of or Chain("t", partition)
    partition_bounds = f"FOR VALUES FROM ('t', {partition}) TO ('t', {partition + 1})"
    return LogTable(name, bounds, partition_bounds, ends=tuple((chain, end) for end in ends))


def stored_range(partition: int, first: int, last: int, name: str = "log.t") -> StoredRange:
    return StoredRange(chain=Chain("t", partition), table=name, first=first, last=last)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Callable[..., StoredLog]:
    """A function that makes a log of these tables, and of ranges that are misplaced."""

    def make(*tables: LogTable, misplaced: Sequence[Misplaced] = (), **answers: Any) -> StoredLog:
        connection = Connection(**answers)

        async def log_tables(asked: object) -> dict[int, LogTable]:
            assert asked is connection
            return dict(enumerate(tables))

        async def misplaced_ranges(asked: object, found: object) -> list[Misplaced]:
            assert (asked, found) == (connection, dict(enumerate(tables)))
            return list(misplaced)

        monkeypatch.setattr(stored_log, "log_tables", log_tables)
        monkeypatch.setattr(stored_log, "misplaced_ranges", misplaced_ranges)
        return StoredLog(connection)

    return make


async def test_ranges_are_those_of_tables_with_rows_in_order(tables: Callable[..., StoredLog]) -> None:
    """From their lowest to their highest offset, within the table's bounds; what lies elsewhere is a finding."""
    log = tables(
        table(4, 0, 7, 9, name="d"),
        table(3, 64, 127, 64, name="c"),
        table(3, 0, 5, name="b"),
        table(3, 128, name="empty"),
        LogTable("no chain", "FOR VALUES FROM ('0') TO ('64')", None),
        table(5, 64, 63, 70, name="early"),
        table(6, 64, 70, 128, name="late"),
        table(7, 64, 3, 5, name="elsewhere"),
        misplaced=[Misplaced(CHAIN, 2, "gone")],
    )
    ranges, findings = await log.ranges()
    assert ranges == [
        stored_range(3, 5, 5, "b"),
        stored_range(3, 64, 127, "c"),
        stored_range(4, 7, 9, "d"),
        stored_range(5, 64, 70, "early"),
        stored_range(6, 70, 127, "late"),
    ]
    other = "a record of this offset is in a table of other offsets, "
    assert findings == [
        fault(3, 2, "gone"),
        fault(5, 63, f"{other}early"),
        fault(6, 128, f"{other}late"),
        fault(7, 3, f"{other}elsewhere"),
        fault(7, 5, f"{other}elsewhere"),
    ]


def fault(partition: int, offset: int, problem: str, stored_hash: str | None = None) -> ChainFault:
    return ChainFault(topic="t", partition=partition, offset=offset, problem=problem, stored_hash=stored_hash)


async def test_each_chain_has_one_head_read_in_one_snapshot(tables: Callable[..., StoredLog]) -> None:
    """However many ranges it has; a chain whose rows went meanwhile has none, and the next one has."""
    rows = {3: (64, b"\x0a\x0b"), 4: None, 5: (2, b"\xff")}
    log = tables(table(3, 64, 64), table(5, 0, 2), table(3, 0, 1), table(4, 0, 1), _LAST=lambda topic, at: rows[at])
    connection = log._connection
    assert await log.heads() == [
        Head(topic="t", partition=3, offset=64, hash="0a0b"),
        Head(topic="t", partition=5, offset=2, hash="ff"),
    ]
    assert connection.asked == [
        ("BEGIN", {"isolation": "repeatable_read", "readonly": True}),
        *((stored_log._LAST, "t", partition) for partition in (3, 4, 5)),
        ("END",),
    ]


RAISES = Layout("plant.chain.version_raised", None, control=True)
OTHER = Layout("plant.record.skipped", None, control=True)


@pytest.mark.parametrize(
    ("rows", "first", "findings"),
    [
        ([("t", 3, b"R", 9, None), ("t", 3, b"R", 5, None), ("t", 4, b"R", 7, None)], {3: 5, 4: 7}, []),
        ([("t", 3, b"O", 5, None), ("t", 3, b"R", 6, None)], {3: 6}, []),
        ([("t", 3, b"O", 5, 8)], {}, []),
        ([("t", 3, b"R", 5, None), ("t", 3, b"R", 6, 11), ("t", 4, b"R", 7, 12)], {3: 5, 4: 7}, [(3, 11), (4, 12)]),
        ([("t", 3, b"?", 5, None), ("t", 3, b"R", 6, None)], {3: 5}, []),
        ([("t", 3, b"?", 4, None), ("t", 3, b"?", 5, None), ("t", 3, b"?", 6, None)], {3: 5}, []),
        ([("t", 3, b"?", 2, None), ("t", 3, b"R", 6, None)], {3: 6}, []),
        ([("t", 3, b"?", 5, 7)], {3: 5}, []),
    ],
    ids=["the first", "of another type", "another names one", "names one", "unknown", "unknown, v1", "gone", "no type"],
)
async def test_a_chain_is_raised_by_its_first_control_record_of_that_type(
    monkeypatch: pytest.MonkeyPatch, rows: list[Any], first: dict[int, int], findings: list[tuple[int, int]]
) -> None:
    """By its offset, whatever order rows come in. One whose schema is not known raises it where its hash is of v2."""
    verified: list[tuple[Any, ...]] = []
    layouts = {b"R": RAISES, b"O": OTHER}

    def table_of(_topic: str, _partition: int, offset: int) -> str | None:
        return None if offset == 2 else f"table of {offset}"

    async def verify(_: object, *arguments: Any, first_v2: int) -> RangeVerdict:
        verified.append((*arguments, first_v2))
        chain, name, start, stop, _ = arguments
        assert (name, start, stop) == (f"table of {first_v2}", first_v2, first_v2)
        finding = None if start == 5 else fault(3, start, "bad")
        return verdict_of(chain, start, stop, finding)

    monkeypatch.setattr(StoredLog, "verify", verify)
    log = StoredLog(Connection(_RAISED=rows, _TABLE_OF=table_of, _HASH_AT=lambda *place: bytes([place[2]])))
    found, faults = await log.raised(layouts)
    assert found == {Chain("t", partition): offset for partition, offset in first.items()}
    problem = "control_offset is set, but a control record of its type names no record"
    assert faults == [fault(partition, offset, problem, f"{offset:02x}") for partition, offset in findings]
    assert all(arguments[4] is layouts for arguments in verified)


def verdict_of(chain: Chain, first: int, last: int, finding: ChainFault | None) -> RangeVerdict:
    return RangeVerdict(
        chain=chain, first=first, last=last, entries=0, head_offset=None, head_hash="", finding=finding, unjudged=None
    )


class Verifier:
    """A verifier of a range whose bytes say what it has found."""

    made: tuple[Any, ...] = ()
    finding: ChainFault | None = None

    def __init__(self, *arguments: Any) -> None:
        type(self).made = arguments
        self.fed: list[bytes] = []
        self.entries, self.head_offset, self.head_hash = 0, None, b"\x0a"
        self.repeats: list[tuple[int, bytes]] = []
        self.unjudged = UnjudgedEntries(entries=1, first_offset=6, schema_ids=(9,))

    def feed(self, data: bytes) -> None:
        self.fed.append(data)

    def finish(self) -> None:
        assert self.fed == [b"one", b"two"]
        self.entries, self.head_offset, self.repeats = 2, 8, [(7, IDS[0])]


@pytest.mark.parametrize("before", [None, b"before"])
@pytest.mark.parametrize(
    ("own", "unfounded", "expected"),
    [(None, None, None), (6, None, 6), (None, 7, 7), (6, 7, 6), (8, 7, 7), (7, 7, 7)],
    ids=["good", "bad entry", "repeat of nothing", "bad entry first", "repeat first", "the entry's own comes first"],
)
async def test_a_range_is_verified_in_one_snapshot(
    monkeypatch: pytest.MonkeyPatch, before: bytes | None, own: int | None, unfounded: int | None, expected: int | None
) -> None:
    """From the hash before it, every row of its table, and the verdict is the earliest of what is wrong."""
    asked: list[tuple[Chain, list[tuple[int, bytes]]]] = []

    async def find(_: object, chain: Chain, repeats: list[tuple[int, bytes]]) -> ChainFault | None:
        asked.append((chain, list(repeats)))
        return None if unfounded is None else fault(3, unfounded, "repeat")

    monkeypatch.setattr(stored_log, "RangeVerifier", Verifier)
    monkeypatch.setattr(Verifier, "finding", None if own is None else fault(3, own, "own"))
    monkeypatch.setattr(StoredLog, "_unfounded", find)
    connection = Connection(_HASH_BEFORE=before)
    layouts: Layouts = {b"R": RAISES}
    verdict = await StoredLog(connection).verify(CHAIN, "log.t", 5, 9, layouts, first_v2=7)
    problem = {own: "own"}.get(expected, "repeat")
    assert verdict == RangeVerdict(
        chain=CHAIN, first=5, last=9, entries=2, head_offset=8, head_hash="0a",
        finding=None if expected is None else fault(3, expected, problem),
        unjudged=UnjudgedEntries(entries=1, first_offset=6, schema_ids=(9,)),
    )  # fmt: skip
    assert Verifier.made == (CHAIN, before or bytes(32), layouts, 7)
    assert asked == [(CHAIN, [(7, IDS[0])])]
    assert connection.asked == [
        ("BEGIN", {"isolation": "repeatable_read", "readonly": True}),
        (stored_log._HASH_BEFORE, "t", 3, 5),
        (stored_log._ROWS.format(table="log.t"), "t", 3, 5, 9, "binary"),
        ("END",),
    ]


REPEATS = [(5, IDS[0]), (7, IDS[1]), (9, IDS[2])]
BY_ID = {offset: UUID(bytes=event_id) for offset, event_id in REPEATS}


@pytest.mark.parametrize(
    ("in_closed", "brought_in", "in_open", "asked_in_open", "expected"),
    [
        ([], {}, None, None, None),
        ([7], {7: 6}, None, None, None),
        ([7], {7: 7}, 7, [7], 7),
        ([7], {7: 8}, None, [7], None),
        ([5, 9], {9: 2}, 5, [5], 5),
        ([9, 5], {}, 9, [9, 5], 9),
    ],
    ids=["in closed ranges", "brought in", "itself", "brought in later", "one of two", "none"],
)
async def test_a_repeat_is_founded_by_an_earlier_record_of_its_id(
    in_closed: list[int], brought_in: dict[int, int], in_open: int | None, asked_in_open: list[int] | None,
    expected: int | None,
) -> None:  # fmt: skip
    """In a closed range, or by a control record before it, or in the open range, which is read once for all."""
    left = [(offset, BY_ID[offset]) for offset in in_closed]
    connection = Connection(
        _OPEN_FROM=4,
        _UNFOUNDED_IN_CLOSED=left,
        _BROUGHT_IN=[(BY_ID[offset], at) for offset, at in brought_in.items()],
        _FIRST_UNFOUNDED_IN_OPEN=in_open,
        _HASH_AT=b"\x0a",
    )
    found = await StoredLog(connection)._unfounded(CHAIN, REPEATS)
    problem = "disposition is repeat, but no earlier record with its event id was applied"
    assert found == (None if expected is None else fault(3, expected, problem, "0a"))
    place, offsets, ids = ("t", 3), tuple(BY_ID), tuple(BY_ID.values())
    steps: list[tuple[Any, ...]] = [
        (stored_log._OPEN_FROM, *place),
        (stored_log._UNFOUNDED_IN_CLOSED, *place, offsets, ids, 4),
    ]
    if left:
        steps.append((stored_log._BROUGHT_IN, *place, [event_id for _, event_id in left]))
    if asked_in_open is not None:
        some = tuple(asked_in_open), tuple(BY_ID[offset] for offset in asked_in_open)
        steps += [(stored_log._SCAN_ONCE,), (stored_log._FIRST_UNFOUNDED_IN_OPEN, *place, *some, 4, max(asked_in_open))]
    if expected is not None:
        steps.append((stored_log._HASH_AT, *place, expected))
    assert connection.asked == steps


async def test_a_range_without_repeats_asks_for_none() -> None:
    """It costs nothing."""
    connection = Connection()
    assert (await StoredLog(connection)._unfounded(CHAIN, []), connection.asked) == (None, [])


async def test_views_that_hide_rows_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, and with none there is no error."""
    names: list[str] = []

    async def altered(_: object) -> list[str]:
        return names

    monkeypatch.setattr(stored_log, "altered_views", altered)
    log = StoredLog(Connection())
    await log.require_views()
    names += ["public.a", "public.b"]
    with pytest.raises(LogViewsAltered) as altered_log:
        await log.require_views()
    error = altered_log.value
    assert error.what == "Readers may see another log than the one that is stored: public.a, public.b."
    assert error.why.startswith("Each was replaced, is missing, or has policies on its rows")
    assert error.next_step == "compare it with database/migrations/versions/020_log_names.py, then verify again"


async def test_a_connection_to_the_log_is_guarded_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is set for the role, and however the block ends; a statement may take as long as it needs."""
    connected: list[dict[str, Any]] = []
    closed: list[float] = []

    class Closing:
        async def close(self, *, timeout: float) -> None:
            closed.append(timeout)

    async def connect(**arguments: Any) -> Closing:
        connected.append(arguments)
        return Closing()

    monkeypatch.setattr(stored_log.asyncpg, "connect", connect)
    url = "postgresql://u:secret@127.0.0.1:1/d"
    with contextlib.suppress(KeyError):
        async with open_log(url) as log:
            assert isinstance(log, StoredLog)
            raise KeyError
    (arguments,) = connected
    settings = {**stored_log.PLANNER, **stored_log.GUARDS}
    expected = connect_arguments(url, application_name="plant audit", answer_timeout_seconds=None, **settings)
    assert arguments == {**expected, "timeout": 10}
    assert arguments["server_settings"].items() >= settings.items()
    assert closed == [10]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (asyncpg.UndefinedTableError("log_records is not there"), LogUnreadable),
        (asyncpg.InsufficientPrivilegeError("no right to log_records"), LogUnreadable),
        (ConnectionRefusedError(), DatabaseUnreachable),
        (KeyError("k"), KeyError),
    ],
)
async def test_errors_inside_the_block_are_named(
    monkeypatch: pytest.MonkeyPatch, error: Exception, raised: type[Exception]
) -> None:
    """What the database says of the log, or that it is not there; a defect stays what it is."""

    async def connect(**_: Any) -> Any:
        raise error

    monkeypatch.setattr(stored_log.asyncpg, "connect", connect)
    with pytest.raises(raised) as caught:
        async with open_log("postgresql://u:secret@h/d"):
            pass
    if isinstance(caught.value, LogUnreadable):
        assert (caught.value.why, caught.value.next_step) == (f"{error}.", "plant db upgrade")
    if isinstance(caught.value, DatabaseUnreachable):
        assert "h:5432/d as u" in caught.value.why
