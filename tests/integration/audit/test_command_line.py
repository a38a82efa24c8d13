"""`plant audit` and `python -m audit`: what they print, and how they end."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from audit.__main__ import main as standalone
from audit.verifier.decoded_columns import id_offsets
from devstack import sql
from operations.cli import main as command_line
from schemas.external_registry import ExternalSchemaId, render_ids
from schemas.registry import bundled
from tests.conftest import Database
from tests.support import log_rows
from tests.support.log_rows import Row

NOWHERE = "postgresql://plant_auditor@127.0.0.1:1/plant"


def tamper(log_database: Database, statement: str) -> None:
    sql.execute(log_database.superuser_url, ["SET session_replication_role = replica", statement])


def plant(*arguments: str) -> int:
    return command_line.run(["audit", *arguments])


@pytest.fixture
def as_auditor(log_database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command line's settings: this test's database."""
    monkeypatch.setenv("PLANT_HOME", str(tmp_path))
    monkeypatch.setenv("PLANT_DATABASE_AUDITOR_URL", log_database.auditor_url)


@pytest.mark.usefixtures("as_auditor")
def test_verify_prints_a_verdict_a_chain(stored_log: list[Row], capsys: pytest.CaptureFixture[str]) -> None:
    """The table has count, head offset and head hash; progress goes to stderr."""
    assert plant("verify", "--jobs", "1") == 0
    captured = capsys.readouterr()
    assert re.search(rf"genesis\.events +0 +good +20 +25 +{stored_log[-1].hash.hex()}", captured.out)
    assert "20 entries in" in captured.err


@pytest.mark.usefixtures("as_auditor")
def test_verify_exits_3_naming_the_first_bad_entry(
    log_database: Database, stored_log: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 3; the error names topic, partition, offset and both hashes; the JSON holds the same finding."""
    log_rows.store(log_database, log_rows.log("genesis.events", 1))
    tamper(log_database, "UPDATE log_records SET key = 'x' WHERE \"offset\" = 8")
    assert plant("verify", "--output", "json") == 3
    captured = capsys.readouterr()
    first, second = json.loads(captured.out)
    assert "genesis.events/0 is broken at offset 8" in captured.err
    assert first["finding"]["stored_hash"] in captured.err
    assert first["finding"]["recomputed_hash"] in captured.err
    assert "1 more of 2 chains" in captured.err
    assert (first["verdict"], second["finding"]["offset"]) == ("bad", 8)


def test_verify_exits_4_when_the_log_is_unreachable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No answer from the database is not a verdict."""
    monkeypatch.setenv("PLANT_HOME", str(tmp_path))
    monkeypatch.setenv("PLANT_DATABASE_AUDITOR_URL", NOWHERE)
    assert plant("verify") == 4
    assert "does not answer" in capsys.readouterr().err


@pytest.mark.usefixtures("as_auditor", "stored_log")
def test_heads_are_kept_and_given_back(
    log_database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `head` prints is what `--expect` takes: good now, exit 3 once the tail is gone."""
    assert plant("head") == 0
    kept = tmp_path / "heads.json"
    kept.write_text(capsys.readouterr().out, encoding="utf-8")
    choice = ("verify", "--expect", str(kept), "--chain", "genesis.events/0", "--from", "3", "--to", "30")
    assert plant(*choice) == 0
    tamper(log_database, 'DELETE FROM log_records WHERE "offset" > 20')
    assert plant("verify", "--chain", "genesis.events/0") == 0
    assert plant(*choice) == 3
    assert "kept head" in capsys.readouterr().err


@pytest.mark.usefixtures("as_auditor")
@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"format":"other","heads":[]}', '{"format":"plant.audit.heads/1","heads":[{"hash":"x"}]}', "\xff"],
)
def test_a_file_that_holds_no_heads_is_refused(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged file of kept heads is a usage error, not a good verdict."""
    kept = tmp_path / "heads.json"
    kept.write_bytes(text.encode("latin-1"))
    assert plant("verify", "--expect", str(kept)) == 2
    assert "kept chain heads" in capsys.readouterr().err


@pytest.mark.usefixtures("as_auditor", "log_database")
@pytest.mark.parametrize("name", ["genesis.events", "genesis.events/x", "/3"])
def test_a_chain_has_to_be_named_with_its_partition(name: str) -> None:
    """A chain's name is TOPIC/PARTITION; anything else is a usage error."""
    assert plant("verify", "--chain", name) == 2


@pytest.mark.usefixtures("as_auditor", "log_database")
def test_verify_says_when_there_are_no_chains(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty log is reported as empty, not skipped, and never as good; what is named has to be there."""
    assert plant("verify") == 0
    assert "no chains: nothing was checked" in capsys.readouterr().err
    assert plant("verify", "--chain", "genesis.events/3") == 3
    captured = capsys.readouterr()
    assert re.search(r"genesis\.events +3 +empty +0", captured.out)
    assert "Nothing was checked of genesis.events/3." in captured.err


NAMED_AND_EMPTY = [
    ("--topic", "nope"),
    ("--partition", "99"),
    ("--from", "999999"),
    ("--to", "2"),
    ("--from", "10", "--to", "11"),
    ("--topic", "genesis.events", "--partition", "99"),
    ("--chain", "genesis.events/99"),
    ("--chain", "genesis.events/0", "--chain", "genesis.events/99"),
    ("--chain", "genesis.events/0", "--topic", "nope"),
    ("--chain", "genesis.events/0", "--from", "26"),
    ("--topic", "genesis.events", "--from", "26"),
]


@pytest.mark.usefixtures("as_auditor", "stored_log")
@pytest.mark.parametrize("output", ["table", "json", "jsonl"])
def test_what_is_named_and_empty_is_not_good(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A check that checked nothing of what was named ends with 3, and says what it looked for."""
    for named in NAMED_AND_EMPTY:
        assert plant("verify", *named, "--jobs", "1", "--output", output) == 3, named
        captured = capsys.readouterr()
        assert "Nothing was checked" in captured.err
        assert named[-1] in captured.err
        assert "BAD" not in captured.out


@pytest.mark.usefixtures("as_auditor", "stored_log")
def test_what_is_named_and_there_is_good() -> None:
    """A single entry is enough."""
    choices = [("--from", "25"), ("--to", "3"), ("--partition", "0"), ("--topic", "genesis.events", "--from", "20")]
    assert [plant("verify", *named, "--jobs", "1") for named in choices] == [0] * len(choices)


@pytest.mark.usefixtures("as_auditor", "stored_log")
def test_a_range_that_ends_before_it_begins_is_a_usage_error() -> None:
    """It could hold no entry, whatever the log has."""
    assert plant("verify", "--from", "9", "--to", "8") == 2


@pytest.mark.usefixtures("as_auditor")
def test_kept_heads_that_were_not_compared_are_not_good(
    log_database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that names no chain, or none of those that were chosen, proves nothing: exit 3, here and standalone."""
    assert plant("head") == 0
    captured = capsys.readouterr()
    assert "no chains" in captured.err
    empty, other = tmp_path / "empty.json", tmp_path / "other.json"
    empty.write_text(captured.out, encoding="utf-8")
    log_rows.store(log_database, log_rows.log())
    assert plant("verify", "--expect", str(empty)) == 3
    assert "The file names no chain." in capsys.readouterr().err
    assert plant("head") == 0
    other.write_text(capsys.readouterr().out, encoding="utf-8")
    log_rows.store(log_database, log_rows.log("genesis.events", 1))
    assert plant("verify", "--expect", str(other)) == 0
    assert plant("verify", "--expect", str(other), "--partition", "1") == 3
    assert "none of the chains that were checked" in capsys.readouterr().err
    assert standalone([log_database.auditor_url, "--expect", str(empty)]) == 3


def log_of_a_newer_plant(disposition: str = "applied") -> list[Row]:
    """A good chain, two of whose records have the schemas 77 and 4711."""
    rows = log_rows.log()[:5]
    for schema_id, at in ((77, 2), (4711, 4)):
        value = rows[at].value
        assert value is not None
        changed = replace(rows[at], value=value[:1] + schema_id.to_bytes(4, "big") + value[5:])
        reason = "a test" if disposition == "poison" else None
        rows[at] = replace(changed, disposition=disposition, reason=reason)
    return log_rows.linked(rows)


@pytest.mark.usefixtures("as_auditor")
@pytest.mark.parametrize("disposition", ["applied", "poison"])
def test_a_schema_that_is_not_known_can_not_be_judged(
    log_database: Database, disposition: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is no bad entry and no good one: a verdict of its own, exit 3, with count, offset and schema ids."""
    log_rows.store(log_database, log_of_a_newer_plant(disposition))
    assert plant("verify", "--output", "json") == 3
    captured = capsys.readouterr()
    (verdict,) = json.loads(captured.out)
    assert (verdict["verdict"], verdict["entries"], verdict["finding"]) == ("cannot judge", 5, None)
    assert verdict["unjudged"] == {"entries": 2, "first_offset": 5, "schema_ids": [77, 4711]}
    assert "2 entries of genesis.events/0 can't be judged, from offset 5 on" in captured.err
    assert "PLANT_SCHEMA_IDS_FILE, which is not set" in captured.err
    assert standalone([log_database.auditor_url]) == 3
    assert json.loads(capsys.readouterr().out)["verdict"] == "cannot judge"


@pytest.mark.usefixtures("as_auditor")
def test_a_broken_chain_is_bad_whatever_can_not_be_judged(
    log_database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finding goes before entries that can't be judged."""
    log_rows.store(log_database, log_of_a_newer_plant())
    tamper(log_database, "UPDATE log_records SET key = 'x' WHERE \"offset\" = 7")
    assert plant("verify") == 3
    captured = capsys.readouterr()
    assert "BAD" in captured.out
    assert "is broken at offset 7" in captured.err


@pytest.mark.usefixtures("as_auditor")
def test_the_ids_file_names_the_schemas_of_an_external_registry(
    log_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With it such entries are judged like others: good, and bad where a column was changed."""
    row = log_rows.row("genesis.events", 0, 0, log_rows.onboarded(0))
    assert row.value is not None
    log_rows.store(
        log_database,
        log_rows.linked([replace(row, value=b"\0" + (4711).to_bytes(4, "big") + row.value[5:])]),
    )
    version = next(version for version in bundled().versions if version.id == int.from_bytes(row.value[1:5], "big"))
    line = ExternalSchemaId(4711, version.id, version.subject, version.version, version.sha256)
    ids = tmp_path / "ids.json"
    ids.write_text(render_ids([line]), encoding="utf-8")
    assert plant("verify") == 3
    monkeypatch.setenv("PLANT_SCHEMA_IDS_FILE", str(ids))
    assert plant("verify") == 0
    assert standalone([log_database.auditor_url, "--schema-ids", str(ids)]) == 0
    ids.write_text(render_ids([msgspec.structs.replace(line, sha256="0" * 64)]), encoding="utf-8")
    id_offsets.cache_clear()  # type: ignore[attr-defined]  # a process reads the file once
    assert plant("verify") == 3
    assert "ids.json does not name them" in capsys.readouterr().err
    ids.write_text("[{}]", encoding="utf-8")
    id_offsets.cache_clear()  # type: ignore[attr-defined]  # a process reads the file once
    assert plant("verify") == 2
    ids.write_text(render_ids([line]), encoding="utf-8")
    id_offsets.cache_clear()  # type: ignore[attr-defined]  # a process reads the file once
    tamper(log_database, "UPDATE log_records SET event_type = 'genesis.agent.rated'")
    assert plant("verify") == 3
    assert "Event_type is genesis.agent.rated" in capsys.readouterr().err


@pytest.mark.usefixtures("as_auditor", "stored_log")
def test_verify_shows_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With a terminal, the same run shows a bar on stderr and nothing else on stdout."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert plant("verify", "--jobs", "1", "--output", "jsonl") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["verdict"] == "good"
    assert "verifying" in captured.err


def test_help_names_the_options() -> None:
    """`plant audit verify --help` says what it does and how it ends."""
    from operations.cli.main import cli

    shown = CliRunner().invoke(cli, ["audit", "verify", "--help"]).output
    assert "exit 3 naming the first bad entry" in shown
    assert "--expect" in shown


def test_the_verifier_stands_alone(
    log_database: Database, stored_log: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m audit URL` needs no settings: a JSON line a chain, the same exit codes, heads to keep."""
    assert standalone([log_database.auditor_url, "--jobs", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["head_hash"] == stored_log[-1].hash.hex()
    assert standalone([log_database.auditor_url, "--heads"]) == 0
    kept = tmp_path / "heads.json"
    kept.write_text(capsys.readouterr().out, encoding="utf-8")
    assert standalone([log_database.auditor_url, "--expect", str(kept), "--topic", "genesis.events"]) == 0
    tamper(log_database, "UPDATE log_records SET hash = sha256('x') WHERE \"offset\" = 25")
    assert standalone([log_database.auditor_url, "--expect", str(kept), "--partition", "0"]) == 3
    assert standalone([NOWHERE]) == 4


def test_the_verifier_alone_says_when_it_checked_nothing(
    log_database: Database, stored_log: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    """What is named and empty is exit 3 here as well."""
    assert standalone([log_database.auditor_url, "--topic", "nope"]) == 3
    assert standalone([log_database.auditor_url, "--partition", "99"]) == 3
    assert "Nothing was checked" in capsys.readouterr().err
