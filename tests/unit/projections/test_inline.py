"""Values and statements as text."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from projections.inline import insert, with_subqueries

ROWS = "a AS (SELECT 1)"


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT 1", f"WITH {ROWS} SELECT 1"),
        ("WITH b AS (SELECT 2) SELECT 1", f"WITH {ROWS}, b AS (SELECT 2) SELECT 1"),
        ("with\nb AS (SELECT 2) SELECT 1", f"WITH {ROWS}, b AS (SELECT 2) SELECT 1"),
        ("WITH RECURSIVE b AS (SELECT 2) SELECT 1", f"WITH RECURSIVE {ROWS}, b AS (SELECT 2) SELECT 1"),
        ("/**/ WITH -- d\nRECURSIVE\nb AS (SELECT 2) SELECT 1", f"WITH RECURSIVE {ROWS}, b AS (SELECT 2) SELECT 1"),
        ("INSERT INTO t WITH b AS (SELECT 2) SELECT 1", f"WITH {ROWS} INSERT INTO t WITH b AS (SELECT 2) SELECT 1"),
        ("WITHIN", f"WITH {ROWS} WITHIN"),
        ("WITH recursive_b AS (SELECT 2) SELECT 1", f"WITH {ROWS}, recursive_b AS (SELECT 2) SELECT 1"),
    ],
)  # fmt: skip
def test_a_statement_gets_more_names_however_it_begins(statement: str, expected: str) -> None:
    """White space, comments, capitals and RECURSIVE in its own WITH clause are read as Postgres reads them."""
    assert with_subqueries(statement, [ROWS]) == expected


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("smallint", -7, "'-7'"),
        ("numeric(10,2)", Decimal("-1E+5"), "'-1E+5'"),
        ("double precision", float("nan"), "'nan'"),
        ("boolean[]", [True, None], """'{"t",NULL}'"""),
        ("text[]", ["NULL", '"', "\\", "'"], """'{"NULL","\\"","\\\\","''"}'"""),
        ("bytea[]", [b"\\"], """'{"\\\\x5c"}'"""),
        ("bigint[]", [[1, 2], [3, 4]], """'{{"1","2"},{"3","4"}}'"""),
        ("interval", timedelta(days=-1, seconds=2, microseconds=3), "'-1 days 2 seconds 3 microseconds'"),
    ],
)  # fmt: skip
def test_a_value_of_any_type_has_a_literal(kind: str, value: object, expected: str) -> None:
    """No type is unknown: what Postgres can read as text can be written."""
    assert insert("t", {"c": [value, None]}, {"c": kind}) == f'INSERT INTO t ("c") VALUES ({expected}), (NULL)'
