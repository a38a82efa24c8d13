"""`PLANT_TEST_CONTAINERS=1`: tests that take Kafka and Postgres from containers, by testcontainers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.containers.engine import ContainerEngine
from tests.containers.with_engine import environ_of
from tests.support import ROOT
from tests.support.waiting import wait_until

RUN_TIMEOUT_SECONDS = 1800
SELECTED = (
    "tests/integration/database/test_service_rights.py",
    "tests/integration/ingress/test_example_clients.py",
    "tests/integration/streams/test_worker.py",
)
"""One file each of what asks most of them: roles and rights, ingress by its own processes, workers in a group."""


def test_integration_tests_run_on_containers(engine: ContainerEngine) -> None:
    """The same tests pass, and what testcontainers started is gone afterwards."""
    selected = os.environ.get("PLANT_TEST_CONTAINERS_SELECTION", " ".join(SELECTED)).split()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *selected]
    with environ_of(engine) as environ:
        done = subprocess.run(
            command, cwd=ROOT, env={**environ, "PLANT_TEST_CONTAINERS": "1"}, capture_output=True, text=True,
            check=False, timeout=RUN_TIMEOUT_SECONDS,
        )  # fmt: skip
        print(done.stdout[-3000:])
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
        assert "skipped" not in done.stdout.splitlines()[-1]
        assert [line for line in engine.left() if not line.startswith(("process", "mount"))] == []


def test_the_next_run_takes_down_what_a_killed_one_left(engine: ContainerEngine) -> None:
    """A run that was killed has left its project, and a record of it. Nothing of either stays."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", SELECTED[0]]
    with environ_of(engine) as environ:
        asked = {**environ, "PLANT_TEST_CONTAINERS": "1"}
        with subprocess.Popen(command, cwd=ROOT, env=asked, stdout=subprocess.DEVNULL) as killed:
            project = f"plant-tests-{killed.pid}"
            wait_until(lambda: f"container {project}-kafka-1" in engine.left(), "the run has started Kafka")
            killed.kill()
        done = subprocess.run(command, cwd=ROOT, env=asked, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:]
        assert [line for line in engine.left() if not line.startswith(("process", "mount"))] == []


def test_a_session_without_containers_would_be_noticed(engine: ContainerEngine) -> None:
    """Where no engine answers, a run that asks for containers fails: it does not fall back to local processes."""
    nowhere = {**os.environ, "DOCKER_HOST": f"unix://{engine.folder}/none.sock", "PLANT_TEST_CONTAINERS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", SELECTED[0]]
    done = subprocess.run(command, cwd=ROOT, env=nowhere, capture_output=True, check=False, timeout=RUN_TIMEOUT_SECONDS)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
