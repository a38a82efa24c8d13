"""The mutated sources in `mutants/`, and the results that are kept next to each.

mutmut puts all faults of a function into the file, next to the original, and a variable says which one is called. A
fault that mypy refuses could not be pushed, so it is not judged: one run of mypy over all faults says which those are.
Nor is one judged that only changes the words of a message.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tokenize
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Final

from tests.support import ROOT

FOLDER: Final = ROOT / "mutants"
REFUSED_BY_MYPY: Final = 37
WORDING: Final = 38
NOT_JUDGED: Final = frozenset({REFUSED_BY_MYPY, WORDING})
"""Codes of mutants that are left out of the score."""
NOT_THE_FAULTS: Final = frozenset({"unused-ignore", "no-redef", "has-type", "var-annotated"})
"""Errors that mypy has because all faults of a function stand in one class, next to each other."""

Codes = dict[str, "int | None"]
"""The exit code of each mutant of a module, or None where it has not been judged."""


def make() -> None:
    """Write the mutated files; a mutant of a function that is as it was keeps its result."""
    from mutmut.__main__ import create_mutants_for_file
    from mutmut.configuration import config
    from mutmut.utils.file_utils import walk_all_files

    os.chdir(ROOT)
    changed = False
    for folder, name in walk_all_files():
        source = Path(folder, name)
        target = FOLDER / source
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".py" and config().should_mutate(source):
            result = create_mutants_for_file(source, Path("mutants") / source)
            if result.error:
                raise result.error
            changed = changed or not result.unmodified
        elif source.suffix != ".pyc" and not _is_copy(source, target):
            shutil.copy2(source, target)
    if changed:
        _mark_refused()
        _mark_wording()


def _is_copy(source: Path, target: Path) -> bool:
    return target.exists() and target.stat().st_mtime == source.stat().st_mtime


def _mark_refused() -> None:
    """Note the mutants that mypy refuses."""
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--output", "json"],
        cwd=FOLDER,
        env={**os.environ, "MYPYPATH": str(FOLDER)},
        capture_output=True,
        text=True,
        check=False,
    )
    if checked.returncode not in (0, 1):
        raise RuntimeError(f"mypy could not judge the mutants: {checked.stdout[-2000:]}{checked.stderr[-2000:]}")
    lines: dict[str, set[tuple[int, str]]] = defaultdict(set)
    for line in checked.stdout.splitlines():
        error = json.loads(line)
        if error["severity"] == "error" and error["code"] not in NOT_THE_FAULTS:
            lines[error["file"]].add((error["line"], error["code"]))
    for file in meta_files():
        source = file.with_suffix("")
        spans = json.loads(source.with_name(source.name + ".spans").read_text("utf-8"))["spans"]
        wrong = lines[source.relative_to(FOLDER).as_posix()]
        refused = {
            name
            for name, (first, last) in spans.items()
            if any(first <= line <= last and not _is_of_the_class(name, code) for line, code in wrong)
        }
        refused -= {name for name in refused if f"{name.rpartition('__mutmut_')[0]}__mutmut_orig" in refused}
        update(file, lambda name, refused=refused: REFUSED_BY_MYPY if name.rpartition(".")[2] in refused else None)


def _is_of_the_class(name: str, code: str) -> bool:
    """Return whether an error may be the class's: an attribute has the type of what the first `__init__` assigns."""
    return code == "assignment" and "__init__" in name


def _mark_wording() -> None:
    for file in meta_files():
        source = file.with_suffix("")
        lines = source.read_text("utf-8").splitlines()
        spans = json.loads(source.with_name(source.name + ".spans").read_text("utf-8"))["spans"]
        texts = {name: "\n".join(lines[first - 1 : last]) for name, (first, last) in spans.items()}
        update(file, lambda name, texts=texts: WORDING if _changes_words(name.rpartition(".")[2], texts) else None)


def _changes_words(name: str, texts: Mapping[str, str]) -> bool:
    return is_wording(texts[f"{name.rpartition('__mutmut_')[0]}__mutmut_orig"], texts[name])


def is_wording(original: str, mutant: str) -> bool:
    """Return whether a mutant changes nothing but a text of several words, which is a message.

    >>> is_wording('x = Gone("It is gone.", 1)', 'x = Gone("it is gone.", 1)')
    True
    >>> is_wording('x = Gone("gone", 1)', 'x = Gone("GONE", 1)')
    False
    >>> is_wording('x = Gone("It is gone.", 1)', 'x = Gone("It is gone.", 2)')
    False
    """
    pairs = zip_longest(_tokens(original), _tokens(mutant), fillvalue="")
    return all(one == other or (one[:1] == other[:1] == '"' and " " in one) for one, other in pairs)


def _tokens(function: str) -> list[str]:
    lines = textwrap.dedent(re.sub("__mutmut_[a-z0-9]+", "", function)).splitlines(keepends=True)
    return [token.string for token in tokenize.generate_tokens(iter(lines).__next__)]


def meta_files() -> Iterator[Path]:
    """Yield the file of results of each module that has mutants."""
    for file in sorted(FOLDER.rglob("*.py.meta")):
        if json.loads(file.read_text("utf-8"))["exit_code_by_key"]:
            yield file


def results() -> Iterator[tuple[str, Codes]]:
    """Yield each module that has mutants, with the codes of these."""
    for file in meta_files():
        module = file.relative_to(FOLDER).as_posix().removesuffix(".py.meta").replace("/", ".")
        yield module, json.loads(file.read_text("utf-8"))["exit_code_by_key"]


def note(codes: Mapping[str, int]) -> None:
    """Keep the codes of mutants that were judged, each in its module's file."""
    for file in meta_files():
        update(file, codes.get)


def update(file: Path, code_of: Callable[[str], int | None]) -> None:
    meta = json.loads(file.read_text("utf-8"))
    codes = meta["exit_code_by_key"]
    changed = {name: code if (new := code_of(name)) is None else new for name, code in codes.items()}
    if changed != codes:
        meta["exit_code_by_key"] = changed
        file.write_text(json.dumps(meta, indent=1), encoding="utf-8")
