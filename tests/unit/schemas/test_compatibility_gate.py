"""The compatibility gate in front of the registry."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pytest

from schemas import compatibility_gate as gate
from schemas.errors import SchemaCheckFailed
from schemas.events import EVENT_TYPES
from schemas.generation import avro_file_text
from schemas.registry import (
    Registry,
    Version,
    bundled,
    next_version,
    read_registry,
    render_registry,
    schema_fingerprint,
    subject,
)
from tests.support.made_versions import FIRST, Described, Mapped, ThingMade, WithNote, WithScore, named, registered


def rules(reg: Registry, committed: list[Version] | None, folder: Path) -> list[str]:
    for event in reg.events.values():
        (folder / f"{event.event_type}.avsc").write_text(avro_file_text(event), "utf-8")
    return [str(problem) for problem in gate.schema_problems(reg, committed, folder)]


def test_the_bundled_registry_passes_its_check() -> None:
    """Ids count from 1, and every event type's schema is locked under its subject."""
    assert [version.id for version in bundled().versions] == list(range(1, len(bundled().versions) + 1))
    assert gate.schema_problems(bundled(), None) == []
    for event in EVENT_TYPES.values():
        assert bundled().current(event).subject == f"{event.topic}-{subject(event).rpartition('-')[2]}"
    assert subject(EVENT_TYPES["genesis.agent.onboarded"]) == "genesis.events-genesis.AgentOnboarded"
    assert subject(EVENT_TYPES["plant.operation.recorded"]) == "plant.operations-plant.OperationRecorded"


def test_a_compatible_change_is_refused_until_it_is_locked(tmp_path: Path) -> None:
    """A new optional field passes the gate and gets the next id and version."""
    reg = registered(FIRST, event=WithNote)
    assert rules(reg, None, tmp_path) == [
        "genesis.events-test.ThingMade: no registry id stands for this schema; run: plant schemas lock"
    ]
    added = gate.lock_schemas(reg)
    assert [(version.id, version.version) for version in added] == [(2, 2)]
    assert rules(registered(FIRST, *added, event=WithNote), [FIRST], tmp_path) == []
    assert gate.lock_schemas(registered(FIRST, *added, event=WithNote)) == []


def test_a_description_needs_no_new_version(tmp_path: Path) -> None:
    """Words may change without a new id."""
    assert rules(registered(FIRST, event=Described), [FIRST], tmp_path) == []


def test_an_incompatible_change_is_refused_by_field_and_rule(tmp_path: Path) -> None:
    """A required new field can't be read from old values: field, rule, direction and version are named."""
    reg = registered(FIRST, event=WithScore)
    wanted = (
        "genesis.events-test.ThingMade: score: the reader has this field without a default, "
        "and the writer does not write it (backward, version 1)"
    )
    assert rules(reg, None, tmp_path) == [wanted]
    with pytest.raises(SchemaCheckFailed) as refused:
        gate.lock_schemas(reg)
    assert refused.value.why == wanted
    assert refused.value.exit_code == 3


def test_a_struct_that_breaks_a_rule_is_refused(tmp_path: Path) -> None:
    """Schema rules are part of the check."""
    assert rules(registered(FIRST, event=Mapped), None, tmp_path) == [
        "genesis.events-test.ThingMade: name: every text refuses NUL characters, and has no other pattern"
    ]


def test_a_loosened_limit_is_a_version_with_an_id_of_its_own(tmp_path: Path) -> None:
    """A worker that knows the older limit alone does not know the id, and waits. The schemas differ in an attribute."""
    first = next_version(registered(event=named(max_length=10)), named(max_length=10))
    loosened = named(max_length=20)
    assert rules(registered(first, event=loosened), [first], tmp_path) == [
        "genesis.events-test.ThingMade: no registry id stands for this schema; run: plant schemas lock"
    ]
    (second,) = gate.lock_schemas(registered(first, event=loosened))
    assert (second.id, second.version) == (2, 2)
    assert (first.limits or {})["name"] == {"max_length": 10}
    assert (second.limits or {})["name"] == {"max_length": 20}
    assert second.sha256 != first.sha256, "an external registry would give both one id"
    assert rules(registered(first, second, event=loosened), [first], tmp_path) == []


@pytest.mark.parametrize(("before", "after"), [({"max_length": 20}, {"max_length": 10}), ({}, {"min_length": 1})])
def test_a_tightened_limit_is_refused(tmp_path: Path, before: dict[str, int], after: dict[str, int]) -> None:
    """Records outside it are in the log; the field, both limits and the version are named."""
    first = next_version(registered(event=named(**before)), named(**before))
    reg = registered(first, event=named(**after))
    (problem,) = rules(reg, [first], tmp_path)
    assert problem.startswith("genesis.events-test.ThingMade: name: m")
    assert problem.endswith("a limit may only be loosened (version 1)")
    with pytest.raises(SchemaCheckFailed):
        gate.lock_schemas(reg)


def test_a_limit_is_compared_with_every_earlier_version(tmp_path: Path) -> None:
    """Loosened once, it can't go back to where it began, though the first version had it so."""
    first = next_version(registered(event=named(max_length=10)), named(max_length=10))
    (second,) = gate.lock_schemas(registered(first, event=named(max_length=20)))
    (problem,) = rules(registered(first, second, event=named(max_length=10)), None, tmp_path)
    assert "max_length is 10 and it was 20" in problem
    assert "(version 2)" in problem


def test_a_new_field_may_have_any_limit(tmp_path: Path) -> None:
    """No record holds a value of it yet."""
    reg = registered(FIRST, event=named())
    assert [version.limits for version in gate.lock_schemas(reg)] == [{"note": {"max_length": 5}}]


def test_locked_limits_are_permanent(tmp_path: Path) -> None:
    """They may be added once to a registry from before they were locked, and never changed."""
    unlocked = msgspec.structs.replace(FIRST, limits=None)
    changed = msgspec.structs.replace(FIRST, limits={"name": {"max_length": 5}})
    assert rules(registered(FIRST), [unlocked], tmp_path) == []
    assert "registry id 1: changed, but committed ids are permanent" in rules(registered(changed), [FIRST], tmp_path)
    assert "registry id 1: no limits are locked with it, so its records could not be judged" in rules(
        registered(unlocked), [unlocked], tmp_path
    )


def test_committed_ids_are_permanent(tmp_path: Path) -> None:
    """An id that is gone, or stands for something else than in the last commit, is refused."""
    second = msgspec.structs.replace(next_version(registered(FIRST), ThingMade), id=2)
    moved = msgspec.structs.replace(FIRST, id=3)
    found = rules(registered(moved), [FIRST, msgspec.structs.replace(second, id=3)], tmp_path)
    assert "registry id 1: removed, but committed ids are permanent" in found
    assert "registry id 3: changed, but committed ids are permanent" in found


def test_a_damaged_registry_is_refused(tmp_path: Path) -> None:
    """Edited schemas, ids used twice, gaps in versions and orphaned subjects are all named."""
    schema: Any = FIRST.schema
    edited = msgspec.structs.replace(FIRST, schema={**schema, "namespace": "other"})
    gap = msgspec.structs.replace(FIRST, version=3)
    orphan = msgspec.structs.replace(FIRST, id=4, subject="elsewhere-test.Gone")
    enum = {**schema, "fields": [{"name": "kind", "type": {"type": "enum", "name": "K", "symbols": ["A"]}}]}
    ruled = msgspec.structs.replace(FIRST, id=5, version=2, schema=enum, sha256=schema_fingerprint(enum))
    found = "\n".join(rules(registered(edited, gap, orphan, ruled), None, tmp_path))
    assert "registry id 1: its schema does not match its sha256" in found
    assert "registry id 1: each id is positive and used once" in found
    assert "genesis.events-test.ThingMade: versions count 1, 2, 3, ..., and are [1, 2, 3]" not in found
    assert "registry id 4: no event type has the subject elsewhere-test.Gone" in found
    assert "registry id 5: ThingMade.kind: no enum" in found
    assert "versions count 1, 2, 3, ..., and are [1, 3]" in "\n".join(rules(registered(FIRST, gap), None, tmp_path))


def test_ids_are_positive(tmp_path: Path) -> None:
    """An id of 0 or less is refused: readers take 0 for no id."""
    for number in (0, -1):
        zero = msgspec.structs.replace(FIRST, id=number)
        assert f"registry id {number}: each id is positive and used once" in rules(registered(zero), None, tmp_path)


def test_a_committed_id_keeps_its_subject_and_version(tmp_path: Path) -> None:
    """Not the schema alone is committed: another version number under the same id is a change."""
    moved = msgspec.structs.replace(FIRST, version=2)
    assert "registry id 1: changed, but committed ids are permanent" in rules(registered(moved), [FIRST], tmp_path)


def test_two_new_types_get_two_ids() -> None:
    """Each version that is locked counts when the next one gets its id."""
    other = type("OtherMade", (ThingMade,), {"__module__": __name__, "event_type": "test.other.made", "__doc__": "x."})
    added = gate.lock_schemas(Registry([], {"test.thing.made": ThingMade, "test.other.made": other}))
    assert [(version.id, version.version) for version in added] == [(1, 1), (2, 1)]


def test_stale_files_are_refused(tmp_path: Path) -> None:
    """A `.avsc` file that is missing, differs or has no event type is named."""
    (tmp_path / "gone.avsc").write_text("{}", "utf-8")
    found = [str(problem) for problem in gate.schema_problems(registered(FIRST), None, tmp_path)]
    assert found == [
        "test.thing.made.avsc: differs from its struct; run: plant schemas generate",
        "gone.avsc: no event type has this file",
    ]


def test_committed_versions_come_from_the_last_commit(tmp_path: Path) -> None:
    """The check compares with what is committed, and with nothing where there is no repository."""
    file = tmp_path / "registry.json"
    file.write_text(render_registry([FIRST]), "utf-8")
    assert gate.committed_versions(file) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        assert gate.committed_versions(file) is None
        subprocess.run([*git, *arguments], check=True)
    gate.write_lock([msgspec.structs.replace(FIRST, id=2, version=2)], file)
    assert gate.committed_versions(file) == [FIRST]
    assert [version.id for version in read_registry(file.read_text("utf-8"))] == [1, 2]
    with patch.dict("os.environ", {"PATH": str(tmp_path)}):
        assert gate.committed_versions(file) is None
    new = tmp_path / "new.json"
    new.write_text(render_registry([FIRST]), "utf-8")
    assert gate.committed_versions(new) is None


def test_a_repository_that_git_can_not_read_is_no_good_verdict(tmp_path: Path) -> None:
    """The comparison of ids would be left out where it matters, so that is refused with git's own reason."""
    file = tmp_path / "registry.json"
    file.write_text(render_registry([FIRST]), "utf-8")
    subprocess.run(["git", "-C", str(tmp_path), "init", "-q"], check=True)
    (tmp_path / ".git" / "config").write_text("not a configuration", "utf-8")
    with pytest.raises(SchemaCheckFailed, match="can't be compared") as refused:
        gate.committed_versions(file)
    assert refused.value.why.startswith("git: fatal: ")
