"""A how-to page followed to the letter: its files are written, its changes made, and its commands run, in a copy.

A fenced block that is no shell script belongs to the file that the text before it names last, in backticks. A `diff` is
put where the lines without a sign stand, which have to be there once; any other block is the whole file.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.support import ROOT

_BLOCK = re.compile(r"(?P<before>.*?)^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"`([\w/]+\.\w+)`")


class Block(NamedTuple):
    """A fenced block, and the file that it belongs to; a script belongs to none."""

    kind: str
    text: str
    file: str


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page's text."""
    file = ""
    for match in _BLOCK.finditer(text):
        file = (_FILE.findall(match["before"]) or [file])[-1]
        yield Block(match["kind"], match["text"], "" if match["kind"] == "sh" else file)


def copy_folders(folder: Path, *names: str) -> Path:
    """Copy the folders that a page changes; returns where. What is not copied comes from the repository itself."""
    left_out = shutil.ignore_patterns("__pycache__", "*.svg")
    for name in names:
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    return folder


def follow(text: str, copy: Path, environ: Mapping[str, str]) -> str:
    """Do what a page's text says, in its order; returns what its commands print."""
    printed = ""
    for block in blocks(text):
        if block.kind == "sh":
            printed += run(["bash", "-euo", "pipefail", "-c", block.text], copy, environ)
        elif block.kind == "diff":
            change(copy / block.file, block.text)
        else:
            (copy / block.file).parent.mkdir(exist_ok=True)
            (copy / block.file).write_text(block.text, "utf-8")
    return printed


def change(file: Path, diff: str) -> None:
    """Make a change of a page in a file."""
    lines = [(line[:1], line[1:]) for line in diff.splitlines()]
    before = "\n".join(text for sign, text in lines if sign != "+")
    after = "\n".join(text for sign, text in lines if sign != "-")
    content = file.read_text("utf-8")
    assert content.count(before) == 1, f"{file}: {content.count(before)} times:\n{before}"
    file.write_text(content.replace(before, after), "utf-8")


def run(command: list[str], copy: Path, environ: Mapping[str, str]) -> str:
    """Run a command with the copy's modules; returns what it prints."""
    done = subprocess.run(
        command, cwd=copy, env={**os.environ, **environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}{done.stderr}"
    return done.stdout
