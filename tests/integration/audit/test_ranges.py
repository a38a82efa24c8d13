"""Chains that span ranges of the log, closed and open ones: links, repeats and what was taken away between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from audit.verifier.chains import read_heads, verify_chains
from audit.verifier.stored_log import _UNFOUNDED_IN_CLOSED, PLANNER
from audit.verifier.verdicts import ChainVerdict
from devstack import sql
from tests.conftest import Database
from tests.support import log_rows
from tests.support.log_rows import Row

CHAIN = ("genesis.events", 0)
RANGE = 1 << 20
"""Offsets of a range."""


@pytest.fixture
def ranges_database(stack: Any, template_database: str) -> Iterator[Database]:
    """A database of its own: ranges can't be taken back."""
    with log_rows.migrated_database(stack, template_database) as made:
        yield made


def tamper(database: Database, *statements: str) -> None:
    sql.execute(database.superuser_url, ["SET session_replication_role = replica", *statements])


def verified(database: Database, **choice: Any) -> ChainVerdict:
    (verdict,) = verify_chains(database.auditor_url, jobs=1, **choice)
    return verdict


def close(database: Database, first_offset: int) -> None:
    """Close a range as its owner does: with its index."""
    for function in ("index_log_range", "close_log_range"):
        sql.execute(database.owner_url, [f"SELECT {function}('genesis.events', 0, {first_offset})"])


def three_ranges(extra: Row | None = None) -> list[Row]:
    """A chain in three ranges, two entries or more in each: events, and repeats of each range's ids in the last."""
    rows = [log_rows.row(*CHAIN, number * RANGE + at, log_rows.onboarded(number * 10 + at)) for number, at in PLACES]
    for at, number in ((5, 0), (6, 10), (7, 20)):
        rows.append(log_rows.row(*CHAIN, 2 * RANGE + at, log_rows.onboarded(number), disposition="repeat"))
    return log_rows.linked([*rows, *([] if extra is None else [extra])])


PLACES = [(number, at) for number in range(3) for at in (0, 1)]


@pytest.mark.parametrize("closed", [(), (0,), (0, RANGE)], ids=["none", "one", "two"])
def test_a_chain_over_several_ranges_is_good(ranges_database: Database, closed: tuple[int, ...]) -> None:
    """Links go on from range to range, and repeats are found in closed ranges and in open ones."""
    rows = three_ranges()
    log_rows.store(ranges_database, rows)
    for first_offset in closed:
        close(ranges_database, first_offset)
    verdict = verified(ranges_database)
    assert (verdict.finding, verdict.entries, verdict.head_hash) == (None, len(rows), rows[-1].hash.hex())
    assert [(head.offset, head.hash) for head in read_heads(ranges_database.auditor_url)] == [
        (rows[-1].offset, rows[-1].hash.hex())
    ]


def test_the_last_entry_of_a_full_range_is_checked(ranges_database: Database) -> None:
    """The entry after it, in the next range, begins from its stored hash whatever its bytes are."""
    rows = three_ranges()
    last = log_rows.row(*CHAIN, RANGE - 1, log_rows.onboarded(9))
    log_rows.store(ranges_database, log_rows.linked([*rows[:2], last, *rows[2:]]))
    assert verified(ranges_database).entries == len(rows) + 1
    tamper(ranges_database, f"UPDATE log_records SET key = 'x' WHERE \"offset\" = {RANGE - 1}")
    finding = verified(ranges_database).finding
    assert finding is not None
    assert finding.offset == RANGE - 1


@pytest.mark.parametrize("closed", [(), (0, RANGE)], ids=["none", "two"])
@pytest.mark.parametrize("forged", ["unknown id", "its own id", "a later record's id"])
def test_a_repeat_of_nothing_is_found(ranges_database: Database, closed: tuple[int, ...], forged: str) -> None:
    """A repeat needs an earlier record that was applied: one in no range, itself, and a later one are none."""
    event = log_rows.onboarded(21 if forged == "a later record's id" else 99)
    at = 2 * RANGE if forged == "a later record's id" else 2 * RANGE + 8
    rows = [row for row in three_ranges() if row.offset != at]
    rows.append(log_rows.row(*CHAIN, at, event, disposition="repeat"))
    log_rows.store(ranges_database, log_rows.linked(sorted(rows, key=lambda row: row.offset)))
    for first_offset in closed:
        close(ranges_database, first_offset)
    finding = verified(ranges_database).finding
    assert finding is not None
    assert (finding.offset, "no earlier record" in finding.problem) == (at, True)


def test_a_repeat_whose_event_is_marked_otherwise_is_found(ranges_database: Database) -> None:
    """In v1 the hash does not cover it, but the repeats of an event that was turned into poison give it away."""
    log_rows.store(ranges_database, three_ranges())
    for first_offset in (0, RANGE):
        close(ranges_database, first_offset)
    tamper(
        ranges_database,
        f"UPDATE log_records SET disposition = 'poison', reason = 'forged' WHERE \"offset\" = {RANGE}",
    )
    finding = verified(ranges_database).finding
    assert finding is not None
    assert finding.offset == 2 * RANGE + 6


@pytest.mark.parametrize(
    ("statement", "offset"),
    [
        ('ALTER TABLE log."genesis.events/0" DETACH PARTITION log."genesis.events/0/1048576"', RANGE),
        ('DROP TABLE log."genesis.events/0/1048576"', RANGE),
        ('TRUNCATE log."genesis.events/0/1048576"', 2 * RANGE),
    ],
    ids=["detached", "dropped", "emptied"],
)
def test_a_range_that_is_gone_is_found(ranges_database: Database, statement: str, offset: int) -> None:
    """Where it began, or where its rows alone are gone at the first entry after it, which does not fit any more."""
    log_rows.store(ranges_database, three_ranges())
    tamper(ranges_database, statement)
    finding = verified(ranges_database).finding
    assert finding is not None
    assert finding.offset == offset


def test_a_chain_that_the_catalogue_does_not_name_is_verified(ranges_database: Database) -> None:
    """Which chains there are is read from the tables, so that nobody hides one by a row of the catalogue."""
    rows = three_ranges()
    log_rows.store(ranges_database, rows)
    tamper(ranges_database, "DELETE FROM log_ranges", "UPDATE log_records SET value = 'x' WHERE \"offset\" = 1")
    finding = verified(ranges_database).finding
    assert finding is not None
    assert finding.offset == 1


def test_repeats_are_looked_up_in_the_indexes_of_closed_ranges(ranges_database: Database) -> None:
    """The plan reads no table of a closed range as a whole, and leaves the open range out."""
    rows = three_ranges()
    log_rows.store(ranges_database, rows)
    for first_offset in (0, RANGE):
        close(ranges_database, first_offset)

    async def plan(connection: Any) -> str:
        for name, value in PLANNER.items():
            await connection.execute(f"SET {name} = '{value}'")
        ids = [row.event_id for row in rows[-3:]]
        offsets = [row.offset for row in rows[-3:]]
        arguments = (*CHAIN, offsets, ids, 2 * RANGE)
        shown = await connection.fetch(f"EXPLAIN (ANALYZE) {_UNFOUNDED_IN_CLOSED}", *arguments)
        return "\n".join(row[0] for row in shown)

    shown = log_rows.on_connection(ranges_database.auditor_url, plan)
    assert "Seq Scan" not in shown
    assert shown.count("Index Scan using event_ids_") == 2
