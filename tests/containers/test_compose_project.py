"""The stack of the compose file, brought up by Docker Compose: every service is ready, and an event comes through."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.containers.compose_project import ComposeProject, running_project
from tests.containers.engine import ContainerEngine
from tests.containers.large_bodies import KINDS, held_bodies
from tests.support import ROOT
from tests.support.waiting import DEADLINE_SECONDS, wait_until

SERVICES = ("ingress", "api", "worker", "relay", "dispatcher", "deliverer", "embedder")
PROBED_PORTS = {"ingress": 8080, "api": 8082}
"""Others answer probes where they serve metrics."""
METRICS_PORT = 9100
PROBES = """
import sys, urllib.error, urllib.request
for probe in ("livez", "readyz"):
    try:
        print(urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/{probe}", timeout=60).status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""
UNSEEN_SECONDS = 5.0
HELD_BODIES = 40
INGRESS_LIMIT_BYTES = 1 << 30
FILL_TMP = "head -c 1500000000 /dev/zero 2>&1 >/tmp/large; rm /tmp/large"
TAKE_MEMORY = "print('begun', flush=True); taken = b'x' * (%d << 20); print('taken')"
START_THREADS = """
import threading
ended = threading.Event()
count = 0
try:
    while count < 1000:
        threading.Thread(target=ended.wait).start()
        count += 1
except RuntimeError:
    pass
print(count)
ended.set()
"""
AGENTS = "SELECT count(*) FROM read_models.agents"


class RunningStack:
    """A project that is up, with a key for the example."""

    def __init__(self, project: ComposeProject) -> None:
        self.project = project
        self.ingress_port = project.ports["INGRESS"]
        self._ingress_url = f"http://127.0.0.1:{self.ingress_port}"
        self._secret = self.plant("keys", "add", "example").strip()
        self.sent = 0

    def plant(self, *arguments: str) -> str:
        """Run a command of Plant's in a container of the project, as an operator."""
        password = "plant-operator-development"
        url = f"PLANT_DATABASE_OPERATOR_URL=postgresql://plant_operator:{password}@postgres:5432/plant"
        return self.project.compose("run", "--rm", "--no-deps", "--env", url, "ingress", *arguments)

    def rows(self) -> int:
        """Return how many agents the read model has."""
        psql = ("psql", "--no-psqlrc", "--tuples-only", "--username", "postgres", "--command", AGENTS, "plant")
        return int(self.project.execute("postgres", *psql))

    def send(self, *, wait: bool = True) -> None:
        """Send one event by the example, and wait until the read model has it."""
        environ = {**os.environ, "PLANT_WEBHOOK_SECRET": self._secret}

        def is_taken() -> bool:
            example = [ROOT / "examples" / "producer.sh", self._ingress_url]
            done = subprocess.run(example, env=environ, check=False, capture_output=True, timeout=DEADLINE_SECONDS)
            return done.returncode == 0

        wait_until(is_taken, "the example's event is taken")  # a key that is new is known to ingress a moment later
        self.sent += 1
        if wait:
            wait_until(lambda: self.rows() == self.sent, f"{self.sent} agents are in the read model")


@pytest.fixture(scope="module")
def running(engine: ContainerEngine) -> Iterator[RunningStack]:
    """The whole compose file, up; taken down in the end, with nothing left."""
    with running_project(engine) as project:
        wait_until_ready(project)
        yield RunningStack(project)


def wait_until_ready(project: ComposeProject) -> None:
    """Wait for each service of Plant; where one stays away, the error has all logs."""
    try:
        for service in SERVICES:
            wait_until(lambda service=service: project.is_healthy(service), f"{service} is ready")
    except TimeoutError as error:
        error.add_note(project.logs())
        raise


def probes(project: ComposeProject, service: str) -> list[str]:
    """Return the status codes of a service's liveness and readiness."""
    port = str(PROBED_PORTS.get(service, METRICS_PORT))
    return project.execute(service, "python", "-c", PROBES, port).split()


def test_an_event_comes_through(running: RunningStack) -> None:
    """Sent by the example, visible in the read model."""
    running.send()


def test_an_event_comes_through_after_each_restart(running: RunningStack) -> None:
    """Each service, then Kafka, then Postgres is restarted, and becomes ready again."""
    for service in (*SERVICES, "kafka", "postgres"):
        running.project.compose("restart", service)
        wait_until(lambda service=service: running.project.is_healthy(service), f"{service} is ready again")
        wait_until(lambda: running.project.is_healthy("ingress"), "ingress is ready")
        running.send()


def test_sigterm_ends_each_service_in_order(running: RunningStack) -> None:
    """Within its grace period, with exit code 0: none is killed."""
    for service in SERVICES:
        running.project.compose("stop", service)
        assert running.project.state(service)["ExitCode"] == 0, service
    running.project.compose("start", *SERVICES)
    wait_until_ready(running.project)


@pytest.mark.parametrize("away", ["postgres", "kafka"])
def test_no_check_says_ready_while_what_it_needs_is_away(running: RunningStack, away: str) -> None:
    """Each says that it lives, so nobody restarts it, and needs no restart when that is back."""
    needs_kafka = ("ingress", "worker", "relay", "dispatcher", "deliverer")
    needs_postgres = ("api", "worker", "relay", "dispatcher", "deliverer", "embedder")
    affected = needs_postgres if away == "postgres" else needs_kafka
    before = {service: running.project.state(service)["StartedAt"] for service in SERVICES}
    running.project.engine.podman("pause", running.project.container(away))
    try:
        for service in affected:
            wait_until(lambda service=service: not running.project.is_healthy(service), f"{service} is not ready")
            wait_until(lambda s=service: probes(running.project, s) == ["200", "503"], f"{service} lives, not ready")
    finally:
        running.project.engine.podman("unpause", running.project.container(away))
    wait_until_ready(running.project)
    running.send()
    assert before == {service: running.project.state(service)["StartedAt"] for service in SERVICES}


@pytest.mark.parametrize("away", ["postgres", "kafka"])
def test_sigterm_ends_each_service_while_what_it_needs_is_frozen(running: RunningStack, away: str) -> None:
    """By itself, within its grace period: the engine kills none, and all come back."""
    running.project.engine.podman("pause", running.project.container(away))
    try:
        for service in SERVICES:
            running.project.compose("stop", service)
        codes = {service: running.project.state(service)["ExitCode"] for service in SERVICES}
    finally:
        running.project.engine.podman("unpause", running.project.container(away))
    running.project.compose("start", *SERVICES)
    wait_until_ready(running.project)
    running.send()
    assert 137 not in codes.values(), codes


def test_a_killed_service_comes_back(running: RunningStack) -> None:
    """The engine starts it again by its restart policy, nobody else; Kafka and Postgres too. An event comes through."""
    for service in (*SERVICES, "kafka", "postgres"):
        before = running.project.restarts(service)
        running.project.kill(service)
        wait_until(lambda s=service, n=before: running.project.restarts(s) > n, f"the engine starts {service} again")
        wait_until(lambda service=service: running.project.is_healthy(service), f"{service} is ready again")
    wait_until_ready(running.project)
    running.send()


def test_what_was_taken_outlives_all_containers(running: RunningStack) -> None:
    """They are removed and made again: the named volumes have the log and the rows, and nothing else is needed."""
    running.send()
    before = running.project.state("kafka")["StartedAt"]
    running.project.compose("down", "--timeout", "60")
    assert [line for line in running.project.engine.left() if line.startswith("container")] == []
    running.project.up()
    wait_until_ready(running.project)
    assert running.project.state("kafka")["StartedAt"] != before
    assert running.rows() == running.sent
    running.send()


def test_large_bodies_stay_within_the_memory_limit(running: RunningStack) -> None:
    """A peer that nobody knows holds as many as it can, of each kind; ingress stays up, and takes an event."""
    before = running.project.state("ingress")["StartedAt"]
    for content_type in KINDS:
        with held_bodies(running.ingress_port, "example", content_type, HELD_BODIES) as taken_bytes:
            most, limit = running.project.memory("ingress")
            running.send()
        print(f"{content_type}: {taken_bytes / 1e6:.0f} MB sent, {most / 1e6:.0f} MB held at most of {limit / 1e6:.0f}")
        assert taken_bytes > 0
        assert most < limit == INGRESS_LIMIT_BYTES
    assert running.project.state("ingress")["StartedAt"] == before


def test_a_full_tmp_is_no_end_of_a_service(running: RunningStack) -> None:
    """Its files are memory of the container: they are refused before the kernel would end the service for them."""
    before = running.project.state("ingress")["StartedAt"]
    filled = running.project.execute("ingress", "sh", "-c", FILL_TMP)
    assert "No space left on device" in filled
    assert running.project.is_healthy("ingress")
    assert running.project.state("ingress")["StartedAt"] == before
    running.send()


def test_what_exceeds_a_limit_is_ended(running: RunningStack) -> None:
    """The engine enforces the file's limits: a process that takes more memory is killed, more threads are refused."""
    options = ("run", "--rm", "--no-deps", "--no-TTY", "--entrypoint", "python", "relay", "-c")
    assert running.project.compose(*options, TAKE_MEMORY % 200).split() == ["begun", "taken"]
    assert running.project.compose(*options, TAKE_MEMORY % 1000, check=False).split() == ["begun"]
    assert 100 < int(running.project.compose(*options, START_THREADS)) < 256


def test_nothing_comes_through_without_a_worker(running: RunningStack) -> None:
    """An event that was taken stays unseen until a worker is back, so the tests above would miss one."""
    running.project.compose("stop", "worker")
    running.send(wait=False)
    with pytest.raises(TimeoutError):
        wait_until(lambda: running.rows() == running.sent, "the event has come through", UNSEEN_SECONDS)
    running.project.compose("start", "worker")
    wait_until(lambda: running.rows() == running.sent, "the event has come through")
