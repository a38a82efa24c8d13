"""The help of every command: whole sentences, in lines that a terminal of 80 columns shows whole."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.shell_completion import ShellComplete

from operations.cli.main import cli, run

WIDTH = 80


def commands(command: click.Command = cli, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with its path, groups included."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, *path, name)


EVERY = [pytest.param(path, command, id=" ".join(("plant", *path))) for path, command in commands()]
GROUPS = [each for each in EVERY if isinstance(each.values[1], click.Group)]


def shown(path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The help of a command as a terminal of 80 columns gets it."""
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    assert run([*path, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("path", "command"), EVERY)
def test_help_has_whole_lines(
    path: tuple[str, ...],
    command: click.Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No line is wider than the terminal, and none but the usage line ends in dots for what was cut."""
    lines = shown(path, capsys, monkeypatch).splitlines()
    assert [line for line in lines if len(line) > WIDTH] == []
    assert [line for line in lines if line.endswith(("...", "…")) and not line.startswith("Usage:")] == []


@pytest.mark.parametrize(("path", "command"), EVERY)
def test_texts_end_as_sentences_do(path: tuple[str, ...], command: click.Command) -> None:
    """Commands and options each have a text, and its first sentence comes to its end."""
    texts = {" ".join(path): command.get_short_help_str(1_000)}
    texts |= {
        option.name or "": option.help or ""
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden
    }
    assert [f"{name}: {text}" for name, text in texts.items() if not text.endswith((".", "]")) and path] == []


@pytest.mark.parametrize(("path", "command"), GROUPS)
def test_a_group_shows_its_commands_sentences(
    path: tuple[str, ...],
    command: click.Group,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first sentence of each is in the group's help, however many lines it takes, and whole in completion."""
    text = " ".join(shown(path, capsys, monkeypatch).split())
    context = click.Context(command)
    completions = ShellComplete(cli, {}, "plant", "_PLANT_COMPLETE").get_completions([*path], "")
    completed = {found.value: (found.help or "").rstrip(".") for found in completions}
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        sentence = " ".join((found.help or "").split("\n\n")[0].split()).partition(". ")[0].rstrip(".")
        assert sentence in text
        assert completed[name] == sentence
