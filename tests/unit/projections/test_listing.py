"""Listings as SQL."""

from __future__ import annotations

import doctest

from projections import listing
from projections.activity.queries import ACTIVITY
from projections.skills.queries import SKILLS


def test_arguments_come_before_filters_and_the_key_before_the_limit() -> None:
    """The numbers follow the order in which the values are given."""
    statement = SKILLS.page(["category", "validation"], after=True)
    assert "$1::timestamptz" in statement
    assert "$2::integer" in statement
    assert statement.endswith(
        "WHERE category = $3::text AND validation = $4::text AND (skill_id) > ($5::uuid)\n"
        "ORDER BY skill_id LIMIT $6::bigint"
    )
    assert SKILLS.one().endswith("WHERE skill_id = $3::uuid")


def test_a_key_of_two_columns_is_compared_as_a_row() -> None:
    """Else a page would leave out, or repeat, what shares the first column."""
    assert ACTIVITY.page([], after=True).endswith(
        "WHERE (hour, event_type) > ($3::timestamptz, $4::text)\nORDER BY hour, event_type LIMIT $5::bigint"
    )


def test_the_examples_of_listings_hold() -> None:
    """The docstrings say what the code does."""
    assert doctest.testmod(listing).failed == 0
