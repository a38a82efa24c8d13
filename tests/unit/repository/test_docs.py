"""The documents: links lead somewhere, snippets are sound, commands exist, and generated files are up to date."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from database import errors
from operations.cli.main import cli
from operations.reference.pages import generated
from tests.support import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
INLINE = re.compile(r"`(plant [^`]+)`")
INDENTED = re.compile(r"^ {4}(plant .+)$", re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"(?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:py|sql|md|json|csv|toml|txt|yml|mjs|sh|lock|avsc)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir()}
"""Folders of the repository's root: a path in prose begins with one of them, or it is somebody else's."""
MADE_BY_RUNNING = {".plant", ".venv", ".hypothesis", "mutants"}
WRITTEN = {"stack.env", "stack.json", "heads.json", "events.jsonl"}
ADDED = ("projections/absences/", "database/migrations/versions/NNN_agent_promoted.py")
"""What how-to pages tell a reader to add: a test follows each of them."""
"""Files that commands of the docs write."""
ENDS_A_COMMAND = {"|", "&", "&&", ";", ">", "2>", "<"}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in one of these languages."""
    return [text for language, text in FENCE.findall(page.read_text("utf-8")) if language in languages]


def commands(page: Path) -> Iterator[list[str]]:
    """Every call of `plant` on a page, as words; the generated help is none."""
    text = page.read_text("utf-8")
    prose = FENCE.sub("", text)
    shell = "\n".join(blocks(page, "sh"))
    lines = [
        *INLINE.findall(prose),
        *INDENTED.findall(prose),
        *re.findall(r"(?:^|\$\()(plant [^\n]+)", shell, re.MULTILINE),
    ]
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split = True
        words = []
        for word in lexer:
            if word in ENDS_A_COMMAND or word == ")":
                break
            words.append(word)
        yield words


def test_generated_files_are_up_to_date() -> None:
    """What is committed is what `python -m operations.reference.pages` writes."""
    pages = generated()
    assert pages
    stale = [named(path) for path, content in pages.items() if path.read_text("utf-8") != content]
    assert stale == [], "run: python -m operations.reference.pages"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link and picture is a file or folder of the repository."""
    targets = [target for target in LINK.findall(page.read_text("utf-8")) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def anchors(page: Path) -> set[str]:
    """What a page's headings are called in links, as GitHub makes it."""
    headings = HEADING.findall(FENCE.sub("", page.read_text("utf-8")))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_to_headings_lead_somewhere(page: Path) -> None:
    """Each link to a part of a page names one of its headings."""
    links = re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text("utf-8"))
    local = [(page if not target else page.parent / target, part) for target, part in links if "://" not in target]
    assert [(target.name, part) for target, part in local if part not in anchors(target)] == []


def paths(page: Path) -> Iterator[str]:
    """The files and folders of the repository that a page's prose names in code marks."""
    for code in CODE.findall(FENCE.sub("", page.read_text("utf-8"))):
        if PATH.fullmatch(code) and (code.partition("/")[0] in FOLDERS - MADE_BY_RUNNING or "/" not in code):
            yield code


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_paths_exist(page: Path) -> None:
    """A path in code marks is there; a file's name alone is that of some file, or of one that a command writes."""
    missing = [path for path in paths(page) if not exists(path)]
    assert missing == []


def exists(path: str) -> bool:
    """Whether a file or folder of this path, or for a bare name some file, is in the repository."""
    return (ROOT / path).exists() or path.startswith(ADDED) if "/" in path else path in file_names() | WRITTEN


@cache
def file_names() -> set[str]:
    """The names of all files in the root and in its folders, but for those that tools make."""
    folders = [ROOT / name for name in FOLDERS - MADE_BY_RUNNING if not name.startswith(".")]
    return {path.name for path in [*ROOT.iterdir(), *(path for folder in folders for path in folder.rglob("*"))]}


@pytest.mark.parametrize("path", ["streams/no_such_file.py", "no_such_file.py"])
def test_a_wrong_path_is_noticed(path: str) -> None:
    """The check above fails for a file that is not there."""
    assert not exists(path)


def test_snippets_of_the_readme_are_examples() -> None:
    """Each Python snippet of the README is a part of a file in examples/, which test_readme.py runs."""
    examples = [path.read_text("utf-8") for path in sorted((ROOT / "examples").glob("*.py"))]
    snippets = blocks(ROOT / "README.md", "python")
    assert len(snippets) == 3
    assert [text for text in snippets if not any(text in example for example in examples)] == []


def test_the_captured_demo_names_no_machine() -> None:
    """What the picture of the demo is made from holds no absolute path but those of requests, and no address."""
    text = (ROOT / "docs" / "diagrams" / "demo.txt").read_text("utf-8")
    assert re.findall(r"(?:^|(?<!\bGET)\s)/\w+|127\.0\.0\.1|localhost|://", text) == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_snippets_are_sound(page: Path) -> None:
    """JSON parses, Python imports what it names and compiles, shell lines are well formed."""
    for text in blocks(page, "json"):
        json.loads(text)
    for text in blocks(page, "python"):
        exec(compile(text, named(page), "exec"), {"__name__": "docs"})
    for text in blocks(page, "sh"):
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
        assert done.stderr == "", text


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_exist(page: Path) -> None:
    """Every `plant …` on a page names a command and options that there are."""
    for words in commands(page):
        refuse_unknown(words)


def refuse_unknown(words: list[str]) -> None:
    """Fail where a call names a subcommand or an option that does not exist."""
    command: click.Command = cli
    context = click.Context(cli, info_name="plant")
    names = {"-h", "--help", *option_names(command)}
    for word in words[1:]:
        if word.startswith("-") and word != "-":
            assert word.partition("=")[0] in names, words
        elif isinstance(command, click.Group):
            if word in ("…", "..."):
                return
            below = command.get_command(context, word)
            assert below is not None, words
            command, context = below, click.Context(below, info_name=word, parent=context)
            names |= option_names(command)


def option_names(command: click.Command) -> set[str]:
    return {name for parameter in command.params if isinstance(parameter, click.Option) for name in parameter.opts}


@pytest.mark.parametrize("call", ["plant stauts", "plant consume --since 3", "plant audit prove"])
def test_a_wrong_command_is_noticed(call: str) -> None:
    """The check above fails for a command or an option that is not there."""
    with pytest.raises(AssertionError):
        refuse_unknown(call.split())


def test_make_targets_exist() -> None:
    """Every `make …` in README and tutorial is a target."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in (ROOT / "README.md", ROOT / "docs" / "tutorial.md"):
        used = re.findall(r"(?:^|`)make ([a-z]+)", page.read_text("utf-8"), re.MULTILINE)
        assert used
        assert set(used) <= targets


def test_every_page_is_in_the_index() -> None:
    """How-tos, explanations, runbooks, reference pages and decisions are all reached from docs/index.md."""
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / target).resolve() for target in LINK.findall(index.read_text("utf-8"))}
    folders = ("how-to", "explanation", "runbooks", "reference", "decisions")
    pages = [page for folder in folders for page in (ROOT / "docs" / folder).glob("*.md")]
    assert [named(page) for page in pages if page not in linked] == []


def test_every_package_is_in_the_architecture() -> None:
    """docs/explanation/architecture.md has a row for each package that may be imported."""
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text("utf-8")
    options = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    packages = options["tool"]["importlinter"]["root_packages"]
    assert sorted(re.findall(r"^\| `(\w+)/` \|", page, re.MULTILINE)) == sorted(packages)


def test_every_database_error_is_in_the_how_to() -> None:
    """docs/how-to/database.md has each error of database/errors.py that can be raised, with its exit code."""
    page = (ROOT / "docs" / "how-to" / "database.md").read_text("utf-8")
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (\d) \|", page, re.MULTILINE)
    said = {name: int(code) for names, code in rows for name in re.findall(r"\w+", names)}
    classes = [
        error for error in vars(errors).values() if isinstance(error, type) and error.__module__ == errors.__name__
    ]
    raised = [error for error in classes if not set(error.__subclasses__()) & set(classes)]
    assert said == {error.__name__: error.exit_code for error in raised}
