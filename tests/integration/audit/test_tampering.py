"""Every way to change the stored log behind the chain's back is found, and named; the good log is not accused."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from audit.verifier import chains as verification
from audit.verifier.chain_range import Chain, ChainFault
from audit.verifier.chains import read_heads, read_raised, verify_chains
from audit.verifier.heads import Head
from audit.verifier.verdicts import ChainVerdict
from devstack import sql
from tests.conftest import Database
from tests.support import ROOT, log_rows
from tests.support.log_rows import Row

CHAIN = ("genesis.events", 0)
AT = 'WHERE partition = 0 AND "offset"'
REGISTRY = ROOT / "schemas" / "registry.json"


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
    log_rows.store(log_database, log_rows.linked(acts))
    log_rows.store(log_database, log_rows.log())
    verdicts = verify_chains(log_database.auditor_url, jobs=1)
    assert [(each.topic, each.entries, each.finding) for each in verdicts] == [
        ("genesis.events", 20, None),
        ("plant.operations", 3, None),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("created_at = created_at + interval '1 ms'", "hash does not fit"),
        ("created_at = created_at + interval '1 us'", "milliseconds"),
        ("key = 'x'", "hash does not fit"),
        ("value = set_byte(value, 40, 255 - get_byte(value, 40))", "hash does not fit"),
        ("value = NULL", "disposition is applied, but the value holds no event"),
        (r"headers = headers || '\x00'", "hash does not fit"),
        ("event_id = gen_random_uuid()", "event_id is"),
        ("disposition = 'repeat'", "no earlier record with its event id was applied"),
        ("disposition = 'control'", "disposition is control, but key and value are not those of a control record"),
        ("entity_type = 'team'", "entity_type is team, but the value says agent"),
        ("entity_type = NULL", "entity_type is empty"),
        ("entity_id = gen_random_uuid()", "entity_id is"),
        ("entity_id = NULL", "entity_id is empty"),
        ("event_type = 'genesis.agent.rated'", "event_type is genesis.agent.rated"),
        ("hash = sha256('x')", "hash does not fit"),
    ],
)
def test_a_change_of_any_column_is_found(
    log_database: Database, stored_log: list[Row], change: str, message: str
) -> None:
    """A single changed cell is found at its own offset, whichever column it is in."""
    tamper(log_database, f"UPDATE log_records SET {change} {AT} = 8")
    assert (found(log_database).offset, message in found(log_database).problem) == (8, True)


@pytest.mark.parametrize(
    ("change", "named"),
    [("topic = 'genesis.evil'", 9), ("partition = 7", 9), ('"offset" = 10', 9)],
    ids=["topic", "partition", "offset"],
)
def test_an_entry_that_was_moved_is_found(
    log_database: Database, stored_log: list[Row], change: str, named: int
) -> None:
    """The chain that it left has a hole, and where it went it does not fit."""
    elsewhere = [log_rows.poison("genesis.evil", 0, 0, None, None), log_rows.poison("genesis.events", 7, 0, None, None)]
    log_rows.make_ranges(log_database, elsewhere)
    tamper(log_database, f"UPDATE log_records SET {change} {AT} = 8")
    verdicts = {str(each.chain): each.finding for each in verify_chains(log_database.auditor_url, jobs=1)}
    finding = verdicts.pop("genesis.events/0")
    assert finding is not None
    assert finding.offset == named
    assert all(each is not None and each.offset == 8 for each in verdicts.values())


# Offset 27 was applied, 30 repeats it, 31 is poison, 32 was applied; 26 is the switch, 33 a second one.
@pytest.mark.parametrize(
    ("change", "offset", "message"),
    [
        ("disposition = 'poison', reason = 'forged'", 27, "hash does not fit"),
        ("disposition = 'poison', reason = 'forged', event_id = NULL", 27, "hash does not fit"),
        ("disposition = 'parked'", 27, "hash does not fit"),
        ("disposition = 'repeat'", 32, "hash does not fit"),
        ("disposition = 'poison', reason = 'forged'", 30, "hash does not fit"),
        ("disposition = 'parked'", 30, "hash does not fit"),
        ("event_id = gen_random_uuid()", 27, "event_id is"),
        ("event_id = gen_random_uuid()", 31, "proves none of what the columns say"),
        ("entity_id = gen_random_uuid()", 32, "entity_id is"),
        ("disposition = 'poison', reason = 'forged'", 26, "but key and value are those of a control record"),
        ("disposition = 'poison', reason = 'forged'", 33, "but key and value are those of a control record"),
        ("event_id = gen_random_uuid()", 26, "event_id is"),
        ("value = set_byte(value, 21, 6)", 26, "not those of a control record"),
        ("key = 'x'", 26, "not those of a control record"),
        ("entity_id = gen_random_uuid()", 26, "not those of a control record"),
        ("control_offset = 5", 26, "control_offset is set"),
        ("control_offset = 5", 33, "control_offset is set"),
    ],
)
def test_a_change_in_v2_is_found(log_database: Database, change: str, offset: int, message: str) -> None:
    """Disposition and event id are covered by the hash, and a control record stays what its bytes say."""
    log_rows.store(log_database, log_rows.raised_log())
    tamper(log_database, f"UPDATE log_records SET {change} {AT} = {offset}")
    assert (found(log_database).offset, message in found(log_database).problem) == (offset, True)


@pytest.mark.parametrize(
    ("statements", "offset"),
    [
        ((f'UPDATE log_records SET "offset" = 28 {AT} = 26',), 27),
        ((f'UPDATE log_records SET "offset" = 20 {AT} = 26',), 20),
        ((f"DELETE FROM log_records {AT} = 26",), 27),
        ((f"DELETE FROM log_records {AT} IN (26, 33)",), 27),
    ],
    ids=["later", "earlier", "removed", "with the second one"],
)
def test_a_moved_or_removed_switch_is_found(log_database: Database, statements: tuple[str, ...], offset: int) -> None:
    """A chain that goes over anywhere else, or never, has hashes that do not fit from there on."""
    log_rows.store(log_database, [row for row in log_rows.raised_log() if row.offset != 20])
    rows = log_rows.linked([row for row in log_rows.raised_log() if row.offset != 20])
    log_rows.empty(log_database)
    log_rows.store(log_database, rows)
    assert verified(log_database).finding is None
    tamper(log_database, *statements)
    assert found(log_database).offset == offset


def test_a_forged_switch_is_found(log_database: Database, stored_log: list[Row]) -> None:
    """One that is put into a gap of a v1 chain does not fit, and with a hash that does the next entry does not."""
    forged = log_rows.switch(*CHAIN, 10)
    log_rows.store(log_database, [forged])
    assert found(log_database).offset == 10
    log_rows.empty(log_database)
    log_rows.store(log_database, [*stored_log, *log_rows.linked([forged], stored_log[6].hash)])
    assert found(log_database).offset == 12


def test_a_doubled_switch_is_found(log_database: Database) -> None:
    """The same record put in a second time has another offset than its hash says."""
    rows = log_rows.raised_log()
    switch = next(row for row in rows if row.offset == 26)
    log_rows.store(log_database, [*rows, replace(switch, offset=28)])
    assert found(log_database).offset == 28


@pytest.mark.parametrize("name", ["whole", "in parts"])
def test_a_chain_that_goes_over_is_good(log_database: Database, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """v1 before the control record and v2 from it on, in one range or in many; a kept head of v1 stays true."""
    before = log_rows.log()
    log_rows.store(log_database, before)
    kept = read_heads(log_database.auditor_url)
    rows = log_rows.raised_log()
    log_rows.store(log_database, rows[len(before) :])
    if name == "in parts":
        monkeypatch.setattr(verification, "RANGE_OFFSETS", 3)
    verdict = verified(log_database, kept)
    assert (verdict.state, verdict.entries, verdict.head_hash) == ("good", len(rows), rows[-1].hash.hex())


def test_a_switch_of_an_unknown_schema_can_not_be_judged(log_database: Database, tmp_path: Path) -> None:
    """Without the ids file of an external registry the chain's hashes are checked; with it all of it is good."""
    before, switch = log_rows.log(), log_rows.switch(*CHAIN, 26)
    assert switch.value is not None
    external = replace(switch, value=struct.pack(">bi", 0, 70_000) + switch.value[5:])
    after = [external, log_rows.row(*CHAIN, 27, log_rows.onboarded(27))]
    rows = [*before, *log_rows.linked(after, before[-1].hash)]
    log_rows.store(log_database, rows)
    unknown = verified(log_database)
    assert (unknown.state, unknown.entries) == ("cannot judge", len(rows))
    assert unknown.unjudged is not None
    assert (unknown.unjudged.first_offset, unknown.unjudged.schema_ids) == (26, (70_000,))
    ids = tmp_path / "ids.json"
    entry = next(each for each in json.loads(REGISTRY.read_text("utf-8")) if each["id"] == switch.value[4])
    ids.write_text(json.dumps([{"id": 70_000, "own_id": entry["id"], "sha256": entry["sha256"]}]))
    (known,) = verify_chains(log_database.auditor_url, jobs=1, schema_ids=ids)
    assert (known.state, known.entries) == ("good", len(rows))
    tamper(log_database, f"UPDATE log_records SET disposition = 'poison', reason = '' {AT} = 27")
    assert found(log_database).offset == 27
    tamper(log_database, f"UPDATE log_records SET hash = sha256('x') {AT} = 26")
    assert read_raised(log_database.auditor_url, ids) == {Chain(*CHAIN): 26}
    assert read_raised(log_database.auditor_url) == {}


def test_each_chain_goes_over_at_its_first_switch(log_database: Database) -> None:
    """Whatever schemas its switches are of, one of them unknown, and whichever the database shows first."""
    for partition, unknown in ((0, 26), (1, 33)):
        rows = []
        for row in log_rows.raised_log("genesis.events", partition)[len(log_rows.log()) :]:
            assert row.value is not None
            value = struct.pack(">bi", 0, 70_000) + row.value[5:] if row.offset == unknown else row.value
            rows.append(replace(row, value=value))
        before = log_rows.log("genesis.events", partition)
        log_rows.store(log_database, [*before, *log_rows.linked(rows, before[-1].hash)])
    assert read_raised(log_database.auditor_url) == {Chain("genesis.events", 0): 26, Chain("genesis.events", 1): 26}


def test_a_finding_carries_both_hashes(log_database: Database, stored_log: list[Row]) -> None:
    """The finding of a changed value names the stored and the recomputed hash, and they differ."""
    tamper(log_database, f"UPDATE log_records SET key = 'x' {AT} = 8")
    finding = found(log_database)
    assert finding.stored_hash == stored_log[5].hash.hex()
    assert finding.recomputed_hash not in (None, finding.stored_hash)


@pytest.mark.parametrize(
    ("change", "offset"), [("control_offset = 5", 33), ("disposition = 'repeat'", 8)], ids=["switch", "repeat"]
)
def test_a_finding_that_no_hash_shows_carries_the_stored_one(log_database: Database, change: str, offset: int) -> None:
    """A column that the hash of its entry does not cover: there is nothing to recompute."""
    rows = {row.offset: row for row in log_rows.raised_log()}
    log_rows.store(log_database, list(rows.values()))
    tamper(log_database, f"UPDATE log_records SET {change} {AT} = {offset}")
    finding = found(log_database)
    assert (finding.offset, finding.stored_hash) == (offset, rows[offset].hash.hex())


def test_a_repeat_marked_as_applied_is_refused_or_found(log_database: Database, stored_log: list[Row]) -> None:
    """In a closed range the unique index keeps an event id from being applied twice, triggers or not."""
    tamper(log_database, "SELECT add_log_range('genesis.events', 0, log_range_offsets())")
    tamper(log_database, "SELECT index_log_range('genesis.events', 0, 0)")
    with pytest.raises(Exception, match="event_ids_"):
        tamper(log_database, f"UPDATE log_records SET disposition = 'applied' {AT} = 21")


def test_garbage_marked_as_applied_is_found(log_database: Database, stored_log: list[Row]) -> None:
    """A record that holds no event can't pass for one that was applied."""
    statement = "SET disposition = 'applied', reason = NULL, event_id = gen_random_uuid()"
    tamper(log_database, f"UPDATE log_records {statement} {AT} = 23")
    assert (found(log_database).offset, "holds no event" in found(log_database).problem) == (23, True)


@pytest.mark.parametrize(("deleted", "named"), [(3, 4), (8, 9), (9, 12)])
def test_a_deleted_entry_is_found(log_database: Database, stored_log: list[Row], deleted: int, named: int) -> None:
    """The entry after the hole no longer fits what is before it."""
    tamper(log_database, f"DELETE FROM log_records {AT} = {deleted}")
    finding = found(log_database)
    assert finding.offset == named
    assert "bytes and the entry before" in finding.problem


def test_a_cut_tail_is_found_by_a_kept_head(log_database: Database, stored_log: list[Row]) -> None:
    """The chain alone can't tell that its end is missing; a head kept from before can."""
    kept = read_heads(log_database.auditor_url)
    tamper(log_database, f"DELETE FROM log_records {AT} >= 22")
    assert verified(log_database).finding is None
    finding = found(log_database, kept)
    assert finding.offset == 25
    assert stored_log[-1].hash.hex() in finding.problem


def test_a_chain_rewritten_as_a_whole_is_found_by_a_kept_head(log_database: Database, stored_log: list[Row]) -> None:
    """A superuser who recomputes every hash after a change leaves a good chain, but not the kept one."""
    kept = read_heads(log_database.auditor_url)
    other = log_rows.row(*CHAIN, stored_log[5].offset, log_rows.onboarded(500))
    forged = log_rows.linked([*stored_log[:5], other, *stored_log[6:]])
    tamper(log_database, "TRUNCATE log_records")
    log_rows.store(log_database, forged)
    assert verified(log_database).finding is None
    finding = found(log_database, kept)
    assert (finding.offset, finding.stored_hash) == (25, forged[-1].hash.hex())
    assert "another hash" in finding.problem


def test_a_chain_that_is_gone_is_found_by_a_kept_head(log_database: Database, stored_log: list[Row]) -> None:
    """An emptied log has no chain to be wrong; the kept head misses it."""
    kept = read_heads(log_database.auditor_url)
    tamper(log_database, "TRUNCATE log_records")
    assert verify_chains(log_database.auditor_url, jobs=1) == []
    assert "gone" in found(log_database, kept).problem


def test_a_kept_head_stays_true_while_the_log_grows(log_database: Database, stored_log: list[Row]) -> None:
    """Entries after a kept head are no finding."""
    kept = read_heads(log_database.auditor_url)
    more = [log_rows.row(*CHAIN, 30, log_rows.onboarded(30))]
    log_rows.store(log_database, log_rows.linked(more, stored_log[-1].hash))
    assert (verified(log_database, kept).finding, verified(log_database, kept).entries) == (None, 21)


def test_swapped_records_are_found(log_database: Database, stored_log: list[Row]) -> None:
    """Two records that changed places, links and all, do not fit their offsets."""
    moves = ((4, 1000), (9, 4), (1000, 9))
    tamper(log_database, *(f'UPDATE log_records SET "offset" = {to} {AT} = {of}' for of, to in moves))
    assert found(log_database).offset == 4


def test_an_inserted_entry_is_found(log_database: Database, stored_log: list[Row]) -> None:
    """An entry put into a gap breaks the link of the one after it, even with a hash that fits."""
    forged = log_rows.linked([log_rows.row(*CHAIN, 10, log_rows.onboarded(10))], stored_log[6].hash)
    log_rows.store(log_database, forged)
    finding = found(log_database)
    assert finding.offset == 12
    assert "bytes and the entry before" in finding.problem


def test_an_entry_put_before_the_first_is_found(log_database: Database, stored_log: list[Row]) -> None:
    """The old first entry starts from zeros, but is the first no more."""
    log_rows.store(log_database, log_rows.linked([log_rows.row(*CHAIN, 0, log_rows.onboarded(0))]))
    assert found(log_database).offset == 3


def test_a_chain_that_does_not_start_from_zeros_is_found(log_database: Database) -> None:
    """The first entry has nothing before it, so its previous hash has to be zeros."""
    log_rows.store(log_database, log_rows.linked(log_rows.log()[:3], before=b"x" * 32))
    assert found(log_database).offset == 3


def test_the_first_of_several_findings_counts(log_database: Database, stored_log: list[Row]) -> None:
    """With many bad entries, the one with the lowest offset is named, and the good ones before it are counted."""
    tamper(
        log_database,
        f"UPDATE log_records SET key = 'x' {AT} IN (9, 15)",
        f"UPDATE log_records SET entity_type = 'team' {AT} = 7",
        f"UPDATE log_records SET hash = sha256('x') {AT} = 5",
    )
    verdict = verified(log_database)
    assert verdict.finding is not None
    assert verdict.finding.offset == 5
