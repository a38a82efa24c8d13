"""Reads the stored log for the verifier: which chains there are, where they end, and their rows in order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from audit.verifier.chain_range import CHAIN_START, Chain, ChainFault, RangeVerifier, UnjudgedEntries
from audit.verifier.decoded_columns import Layouts
from audit.verifier.errors import LogUnreadable, LogViewsAltered
from audit.verifier.heads import Head
from audit.verifier.log_tables import log_tables, misplaced_ranges
from audit.verifier.log_views import altered_views
from database.address import connect_arguments, shown

CONNECT_TIMEOUT_SECONDS: Final = 10

# Rows are wanted in the order of the primary keys: index scans, range by range, need no sort and no memory.
PLANNER: Final = {
    "enable_hashjoin": "off",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    # A plan that is kept locks every range of the log each time: four times as slow with a thousand of them.
    "plan_cache_mode": "force_custom_plan",
}

# Whatever is set for the role: no other table of this name is read, and no policy hides rows without an error. Tables
# are named with their schema, so that none in pg_catalog comes first, and no operator in another schema is used.
GUARDS: Final = {"search_path": "pg_catalog, pg_temp", "row_security": "off"}

# The open range has no index on event ids, so all of it is read, once for all repeats.
_SCAN_ONCE: Final = (
    "SET LOCAL enable_hashjoin = on; SET LOCAL enable_seqscan = on; SET LOCAL work_mem = '64MB';"
    " SET LOCAL enable_nestloop = off"
)

_ROWS: Final = (Path(__file__).parent / "rows.sql").read_text(encoding="utf-8")
_RAISED: Final = (Path(__file__).parent / "raised.sql").read_text(encoding="utf-8")

_HASH_BEFORE: Final = """
SELECT hash FROM public.log_records WHERE topic = $1 AND partition = $2 AND "offset" < $3 ORDER BY "offset" DESC LIMIT 1
"""

_OPEN_FROM: Final = """
SELECT coalesce(min(first_offset) FILTER (WHERE closed_at IS NULL), max(first_offset), 0)
FROM public.log_ranges WHERE topic = $1 AND partition = $2
"""

# Closed ranges have an index on the ids that were applied or parked. LIMIT keeps this a look-up there for each repeat.
_UNFOUNDED_IN_CLOSED: Final = """
SELECT r."offset", r.event_id FROM unnest($3::bigint[], $4::uuid[]) AS r ("offset", event_id)
LEFT JOIN LATERAL (SELECT true AS founded FROM public.log_records AS e WHERE e.topic = $1 AND e.partition = $2
    AND e."offset" < $5 AND e."offset" < r."offset" AND e.event_id = r.event_id
    AND e.disposition IN ('applied', 'parked') LIMIT 1) AS first ON true
WHERE founded IS NULL
"""

_FIRST_UNFOUNDED_IN_OPEN: Final = """
SELECT r."offset" FROM unnest($3::bigint[], $4::uuid[]) AS r ("offset", event_id)
WHERE NOT EXISTS (SELECT FROM public.log_records AS e WHERE e.topic = $1 AND e.partition = $2
    AND e."offset" >= $5 AND e."offset" <= $6 AND e.event_id = r.event_id AND e."offset" < r."offset"
    AND e.disposition IN ('applied', 'parked'))
ORDER BY 1 LIMIT 1
"""

# A control record can bring an event in: there are few of them, and their index is that of all that is not applied.
_BROUGHT_IN: Final = """
SELECT e.event_id, min(e."offset") FROM public.log_records AS e WHERE e.topic = $1 AND e.partition = $2
    AND e.disposition <> 'applied' AND e.disposition = 'control' AND e.entity_id IS NOT NULL
    AND e.event_id = ANY ($3::uuid[])
GROUP BY 1
"""

_LAST: Final = """
SELECT "offset", hash FROM public.log_records WHERE topic = $1 AND partition = $2 ORDER BY "offset" DESC LIMIT 1
"""

_TABLE_OF: Final = """
SELECT format('%I.%I', n.nspname, c.relname) FROM public.log_records AS r JOIN pg_class AS c ON c.oid = r.tableoid
JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE r.topic = $1 AND r.partition = $2 AND r."offset" = $3
"""

_HASH_AT: Final = 'SELECT hash FROM public.log_records WHERE topic = $1 AND partition = $2 AND "offset" = $3'


class StoredRange(msgspec.Struct, frozen=True, kw_only=True):
    """What one table holds of a chain: its lowest and its highest offset."""

    chain: Chain
    table: str
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

    async def ranges(self) -> tuple[list[StoredRange], list[ChainFault]]:
        """Return the range of every table that has a row, sorted, from the tables that there are.

        With it come findings: tables that are gone, and records in a table of other offsets. Postgres looks for a
        record in the one table that should hold it: one elsewhere is seen by some queries only.
        """
        tables = await log_tables(self._connection)
        ranges = []
        for table in tables.values():
            if table.chain is None or not table.ends:
                continue
            stored = sorted(offset for _, offset in table.ends)
            first, last = max(stored[0], table.offsets.start), min(stored[-1], table.offsets.stop - 1)
            if first <= last:
                ranges.append(StoredRange(chain=table.chain, table=table.name, first=first, last=last))
        found = await misplaced_ranges(self._connection, tables)
        found += [each for table in tables.values() for each in table.misplaced()]
        findings = [_finding(each.chain, each.offset, each.problem, None) for each in found]
        return sorted(ranges, key=lambda each: (each.chain, each.first)), findings

    async def require_views(self) -> None:
        """Raise LogViewsAltered unless readers' views are those that Plant has made, and no policy hides rows."""
        if names := await altered_views(self._connection):
            raise LogViewsAltered(
                f"Readers may see another log than the one that is stored: {', '.join(names)}.",
                why="Each was replaced, is missing, or has policies on its rows; or the log is of another Plant.",
                next_step="compare it with database/migrations/versions/020_log_names.py, then verify again",
            )

    async def heads(self) -> list[Head]:
        """Return the head of every chain, sorted."""
        heads = []
        async with self._connection.transaction(isolation="repeatable_read", readonly=True):
            for chain in sorted({stored.chain for stored in (await self.ranges())[0]}):
                topic, partition = chain.topic, chain.partition
                row = await self._connection.fetchrow(_LAST, topic, partition)
                if row is not None:
                    heads.append(Head(topic=topic, partition=partition, offset=row[0], hash=row[1].hex()))
        return heads

    async def raised(self, layouts: Layouts) -> tuple[dict[Chain, int], list[ChainFault]]:
        """Return the offset of each chain's first v2 entry, and findings about such entries.

        It is the first control record whose bytes raise the version. Where the schema of such bytes is not known, they
        do if the stored hash is one of v2: the entry can't be judged, and those after it can.
        """
        first: dict[Chain, int] = {}
        findings = []
        rows = await self._connection.fetch(_RAISED)
        for topic, partition, prefix, offset, naming_offset in sorted(rows, key=lambda row: row[3]):
            chain, layout = Chain(topic, partition), layouts.get(prefix)
            if layout is not None and layout.raises and naming_offset is not None:
                problem = "control_offset is set, but a control record of its type names no record"
                findings.append(_finding(chain, naming_offset, problem, await self.hash_at(chain, naming_offset)))
            if chain in first:
                continue
            if layout is not None:
                if layout.raises:
                    first[chain] = offset
                continue
            table = await self._connection.fetchval(_TABLE_OF, topic, partition, offset)
            if table is not None:
                verdict = await self.verify(chain, table, offset, offset, layouts, first_v2=offset)
                if verdict.finding is None:
                    first[chain] = offset
        return first, findings

    async def hash_at(self, chain: Chain, offset: int) -> bytes | None:
        """Return the stored hash of one entry; None when there is no such entry."""
        stored: bytes | None = await self._connection.fetchval(_HASH_AT, chain.topic, chain.partition, offset)
        return stored

    async def verify(
        self,
        chain: Chain,
        table: str,
        first: int,
        last: int,
        layouts: Layouts | None = None,
        *,
        first_v2: int | None = None,
    ) -> RangeVerdict:
        """Check the entries of a table from offset `first` to `last`, both included, in one snapshot.

        All of its rows are read, whatever they say of their topic and partition: one of another chain is a finding.
        `layouts` are the schemas that are known: the bundled ones, unless others are named. The chain goes over to v2
        at `first_v2`, None: not yet.
        """
        async with self._connection.transaction(isolation="repeatable_read", readonly=True):
            before = await self._connection.fetchval(_HASH_BEFORE, chain.topic, chain.partition, first)
            verifier = RangeVerifier(chain, before or CHAIN_START, layouts, first_v2)

            async def feed(data: bytes) -> None:
                verifier.feed(data)

            arguments = (chain.topic, chain.partition, first, last)
            await self._connection.copy_from_query(_ROWS.format(table=table), *arguments, output=feed, format="binary")
            verifier.finish()
            finding = _earliest(verifier.finding, await self._unfounded(chain, verifier.repeats))
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

    async def _unfounded(self, chain: Chain, repeats: Sequence[tuple[int, bytes]]) -> ChainFault | None:
        """Return the finding of the first repeat whose event id no earlier record has that was applied or parked."""
        if not repeats:
            return None
        place = (chain.topic, chain.partition)
        open_from = await self._connection.fetchval(_OPEN_FROM, *place)
        offsets, ids = zip(*((offset, UUID(bytes=event_id)) for offset, event_id in repeats), strict=True)
        left = await self._connection.fetch(_UNFOUNDED_IN_CLOSED, *place, offsets, ids, open_from)
        if left:
            brought_in = dict(await self._connection.fetch(_BROUGHT_IN, *place, [event_id for _, event_id in left]))
            left = [(at, event_id) for at, event_id in left if brought_in.get(event_id, at) >= at]
        if not left:
            return None
        await self._connection.execute(_SCAN_ONCE)
        offsets, ids = zip(*left, strict=True)
        offset = await self._connection.fetchval(
            _FIRST_UNFOUNDED_IN_OPEN, *place, offsets, ids, open_from, max(offsets)
        )
        if offset is None:
            return None
        problem = "disposition is repeat, but no earlier record with its event id was applied"
        return _finding(chain, offset, problem, await self.hash_at(chain, offset))


@asynccontextmanager
async def open_log(url: str) -> AsyncIterator[StoredLog]:
    """Open a connection to the log. Raises DatabaseUnreachable and LogUnreadable, also for errors inside the block."""
    arguments = connect_arguments(url, application_name="plant audit", answer_timeout_seconds=None, **PLANNER, **GUARDS)
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
