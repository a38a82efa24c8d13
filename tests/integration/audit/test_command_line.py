"""`plant audit` and `python -m audit`: what they print, and how they end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from audit.__main__ import main as standalone
from devstack import sql
from operations.cli import main as command_line
from tests.conftest import Database
from tests.support import log_rows
from tests.support.log_rows import Row

NOWHERE = "postgresql://plant_auditor@127.0.0.1:1/plant"
LOG = ("event_stream", "audit_log")


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
    log_rows.store(log_database.writer_url, log_rows.log("genesis.events", 1))
    tamper(log_database, "UPDATE event_stream SET key = 'x' WHERE \"offset\" = 8")
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
    for table in LOG:
        tamper(log_database, f'DELETE FROM {table} WHERE "offset" > 20')
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
    """An empty log is reported as empty, not skipped."""
    assert plant("verify") == 0
    assert "no chains" in capsys.readouterr().err
    assert plant("verify", "--chain", "genesis.events/3") == 0
    assert re.search(r"genesis\.events +3 +empty +0", capsys.readouterr().out)


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
    from operations.cli.audit import command

    shown = CliRunner().invoke(command, ["verify", "--help"]).output
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
    tamper(log_database, "UPDATE audit_log SET hash = sha256('x') WHERE \"offset\" = 25")
    assert standalone([log_database.auditor_url, "--expect", str(kept), "--partition", "0"]) == 3
    assert standalone([NOWHERE]) == 4
