"""What a fault test that failed has left in a scene of its module is ended before the next one begins."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.support.faults.scene import nothing_left_behind

_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    return report


@pytest.fixture(autouse=True)
def ended_when_failed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set up after what a module shares, which goes on, and torn down last."""
    with nothing_left_behind(lambda: bool(request.node.stash.get(_FAILED, False))):
        yield
