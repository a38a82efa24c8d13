"""Python's cycle collector in a run of tests, which has a hundred thousand objects that stay."""

from __future__ import annotations

import gc


def pytest_configure() -> None:
    """Look for none while modules are imported and tests are made, which stay: that took an eighth of the time."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Leave out all modules and tests, and look seldom: this took an eighth of the tests' own processor time."""
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
