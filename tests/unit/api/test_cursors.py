"""Cursors: what goes in comes out, and nothing else is taken."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import answers, cursors, openapi, parameters
from api.cursors import decode_cursor, encode_cursor
from server.problems import Problem

TEXTS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=50)


@given(key=st.lists(TEXTS, min_size=1, max_size=3), filters=st.dictionaries(TEXTS, TEXTS, max_size=3))
def test_a_cursor_gives_its_key_back(key: list[str], filters: dict[str, str]) -> None:
    """Whatever the key's texts are, in the listing with the same filters."""
    cursor = encode_cursor(key, "agents", filters, "genesis")
    assert decode_cursor(cursor, "agents", filters, "genesis", len(key)) == key


@given(cursor=st.text(max_size=100))
def test_no_other_text_is_a_cursor(cursor: str) -> None:
    """It is refused as what it is, whatever it holds."""
    with pytest.raises(Problem) as raised:
        decode_cursor(cursor, "agents", {}, "genesis", 1)
    assert raised.value.kind == "cursor"


def test_a_cursor_is_of_one_listing_and_tenant() -> None:
    """Names and values can't be shifted against each other either."""
    cursor = encode_cursor(["k"], "agents", {"a": "bc"}, "genesis")
    for listing, filters, tenant, parts in (
        ("skills", {"a": "bc"}, "genesis", 1),
        ("agents", {"ab": "c"}, "genesis", 1),
        ("agents", {}, "genesis", 1),
        ("agents", {"a": "bc"}, "acme", 1),
        ("agents", {"a": "bc"}, "genesis", 2),
    ):
        with pytest.raises(Problem):
            decode_cursor(cursor, listing, filters, tenant, parts)


@pytest.mark.parametrize("module", [answers, cursors, openapi, parameters], ids=lambda module: module.__name__)
def test_the_examples_of_the_api_hold(module: object) -> None:
    """The docstrings say what the code does."""
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]
