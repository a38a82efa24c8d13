"""Under pytest-xdist one Kafka and one Postgres serve all workers, and none gets in another's way.

No two choose the same port, and no two compile the same tests first.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from devstack import processes
from tests.support.services import shared_services

Each = TypeVar("Each")

_started = ExitStack()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Before the workers are made, which inherit the environment."""
    _started.enter_context(shared_services())


def pytest_configure() -> None:
    """Give each worker ports of its own: what one has chosen, and does not listen at yet, seems free to the others."""
    if (worker := _worker()) is not None:
        number, count = worker
        processes.PORTS = processes.PORTS[number::count]


def pytest_unconfigure() -> None:
    _started.close()


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Import tests in another order in each worker: what one has compiled, the others find.

    Compiling them, with what pytest adds to each assertion, takes half of a first collection. An import that
    fails is left to the collection, which tells why.
    """
    if (worker := _worker()) is None:
        return
    number, count = worker
    root, ignored = session.config.rootpath, session.config.getoption("ignore") or ()
    files = [file for name in session.config.args for file in _test_files(root / name.partition("::")[0])]
    for file in rotated(files, number, count):
        if not any(file.is_relative_to(root / each) for each in ignored):
            with contextlib.suppress(Exception):
                importlib.import_module(".".join(file.relative_to(root).with_suffix("").parts))


def _worker() -> tuple[int, int] | None:
    """Return which worker this process is, and of how many; a worker that replaces one that crashed is as that one."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if not worker.startswith("gw"):
        return None
    count = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    return int(worker.removeprefix("gw")) % count, count


def _test_files(path: Path) -> Sequence[Path]:
    return sorted(path.rglob("test_*.py")) if path.is_dir() else [path]


def rotated(items: Sequence[Each], number: int, count: int) -> list[Each]:
    """Return the items from the first one of a share on, and then those before it."""
    first = len(items) * number // count
    return [*items[first:], *items[:first]]
