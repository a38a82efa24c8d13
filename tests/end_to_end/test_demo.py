"""`plant demo` as a person runs it: from nothing, again, interrupted, and with something broken."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from api.resources import RESOURCES
from tests.support.at_home import PLANT, RUN_TIMEOUT_SECONDS, Plant, environ_of, running_in

AGENTS = 40
SKILLS, JOB_ROLES = 877, 91


@pytest.fixture(scope="module")
def first(plant: Plant, home: Path) -> dict[str, Any]:
    """The outcome of the first run."""
    done = plant("demo", "--agents", str(AGENTS), "--output", "json")
    assert done.returncode == 0, done.stderr
    assert running_in(home) == []
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def test_every_event_is_published_and_projected_once(first: dict[str, Any]) -> None:
    """ESCO's skills and occupations and the agents' events went in, and each is applied once."""
    published = first["published"]
    assert published["by_type"]["genesis.skill.registered"] == SKILLS
    assert published["by_type"]["genesis.job_role.defined"] == JOB_ROLES
    assert published["by_type"]["genesis.agent.onboarded"] == AGENTS
    assert published["by_type"]["genesis.agent.available"] == AGENTS
    assert published["published"] == published["projected"] == sum(published["by_type"].values())
    assert published["dispositions"] == {"applied": published["published"]}
    assert first["read_model"]["agents"] == AGENTS
    assert all(row["job_role"] and row["some_skills"] for row in first["read_model"]["rows"])


def test_the_best_agents_that_are_available_are_found(first: dict[str, Any]) -> None:
    """They have the skill or a similar one, by ESCO's names, and come by their average."""
    found = first["marketplace"]
    averages = [row["bayesian_average"] for row in found["rows"]]
    assert len(found["similar_skills"]) == 3
    assert averages == sorted(averages, reverse=True)
    assert all(set(row["skills"]) & {found["skill"], *found["similar_skills"]} for row in found["rows"])
    assert all(row["job_role"] for row in found["rows"])


def test_partitions_are_level_and_every_chain_is_good(first: dict[str, Any]) -> None:
    """No partition lags, and the verifier has seen every record that Kafka has."""
    assert [row["lag"] for row in first["partitions"]] == [0] * 9
    assert first["audit"]["verdict"] == "good"
    assert first["audit"]["entries"] == sum(row["log_end"] for row in first["partitions"])
    # Operator actions: the key, the token, the redrive, resuming a read model, an endpoint that is added and removed,
    # and a rebuild, its swap, and what is retired. Events: the bad record, the one behind it and the control record,
    # the write of the reader, the delivered one, and those that came in during the rebuild.
    others = 14 + first["rebuilt"]["published_meanwhile"]
    assert sum(row["log_end"] for row in first["partitions"]) == first["published"]["published"] + others


def test_a_bad_record_is_found_repaired_and_redriven(first: dict[str, Any]) -> None:
    """The event behind it is parked until then, and takes effect after it."""
    mended = first["mended"]
    assert mended["reason"] == "rating is more than 5"
    assert (mended["parked"], mended["actor"]) == (1, "demo")
    assert mended["available_while_parked"] == mended["available_before"]
    assert mended["available_after"] != mended["available_before"]
    assert mended["control_record"].rpartition("/")[0] == mended["position"].rpartition("/")[0]


def test_a_reader_sees_its_own_write_and_every_read_model(first: dict[str, Any]) -> None:
    """Through the API, with a token whose secret is not shown; without it nothing is read."""
    reader = first["reader"]
    refused, before, after, again, *others = reader["reads"]
    assert (refused["status"], before["status"], after["status"], again["status"]) == (401, 200, 200, 304)
    assert after["request"] == f"{before['request']}?at-least={reader['position']}"
    assert {before["shown"], after["shown"]} == {"available: yes", "available: no"}
    read = [each["request"].split("/")[1].partition("?")[0] for each in others]
    assert {"agents", *read} == set(RESOURCES)
    assert [each["status"] for each in others] == [200] * len(others)
    assert re.fullmatch(r"[0-9a-f]{12}", reader["token_prefix"])
    assert not re.search(r"plant_[0-9a-f]{12}_[A-Za-z0-9_-]", json.dumps(first))


def test_an_event_is_delivered_to_a_subscriber_that_fails_at_first(first: dict[str, Any]) -> None:
    """By retries after one and two seconds, each with the same id and a signature that verifies."""
    part = first["delivery"]
    assert part["state"] == "delivered"
    assert [(each["attempt"], each["status_code"]) for each in part["attempts"]] == [(1, 500), (2, 500), (3, 204)]
    assert [each["outcome"] for each in part["attempts"]] == ["failed", "failed", "delivered"]
    _, second, third = (each["after_seconds"] for each in part["attempts"])
    assert second >= 1
    assert third - second >= 2
    assert (part["requests"], part["signatures_verified"]) == (3, 3)


def test_a_read_model_is_rebuilt_while_its_events_come_in(first: dict[str, Any]) -> None:
    """The rebuild has each event of the model, and the same rows as the live one; readers see it from then on."""
    part = first["rebuilt"]
    assert re.fullmatch(r"ratings_b\d+/\d+", part["build"])
    assert part["events"] >= first["published"]["by_type"]["genesis.agent.rated"]
    assert part["published_meanwhile"] > 0
    assert min(part["compared"].values()) > 0


def test_the_entity_tables_are_filled_from_the_log(first: dict[str, Any]) -> None:
    """By the sixth read model: an entity for each that was described, and a version for each event that changed it."""
    part = first["entity_tables"]
    rows = {row["entity_type"]: (row["entities"], row["versions"]) for row in part["rows"]}
    # That an agent is not available changes nothing of a new one. Then came the event of the first agent that was
    # parked, the second's that the reader wrote, and the third's that was delivered.
    versions = AGENTS + first["read_model"]["available"] + 3
    assert rows == {"agent": (AGENTS, versions), "job_role": (JOB_ROLES,) * 2, "skill": (SKILLS,) * 2}
    assert (part["checked"], part["findings"]) == (AGENTS + JOB_ROLES + SKILLS, 0)


def test_tampering_is_refused_and_found(first: dict[str, Any]) -> None:
    """Writer and owner may not change the log; a superuser's change on a copy is named with both hashes."""
    errors = {attempt["role"]: attempt["error"] for attempt in first["refused"]}
    assert errors == {
        "plant_writer": "permission denied for table log_records",
        "plant_owner": "log_records is append-only: UPDATE refused",
    }
    found = first["found"]
    assert len(found["stored_hash"]) == len(found["recomputed_hash"]) == 64
    assert found["stored_hash"] != found["recomputed_hash"]


def test_it_says_what_is_esco_and_what_is_generated(first: dict[str, Any]) -> None:
    """ESCO's attribution line is shown, and so is what was made up."""
    assert first["esco"] == "This service uses the ESCO classification of the European Commission."
    assert "ratings and validations are generated" in first["generated"]


@contextmanager
def publishing(home: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield a demo that has begun to publish."""
    with subprocess.Popen(
        [PLANT, "demo"], env=environ_of(home), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as demo:
        try:
            assert demo.stderr is not None
            for line in demo.stderr:
                if "Publishing" in line:
                    break
            yield demo
        finally:
            demo.kill()


def test_interrupted_it_leaves_nothing_running(home: Path) -> None:
    """Ctrl-C while it publishes: exit code 130, and nothing is left."""
    with publishing(home) as demo:
        demo.send_signal(signal.SIGINT)
        assert demo.wait(RUN_TIMEOUT_SECONDS) == 130
    assert running_in(home) == []


def test_an_error_leaves_nothing_running(plant: Plant, home: Path, first: dict[str, Any]) -> None:
    """Topics with another partition count are refused in three lines, and the stack is ended again."""
    done = plant("demo", PLANT_TOPIC_PARTITIONS="3")
    assert done.returncode == 3
    assert "error: The topic genesis.events has 8 partitions, not 3." in done.stderr
    assert " next: " in done.stderr
    assert running_in(home) == []


@pytest.fixture(scope="module")
def up(plant: Plant) -> None:
    """From here on the stack is up; the last test takes it down."""
    assert plant("up").returncode == 0


@pytest.mark.usefixtures("up")
def test_sigterm_ends_it_in_order_too(home: Path) -> None:
    """A demo that is stopped ends its own processes, and leaves a stack that was up running."""
    with publishing(home) as demo:
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(RUN_TIMEOUT_SECONDS) == 130
    assert services_in(home) == []
    assert running_in(home) != []


@pytest.mark.usefixtures("up")
def test_a_worker_that_ends_is_named_with_its_log(home: Path) -> None:
    """The error says which process ended and where its log is; the other one is ended too."""
    with publishing(home) as demo:
        [worker] = [child for child in psutil.Process(demo.pid).children() if "worker" in child.cmdline()]
        worker.kill()
        _, stderr = demo.communicate(timeout=RUN_TIMEOUT_SECONDS)
        assert demo.returncode == 1
    assert "error: plant worker has ended." in stderr
    assert f"next: tail -50 {home}/logs/worker.log" in stderr
    assert services_in(home) == []


@pytest.mark.usefixtures("up")
def test_again_with_a_stack_that_is_up(plant: Plant, home: Path, first: dict[str, Any]) -> None:
    """Another run logs ESCO's events as repeats, leaves the stack up; what it says to run next works."""
    done = plant("demo", "--agents", str(AGENTS))
    assert done.returncode == 0, done.stderr
    assert re.search(r"Done in \d+ s\.", done.stdout)
    assert f"{SKILLS + JOB_ROLES} repeat" in done.stdout
    assert f"{AGENTS} of this run" in done.stdout
    assert "The stack was up before and stays up." in done.stdout
    assert "ESCO classification" in done.stdout
    assert services_in(home) == []
    before, *commands = first["next"]
    assert before == "plant up"
    for command in commands:
        assert command in done.stdout.replace(f"PLANT_HOME={home} ", "")
        ran = plant(*shlex.split(command)[1:])
        assert ran.returncode == 0, f"{command}: {ran.stderr}"
        assert ran.stdout or command == "plant down"
    assert running_in(home) == []


def services_in(home: Path) -> list[str]:
    return [line for line in running_in(home) if re.search("plant (worker|ingress|api)", line)]
