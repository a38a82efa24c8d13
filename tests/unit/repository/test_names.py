"""One exported name has one meaning in the whole repository."""

from __future__ import annotations

import ast
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.support import ROOT

PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["root_packages"]
COMMANDS = "operations/cli"
"""Functions here are commands: `plant db check` and `plant schemas check` are named by what a person types."""
PROGRAMS = {"vectors", "versions"}
"""Modules here are programs: they write test vectors, or Alembic runs them. Nothing imports them."""


def exported(path: Path) -> Iterator[str]:
    """Yield the classes and functions that a module exports."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node.name


def test_no_two_modules_export_the_same_name() -> None:
    """A class or a function that two modules export has two meanings, and a reader meets the wrong one."""
    homes: dict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = path.relative_to(ROOT).as_posix()
            if not module.startswith(COMMANDS) and PROGRAMS.isdisjoint(path.parts) and path.name != "__main__.py":
                for name in exported(path):
                    homes[name].append(module)
    assert len(homes) > 500
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}
