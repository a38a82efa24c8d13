"""Verdicts on whole chains, and the one that counts: good, bad, cannot judge, or nothing checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from audit.verifier.chain_range import Chain, ChainFault, UnjudgedEntries
from audit.verifier.errors import ChainBroken, EntriesUnjudged
from audit.verifier.heads import Head
from audit.verifier.stored_log import RangeVerdict
from runtime.errors import NothingChecked

State = Literal["good", "bad", "cannot judge", "empty"]


class ChainVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict on one chain. With a finding, the head is that of the last good entry before it."""

    topic: str
    partition: int
    entries: int
    head_offset: int | None = None
    head_hash: str | None = None
    finding: ChainFault | None = None
    unjudged: UnjudgedEntries | None = None

    @property
    def chain(self) -> Chain:
        """Its chain."""
        return Chain(self.topic, self.partition)

    @property
    def state(self) -> State:
        """The verdict in a word."""
        if self.finding is not None:
            return "bad"
        if not self.entries:
            return "empty"
        return "good" if self.unjudged is None else "cannot judge"


class ChainFilter(msgspec.Struct, frozen=True, kw_only=True):
    """The chains and offsets that were named; None: all of them."""

    chains: Sequence[Chain] | None = None
    topic: str | None = None
    partition: int | None = None
    first: int | None = None
    last: int | None = None

    def includes(self, chain: Chain) -> bool:
        """Return whether the chain was named."""
        named = self.chains is None or chain in self.chains
        return named and self.topic in (None, chain.topic) and self.partition in (None, chain.partition)

    def named(self) -> str:
        """Return the names for a message; nothing where all chains are meant."""
        parts = [f"topic {self.topic}" if self.topic is not None else ""]
        parts.append(f"partition {self.partition}" if self.partition is not None else "")
        parts.append(f"chains {', '.join(map(str, self.chains))}" if self.chains is not None else "")
        parts.append(f"from offset {self.first}" if self.first is not None else "")
        parts.append(f"to offset {self.last}" if self.last is not None else "")
        return ", ".join(part for part in parts if part)


def together(chain: Chain, verdicts: Sequence[RangeVerdict], broken: Sequence[ChainFault]) -> ChainVerdict:
    """Return one verdict from those of a chain's ranges: the earliest finding, and the good entries before it."""
    entries, head_offset, head_hash = 0, None, None
    unjudged: UnjudgedEntries | None = None
    findings = [finding for finding in broken if (finding.topic, finding.partition) == (chain.topic, chain.partition)]
    for verdict in sorted((verdict for verdict in verdicts if verdict.chain == chain), key=lambda each: each.first):
        entries += verdict.entries
        if verdict.head_offset is not None:
            head_offset, head_hash = verdict.head_offset, verdict.head_hash
        if verdict.unjudged is not None:
            unjudged = verdict.unjudged if unjudged is None else unjudged.with_more(verdict.unjudged)
        if verdict.finding is not None:
            findings.append(verdict.finding)
            break
    return ChainVerdict(
        topic=chain.topic,
        partition=chain.partition,
        entries=entries,
        head_offset=head_offset,
        head_hash=head_hash,
        finding=min(findings, key=lambda finding: finding.offset, default=None),
        unjudged=unjudged,
    )


def raise_unless_good(
    verdicts: Sequence[ChainVerdict],
    choice: ChainFilter,
    *,
    expect: Sequence[Head] | None = None,
    schema_ids: Path | None = None,
) -> None:
    """Raise unless all that was named was checked and is good; a log that is empty, with nothing named, is good.

    `expect` are the kept heads that were named, None where none were. Raises ChainBroken, EntriesUnjudged or
    NothingChecked, the first of them that is true.
    """
    _refuse_bad(verdicts)
    _refuse_unjudged(verdicts, schema_ids)
    _refuse_unchecked(verdicts, choice)
    if expect is not None and not any(choice.includes(head.chain) for head in expect):
        raise NothingChecked(
            "No kept head was compared.",
            why="The file names none of the chains that were checked." if expect else "The file names no chain.",
            next_step="plant audit head > heads.json",
        )


def _refuse_bad(verdicts: Sequence[ChainVerdict]) -> None:
    """Raise ChainBroken about the first bad entry: the lowest offset of the first chain that has one."""
    bad = [verdict.finding for verdict in verdicts if verdict.finding is not None]
    if not bad:
        return
    first = bad[0]
    others = f" {len(bad) - 1} more of {len(verdicts)} chains are bad." if len(bad) > 1 else ""
    raise ChainBroken(
        f"The chain {first.topic}/{first.partition} is broken at offset {first.offset}.",
        why=f"{first.problem[:1].upper()}{first.problem[1:]}. Stored hash: {first.stored_hash or 'none'}; "
        f"recomputed: {first.recomputed_hash or 'none'}.{others}",
        next_step=f"plant consume --partition {first.partition} --from {first.offset}",
    )


def _refuse_unjudged(verdicts: Sequence[ChainVerdict], schema_ids: Path | None) -> None:
    for verdict in verdicts:
        unjudged = verdict.unjudged
        if unjudged is not None:
            ids = ", ".join(map(str, unjudged.schema_ids))
            file = "An external registry's ids are in PLANT_SCHEMA_IDS_FILE, which is not set"
            known = file if schema_ids is None else f"{schema_ids} does not name them"
            raise EntriesUnjudged(
                f"{unjudged.entries} entries of {verdict.chain} can't be judged, from offset "
                f"{unjudged.first_offset} on: this verifier does not know their schemas.",
                why=f"Schema ids {ids}. Every hash was checked and is good, but the columns next to the hashed bytes "
                f"may say anything. {known}; or the log is of a newer Plant.",
                next_step="plant settings    (PLANT_SCHEMA_IDS_FILE), or verify with the newest Plant of the log",
            )


def _refuse_unchecked(verdicts: Sequence[ChainVerdict], choice: ChainFilter) -> None:
    named = choice.named()
    if not named:
        return
    checked = {verdict.chain for verdict in verdicts if verdict.entries}
    missing = [chain for chain in choice.chains or () if chain not in checked]
    if checked and not missing:
        return
    what = f"Nothing was checked of {', '.join(map(str, missing))}." if missing else "Nothing was checked."
    raise NothingChecked(
        what,
        why=f"The log has no entry for what was named: {named}.",
        next_step="plant audit head    (prints every chain that has entries, and its last offset)",
    )
