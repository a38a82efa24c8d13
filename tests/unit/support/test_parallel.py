"""How workers of pytest-xdist share ports, and the compiling of tests."""

from __future__ import annotations

import pytest

from devstack import processes
from tests.support import parallel
from tests.support.parallel import rotated


def test_each_worker_begins_with_a_share_of_its_own() -> None:
    """All go through all of them."""
    assert ["".join(rotated("abcdef", number, 3)) for number in range(3)] == ["abcdef", "cdefab", "efabcd"]
    assert ["".join(rotated("ab", number, 4)) for number in range(4)] == ["ab", "ab", "ba", "ba"]
    assert rotated([], 1, 2) == []


@pytest.mark.parametrize(("worker", "ports"), [("gw0", [0, 3, 6, 9]), ("gw1", [1, 4, 7]), ("gw5", [2, 5, 8])])
def test_each_worker_has_ports_of_its_own(monkeypatch: pytest.MonkeyPatch, worker: str, ports: list[int]) -> None:
    """One that was chosen, and that nobody listens at yet, is chosen by no other; a crashed worker is replaced."""
    monkeypatch.setattr(processes, "PORTS", range(10))
    monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "3")
    parallel.pytest_configure()
    assert list(processes.PORTS) == ports


def test_a_run_without_workers_has_all_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else chooses any."""
    monkeypatch.setattr(processes, "PORTS", range(10))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    parallel.pytest_configure()
    assert range(10) == processes.PORTS
