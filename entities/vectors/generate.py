"""Writes `versions.json`: chains of versions and their hashes, for anyone who checks the formula elsewhere.

`python -m entities.vectors.generate` rewrites the file; a test compares it with what this would write, and another with
what the database computes.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

from entities.versions import BEFORE_FIRST, chain_hash, version_hash

FILE: Final = Path(__file__).parent / "versions.json"
ABOUT: Final = (
    "version_hash = sha256(state); hash = sha256(previous_hash || entry); entities/versions.py has entry's layout. "
    "Hashes are in hex. A version's previous_hash is the hash of the version before it, of the first 32 zero bytes."
)
SKILL: Final = UUID("0c2bb4f6-4d6f-4d35-8b06-9b1d3a2f1c55")
SKILL_STATE: Final = '{"name": "SQL", "status": "active", "category": "technical", "description": "Asks for rows."}'


class Case(NamedTuple):
    """The content of one version; its number is its rank in the chain."""

    state: str
    operation: str = "changed"
    recorded_at: str = "2026-01-02T03:04:05.678901+00:00"
    recorded_by: str = "plant_writer"
    entity_type: str = "skill"
    governance_agent_id: str = "genesis"


CHAINS: Final[dict[str, tuple[UUID, tuple[Case, ...]]]] = {
    "a skill that is made, changed, deleted, and made again": (
        SKILL,
        (
            Case(SKILL_STATE, "created"),
            Case(SKILL_STATE.replace("active", "retired"), recorded_at="2026-01-02T03:04:05.678902+00:00"),
            Case(SKILL_STATE.replace("active", "retired"), "deleted", "2026-01-02T03:04:06+00:00", "plant_owner"),
            Case(SKILL_STATE, "created", "2027-01-01T00:00:00+00:00"),
        ),
    ),
    "the id of all zeros": (UUID(int=0), (Case("{}", "created"),)),
    "the id of all ones": (UUID(int=2**128 - 1), (Case("{}", "created"),)),
    "where a field ends counts": (
        SKILL,
        (
            Case("{}", recorded_by="ab", governance_agent_id="c"),
            Case("{}", recorded_by="a", governance_agent_id="bc"),
        ),
    ),
    "texts are UTF-8": (
        SKILL,
        (Case('{"name": "Größe 事件 🜚"}', "created", recorded_by="größe", governance_agent_id="事件"),),
    ),
    "times before 1970, and far ahead": (
        SKILL,
        (
            Case("{}", recorded_at="1969-12-31T23:59:59.999999+00:00"),
            Case("{}", recorded_at="9999-12-31T23:59:59.999998+00:00"),
        ),
    ),
    "a long state": (SKILL, (Case(json.dumps({"description": "x" * 10_000}), "created"),)),
    "every kind": (
        SKILL,
        tuple(Case("{}", entity_type=kind) for kind in ("agent", "skill", "job_role", "industry", "team")),
    ),
}


def vectors() -> dict[str, Any]:
    """Return the content of the file."""
    return {
        "format": "plant.entity.version.vectors/1",
        "about": ABOUT,
        "chains": [{"name": name, "versions": _chain(*chain)} for name, chain in CHAINS.items()],
    }


def text() -> str:
    """Return the file's text, line for line."""
    return json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n"


def _chain(entity_id: UUID, cases: tuple[Case, ...]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    previous = BEFORE_FIRST
    for number, case in enumerate(cases, start=1):
        contents = case._asdict() | {"recorded_at": datetime.fromisoformat(case.recorded_at)}
        digest = chain_hash(previous, entity_id=entity_id, version=number, **contents)
        rows.append(
            {"entity_id": str(entity_id), "version": number, **case._asdict()}
            | {"version_hash": version_hash(case.state).hex(), "previous_hash": previous.hex(), "hash": digest.hex()}
        )
        previous = digest
    return rows


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
