"""A script is cut at the semicolons that end statements, and at no others."""

from __future__ import annotations

import doctest

import pytest

from projections import statements
from projections.read_model import READ_MODELS
from projections.statements import split_statements


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 'a;b'",
        "SELECT 'it''s;'",
        r"SELECT E'it\'s;'",
        r"SELECT 'c:\;'",
        'SELECT "a;b""c;"',
        "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$BEGIN; RETURN 1; END;$$",
        "SELECT $a$;$$;$b$;$a$",
        "SELECT $1, a$b$c",
        "SELECT '-- no comment;'",
        "SELECT '/*;' , '*/'",
    ],
)
def test_a_semicolon_inside_ends_nothing(statement: str) -> None:
    """In texts, names, and what stands between dollars; the statement stays as it is."""
    assert split_statements(f"{statement};\n{statement} ;") == [statement, statement]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("SELECT 1 -- a; b\n, 2;SELECT 3", ["SELECT 1 \n, 2", "SELECT 3"]),
        ("SELECT/*;*/1;", ["SELECT 1"]),
        ("/* a /* ; */ ; */ SELECT 1;", ["SELECT 1"]),
        ("-- it's\nSELECT 1;", ["SELECT 1"]),
        ("", []),
        (";;\n;", []),
        ("/* never closed; SELECT 1;", []),
        ("SELECT $$ never closed;", ["SELECT $$ never closed;"]),
    ],
)
def test_comments_are_left_out(text: str, found: list[str]) -> None:
    """Those of a line, and blocks, which nest."""
    assert split_statements(text) == found


def test_read_models_keep_their_statements() -> None:
    """A fold has no comment, and no table's DDL holds one."""
    for model in READ_MODELS:
        assert all(fold.startswith(("WITH", "INSERT")) and "--" not in fold for fold in model.folds())
        for statement in split_statements(model.tables_sql):
            assert statement.startswith(("CREATE", "ALTER", "GRANT", "COMMENT", "REVOKE"))


def test_the_docstrings_are_right() -> None:
    """The examples in the module hold."""
    assert doctest.testmod(statements).failed == 0
