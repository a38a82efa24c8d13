"""What the compose file starts only where its profile is named: a schema registry, and Temporal."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from schemas.registry import bundled
from tests.containers.compose_project import ComposeProject, running_project
from tests.containers.engine import ContainerEngine
from tests.containers.stand_ins import REGISTRY_TAG, TEMPORAL_TAG, make_profile_stand_in
from tests.support.waiting import wait_until

SUBJECTS_PATH = "/apis/ccompat/v7/subjects"
BUILD_TEMPORAL = "PLANT_TEST_TEMPORAL"
"""Set to 1: Go compiles Temporal's server, once a user, for a quarter of an hour on two busy cores and in 3 GB."""
REGISTRY_URL = "PLANT_SCHEMA_REGISTRY_URL=http://registry:8080/apis/ccompat/v7"


@pytest.fixture
def registry(engine: ContainerEngine) -> Iterator[ComposeProject]:
    """The registry, without the services that start anyway."""
    make_profile_stand_in(engine, REGISTRY_TAG)
    with running_project(engine, "registry", profiles="registry") as project:
        yield project


@pytest.fixture
def temporal(engine: ContainerEngine) -> Iterator[ComposeProject]:
    """Temporal alone."""
    make_profile_stand_in(engine, TEMPORAL_TAG)
    with running_project(engine, "temporal", profiles="temporal") as project:
        yield project


def register(project: ComposeProject, *options: str) -> list[dict[str, Any]]:
    """Run `plant schemas register` in a container of Plant's image; returns its rows."""
    command = ("run", "--rm", "--no-deps", "--no-TTY", "--env", REGISTRY_URL, "ingress", "schemas", "register")
    rows: list[dict[str, Any]] = json.loads(project.compose(*command, "--output", "json", *options))
    return rows


def namespaces(port: int) -> list[str]:
    answer = json.loads(fetched(port, "/api/v1/namespaces"))
    return [each["namespaceInfo"]["name"] for each in answer["namespaces"]]


def fetched(port: int, path: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
        content: bytes = answer.read()
    return content


def test_the_registry_gets_our_schemas(registry: ComposeProject) -> None:
    """By its name within the project it takes all of them, under the bundled ids; by its published port it has them."""
    wait_until(lambda: registry.is_healthy("registry"), "the registry is ready")
    assert json.loads(fetched(registry.ports["REGISTRY"], SUBJECTS_PATH)) == []
    assert {row["action"] for row in register(registry)} == {"register"}
    register(registry, "--execute")
    kept = register(registry)
    assert {row["action"] for row in kept} == {"keep"}
    assert [row["id"] for row in kept] == [version.id for version in bundled().versions]
    subjects = json.loads(fetched(registry.ports["REGISTRY"], SUBJECTS_PATH))
    assert sorted(subjects) == sorted({version.subject for version in bundled().versions})


@pytest.mark.skipif(
    os.environ.get(BUILD_TEMPORAL) != "1", reason=f"{BUILD_TEMPORAL}=1 has Temporal built, which takes long"
)
def test_temporal_answers(temporal: ComposeProject) -> None:
    """It is ready, and the server of its pages has a namespace that was made, by its published port."""
    wait_until(lambda: temporal.is_healthy("temporal"), "Temporal is ready")
    temporal.execute("temporal", "temporal", "operator", "namespace", "create", "--namespace", "plant")
    wait_until(lambda: "plant" in namespaces(temporal.ports["TEMPORAL_UI"]), "its pages have the namespace")
