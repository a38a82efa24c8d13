"""The verdict that counts: what is refused, in which order, and what an operator is told to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from audit.verifier.chain_range import SCHEMA_IDS_MAX, Chain, ChainFault, UnjudgedEntries
from audit.verifier.errors import ChainBroken, EntriesUnjudged
from audit.verifier.heads import Head
from audit.verifier.stored_log import RangeVerdict
from audit.verifier.verdicts import ChainFilter, ChainVerdict, raise_unless_good, together
from runtime.errors import CheckFailed, NothingChecked

ALL = ChainFilter()
GOOD = ChainVerdict(topic="t", partition=1, entries=3, head_offset=2, head_hash="aa")
FAULT = ChainFault(topic="t", partition=1, offset=7, problem="hash misfits", stored_hash="aa", recomputed_hash="bb")
UNJUDGED = UnjudgedEntries(entries=2, first_offset=5, schema_ids=(70, 71))
HEAD = Head(topic="t", partition=1, offset=2, hash="aa" * 32)


def verdict(**changes: Any) -> ChainVerdict:
    return ChainVerdict(**{"topic": "t", "partition": 1, "entries": 3, **changes})


def refused(*verdicts: ChainVerdict, choice: ChainFilter = ALL, **named: Any) -> CheckFailed:
    with pytest.raises(CheckFailed) as caught:
        raise_unless_good(verdicts, choice, **named)
    return caught.value


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "good"),
        ({"entries": 0}, "empty"),
        ({"unjudged": UNJUDGED}, "cannot judge"),
        ({"unjudged": UNJUDGED, "finding": FAULT}, "bad"),
        ({"entries": 0, "finding": FAULT}, "bad"),
    ],
)
def test_a_verdict_in_a_word(changes: dict[str, Any], state: str) -> None:
    """A finding counts more than what can't be judged."""
    assert verdict(**changes).state == state


def test_good_chains_are_good() -> None:
    """So is an empty log of which nothing was named, and a kept head that was compared."""
    raise_unless_good([GOOD], ALL)
    raise_unless_good([], ALL)
    raise_unless_good([GOOD], ChainFilter(chains=[GOOD.chain], topic="t", partition=1, first=0, last=9), expect=[HEAD])


def test_the_first_bad_entry_is_named() -> None:
    """With both hashes and where to look, and how many chains are bad next to it."""
    error = refused(GOOD, verdict(finding=FAULT))
    assert isinstance(error, ChainBroken)
    assert error.what == "The chain t/1 is broken at offset 7."
    assert error.why == "Hash misfits. Stored hash: aa; recomputed: bb."
    assert error.next_step == "plant consume --partition 1 --from 7"
    bare = ChainFault(topic="u", partition=0, offset=0, problem="gone")
    more = refused(verdict(finding=bare), GOOD, verdict(finding=FAULT), verdict(finding=FAULT, unjudged=UNJUDGED))
    assert more.why == "Gone. Stored hash: none; recomputed: none. 2 more of 4 chains are bad."


@pytest.mark.parametrize("file", [None, Path("ids.json")])
def test_entries_that_can_not_be_judged_are_neither_good_nor_bad(file: Path | None) -> None:
    """The error says how many, from where on, of which schemas, and where ids of these are looked for."""
    error = refused(GOOD, verdict(unjudged=UNJUDGED), schema_ids=file)
    assert isinstance(error, EntriesUnjudged)
    assert error.what.startswith("2 entries of t/1 can't be judged, from offset 5 on: ")
    assert str(error.why).startswith("Schema ids 70, 71. ")
    known = "PLANT_SCHEMA_IDS_FILE, which is not set" if file is None else "ids.json does not name them"
    assert f"{known}; or the log is of a newer Plant." in str(error.why)
    assert str(error.next_step).startswith("plant settings ")


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        (ChainFilter(topic="t"), "topic t"),
        (ChainFilter(partition=0), "partition 0"),
        (ChainFilter(first=0), "from offset 0"),
        (ChainFilter(last=0), "to offset 0"),
        (ChainFilter(topic="t", partition=2, first=3, last=4), "topic t, partition 2, from offset 3, to offset 4"),
    ],
)
def test_what_is_named_and_empty_is_not_good(choice: ChainFilter, name: str) -> None:
    """The error repeats what was named."""
    for verdicts in ([], [verdict(entries=0)]):
        error = refused(*verdicts, choice=choice)
        assert isinstance(error, NothingChecked)
        assert error.what == "Nothing was checked."
        assert error.why == f"The log has no entry for what was named: {name}."
        assert str(error.next_step).startswith("plant audit head ")


def test_each_chain_that_is_named_has_entries() -> None:
    """Those that have none are named, though others are good."""
    other, third = Chain("u", 0), Chain("v", 2)
    error = refused(
        GOOD, verdict(topic="u", partition=0, entries=0), choice=ChainFilter(chains=[GOOD.chain, other, third])
    )
    assert isinstance(error, NothingChecked)
    assert error.what == "Nothing was checked of u/0, v/2."
    assert "chains t/1, u/0, v/2" in str(error.why)


@pytest.mark.parametrize(
    ("expect", "why"),
    [([], "The file names no chain."), ([HEAD], "The file names none of the chains that were checked.")],
)
def test_kept_heads_that_compare_nothing_are_not_good(expect: list[Head], why: str) -> None:
    """A file without heads, or with those of other chains, proves nothing."""
    choice = ChainFilter(topic="u")
    error = refused(verdict(topic="u"), choice=choice, expect=expect)
    assert isinstance(error, NothingChecked)
    assert (error.what, error.why) == ("No kept head was compared.", why)
    assert error.next_step == "plant audit head > heads.json"
    raise_unless_good([verdict(topic="u")], choice, expect=None)


@pytest.mark.parametrize(
    ("choice", "included"),
    [
        (ALL, True),
        (ChainFilter(topic="t"), True),
        (ChainFilter(topic="u"), False),
        (ChainFilter(partition=1), True),
        (ChainFilter(partition=0), False),
        (ChainFilter(topic="t", partition=0), False),
        (ChainFilter(chains=[Chain("t", 1)]), True),
        (ChainFilter(chains=[Chain("t", 0)]), False),
        (ChainFilter(chains=[Chain("t", 1)], topic="u"), False),
        (ChainFilter(chains=[]), False),
    ],
)
def test_all_that_is_named_must_fit(choice: ChainFilter, included: bool) -> None:
    """A chain is chosen by topic, by partition, by name, or by all of them."""
    assert choice.includes(Chain("t", 1)) == included


def verdict_on(first: int, entries: int, head_offset: int | None, head_hash: str, **changes: Any) -> RangeVerdict:
    """The verdict on ten offsets of a chain."""
    unlike: dict[str, Any] = {"chain": Chain("t", 1), "finding": None, "unjudged": None, **changes}
    return RangeVerdict(
        first=first, last=first + 9, entries=entries, head_offset=head_offset, head_hash=head_hash, **unlike
    )


def ranges() -> list[RangeVerdict]:
    """Verdicts on three ranges of a chain, the last one empty, and one of another chain."""
    return [
        verdict_on(10, 2, 12, "cc"),
        verdict_on(20, 0, None, "cc"),
        verdict_on(0, 3, 9, "bb"),
        verdict_on(0, 7, 9, "dd", chain=Chain("t", 0)),
    ]


def test_ranges_are_put_together_in_their_order() -> None:
    """Whatever order they come in; the head is that of the last range that has an entry."""
    expected = verdict(entries=5, head_offset=12, head_hash="cc")
    assert together(Chain("t", 1), ranges(), []) == expected
    assert together(Chain("t", 1), [], []) == verdict(entries=0)


def test_what_comes_after_a_finding_is_not_counted() -> None:
    """And of several findings the earliest counts, also where it is a kept head's; another chain's does not."""
    parts = ranges()
    at = ChainFault(topic="t", partition=1, offset=5, problem="p")
    bad = verdict_on(0, 1, 4, "ee", finding=at)
    found = together(Chain("t", 1), [*parts[:2], bad, parts[3]], [FAULT])
    assert found == verdict(entries=1, head_offset=4, head_hash="ee", finding=at)
    earlier = ChainFault(topic="t", partition=1, offset=3, problem="kept")
    assert together(Chain("t", 1), [bad], [FAULT, earlier]).finding == earlier
    assert together(Chain("t", 0), parts, [FAULT]).finding is None
    assert together(Chain("u", 1), parts, [FAULT]).finding is None


def test_what_can_not_be_judged_adds_up() -> None:
    """Its first offset is the lowest one, and only some of the ids are kept."""
    parts = ranges()
    more = UnjudgedEntries(entries=4, first_offset=3, schema_ids=(1, 71))
    some = [verdict_on(start, 1, start, "aa", unjudged=each) for start, each in enumerate((None, UNJUDGED, more))]
    expected = UnjudgedEntries(entries=6, first_offset=3, schema_ids=(1, 70, 71))
    assert together(Chain("t", 1), some, []).unjudged == expected
    assert together(Chain("t", 1), parts, []).unjudged is None
    many = UnjudgedEntries(entries=1, first_offset=9, schema_ids=tuple(range(100, 100 + SCHEMA_IDS_MAX)))
    assert UNJUDGED.with_more(many).schema_ids == (70, 71, *range(100, 98 + SCHEMA_IDS_MAX))
