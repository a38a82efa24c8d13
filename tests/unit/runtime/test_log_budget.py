"""A limit on the log lines of one kind."""

from __future__ import annotations

import doctest

from runtime import log_budget
from runtime.log_budget import LogBudget


def test_the_log_budget_begins_again_each_second() -> None:
    """The lines left out are counted until the next one that is written."""
    budget = LogBudget(2)
    assert [budget.consume(at) for at in (5.0, 5.1, 5.2, 5.9, 6.0, 6.1, 6.2, 7.0)] == [0, 0, None, None, 2, 0, None, 1]


def test_the_docstrings_are_right() -> None:
    """The examples in the module hold."""
    assert doctest.testmod(log_budget).failed == 0
