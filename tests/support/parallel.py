"""Under pytest-xdist one Kafka and one Postgres serve all workers: the main process starts them and ends them."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.support.services import shared_services

_started = ExitStack()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Before the workers are made, which inherit the environment."""
    _started.enter_context(shared_services())


def pytest_unconfigure() -> None:
    _started.close()
