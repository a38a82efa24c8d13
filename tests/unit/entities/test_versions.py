"""The chain of an entity's versions: its formula, its vectors, and where a chain breaks."""

from __future__ import annotations

import doctest
import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entities import versions
from entities.vectors.generate import FILE, text
from entities.versions import BEFORE_FIRST, OPERATIONS, EntityVersion, chain_hash, first_break, version_hash
from tests.support.version_chains import EPOCH, plain_hash

VECTORS: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))["chains"]

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
moments = st.datetimes(timezones=st.just(UTC))
contents = st.fixed_dictionaries(
    {
        "entity_type": texts,
        "operation": st.sampled_from(OPERATIONS),
        "recorded_at": moments,
        "recorded_by": texts,
        "governance_agent_id": texts,
        "state": texts,
    }
)


def chain(entity_id: UUID, rows: list[dict[str, Any]]) -> list[EntityVersion]:
    """Versions with these contents, as the database would write them."""
    made: list[EntityVersion] = []
    previous = BEFORE_FIRST
    for number, row in enumerate(rows, start=1):
        digest = chain_hash(previous, entity_id=entity_id, version=number, **row)
        hashes = {"version_hash": version_hash(row["state"]), "previous_hash": previous, "hash": digest}
        made.append(EntityVersion(entity_id=entity_id, version=number, **row, **hashes))
        previous = digest
    return made


def three() -> list[EntityVersion]:
    row = {"entity_type": "skill", "recorded_at": EPOCH, "recorded_by": "plant_writer"}
    row |= {"governance_agent_id": "genesis"}
    return chain(uuid4(), [{**row, "operation": "changed", "state": json.dumps({"name": n})} for n in range(3)])


def test_documented_examples_hold() -> None:
    """The examples in the docstrings give what they say."""
    assert doctest.testmod(versions).failed == 0


def test_vectors_are_what_the_generator_writes() -> None:
    """The committed vectors are those of today's code."""
    assert FILE.read_text(encoding="utf-8") == text()


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_vectors_follow_from_the_format_alone(vector: dict[str, Any]) -> None:
    """A few lines of struct and hashlib, written from the words, give every vector's hashes."""
    previous = bytes(32)
    for row in vector["versions"]:
        moment = datetime.fromisoformat(row["recorded_at"])
        assert row["version_hash"] == hashlib.sha256(row["state"].encode()).hexdigest()
        assert row["previous_hash"] == previous.hex()
        previous = plain_hash(previous, {**row, "entity_id": UUID(row["entity_id"]), "recorded_at": moment})
        assert row["hash"] == previous.hex()


def test_vectors_are_all_different() -> None:
    """No two versions of the vectors have the same hash: where one field ends and the next begins counts."""
    every = [row["hash"] for vector in VECTORS for row in vector["versions"]]
    assert len(set(every)) == len(every) > 8


@given(st.uuids(), st.lists(contents, max_size=5))
def test_a_chain_is_whole_and_its_hashes_are_those_of_the_formula(entity_id: UUID, rows: list[dict[str, Any]]) -> None:
    """Whatever the contents: no break is found, and each hash is the plain formula's."""
    made = chain(entity_id, rows)
    assert first_break(made) is None
    previous = bytes(32)
    for number, (row, version) in enumerate(zip(rows, made, strict=True), start=1):
        previous = plain_hash(previous, {**row, "entity_id": entity_id, "version": number})
        assert version.hash == previous


@given(st.uuids(), contents, contents)
def test_other_contents_have_another_hash(entity_id: UUID, one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two versions have the same hash only if they are the same."""
    hashes = [chain_hash(BEFORE_FIRST, entity_id=entity_id, version=1, **row) for row in (one, other)]
    assert (hashes[0] == hashes[1]) is (one == other)


@pytest.mark.parametrize(
    ("field", "value", "at", "why"),
    [
        ("state", "{}", 2, "its state is not what was hashed"),
        ("version_hash", bytes(32), 2, "its state is not what was hashed"),
        ("previous_hash", bytes(32), 2, "its previous_hash is not the hash of the version before"),
        ("hash", bytes(32), 2, "its hash is not that of its contents"),
        ("entity_type", "agent", 2, "its hash is not that of its contents"),
        ("operation", "deleted", 2, "its hash is not that of its contents"),
        ("recorded_at", EPOCH + timedelta(microseconds=1), 2, "its hash is not that of its contents"),
        ("recorded_by", "postgres", 2, "its hash is not that of its contents"),
        ("governance_agent_id", "acme", 2, "its hash is not that of its contents"),
        ("entity_id", UUID(int=1), 2, "its hash is not that of its contents"),
        ("version", 3, 3, "version 2 is missing"),
    ],
)
def test_every_changed_field_is_found(field: str, value: object, at: int, why: str) -> None:
    """Of a version in the middle, whichever field is changed: that version is named, with the reason."""
    versions = three()
    setattr(versions[1], field, value)
    found = first_break(versions)
    assert found is not None
    assert (found.version, found.why) == (at, why)


def test_a_version_hashed_anew_breaks_the_next() -> None:
    """Who changes a version and its hashes breaks the link of the one after it."""
    versions = three()
    row = {"entity_type": "skill", "operation": "changed", "recorded_at": EPOCH, "recorded_by": "plant_writer"}
    row |= {"governance_agent_id": "genesis", "state": "{}"}
    versions[1].state, versions[1].version_hash = "{}", version_hash("{}")
    versions[1].hash = chain_hash(versions[0].hash, entity_id=versions[1].entity_id, version=2, **row)  # type: ignore[arg-type]
    found = first_break(versions)
    assert found is not None
    assert (found.version, found.why) == (3, "its previous_hash is not the hash of the version before")


@pytest.mark.parametrize("gone", [0, 1])
def test_a_removed_version_is_found(gone: int) -> None:
    """A chain without its first, or without one in the middle, is broken there."""
    versions = three()
    del versions[gone]
    found = first_break(versions)
    assert found is not None
    assert (found.version, found.why) == (gone + 2, f"version {gone + 1} is missing")


def test_no_versions_are_a_whole_chain() -> None:
    """Nothing can't be broken: that an entity has no versions is found elsewhere."""
    assert first_break([]) is None
