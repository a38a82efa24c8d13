"""The frame of the command line: help, exit codes, three-line errors, completion, settings, doctor."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest

from operations.cli import main as frame
from operations.cli.main import COMMANDS, cli, run
from runtime.errors import CheckFailed, ConfigurationError, PlantError, Unreachable
from runtime.masking import masked
from runtime.redaction import MASK

PLANT = str(Path(sys.executable).with_name("plant"))
HELP_LIMIT_SECONDS = 0.3
HELP_ATTEMPTS = 3
SLOW_IMPORTS = ("polars", "litestar", "faust", "aiokafka", "sqlalchemy", "rich", "asyncpg")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Makes `plant status` raise what a test puts into the list."""
    errors: list[BaseException] = []

    def fail() -> None:
        raise errors[0]

    monkeypatch.setattr(cli, "get_command", lambda _, name: click.Command(name, callback=fail))
    return errors


def plant(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PLANT, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **environ}
    )


NOT_MEASURED = {"COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""}
"""Measuring coverage takes longer than the command."""


def test_help_is_quick() -> None:
    """`plant --help` takes under 300 ms of processor time, which other work on the machine does not lengthen much."""
    durations = []
    for _ in range(HELP_ATTEMPTS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert plant("--help", **NOT_MEASURED).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        durations.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    assert min(durations) < HELP_LIMIT_SECONDS


def test_help_imports_nothing_slow() -> None:
    """The frame loads no subcommand and no library that takes long."""
    code = "import operations.cli.main, sys; print(*sys.modules, sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert [name for name in loaded if name.partition(".")[0] in SLOW_IMPORTS] == []
    assert [name for name in loaded if name.startswith("operations.cli.") and name != "operations.cli.main"] == []


def test_help_groups_commands_and_gives_examples(capsys: pytest.CaptureFixture[str]) -> None:
    """Every command is listed under a heading, with its line, and examples and exit codes follow."""
    assert run(["--help"]) == 0

    shown = capsys.readouterr().out
    for name, entry in COMMANDS.items():
        assert f"{entry.section}:" in shown
        assert f"  {name} " in shown
        assert entry.line in shown
    assert "plant audit verify" in shown
    assert "130 interrupted" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_there_and_says_the_same_as_the_help(name: str) -> None:
    """Each entry names a module with a `command` whose first line is the one in `plant --help`."""
    assert importlib.util.find_spec(COMMANDS[name].module) is not None
    command = cli.get_command(click.Context(cli), name)

    assert command is not None
    assert command.name == name
    assert command.get_short_help_str(limit=200) == COMMANDS[name].line


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PlantError("w"), 1),
        (ConfigurationError("w"), 2),
        (CheckFailed("w"), 3),
        (Unreachable("w"), 4),
        (ValueError("w"), 1),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
    ],
)
def test_exit_codes(failing: list[BaseException], error: BaseException, code: int) -> None:
    """Each kind of error has its exit code."""
    failing.append(error)

    assert run(["status"]) == code


def test_error_is_three_lines_on_stderr(failing: list[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    """What, why and the next step; nothing on stdout, no traceback."""
    failing.append(Unreachable("Kafka does not answer.", why="Nothing listens there.", next_step="plant up"))

    run(["status"])

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: Kafka does not answer.\n  why: Nothing listens there.\n next: plant up\n"


def test_debug_shows_the_traceback(failing: list[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    """An unexpected error says how to see its traceback, and `--debug` shows it."""
    failing.append(ValueError("odd"))

    run(["status"])
    plain = capsys.readouterr().err
    run(["--debug", "status"])
    debug = capsys.readouterr().err

    assert "Traceback" not in plain
    assert "ValueError: odd" in plain
    assert "plant --debug status" in plain
    assert "Traceback" in debug


def test_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A typo exits 2 and points at the help."""
    assert run(["stauts"]) == 2

    assert "stauts" in (shown := capsys.readouterr().err)
    assert "next: plant --help" in shown


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """`plant` alone shows the help on stderr and exits 2."""
    assert run([]) == 2

    assert "Local stack:" in capsys.readouterr().err


def test_version() -> None:
    """`plant --version` prints one line on stdout."""
    assert plant("--version").stdout.startswith("plant ")


def test_closed_pipe_is_no_error() -> None:
    """`plant settings | head -1`: the reader has seen enough, and nobody complains."""
    command = f"{PLANT} settings --output jsonl | head -1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)

    assert done.stdout == "0\n"
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each shell gets a script that asks `plant` itself."""
    assert run(["completion", shell]) == 0

    assert "_PLANT_COMPLETE" in capsys.readouterr().out


def test_completion_of_a_command_name() -> None:
    """The shell's question is answered with names, without loading the commands."""
    done = plant(COMP_WORDS="plant set", COMP_CWORD="1", _PLANT_COMPLETE="bash_complete")

    assert done.stdout.split() == ["plain,settings"]


def test_settings_show_sources_and_mask_secrets(tmp_path: Path) -> None:
    """Environment, address file and defaults are distinguished, and no secret is printed."""
    (tmp_path / "stack.env").write_text(
        "PLANT_DATABASE_API_URL=postgresql://plant_api:s3cret@h:1/plant\nPLANT_MASTER_KEY=a2V5\n"
    )
    done = plant("settings", "--output", "json", PLANT_HOME=str(tmp_path), PLANT_TOPIC_PARTITIONS="3")
    rows = {row["setting"]: row for row in json.loads(done.stdout)}

    assert rows["PLANT_TOPIC_PARTITIONS"]["value"] == 3
    assert rows["PLANT_TOPIC_PARTITIONS"]["source"] == "environment"
    assert rows["PLANT_DATABASE_API_URL"]["source"] == str(tmp_path / "stack.env")
    assert rows["PLANT_LOG_LEVEL"]["source"] == "default"
    assert "s3cret" not in done.stdout
    assert "a2V5" not in done.stdout
    assert all(row["explanation"] for row in rows.values())


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("database_url", "postgresql://u:p%40ss@h/d", f"postgresql://u:{MASK}@h/d"),
        ("database_url", "postgresql://h/d?user=u&password=x", f"postgresql://h/d?user=u&password={MASK}"),
        ("database_url", "postgresql://h/d", "postgresql://h/d"),
        ("kafka_sasl_password", "x", MASK),
        ("master_key", "", ""),
        ("ingress_port", 8080, 8080),
    ],
)
def test_masking(name: str, value: object, shown: object) -> None:
    """Passwords are masked wherever they stand in a value."""
    assert masked(name, value) == shown


def test_status_without_a_stack_says_stopped(tmp_path: Path) -> None:
    """Where nothing was ever started, `plant status` shows so and exits 3."""
    done = plant("status", "--output", "jsonl", PLANT_HOME=str(tmp_path / "none"))

    assert done.returncode == 3
    assert [json.loads(line)["state"] for line in done.stdout.splitlines()] == ["stopped", "stopped"]
    assert not (tmp_path / "none").exists()


def test_down_without_a_stack_changes_nothing(tmp_path: Path) -> None:
    """`plant down` is content when there is nothing to stop."""
    done = plant("down", PLANT_HOME=str(tmp_path / "none"))

    assert done.returncode == 0
    assert "Nothing was running." in done.stderr


def test_deleting_data_needs_execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the plan is printed and every file stays; --execute alone is a usage error."""
    monkeypatch.setenv("PLANT_HOME", str(tmp_path))
    (tmp_path / "kafka").mkdir()
    (tmp_path / "stack.env").write_text("PLANT_MASTER_KEY=x\n")
    assert frame.run(["down", "--delete-data"]) == 0
    assert (tmp_path / "kafka").exists()
    assert (tmp_path / "stack.env").exists()
    assert frame.run(["down", "--execute"]) == 2
    assert frame.run(["down", "--delete-data", "--execute"]) == 0
    assert not (tmp_path / "kafka").exists()
    assert not (tmp_path / "stack.env").exists()


def test_make_clean_only_says_what_it_would_remove() -> None:
    """`make` prints the plan; the lines that remove something need EXECUTE=1."""
    root = Path(__file__).parents[4]
    planned, executed = (
        subprocess.run(["make", "-n", "clean", *words], cwd=root, capture_output=True, text=True, check=True).stdout
        for words in ([], ["EXECUTE=1"])
    )
    assert "rm -rf" not in planned
    assert "--execute" not in planned
    assert "rm -rf .venv" in executed
    assert "--delete-data --execute" in executed


def test_no_advice_destroys_data_or_access() -> None:
    """No next step of an error or of a diagnosis removes data, or makes a master key under which nothing opens."""
    root = Path(__file__).parents[4]
    harmful = ("delete-data", "make clean", "rand -base64", "urandom", "DROP ", "TRUNCATE", "rm -rf", "clean setup")
    packages = (
        "audit",
        "database",
        "deliveries",
        "devstack",
        "entities",
        "ingress",
        "operations",
        "projections",
        "relay",
    )
    packages += ("runtime", "schemas", "signing", "streams")
    found = [
        f"{path.relative_to(root)}:{number}"
        for package in packages
        for path in (root / package).rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if ("next_step=" in line or "Diagnosis(" in line) and any(word in line for word in harmful)
    ]
    assert found == []


def test_doctor_finds_what_is_wrong(tmp_path: Path) -> None:
    """A bad master key and an unreachable broker are wrong, with a next step each; exit 3."""
    environ = {"PLANT_HOME": str(tmp_path), "PLANT_MASTER_KEY": "short", "PLANT_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    done = plant("doctor", "--output", "json", **environ)
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)}

    assert done.returncode == 3
    assert findings["java"]["verdict"] == findings["postgres"]["verdict"] == "good"
    for check in ("master key", "topics"):
        assert findings[check]["verdict"] == "wrong", findings[check]
        assert findings[check]["next_step"]


def test_frame_names_no_command_twice() -> None:
    """Every entry has a module of its own."""
    assert len({entry.module for entry in frame.COMMANDS.values()}) == len(frame.COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [("stauts", "status"), ("keys lst", "list"), ("consume --folow", "--follow"), ("db upgrad", "upgrade")],
)
def test_a_typo_names_what_was_meant(arguments: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands, subcommands and options."""
    assert run(arguments.split()) == 2

    shown = capsys.readouterr().err.partition("next:")[0]
    assert "did you mean" in shown.lower()
    assert meant in shown


def test_settings_show_a_value_that_can_not_be_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The way out of a bad setting is no circle, and variables that no setting has are named."""
    monkeypatch.setenv("PLANT_HOME", str(tmp_path))
    monkeypatch.setenv("PLANT_TOPIC_PARTITIONS", "many")
    monkeypatch.setenv("PLANT_CONSUMER_GRUOP", "x")

    assert run(["settings", "--output", "json"]) == 2

    captured = capsys.readouterr()
    rows = {row["setting"]: row for row in json.loads(captured.out)}
    assert (rows["PLANT_TOPIC_PARTITIONS"]["value"], rows["PLANT_TOPIC_PARTITIONS"]["source"]) == (
        "many",
        "environment",
    )
    assert (
        "PLANT_CONSUMER_GRUOP is set, and there is no such setting. Did you mean PLANT_CONSUMER_GROUP?" in captured.err
    )
    assert "PLANT_TOPIC_PARTITIONS can't be used" in captured.err


def test_an_interrupted_publish_says_how_many_went(capsys: pytest.CaptureFixture[str]) -> None:
    """And that running it again is safe."""
    from operations.cli.publish import Tally
    from streams.record_position import RecordPosition

    tally = Tally(3)
    tally.add(RecordPosition("genesis.events", 0, 7))
    tally.interrupted()

    assert "1 of 3 events are acknowledged. Run it again for the rest" in capsys.readouterr().err
