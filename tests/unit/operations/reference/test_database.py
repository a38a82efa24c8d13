"""The generated page on the database: everything on it is explained, and what its words name is there."""

from __future__ import annotations

import inspect
import re

import pytest

from entities import references
from entities.mapping import Row
from operations.reference import database as reference_database
from operations.reference import tables as reference_tables
from tests.support import ROOT

DOCS = ROOT / "docs"


def test_everything_has_a_meaning() -> None:
    """Each column is explained once, by its docstring or by reference_database.toml, and nothing else is."""
    assert reference_database.unexplained() == []


def test_what_is_not_explained_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A column without a word, a word for a column that is gone, and one that a docstring says already are named."""
    words = reference_database._meanings()
    changed = {
        **words,
        "outbox": {name: text for name, text in words["outbox"].items() if name != "problem"},
        "teams": {**words["teams"], "motto": "Gone."},
        "entities": {**words["entities"], "external_id": "Said twice."},
    }
    monkeypatch.setattr(reference_database, "_meanings", lambda: changed)
    assert reference_database.unexplained() == ["outbox.problem", "entities.external_id", "teams.motto"]


def test_the_base_entity_has_its_seven_sections() -> None:
    """All of its columns are in one of the seven, under the names that the design gives them."""
    sections = reference_database.sections()
    assert list(sections) == [
        "Identity", "Lifecycle", "Versioning", "Constitutional alignment", "Audit trail", "Metadata", "Relationships",
    ]  # fmt: skip
    columns = [column.name for column in reference_tables.tables()["entities"].columns]
    assert [column for names in sections.values() for column in names] == columns


def test_every_finding_of_the_check_is_on_the_page() -> None:
    """The table of findings has those that entities/references.py can report, and no others."""
    source = inspect.getsource(references)
    first = re.findall(r"SELECT '([\w ]+)' AS finding", source) + re.findall(r'EntityFault\(\s*"([\w ]+)"', source)
    (cases,) = re.findall(r"SELECT (CASE WHEN [^;]*?) END AS finding", source)
    reported = {*first, *re.findall(r"(?:THEN|ELSE) '([\w ]+)'", cases)}
    words = reference_database.database_page().partition("## Findings")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([\w ]+)` \|", words, re.MULTILINE)) == reported
    assert len(reported) >= 8


def test_the_picture_has_every_table_and_column() -> None:
    """Names of all mapped tables and their columns are in the entity diagram."""
    drawn = set(re.findall(r">([^<>]+)</text>", (DOCS / "diagrams" / "entities.svg").read_text("utf-8")))
    for table in Row.metadata.tables.values():
        assert {table.name, *table.columns.keys()} <= drawn
