"""Every way to change the stored log behind the chain's back is found, and named; the good log is not accused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from audit.chain import CHAIN_START
from audit.verifier.chain_range import ChainFault
from audit.verifier.chains import read_heads, verify_chains
from audit.verifier.heads import Head
from audit.verifier.verdicts import ChainVerdict
from devstack import sql
from tests.conftest import Database
from tests.support import log_rows
from tests.support.log_rows import Row

CHAIN = ("genesis.events", 0)
AT = 'WHERE partition = 0 AND "offset"'
BOTH = ("event_stream", "audit_log")


def tamper(log_database: Database, *statements: str) -> None:
    """Change the log as a superuser who has switched the triggers off."""
    sql.execute(log_database.superuser_url, ["SET session_replication_role = replica", *statements])


def verified(log_database: Database, expect: Sequence[Head] = ()) -> ChainVerdict:
    (verdict,) = verify_chains(log_database.auditor_url, jobs=1, expect=expect)
    return verdict


def found(log_database: Database, expect: Sequence[Head] = ()) -> ChainFault:
    finding = verified(log_database, expect).finding
    assert finding is not None
    assert (finding.topic, finding.partition) == ("genesis.events", 0)
    return finding


def test_a_log_as_written_is_good(log_database: Database, stored_log: list[Row]) -> None:
    """Events, a repeat and poison, with gaps between the offsets: every entry is counted and the head is the last."""
    verdict = verified(log_database)
    assert verdict == ChainVerdict(
        topic="genesis.events", partition=0, entries=20, head_offset=25, head_hash=stored_log[-1].hash.hex()
    )


def test_operations_are_chained_like_events(log_database: Database) -> None:
    """The topic of operator actions verifies with the same formula, apart from the other chains."""
    acts = [log_rows.row("plant.operations", 0, offset, log_rows.operation(offset)) for offset in range(3)]
    log_rows.store(log_database.writer_url, log_rows.linked(acts))
    log_rows.store(log_database.writer_url, log_rows.log())
    verdicts = verify_chains(log_database.auditor_url, jobs=1)
    assert [(each.topic, each.entries, each.finding) for each in verdicts] == [
        ("genesis.events", 20, None),
        ("plant.operations", 3, None),
    ]


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("event_stream", "topic = 'genesis.evil'", "audit_log has a row that event_stream lacks"),
        ("event_stream", "partition = 7", "audit_log has a row that event_stream lacks"),
        ("event_stream", '"offset" = 10', "event_stream lacks"),
        ("event_stream", "created_at = created_at + interval '1 ms'", "created_at differs"),
        ("event_stream", "created_at = created_at + interval '1 us'", "created_at differs"),
        ("event_stream", "key = key || 'x'", "hash does not fit"),
        ("event_stream", "key = NULL", "hash does not fit"),
        ("event_stream", "value = set_byte(value, 40, 255 - get_byte(value, 40))", "hash does not fit"),
        ("event_stream", "value = NULL", "hash does not fit"),
        ("event_stream", r"headers = headers || '\x00'", "hash does not fit"),
        ("event_stream", "event_id = gen_random_uuid()", "event_id is"),
        ("event_stream", "disposition = 'repeat'", "no earlier record with its event id was applied"),
        ("audit_log", "topic = 'genesis.evil'", "audit_log lacks"),
        ("audit_log", "partition = 7", "audit_log lacks"),
        ("audit_log", '"offset" = 10', "audit_log lacks"),
        ("audit_log", "created_at = created_at + interval '1 s'", "created_at differs"),
        ("audit_log", "entity_type = 'team'", "entity_type is team, but the value says agent"),
        ("audit_log", "entity_type = NULL", "entity_type is empty"),
        ("audit_log", "entity_id = gen_random_uuid()", "entity_id is"),
        ("audit_log", "event_type = 'genesis.agent.rated'", "event_type is genesis.agent.rated"),
        ("audit_log", "previous_hash = sha256('x')", "previous_hash is"),
        ("audit_log", "hash = sha256('x')", "hash does not fit"),
    ],
)
def test_a_change_of_any_column_is_found(
    log_database: Database, stored_log: list[Row], table: str, change: str, message: str
) -> None:
    """A single changed cell is found at its own offset, whichever column it is in."""
    tamper(log_database, f"UPDATE {table} SET {change} {AT} = 8")
    verdicts = verify_chains(log_database.auditor_url, jobs=1)
    (finding,) = (each.finding for each in verdicts if each.topic == "genesis.events" and each.partition == 0)
    assert finding is not None
    assert finding.offset == 8
    assert message in finding.problem


def test_a_finding_carries_both_hashes(log_database: Database, stored_log: list[Row]) -> None:
    """The finding of a changed value names the stored and the recomputed hash, and they differ."""
    tamper(log_database, f"UPDATE event_stream SET key = 'x' {AT} = 8")
    finding = found(log_database)
    assert finding.stored_hash == stored_log[5].hash.hex()
    assert finding.recomputed_hash not in (None, finding.stored_hash)


def test_created_at_changed_in_both_tables_is_found(log_database: Database, stored_log: list[Row]) -> None:
    """Tables that agree on a wrong time still disagree with the hash, and half a millisecond is no record's time."""
    tamper(log_database, *(f"UPDATE {table} SET created_at = created_at + interval '1 s' {AT} = 8" for table in BOTH))
    assert "hash does not fit" in found(log_database).problem
    tamper(
        log_database, *(f"UPDATE {table} SET created_at = created_at + interval '500 us' {AT} = 3" for table in BOTH)
    )
    assert "milliseconds" in found(log_database).problem


def test_a_repeat_can_not_be_marked_as_applied(log_database: Database, stored_log: list[Row]) -> None:
    """Even with triggers off, the unique index keeps an event id from being applied twice."""
    with pytest.raises(Exception, match="event_stream_applied_once"):
        tamper(log_database, f"UPDATE event_stream SET disposition = 'applied' {AT} = 21")


def test_garbage_marked_as_applied_is_found(log_database: Database, stored_log: list[Row]) -> None:
    """A record that holds no event can't pass for one that was applied."""
    statement = "SET disposition = 'applied', reason = NULL, event_id = gen_random_uuid()"
    tamper(log_database, f"UPDATE event_stream {statement} {AT} = 23")
    assert (found(log_database).offset, "holds no event" in found(log_database).problem) == (23, True)


@pytest.mark.parametrize("table", BOTH)
@pytest.mark.parametrize("offset", [3, 12, 25])
def test_a_row_deleted_from_one_table_is_found(
    log_database: Database, stored_log: list[Row], table: str, offset: int
) -> None:
    """The row that lost its other half is named, also when it is the first or the last."""
    tamper(log_database, f"DELETE FROM {table} {AT} = {offset}")
    finding = found(log_database)
    assert finding.offset == offset
    assert f"{table} lacks" in finding.problem
    left = next(row.hash for row in stored_log if row.offset == offset) if table == "event_stream" else None
    assert finding.stored_hash == (None if left is None else left.hex())


@pytest.mark.parametrize(("deleted", "named"), [(3, 4), (8, 9), (9, 12)])
def test_an_entry_deleted_from_both_tables_is_found(
    log_database: Database, stored_log: list[Row], deleted: int, named: int
) -> None:
    """The entry after the hole no longer fits what is before it."""
    tamper(log_database, *(f"DELETE FROM {table} {AT} = {deleted}" for table in BOTH))
    finding = found(log_database)
    assert finding.offset == named
    assert "previous_hash" in finding.problem


def test_a_cut_tail_is_found_by_a_kept_head(log_database: Database, stored_log: list[Row]) -> None:
    """The chain alone can't tell that its end is missing; a head kept from before can."""
    kept = read_heads(log_database.auditor_url)
    tamper(log_database, *(f"DELETE FROM {table} {AT} >= 22" for table in BOTH))
    assert verified(log_database).finding is None
    finding = found(log_database, kept)
    assert finding.offset == 25
    assert stored_log[-1].hash.hex() in finding.problem


def test_a_chain_rewritten_as_a_whole_is_found_by_a_kept_head(log_database: Database, stored_log: list[Row]) -> None:
    """A superuser who recomputes every hash after a change leaves a good chain, but not the kept one."""
    kept = read_heads(log_database.auditor_url)
    other = log_rows.row(*CHAIN, stored_log[5].offset, log_rows.onboarded(500))
    forged = log_rows.linked([*stored_log[:5], other, *stored_log[6:]])
    tamper(log_database, "TRUNCATE event_stream, audit_log")
    log_rows.store(log_database.writer_url, forged)
    assert verified(log_database).finding is None
    finding = found(log_database, kept)
    assert (finding.offset, finding.stored_hash) == (25, forged[-1].hash.hex())
    assert "another hash" in finding.problem


def test_a_chain_that_is_gone_is_found_by_a_kept_head(log_database: Database, stored_log: list[Row]) -> None:
    """An emptied log has no chain to be wrong; the kept head misses it."""
    kept = read_heads(log_database.auditor_url)
    tamper(log_database, "TRUNCATE event_stream, audit_log")
    assert verify_chains(log_database.auditor_url, jobs=1) == []
    assert "gone" in found(log_database, kept).problem


def test_a_kept_head_stays_true_while_the_log_grows(log_database: Database, stored_log: list[Row]) -> None:
    """Entries after a kept head are no finding."""
    kept = read_heads(log_database.auditor_url)
    more = [log_rows.row(*CHAIN, 30, log_rows.onboarded(30))]
    log_rows.store(log_database.writer_url, log_rows.linked(more, stored_log[-1].hash))
    assert (verified(log_database, kept).finding, verified(log_database, kept).entries) == (None, 21)


def test_swapped_records_are_found(log_database: Database, stored_log: list[Row]) -> None:
    """Two records that changed places, links and all, do not fit their offsets."""
    moves = ((4, 1000), (9, 4), (1000, 9))
    tamper(log_database, *(f'UPDATE {table} SET "offset" = {to} {AT} = {of}' for table in BOTH for of, to in moves))
    assert found(log_database).offset == 4


def test_an_inserted_entry_is_found(log_database: Database, stored_log: list[Row]) -> None:
    """An entry put into a gap breaks the link of the one after it, even with a hash that fits."""
    forged = log_rows.linked([log_rows.row(*CHAIN, 10, log_rows.onboarded(10))], stored_log[6].hash)
    log_rows.store(log_database.writer_url, forged)
    finding = found(log_database)
    assert finding.offset == 12
    assert "previous_hash" in finding.problem


def test_an_entry_put_before_the_first_is_found(log_database: Database, stored_log: list[Row]) -> None:
    """The old first entry starts from zeros, but is the first no more."""
    log_rows.store(log_database.writer_url, log_rows.linked([log_rows.row(*CHAIN, 0, log_rows.onboarded(0))]))
    assert found(log_database).offset == 3


def test_a_chain_that_does_not_start_from_zeros_is_found(log_database: Database) -> None:
    """The first entry has nothing before it, so its previous hash has to be zeros."""
    log_rows.store(log_database.writer_url, log_rows.linked(log_rows.log()[:3], before=b"x" * 32))
    assert found(log_database).offset == 3
    assert CHAIN_START.hex() in found(log_database).problem


def test_the_first_of_several_findings_counts(log_database: Database, stored_log: list[Row]) -> None:
    """With many bad entries, the one with the lowest offset is named, and the good ones before it are counted."""
    tamper(
        log_database,
        f"UPDATE event_stream SET key = 'x' {AT} IN (9, 15)",
        f"DELETE FROM audit_log {AT} = 7",
        f"DELETE FROM event_stream {AT} = 5",
    )
    verdict = verified(log_database)
    assert verdict.finding is not None
    assert verdict.finding.offset == 5
