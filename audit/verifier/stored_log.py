"""Reads the stored log for the verifier: which chains there are, where they end, and their rows in order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from audit.verifier.chain_range import CHAIN_START, Chain, ChainFault, RangeVerifier, UnjudgedEntries
from audit.verifier.decoded_columns import Layouts
from audit.verifier.errors import LogUnreadable
from audit.verifier.heads import Head
from database.address import connect_arguments, shown

CONNECT_TIMEOUT_SECONDS: Final = 10
_REPEATS_AT_ONCE: Final = 5_000

# Rows are wanted in the order of the primary keys: merging two index scans needs no sort and no memory.
PLANNER: Final = {
    "enable_hashjoin": "off",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
}

# Postgres may believe that a table which nobody has analysed holds one row, and compare each entry with each other one.
_MERGE_ONLY: Final = "SET LOCAL enable_nestloop = off"
_LOOK_UP: Final = "SET LOCAL enable_nestloop = on"

_RANGES: Final = (Path(__file__).parent / "ranges.sql").read_text(encoding="utf-8")
_ROWS: Final = (Path(__file__).parent / "rows.sql").read_text(encoding="utf-8")

_ENTRIES: Final = """
SELECT count(*) FROM audit_log WHERE topic = $1 AND partition = $2 AND "offset" BETWEEN $3 AND $4
"""

_FIRST_ORPHAN: Final = """
SELECT a."offset", a.hash FROM audit_log AS a
WHERE a.topic = $1 AND a.partition = $2 AND a."offset" BETWEEN $3 AND $4 AND NOT EXISTS
    (SELECT FROM event_stream AS s WHERE s.topic = $1 AND s.partition = $2 AND s."offset" = a."offset")
ORDER BY a."offset" LIMIT 1
"""

_HASH_BEFORE: Final = """
SELECT hash FROM audit_log WHERE topic = $1 AND partition = $2 AND "offset" < $3 ORDER BY "offset" DESC LIMIT 1
"""

# LIMIT keeps this a look-up in the index of applied ids for each repeat, whatever Postgres believes about the table.
_FIRST_UNFOUNDED_REPEAT: Final = """
SELECT r."offset" FROM unnest($3::bigint[], $4::uuid[]) AS r ("offset", event_id)
LEFT JOIN LATERAL (SELECT e."offset" FROM event_stream AS e WHERE e.event_id = r.event_id AND e.topic = $1
                   AND e.partition = $2 AND e.disposition = 'applied' LIMIT 1) AS first ON first."offset" < r."offset"
WHERE first."offset" IS NULL
ORDER BY 1 LIMIT 1
"""

_LAST: Final = """
SELECT "offset", hash FROM audit_log WHERE topic = $1 AND partition = $2 ORDER BY "offset" DESC LIMIT 1
"""

_HASH_AT: Final = 'SELECT hash FROM audit_log WHERE topic = $1 AND partition = $2 AND "offset" = $3'


_RAISED: Final = """
SELECT topic, partition, min("offset") FROM event_stream
WHERE disposition = 'control' AND key IS NULL
  AND octet_length(value) = 22 AND substr(value, 1, 5) = ANY ($1::bytea[]) AND get_byte(value, 21) = 4
GROUP BY 1, 2
"""


class StoredRange(msgspec.Struct, frozen=True, kw_only=True):
    """The range of a whole chain: the lowest and the highest offset in either table."""

    chain: Chain
    first: int
    last: int


class RangeVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict on one range: the good entries up to its end, or to the first bad one."""

    chain: Chain
    first: int
    last: int
    entries: int
    head_offset: int | None
    head_hash: str
    finding: ChainFault | None
    unjudged: UnjudgedEntries | None


class StoredLog:
    """The log on one connection. Make it with :func:`open_log`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def ranges(self) -> list[StoredRange]:
        """Return the range of every chain that has a row in either table, sorted."""
        rows = await self._connection.fetch(_RANGES)
        return [
            StoredRange(chain=Chain(topic, partition), first=first, last=last) for topic, partition, first, last in rows
        ]

    async def heads(self) -> list[Head]:
        """Return the head of every chain, sorted."""
        heads = []
        async with self._connection.transaction(isolation="repeatable_read", readonly=True):
            for stored in await self.ranges():
                topic, partition = stored.chain.topic, stored.chain.partition
                row = await self._connection.fetchrow(_LAST, topic, partition)
                if row is not None:
                    heads.append(Head(topic=topic, partition=partition, offset=row[0], hash=row[1].hex()))
        return heads

    async def raised(self, prefixes: Collection[bytes]) -> dict[Chain, int]:
        """Return the offset of each chain's first v2 entry: the first control record whose bytes raise the version.

        `prefixes` are the first five bytes of such a record's value, with every schema id that it may have.
        """
        rows = await self._connection.fetch(_RAISED, list(prefixes))
        return {Chain(topic, partition): offset for topic, partition, offset in rows}

    async def hash_at(self, chain: Chain, offset: int) -> bytes | None:
        """Return the stored hash of one entry; None when there is no such entry."""
        stored: bytes | None = await self._connection.fetchval(_HASH_AT, chain.topic, chain.partition, offset)
        return stored

    async def verify(self, chain: Chain, first: int, last: int, layouts: Layouts | None = None) -> RangeVerdict:
        """Check the entries from offset `first` to `last`, both included, in one snapshot.

        `layouts` are the schemas that are known: the bundled ones, unless others are named.
        """
        arguments = (chain.topic, chain.partition, first, last)
        async with self._connection.transaction(isolation="repeatable_read", readonly=True):
            before = await self._connection.fetchval(_HASH_BEFORE, *arguments[:3])
            verifier = RangeVerifier(chain, before or CHAIN_START, layouts)

            async def feed(data: bytes) -> None:
                verifier.feed(data)

            await self._connection.execute(_MERGE_ONLY)
            await self._connection.copy_from_query(_ROWS, *arguments, output=feed, format="binary")
            await self._connection.execute(_LOOK_UP)
            verifier.finish()
            finding = _earliest(verifier.finding, await self._unfounded(chain, verifier.repeats))
            if finding is not None or await self._connection.fetchval(_ENTRIES, *arguments) != verifier.entries:
                finding = _earliest(finding, await self._orphan(chain, first, last))
        return RangeVerdict(
            chain=chain,
            first=first,
            last=last,
            entries=verifier.entries,
            head_offset=verifier.head_offset,
            head_hash=verifier.head_hash.hex(),
            finding=finding,
            unjudged=verifier.unjudged,
        )

    async def _orphan(self, chain: Chain, first: int, last: int) -> ChainFault | None:
        await self._connection.execute(_MERGE_ONLY)
        row = await self._connection.fetchrow(_FIRST_ORPHAN, chain.topic, chain.partition, first, last)
        if row is None:
            return None
        problem = "audit_log has a row that event_stream lacks"
        return _finding(chain, row[0], problem, row[1])

    async def _unfounded(self, chain: Chain, repeats: Sequence[tuple[int, bytes]]) -> ChainFault | None:
        for start in range(0, len(repeats), _REPEATS_AT_ONCE):
            offsets, ids = zip(*repeats[start : start + _REPEATS_AT_ONCE], strict=True)
            event_ids = [UUID(bytes=event_id) for event_id in ids]
            offset = await self._connection.fetchval(
                _FIRST_UNFOUNDED_REPEAT, chain.topic, chain.partition, offsets, event_ids
            )
            if offset is not None:
                problem = "disposition is repeat, but no earlier record with its event id was applied"
                return _finding(chain, offset, problem, await self.hash_at(chain, offset))
        return None


@asynccontextmanager
async def open_log(url: str) -> AsyncIterator[StoredLog]:
    """Open a connection to the log. Raises DatabaseUnreachable and LogUnreadable, also for errors inside the block."""
    arguments = connect_arguments(url, application_name="plant audit", answer_timeout_seconds=None, **PLANNER)
    with _translated_errors(url):
        connection = await asyncpg.connect(**{**arguments, "timeout": CONNECT_TIMEOUT_SECONDS})
        try:
            yield StoredLog(connection)
        finally:
            await connection.close(timeout=CONNECT_TIMEOUT_SECONDS)


@contextmanager
def _translated_errors(url: str) -> Iterator[None]:
    try:
        yield
    except (asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError) as error:
        raise LogUnreadable(why=f"{error}.", next_step="plant db upgrade") from error
    except Exception as error:
        # SQLAlchemy is slow to import, and rarely needed here.
        from database.error_translation import translate_error

        if translated := translate_error(error, shown(url)):
            raise translated from error
        raise


def _finding(chain: Chain, offset: int, problem: str, stored: bytes | None) -> ChainFault:
    return ChainFault(
        topic=chain.topic,
        partition=chain.partition,
        offset=offset,
        problem=problem,
        stored_hash=stored.hex() if stored is not None else None,
    )


def _earliest(*findings: ChainFault | None) -> ChainFault | None:
    return min(
        (finding for finding in findings if finding is not None), key=lambda finding: finding.offset, default=None
    )
