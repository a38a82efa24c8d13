"""Limits of readers: counted while a block lasts, of a token and of all."""

from __future__ import annotations

import pytest

from api.read_limits import ReadLimit
from server.problems import Problem


def test_a_token_has_its_limit_and_all_have_theirs() -> None:
    """The first is 429, the second 503; both say when to come again."""
    limit = ReadLimit("requests", of_all=3, of_a_token=2)
    with limit.one_more("a"), limit.one_more("a"):
        with pytest.raises(Problem) as of_token, limit.one_more("a"):
            pass
        with limit.one_more("b"), pytest.raises(Problem) as of_all, limit.one_more("c"):
            pass
    assert (of_token.value.status, of_all.value.status) == (429, 503)
    assert all(each.value.headers == ((b"retry-after", b"1"),) for each in (of_token, of_all))


def test_what_has_ended_counts_no_more() -> None:
    """Also where it ended with an error; and nothing is kept of a token that has nothing under way."""
    limit = ReadLimit("requests", of_all=1, of_a_token=1)
    for token in map(str, range(100)):
        with pytest.raises(ZeroDivisionError), limit.one_more(token):
            raise ZeroDivisionError
    assert limit.count == 0
    assert not limit._by_token
