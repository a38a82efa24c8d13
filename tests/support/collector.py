"""Python's cycle collector in a run of tests, which has a hundred thousand objects that stay."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Leave out all modules and tests, and look seldom: this took an eighth of the tests' own processor time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
