"""Folders of read models: the folder alone makes one, and what is not complete is refused by name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from projections.read_model import READ_MODELS, ReadModel, ReadModelUnusable, read_folders, sql_hash

TABLES = "CREATE TABLE IF NOT EXISTS __schema__.counts (a int);\nCREATE TABLE IF NOT EXISTS __schema__.sums (b int)"
APPLY = "INSERT INTO __schema__.counts SELECT 1 FROM staged_agent_rated"
FILES = {"__init__.py": "VERSION = 3\n", "tables.sql": TABLES, "apply.sql": APPLY}

MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeFolder]:
    """Makes folders of read models in a package `made_here`; returns the package's folder."""
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "made_here"

    def make(name: str = "counts", **files: str | None) -> Path:
        folder = package / name
        folder.mkdir(parents=True)
        for file, text in {**FILES, **files}.items():
            if text is not None:
                (folder / file).write_text(text, "utf-8")
        importlib.invalidate_caches()
        return package

    yield make
    for name in [name for name in sys.modules if name.partition(".")[0] == "made_here"]:
        del sys.modules[name]


def test_a_folder_makes_a_read_model(make_folder: MakeFolder) -> None:
    """Its name is the folder's, its tables are those of its DDL; a folder without these files is none."""
    package = make_folder()
    (package / "rebuild").mkdir()
    (model,) = read_folders(package, "made_here")
    assert (model.key, model.schema, model.tables) == ("counts/3", "counts_v3", ("counts", "sums"))
    assert model.folds() == ["INSERT INTO counts_v3.counts SELECT 1 FROM staged_agent_rated"]
    assert model.sha256 == sql_hash(TABLES, APPLY)
    assert not model.altered


def test_a_statement_runs_where_a_table_that_it_reads_has_rows() -> None:
    """In the order of the file, each by itself; `staged_events` has rows whenever some table has."""
    sql = "INSERT INTO __schema__.a SELECT {} FROM {}"
    texts = [sql.format(1, "staged_agent_rated"), sql.format(2, "staged_team_formed"), sql.format(3, "staged_events")]
    model = ReadModel("a", 1, TABLES, ";\n".join(texts))
    folds = [text.replace("__schema__", "a_v1") for text in texts]
    assert model.folds() == folds
    assert model.folds({"staged_team_formed"}) == folds[1:]
    assert model.folds({"staged_agent_available"}, "other") == [texts[2].replace("__schema__", "other")]
    assert model.folds(frozenset()) == []


def test_names_are_read_as_postgres_reads_them() -> None:
    """In capitals or small letters, a staging table is the same one."""
    model = ReadModel("a", 1, TABLES, "INSERT INTO __schema__.a SELECT 1 FROM Staged_Agent_Rated, STAGED_TEAM_FORMED")
    assert model.reads == {"staged_agent_rated", "staged_team_formed"}
    assert len(model.folds({"staged_team_formed"})) == 1


@pytest.mark.parametrize(
    ("name", "file", "text", "reason"),
    [
        ("counts", "apply.sql", None, "It has no apply.sql"),
        ("counts", "tables.sql", None, "It has no tables.sql"),
        ("counts", "__init__.py", None, "It has no __init__.py"),
        ("counts", "__init__.py", "", "no line such as VERSION = 1"),
        ("counts", "__init__.py", "VERSION = 0", "no line such as VERSION = 1"),
        ("counts", "__init__.py", "VERSION = True", "no line such as VERSION = 1"),
        ("counts", "tables.sql", "CREATE TABLE counts (a int)", "has no CREATE TABLE"),
        ("counts", "apply.sql", f"{APPLY}; DELETE FROM __schema__.counts", "each read a table staged_"),
        ("counts", "apply.sql", "-- later", "each read a table staged_"),
        ("Counts", "apply.sql", APPLY, "other signs than"),
        ("counts_v2", "apply.sql", APPLY, "ends like a build's"),
        ("counts_b3", "apply.sql", APPLY, "ends like a build's"),
    ],
)
def test_a_folder_that_is_not_complete_is_refused(
    make_folder: MakeFolder, name: str, file: str, text: str | None, reason: str
) -> None:
    """The error names the folder and what it lacks."""
    package = make_folder(name, **{file: text})
    with pytest.raises(ReadModelUnusable, match=f"projections/{name} is no read model") as refused:
        read_folders(package, "made_here")
    assert reason in refused.value.why


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ("-- why\n" + APPLY + ";\n", True),
        (APPLY.replace(" FROM", "\n    /* from */   FROM"), True),
        (APPLY.replace("SELECT 1", "SELECT 2"), False),
        (APPLY.replace("SELECT 1", "SELECT '1  2'"), False),
    ],
)
def test_the_hash_is_of_what_the_statements_do(changed: str, same: bool) -> None:
    """Comments and layout are none of it; spaces within a literal are."""
    assert (sql_hash(TABLES, changed) == sql_hash(TABLES, APPLY)) is same
    assert (sql_hash(changed, APPLY) == sql_hash(APPLY, APPLY)) is same


def test_a_literal_is_kept_as_it_is() -> None:
    """Two literals that differ in white space alone are two folds."""
    one, other = (sql_hash(TABLES, f"SELECT '1{spaces}2'") for spaces in (" ", "  "))
    assert one != other


def test_the_read_models_of_this_release_are_its_folders() -> None:
    """No list names them."""
    package = Path(importlib.import_module("projections").__file__ or "").parent
    assert {model.name for model in READ_MODELS} == {file.parent.name for file in package.glob("*/apply.sql")}
    assert all(isinstance(model, ReadModel) and model.tables for model in READ_MODELS)
