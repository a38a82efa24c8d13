"""`plant schemas`: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

from click.testing import CliRunner

from operations.cli.main import cli
from operations.reference import events as events_reference
from schemas import compatibility_gate as gate
from schemas import generation, registry
from schemas.errors import SchemaCheckFailed
from schemas.record_types import RECORD_TYPES
from schemas.registry import Registry, bundled, read_registry, render_registry
from tests.support.made_versions import FIRST, WithScore


def test_the_commands_list_and_check() -> None:
    """`list` prints every version as data; `check` says that all is well and writes nothing to stdout."""
    runner = CliRunner()
    listed = runner.invoke(cli, ["schemas", "list", "--output", "json"], catch_exceptions=False)
    assert [row["id"] for row in json.loads(listed.stdout)] == [version.id for version in bundled().versions]
    checked = runner.invoke(cli, ["schemas", "check"], catch_exceptions=False)
    assert checked.exit_code == 0
    assert checked.stdout == ""
    assert "compatible, locked and up to date" in checked.stderr


def test_the_check_refuses_with_exit_code_3() -> None:
    """A refused schema ends `plant schemas check` with field and rule."""
    reg = Registry([FIRST], {"test.thing.made": WithScore})
    with patch.object(registry, "bundled", lambda: reg):
        result = CliRunner().invoke(cli, ["schemas", "check"])
    assert isinstance(result.exception, SchemaCheckFailed)
    assert result.exception.exit_code == 3
    assert "score: the reader has this field without a default" in result.exception.why


def test_the_commands_write_only_what_changed(tmp_path: Path) -> None:
    """`generate`, `lock` and `docs` write the files, say which, and the second time have nothing to do."""
    runner = CliRunner()
    file = tmp_path / "registry.json"
    file.write_text(render_registry(bundled().versions[:-1]), "utf-8")
    folder = tmp_path / "avro"
    folder.mkdir()
    (folder / "gone.avsc").write_text("{}", "utf-8")
    page = tmp_path / "docs" / "events.md"
    short, newest = Registry(bundled().versions[:-1]), bundled().versions[-1]
    with (
        patch.object(registry, "bundled", lambda: short),
        patch.object(gate.write_lock, "__defaults__", (file,)),
        patch.object(generation.stale_files, "__defaults__", (folder, RECORD_TYPES)),
        patch.object(generation, "AVRO_FOLDER", folder),
        patch.object(events_reference, "REFERENCE_FILE", page),
    ):
        assert runner.invoke(cli, ["schemas", "lock"], catch_exceptions=False).stdout.split() == [
            str(newest.id),
            newest.subject,
            str(newest.version),
        ]
        generated = runner.invoke(cli, ["schemas", "generate"], catch_exceptions=False).stdout.split()
        assert sorted(generated) == sorted(["gone.avsc", *(f"{name}.avsc" for name in RECORD_TYPES)])
        assert runner.invoke(cli, ["schemas", "generate"], catch_exceptions=False).stdout == ""
        assert runner.invoke(cli, ["schemas", "docs"], catch_exceptions=False).stdout.strip() == str(page)
    assert read_registry(file.read_text("utf-8")) == list(bundled().versions)
    assert page.read_text("utf-8") == events_reference.events_page()
    assert "locked already" in runner.invoke(cli, ["schemas", "lock"], catch_exceptions=False).stderr
