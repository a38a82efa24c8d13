"""The compatibility gate in front of the registry, and `plant schemas`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from click.testing import CliRunner

from operations.cli.schemas import command
from schemas import compatibility_gate as gate
from schemas import registry
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
from tests.support.made_versions import FIRST, Described, Mapped, ThingMade, WithNote, WithScore, registered


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
        subprocess.run([*git, *arguments], check=True)
    gate.write_lock([msgspec.structs.replace(FIRST, id=2, version=2)], file)
    assert gate.committed_versions(file) == [FIRST]
    assert [version.id for version in read_registry(file.read_text("utf-8"))] == [1, 2]
    with patch.dict("os.environ", {"PATH": str(tmp_path)}):
        assert gate.committed_versions(file) is None


def test_the_commands_list_and_check() -> None:
    """`list` prints every version as data; `check` says that all is well and writes nothing to stdout."""
    runner = CliRunner()
    listed = runner.invoke(command, ["list", "--output", "json"], catch_exceptions=False)
    assert [row["id"] for row in json.loads(listed.stdout)] == [version.id for version in bundled().versions]
    checked = runner.invoke(command, ["check"], catch_exceptions=False)
    assert checked.exit_code == 0
    assert checked.stdout == ""
    assert "compatible, locked and up to date" in checked.stderr


def test_the_check_refuses_with_exit_code_3() -> None:
    """A refused schema ends `plant schemas check` with field and rule."""
    reg = Registry([FIRST], {"test.thing.made": WithScore})
    with patch.object(registry, "bundled", lambda: reg):
        result = CliRunner().invoke(command, ["check"])
    assert isinstance(result.exception, SchemaCheckFailed)
    assert result.exception.exit_code == 3
    assert "score: the reader has this field without a default" in result.exception.why


def test_the_commands_write_only_what_changed(tmp_path: Path) -> None:
    """`generate`, `lock` and `docs` write the files, say which, and the second time have nothing to do."""
    from operations.reference import events as reference
    from schemas import generation

    runner = CliRunner()
    file = tmp_path / "registry.json"
    file.write_text(render_registry(bundled().versions[:-1]), "utf-8")
    folder = tmp_path / "avro"
    folder.mkdir()
    (folder / "gone.avsc").write_text("{}", "utf-8")
    page = tmp_path / "docs" / "events.md"
    short = Registry(bundled().versions[:-1])
    with (
        patch.object(registry, "bundled", lambda: short),
        patch.object(gate.write_lock, "__defaults__", (file,)),
        patch.object(generation.stale_files, "__defaults__", (folder, EVENT_TYPES)),
        patch.object(generation, "AVRO_FOLDER", folder),
        patch.object(reference, "REFERENCE_FILE", page),
    ):
        assert runner.invoke(command, ["lock"], catch_exceptions=False).stdout.split() == [
            "11",
            "plant.operations-plant.OperationRecorded",
            "1",
        ]
        generated = runner.invoke(command, ["generate"], catch_exceptions=False).stdout.split()
        assert sorted(generated) == sorted(["gone.avsc", *(f"{name}.avsc" for name in EVENT_TYPES)])
        assert runner.invoke(command, ["generate"], catch_exceptions=False).stdout == ""
        assert runner.invoke(command, ["docs"], catch_exceptions=False).stdout.strip() == str(page)
    assert read_registry(file.read_text("utf-8")) == list(bundled().versions)
    assert page.read_text("utf-8") == reference.events_page()
    assert "locked already" in runner.invoke(command, ["lock"], catch_exceptions=False).stderr
