"""Where the local stack is looked for, and how its file is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.errors import ConfigurationError
from runtime.settings import load_settings
from runtime.stack_file import find_home, read_stack_file


def stack_in(folder: Path) -> str:
    """Make a stack's file in a folder."""
    (folder / ".plant").mkdir(parents=True)
    (folder / ".plant" / "stack.env").write_text("PLANT_CONSUMER_GROUP=of-the-stack\n")
    return str(folder / ".plant")


def test_a_stack_is_found_from_subfolders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest one above counts; in its own folder it has its short name."""
    home = stack_in(tmp_path)
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)

    monkeypatch.chdir(deep)

    assert find_home({}) == home
    assert load_settings({}).consumer_group == "of-the-stack"
    assert find_home({}, tmp_path) == ".plant"
    assert find_home({"PLANT_HOME": "elsewhere"}) == "elsewhere"


@pytest.mark.parametrize("end", [".git", "HOME", "owner"])
def test_the_search_ends(end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository's root, the home folder and a folder of another user end it."""
    stack_in(tmp_path)
    inner = tmp_path / "inner"
    (inner / "deep").mkdir(parents=True)
    environ: dict[str, str] = {}
    if end == ".git":
        (inner / ".git").mkdir()
    elif end == "HOME":
        environ["HOME"] = str(inner)
    else:
        another = os.geteuid() + 1
        monkeypatch.setattr("os.geteuid", lambda: another)

    assert find_home(environ, inner / "deep") == ".plant"


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell expands no `~` inside a file of settings; one that names nobody is an error."""
    monkeypatch.setenv("HOME", str(tmp_path))

    assert find_home({"PLANT_HOME": "~/stack"}) == str(tmp_path / "stack")
    assert load_settings({"PLANT_HOME": "~/stack"}).home == str(tmp_path / "stack")
    with pytest.raises(ConfigurationError, match="names no home folder"):
        find_home({"PLANT_HOME": "~nobody-of-this-name/stack"})


def test_the_file_may_have_a_byte_order_mark_quotes_and_white_space(tmp_path: Path) -> None:
    """It may be sourced by a shell, and edited by hand with any editor."""
    lines = ["\ufeffPLANT_A= 1 ", "export PLANT_B='two words'", "  # PLANT_C=3", 'PLANT_D="x"\r', ""]
    (tmp_path / "stack.env").write_text("\n".join(lines), encoding="utf-8")

    assert read_stack_file(tmp_path) == {"PLANT_A": "1", "PLANT_B": "two words", "PLANT_D": "x"}


def test_a_file_that_can_not_be_read_is_a_setting_that_can_not_be_used(tmp_path: Path) -> None:
    """The error names the file."""
    (tmp_path / "stack.env").write_bytes(b"\xff\xfe")

    with pytest.raises(ConfigurationError, match=r"stack\.env can't be read"):
        load_settings({"PLANT_HOME": str(tmp_path)})
    (tmp_path / "folder" / "stack.env").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="Is a directory"):
        read_stack_file(tmp_path / "folder")


def test_white_space_around_a_value_is_dropped() -> None:
    """A value from a file, a Kubernetes secret say, ends in a newline."""
    settings = load_settings(
        {"PLANT_HOME": "/nonexistent", "PLANT_MASTER_KEY": "a2V5\n", "PLANT_TOPIC_PARTITIONS": " 3\n"}
    )

    assert (settings.master_key, settings.topic_partitions) == ("a2V5", 3)
