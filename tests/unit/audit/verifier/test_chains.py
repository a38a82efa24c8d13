"""Whole chains: how ranges are cut and shared out, what is compared with kept heads, and the verdicts together."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from audit.verifier import chains
from audit.verifier.chain_range import Chain, ChainFault
from audit.verifier.chains import ChainRange, read_heads, read_raised, verify_chains
from audit.verifier.decoded_columns import Layouts
from audit.verifier.heads import Head
from audit.verifier.stored_log import RangeVerdict, StoredRange
from audit.verifier.verdicts import ChainVerdict

URL = "postgresql://u@h/d"
CHAIN = Chain("t", 3)
LAYOUTS: Layouts = {}
Bounds = tuple[int, int]


def stored(partition: int, first: int, last: int) -> StoredRange:
    return StoredRange(chain=Chain("t", partition), table=f"log.t{first}", first=first, last=last)


def fault(partition: int, offset: int, problem: str, stored_hash: str | None = None) -> ChainFault:
    return ChainFault(topic="t", partition=partition, offset=offset, problem=problem, stored_hash=stored_hash)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (None, None, [(3, 7), (8, 12), (13, 14)]),
        (3, 14, [(3, 7), (8, 12), (13, 14)]),
        (2, 15, [(3, 7), (8, 12), (13, 14)]),
        (4, 13, [(4, 8), (9, 13)]),
        (9, None, [(9, 13), (14, 14)]),
        (10, None, [(10, 14)]),
        (None, 7, [(3, 7)]),
        (None, 8, [(3, 7), (8, 8)]),
        (14, None, [(14, 14)]),
        (None, 3, [(3, 3)]),
        (15, None, []),
        (None, 2, []),
        (0, 0, []),
    ],
)
def test_ranges_cover_what_was_named_without_overlap(
    monkeypatch: pytest.MonkeyPatch, first: int | None, last: int | None, expected: list[Bounds]
) -> None:
    """Offsets 3 to 14 in pieces of five, both ends included."""
    monkeypatch.setattr(chains, "RANGE_OFFSETS", 5)
    made = list(chains._cut(stored(3, 3, 14), first, last, 9))
    assert made == [ChainRange(CHAIN, "log.t3", start, stop, 9) for start, stop in expected]


@pytest.mark.parametrize(
    ("last", "expected"),
    [(9, [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]), (10, [(0, 2), (3, 5), (6, 8), (9, 10)]), (14, [(0, 2), (3, 5)])],
)
def test_a_wide_table_is_cut_into_so_many_ranges_at_most(
    monkeypatch: pytest.MonkeyPatch, last: int, expected: list[Bounds]
) -> None:
    """Whatever its gaps; up to that number ranges have their usual size."""
    monkeypatch.setattr(chains, "RANGE_OFFSETS", 2)
    monkeypatch.setattr(chains, "_RANGES_MAX", 5)
    made = [(each.first, each.last) for each in chains._cut(stored(3, 0, last), None, None, None)]
    assert (made[: len(expected)], len(made) <= 5, made[-1][1]) == (expected, True, last)


def verdict(part: ChainRange, finding: ChainFault | None = None) -> RangeVerdict:
    return RangeVerdict(
        chain=part.chain, first=part.first, last=part.last, entries=2, head_offset=part.last, head_hash="0a",
        finding=finding, unjudged=None,
    )  # fmt: skip


def ranges_of(count: int) -> list[ChainRange]:
    return [ChainRange(CHAIN, "log.t0", number * 10, number * 10 + 9, None) for number in range(count)]


@pytest.mark.parametrize(
    ("count", "jobs", "sizes", "processes"),
    [
        (0, 1, [], None),
        (1, 1, [1], None),
        (1, 4, [1], None),
        (3, 1, [1, 1, 1], None),
        (4, 1, [2, 2], None),
        (40, 1, [8] * 5, None),
        (2, 4, [1, 1], 2),
        (7, 2, [1] * 7, 2),
        (8, 2, [2] * 4, 2),
        (9, 2, [2, 2, 2, 2, 1], 2),
        (100, 2, [8] * 12 + [4], 2),
    ],
)
def test_ranges_are_shared_out_in_groups(
    monkeypatch: pytest.MonkeyPatch, count: int, jobs: int, sizes: list[int], processes: int | None
) -> None:
    """Four groups or more a process, of eight ranges at most; by this process where one would do all of them."""
    pools: list[Pool] = []
    groups: list[int] = []

    class Pool:
        def __init__(self, workers: int, *, mp_context: Any, initializer: Callable[[], None]) -> None:
            pools.append(self)
            self.workers, self.stopped = workers, False
            assert mp_context.get_start_method() == "spawn"
            assert initializer is chains._leave_interrupts_to_parent

        def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
            done: Future[Any] = Future()
            done.set_result(function(*arguments))
            return done

        def shutdown(self, *, cancel_futures: bool) -> None:
            self.stopped = cancel_futures

    def verify(url: str, group: Sequence[ChainRange], schema_ids: Path | None) -> list[RangeVerdict]:
        assert (url, schema_ids) == (URL, Path("ids"))
        groups.append(len(group))
        return [verdict(part) for part in group]

    monkeypatch.setattr(chains, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(chains, "verify_ranges", verify)
    ranges = ranges_of(count)
    with chains._verdicts(URL, ranges, jobs, Path("ids")) as given:
        found = list(given)
    assert sorted(found, key=lambda each: each.first) == [verdict(part) for part in ranges]
    assert groups == sizes
    assert [pool.workers for pool in pools] == ([] if processes is None else [processes])
    assert all(pool.stopped for pool in pools)


class Log:
    """A log that holds these ranges and hashes, and keeps what it is asked."""

    def __init__(self, ranges: Sequence[StoredRange] = (), raised: dict[Chain, int] | None = None) -> None:
        self.stored, self.first_v2 = list(ranges), raised or {}
        self.misplaced: list[ChainFault] = []
        self.unnamed: list[ChainFault] = []
        self.hashes: dict[tuple[Chain, int], bytes] = {}
        self.kept: list[Head] = []
        self.done: list[Any] = []

    async def require_views(self) -> None:
        self.done.append("views")

    async def ranges(self) -> tuple[list[StoredRange], list[ChainFault]]:
        return self.stored, self.misplaced

    async def raised(self, layouts: Layouts) -> tuple[dict[Chain, int], list[ChainFault]]:
        assert layouts is LAYOUTS
        return self.first_v2, self.unnamed

    async def hash_at(self, chain: Chain, offset: int) -> bytes | None:
        return self.hashes.get((chain, offset))

    async def heads(self) -> list[Head]:
        return self.kept

    async def verify(
        self, chain: Chain, table: str, first: int, last: int, layouts: Layouts, *, first_v2: int | None
    ) -> RangeVerdict:
        assert layouts is LAYOUTS
        part = ChainRange(chain, table, first, last, first_v2)
        self.done.append(part)
        return verdict(part)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """A log behind URL, of two chains; its schemas are those of the file `ids`."""
    made = Log([stored(3, 0, 6), stored(3, 8, 9), stored(4, 1, 2)], {CHAIN: 5})

    @asynccontextmanager
    async def open_log(url: str) -> AsyncIterator[Log]:
        assert url == URL
        yield made

    def id_offsets(schema_ids: Path | None) -> Layouts:
        assert schema_ids == Path("ids")
        return LAYOUTS

    monkeypatch.setattr(chains, "open_log", open_log)
    monkeypatch.setattr(chains, "id_offsets", id_offsets)
    monkeypatch.setattr(chains, "RANGE_OFFSETS", 5)
    return made


def verified(**choice: Any) -> list[ChainVerdict]:
    return verify_chains(URL, jobs=1, schema_ids=Path("ids"), **choice)


def good(partition: int, entries: int, head_offset: int) -> ChainVerdict:
    return ChainVerdict(topic="t", partition=partition, entries=entries, head_offset=head_offset, head_hash="0a")


def parts(partition: int, first_v2: int | None, *bounds: tuple[int, int, int]) -> list[ChainRange]:
    return [ChainRange(Chain("t", partition), f"log.t{table}", first, last, first_v2) for table, first, last in bounds]


OF_3 = parts(3, 5, (0, 0, 4), (0, 5, 6), (8, 8, 9))
OF_4 = parts(4, None, (1, 1, 2))


def test_every_chain_is_verified_range_by_range(log: Log) -> None:
    """With where it goes over to v2; the plan and the progress count offsets, the verdict entries."""
    planned: list[int] = []
    progress: list[Bounds] = []
    verdicts = verified(planned=planned.append, progress=lambda *done: progress.append(done))
    assert verdicts == [good(3, 6, 9), good(4, 2, 2)]
    assert log.done == ["views", *OF_3, *OF_4]
    assert (planned, progress) == ([11], [(5, 2), (2, 2), (2, 2), (2, 2)])


@pytest.mark.parametrize(
    ("choice", "verdicts", "ranges"),
    [
        ({"partition": 4}, [good(4, 2, 2)], OF_4),
        ({"topic": "u"}, [], []),
        ({"chains": [CHAIN]}, [good(3, 6, 9)], OF_3),
        ({"first": 6, "last": 8}, [good(3, 4, 8), ChainVerdict(topic="t", partition=4, entries=0)],
         parts(3, 5, (0, 6, 6), (8, 8, 8))),
        ({"chains": [Chain("t", 5)]}, [ChainVerdict(topic="t", partition=5, entries=0)], []),
        ({"chains": [Chain("t", 5)], "partition": 4}, [], []),
    ],
    ids=["partition", "topic", "chain", "offsets", "one that is not there", "one that is left out"],
)  # fmt: skip
def test_what_is_named_is_verified(
    log: Log, choice: dict[str, Any], verdicts: list[ChainVerdict], ranges: list[ChainRange]
) -> None:
    """A chain that is named has a verdict, and others have none."""
    assert (verified(**choice), log.done) == (verdicts, ["views", *ranges])


def head(partition: int, offset: int, text: str) -> Head:
    return Head(topic="t", partition=partition, offset=offset, hash=text)


def test_kept_heads_are_compared_and_tables_too(log: Log) -> None:
    """Each head of a chain that is chosen, also of one that has no entry left; the earliest finding is the verdict."""
    log.hashes = {(CHAIN, 6): b"\x06", (CHAIN, 9): b"\x09", (Chain("t", 4), 2): b"\x02"}
    heads = [head(3, 6, "06"), head(3, 9, "0a"), head(4, 2, "02"), head(5, 7, "07")]
    since = "the chain was cut or rewritten since"
    rewritten = fault(3, 9, f"a kept head has another hash for this entry (0a): {since}", "09")
    gone = fault(5, 7, f"the entry of a kept head is gone (07): {since}")
    three, four, five = verified(expect=heads)
    assert (three.finding, four.finding, five.finding, five.entries) == (rewritten, None, gone, 0)
    assert [each.partition for each in verified(expect=heads, partition=4)] == [4]
    log.unnamed, log.misplaced = [fault(3, 8, "names none")], [fault(4, 1, "elsewhere"), fault(6, 0, "detached")]
    three, four, five, six = verified(expect=heads)
    assert (three.finding, four.finding, five.finding, six.finding) == (
        log.unnamed[0], log.misplaced[0], gone, log.misplaced[1],
    )  # fmt: skip


def test_heads_and_switches_are_read_as_they_are_stored(log: Log) -> None:
    """Nothing is checked."""
    log.kept = [head(3, 9, "0a")]
    assert read_heads(URL) == log.kept
    assert read_raised(URL, Path("ids")) == {CHAIN: 5}
    assert log.done == []


def test_ranges_are_verified_over_one_connection(log: Log) -> None:
    """In their order."""
    found = chains.verify_ranges(URL, [*OF_4, *OF_3], Path("ids"))
    assert (found, log.done) == ([verdict(part) for part in (*OF_4, *OF_3)], [*OF_4, *OF_3])


@pytest.mark.parametrize(("jobs", "cores", "expected"), [(3, 8, 3), (None, 2, 2), (None, None, 1), (None, 8, 5)])
def test_processes_are_those_that_were_asked_for_or_what_the_log_needs(
    log: Log, monkeypatch: pytest.MonkeyPatch, jobs: int | None, cores: int | None, expected: int
) -> None:
    """Two offsets a process here, up to one for each core; one where the number of cores is not known."""
    used: list[int] = []
    shared = chains._verdicts

    def verdicts(url: str, ranges: Sequence[ChainRange], jobs: int, schema_ids: Path | None) -> Any:
        used.append(jobs)
        return shared(url, ranges, 1, schema_ids)

    monkeypatch.setattr(chains, "_verdicts", verdicts)
    monkeypatch.setattr(chains, "OFFSETS_A_PROCESS", 2)
    monkeypatch.setattr(chains.os, "cpu_count", lambda: cores)
    verify_chains(URL, jobs=jobs, schema_ids=Path("ids"))
    assert used == [expected]


def test_a_process_that_helps_leaves_interrupts_to_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent awaits what is under way."""
    handlers: list[tuple[object, object]] = []
    monkeypatch.setattr(chains.signal, "signal", lambda *handler: handlers.append(handler))
    chains._leave_interrupts_to_parent()
    assert handlers == [(signal.SIGINT, signal.SIG_IGN)]
