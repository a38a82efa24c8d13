"""Databases in which every read model is there, and the first ranges of the log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.databases import Databases
from tests.support.ranged_databases import copies_with_ranges
from tests.support.services import Services


@pytest.fixture(scope="session")
def databases(stack: Services, template_database: str) -> Iterator[Databases]:
    """Copies, which tests use one after another."""
    with copies_with_ranges(stack, template_database) as made:
        yield made
