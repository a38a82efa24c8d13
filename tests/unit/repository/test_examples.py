"""The examples in docstrings: each module that has some is run, also one that no test of its own runs."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from tests.support import ROOT

MODULES = sorted(
    file.relative_to(ROOT)
    for package in ROOT.glob("*/__init__.py")
    if package.parent.name not in ("tests", "benchmarks")
    for file in package.parent.rglob("*.py")
    if ">>> " in file.read_text("utf-8")
)


@pytest.mark.parametrize("file", MODULES, ids=str)
def test_examples_hold(file: Path) -> None:
    """What a docstring shows is what its function does."""
    found = doctest.testmod(importlib.import_module(".".join(file.with_suffix("").parts)))
    assert (found.failed, found.attempted > 0) == (0, True)
