"""Verifies whole chains: cuts them into ranges, verifies the ranges in parallel, and puts the verdicts together.

Each range starts from the stored hash of the entry before it, so ranges can be checked in any order and their verdicts
together cover every link. Everything here blocks; call it from a thread where there is an event loop.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from audit.verifier.chain_range import Chain, ChainFault
from audit.verifier.decoded_columns import Layouts, id_offsets
from audit.verifier.heads import Head
from audit.verifier.stored_log import RangeVerdict, StoredLog, StoredRange, open_log
from audit.verifier.verdicts import ChainFilter, ChainVerdict, together

RANGE_OFFSETS: Final = 1 << 17
"""Few enough for memory; for each range with repeats the open range of the log is read once."""

_RANGES_MAX: Final = 500
"""What a table holds is cut into at most this many ranges, whatever its gaps."""

OFFSETS_A_PROCESS: Final = 500_000
"""Another process is started for so many offsets: for fewer its start takes longer than it saves (measured)."""

_RANGES_AT_ONCE: Final = 8
"""So many ranges share a connection, and come back together."""


class ChainRange(NamedTuple):
    """A range of one chain, in one table; both offsets are included."""

    chain: Chain
    table: str
    first: int
    last: int
    first_v2: int | None
    """Where the whole chain goes over to v2; None: it does not."""


ReportProgress = Callable[[int, int], None]
"""Called now and then with the share of offsets that is done since last time, and the entries among them."""


def verify_chains(
    url: str,
    *,
    chains: Sequence[Chain] | None = None,
    topic: str | None = None,
    partition: int | None = None,
    first: int | None = None,
    last: int | None = None,
    jobs: int | None = None,
    expect: Sequence[Head] = (),
    schema_ids: Path | None = None,
    planned: Callable[[int], None] = lambda offsets: None,
    progress: ReportProgress = lambda offsets, entries: None,
) -> list[ChainVerdict]:
    """Check chains entry by entry; a verdict each, sorted.

    `chains`, `topic` and `partition` choose chains (all of them by default; one that is named and has no entry gets
    a verdict of 0 entries), `first` and `last` offsets, both included. What is appended meanwhile is left for next
    time. `expect` holds heads kept from before: an entry that is gone or has another hash now is a finding.
    `schema_ids` is the ids file of an external registry. `jobs` are the processes to use: by default as many as there
    are cores, and fewer for a log that is soon done. `planned` is called once with the number of offsets to check.

    A verdict may have checked nothing: `verdicts.raise_unless_good` has the last word. Raises DatabaseUnreachable,
    LogUnreadable, LogViewsAltered and BadIdsFile.
    """
    chosen = ChainFilter(chains=chains, topic=topic, partition=partition, first=first, last=last).includes
    layouts = id_offsets(schema_ids)  # Raises before anything is read.
    kept = [head for head in expect if chosen(head.chain)]
    stored, raised, broken = asyncio.run(_read_ranges(url, kept, layouts))
    stored = [each for each in stored if chosen(each.chain)]
    ranges = [part for each in stored for part in _cut(each, first, last, raised.get(each.chain))]
    offsets = sum(part.last - part.first + 1 for part in ranges)
    planned(offsets)
    verdicts = []
    with _verdicts(url, ranges, jobs or default_jobs(offsets, os.cpu_count() or 1), schema_ids) as each_verdict:
        for verdict in each_verdict:
            verdicts.append(verdict)
            progress(verdict.last - verdict.first + 1, verdict.entries)
    named = {head.chain for head in kept} | set(chains or ())
    every = {each.chain for each in stored} | named | {Chain(each.topic, each.partition) for each in broken}
    return [together(chain, verdicts, broken) for chain in sorted(every) if chosen(chain)]


def default_jobs(offsets: int, cores: int) -> int:
    """Return how many processes check so many offsets the soonest.

    >>> [default_jobs(offsets, 8) for offsets in (0, 999_999, 1_000_000, 10**9)]
    [1, 1, 2, 8]
    """
    return max(1, min(cores, offsets // OFFSETS_A_PROCESS))


def read_heads(url: str) -> list[Head]:
    """Read the stored head of every chain, sorted; nothing is checked."""

    async def read() -> list[Head]:
        async with open_log(url) as log:
            return await log.heads()

    return asyncio.run(read())


def read_raised(url: str, schema_ids: Path | None = None) -> dict[Chain, int]:
    """Read where each chain went over to v2: the offset of its first v2 entry. Chains on v1 are left out."""

    async def read() -> dict[Chain, int]:
        async with open_log(url) as log:
            return (await log.raised(id_offsets(schema_ids)))[0]

    return asyncio.run(read())


async def _read_ranges(
    url: str, kept: Sequence[Head], layouts: Layouts
) -> tuple[list[StoredRange], dict[Chain, int], list[ChainFault]]:
    """Return each table's range, where chains go over to v2, and findings: of that, of kept heads and of tables."""
    async with open_log(url) as log:
        await log.require_views()
        findings = [finding for head in kept if (finding := await _compare_head(log, head)) is not None]
        ranges, misplaced = await log.ranges()
        raised, broken = await log.raised(layouts)
        return ranges, raised, [*findings, *broken, *misplaced]


async def _compare_head(log: StoredLog, head: Head) -> ChainFault | None:
    stored = await log.hash_at(head.chain, head.offset)
    if stored is not None and stored.hex() == head.hash:
        return None
    problem = "the entry of a kept head is gone" if stored is None else "a kept head has another hash for this entry"
    return ChainFault(
        topic=head.topic,
        partition=head.partition,
        offset=head.offset,
        problem=f"{problem} ({head.hash}): the chain was cut or rewritten since",
        stored_hash=stored.hex() if stored is not None else None,
    )


def _cut(stored: StoredRange, first: int | None, last: int | None, first_v2: int | None) -> Iterator[ChainRange]:
    low = stored.first if first is None else max(stored.first, first)
    high = stored.last if last is None else min(stored.last, last)
    step = max(RANGE_OFFSETS, (high - low) // _RANGES_MAX + 1)
    for start in range(low, high + 1, step):
        yield ChainRange(stored.chain, stored.table, start, min(start + step - 1, high), first_v2)


@contextmanager
def _verdicts(
    url: str, ranges: Sequence[ChainRange], jobs: int, schema_ids: Path | None
) -> Iterator[Iterator[RangeVerdict]]:
    """Give the verdicts of the ranges as they come, from this process or from several."""
    size = min(_RANGES_AT_ONCE, len(ranges) // (jobs * 4) + 1)
    groups = [ranges[start : start + size] for start in range(0, len(ranges), size)]
    jobs = min(jobs, len(groups))
    if jobs <= 1:
        yield (verdict for group in groups for verdict in verify_ranges(url, group, schema_ids))
        return
    # Spawned, not forked: this process may have threads, and a fork would copy their locks.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_leave_interrupts_to_parent)
    try:
        checks = [pool.submit(verify_ranges, url, group, schema_ids) for group in groups]
        yield (verdict for done in as_completed(checks) for verdict in done.result())
    finally:
        pool.shutdown(cancel_futures=True)


def verify_ranges(url: str, ranges: Sequence[ChainRange], schema_ids: Path | None = None) -> list[RangeVerdict]:
    """Verify ranges one after another over one connection."""
    layouts = id_offsets(schema_ids)

    async def work() -> list[RangeVerdict]:
        async with open_log(url) as log:
            return [
                await log.verify(each.chain, each.table, each.first, each.last, layouts, first_v2=each.first_v2)
                for each in ranges
            ]

    return asyncio.run(work())


def _leave_interrupts_to_parent() -> None:
    """Ignore Ctrl-C, which reaches every process of a terminal: the parent cancels what waits and awaits the rest."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
