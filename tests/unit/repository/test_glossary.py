"""The words of the code: nouns in names stand in the glossary, and docstrings of functions begin with a verb."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support import ROOT

LOCAL_STACK = "devstack"
PACKAGES = sorted(
    set(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["root_packages"])
    - {LOCAL_STACK}
)
"""Production."""
REVISIONS = ROOT / "database" / "migrations" / "versions"
PARTICIPLE = re.compile(r"(?<!e)ed$|ing$|able$|ible$|ive$")
"""Ends of words that are no nouns: refused, lagging, unreadable, active."""
NO_NOUNS = """
    absent ahead another as at away bad behind binary broken caught down external far few gone grew held in inconsistent
    inline invalid known large last late lazy local lost main many much near new newer no not of optional or other out
    outside patient private public ready shown taken to too unknown up written
    check generate install migrate register rotate run walk
"""
PLAIN_NOUNS = """
    answer case count data default description error example fact field file id item kind line list name number option
    page part rule shape start step system time type use value
"""
"""Nouns that mean here what they mean everywhere."""
PLAIN = frozenset((NO_NOUNS + PLAIN_NOUNS).split())
NO_VERBS = re.compile(r"(The|A|An|What|Whether|How|Where|Every|Each|All|Its|This|That|These|Those|If|When)\b")


def words(name: str) -> list[str]:
    """The words of a name in either style, in lower case, without numbers and single letters."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+", name) if len(word) > 1]


def singulars(word: str) -> set[str]:
    """A word, and what it may be the plural of."""
    found = {word}
    for ending, instead in (("s", ""), ("es", ""), ("ies", "y"), ("ices", "ex")):
        if word.endswith(ending):
            found.add(word.removesuffix(ending) + instead)
    return found


@cache
def glossary() -> set[str]:
    """Every word of the glossary's terms."""
    terms = re.findall(
        r"^\| ([^|]+) \| [^|]{10,} \|$", (ROOT / "docs" / "glossary.md").read_text("utf-8"), re.MULTILINE
    )
    plain = [re.sub(r"\(.*?\)", "", term) for term in terms]
    return {word for term in plain for word in (*words(term), *re.findall(r"\w+", term.lower()))}


def unexplained(name: str) -> list[str]:
    """The words of a name that are neither plain nor in the glossary."""
    return [
        word
        for word in words(name)
        if not PARTICIPLE.search(word) and not singulars(word) & PLAIN and not singulars(word) & glossary()
    ]


def trees(package: str) -> Iterator[tuple[Path, ast.Module]]:
    """Each file of a package, parsed."""
    for path in sorted((ROOT / package).rglob("*.py")):
        yield path, ast.parse(path.read_text("utf-8"))


def names(package: str) -> Iterator[str]:
    """The names of a package's folders, files and classes; migrations are named by what they do."""
    for path in sorted((ROOT / package).rglob("*")):
        if path.suffix in ("", ".py", ".sql") and not path.stem.startswith("_") and REVISIONS not in path.parents:
            yield path.stem
    for _, tree in trees(package):
        yield from (node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


@pytest.mark.parametrize("package", PACKAGES)
def test_nouns_are_in_the_glossary(package: str) -> None:
    """Each noun in the name of a folder, file or class is a term of docs/glossary.md, or a plain word."""
    assert {name: missing for name in names(package) if (missing := unexplained(name))} == {}


@pytest.mark.parametrize("name", ["FrobnicatorPool", "wibble_batch", "HTTPGizmo"])
def test_an_unknown_noun_is_noticed(name: str) -> None:
    """The check above sees a noun that nobody has explained, in either style of names."""
    assert len(unexplained(name)) == 1


def test_the_list_of_plain_words_is_short() -> None:
    """Words that need no explanation are few, or the check says nothing; none of them is a term as well."""
    assert len(PLAIN) < 120
    assert {word for word in PLAIN if word in glossary()} <= {"id"}


def test_every_term_has_a_sentence_of_its_own() -> None:
    """The terms of each table are in order, no term stands twice, and each sentence ends."""
    tables = re.split(
        r"\| word \| meaning here \|\n\|---\|---\|\n", (ROOT / "docs" / "glossary.md").read_text("utf-8")
    )[1:]
    rows = [re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", table, re.MULTILINE) for table in tables]
    terms = [[term.lower() for term, _ in table] for table in rows]
    assert terms == [sorted(table) for table in terms]
    assert len({term for table in terms for term in table}) == sum(map(len, terms))
    assert [term for table in rows for term, meaning in table if not meaning.endswith((".", ".)"))] == []


def functions(package: str) -> Iterator[tuple[str, str]]:
    """Where each function stands that is no property, and its docstring."""
    for path, tree in trees(package):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node)
                decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
                if docstring and not decorators & {"property", "cached_property"}:
                    yield f"{path.relative_to(ROOT)}: {node.name}", docstring


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_begin_with_a_verb(package: str) -> None:
    """A function's docstring says what it does: it begins with a verb, and not with a noun's article or a question."""
    assert [where for where, docstring in functions(package) if NO_VERBS.match(docstring)] == []
