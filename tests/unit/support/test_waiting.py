"""The tests' one wait: it returns as soon as the condition is true, and names what never came."""

from __future__ import annotations

import pytest

from tests.support.waiting import wait_until, wait_until_async


def test_a_condition_is_asked_until_it_is_true() -> None:
    """The condition is asked again until it is true, and not once more."""
    answers = iter([0, 0, 1])
    assert wait_until(lambda: next(answers), "the third answer") >= 0
    assert next(answers, None) is None


async def test_a_condition_may_be_a_coroutine_function() -> None:
    """The twin awaits what the condition returns, or takes it as it is."""
    answers = iter([False, True, True])

    async def ask() -> bool:
        return next(answers)

    await wait_until_async(ask, "the second answer")
    await wait_until_async(lambda: next(answers), "the third answer")


def test_the_error_names_what_was_waited_for_and_what_was_seen_last() -> None:
    """A deadline that passes says both; a function is called for it at that moment."""
    with pytest.raises(TimeoutError, match="not within 0 s: three rows; seen last: 0"):
        wait_until(lambda: 0, "three rows", 0)
    with pytest.raises(TimeoutError, match="not within 0 s: three rows, two are there; seen last: None"):
        wait_until(lambda: None, lambda: "three rows, two are there", 0)


async def test_the_twin_names_them_too() -> None:
    """The asynchronous wait raises the same error."""
    with pytest.raises(TimeoutError, match=r"not within 0 s: three rows; seen last: \[\]"):
        await wait_until_async(lambda: [], "three rows", 0)
