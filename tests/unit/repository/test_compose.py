"""The compose file, read by the parser that Docker Compose itself uses."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from database.connector import CLOSE_TIMEOUT_SECONDS
from deliveries.endpoints import TIMEOUT_MAX_SECONDS
from devstack.kafka_jars import KAFKA_VERSION
from devstack.postgres import SERVER_SETTINGS
from operations.cli.main import COMMANDS
from operations.cli.main import SERVICES as SECTION
from operations.services.dispatcher import PUBLISH_TIMEOUT_SECONDS
from runtime.settings import Settings, unknown_variables
from server.http_server import PEER_END_TIMEOUT_SECONDS, SHUTDOWN_TIMEOUT_SECONDS
from server.processes import END_TIMEOUT_SECONDS
from streams.ordered_records import ROOM_TIMEOUT_SECONDS
from tests.support import ROOT
from tests.support.services import COMPOSE_FILE, compose_addresses

PARSER = ROOT / "tests" / "support" / "compose_parser"
BUILD_TIMEOUT_SECONDS = 300
QUICKLY_BUILT = ("-gcflags=all=-N -l", "-ldflags=-s -w")
"""The parser runs for milliseconds, and in an empty home all of Go's library is compiled for it: not optimised, that
takes a third less, and no information for debuggers is linked."""
NEEDED_MIB = 512
"""More than a service takes but for its files; `tests/containers` looks at it under load."""
SERVERS = {"kafka", "postgres"}
RUN_ONCE = {"roles", "migrate"}
SERVICES = {"ingress", "api", "worker", "relay", "dispatcher", "deliverer", "embedder"}
IN_PROFILES = {"registry", "temporal"}
"""What nothing needs yet: it starts where its profile is named."""


def parser() -> Path:
    """The parser, built from its sources once a user."""
    sources = b"".join((PARSER / name).read_bytes() for name in ("main.go", "go.mod", "go.sum"))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plant"
    binary = cache / f"compose-parser-{hashlib.sha256(sources).hexdigest()[:16]}"
    if not binary.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = binary.with_suffix(f".{os.getpid()}")
        build = ["go", "build", "-mod=readonly", *QUICKLY_BUILT, "-o", part, "."]
        environ = {**os.environ, "CGO_ENABLED": "0"}
        subprocess.run(build, cwd=PARSER, check=True, timeout=BUILD_TIMEOUT_SECONDS, env=environ)
        part.replace(binary)
    return binary


def resolved(**environ: str) -> dict[str, Any]:
    done = subprocess.run(
        [parser(), ROOT / COMPOSE_FILE], capture_output=True, text=True, check=True, env={"PATH": "", **environ}
    )
    project: dict[str, Any] = json.loads(done.stdout)
    return project


@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go")
def test_compose_file_is_valid_for_docker_compose() -> None:
    """Docker Compose's parser accepts the file, and finds every service with an image, a limit and a health check."""
    services = resolved()["services"]

    assert set(services) == SERVERS | RUN_ONCE | SERVICES
    with_profiles = resolved(COMPOSE_PROFILES="registry,temporal")["services"]
    assert set(with_profiles) == set(services) | IN_PROFILES
    assert set(resolved(COMPOSE_PROFILES="registry")["services"]) == set(services) | {"registry"}
    for name, service in with_profiles.items():
        assert name in RUN_ONCE or service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name
        assert ":" in service["image"], name
        assert not service["image"].endswith(":latest"), name
        assert int(service["mem_limit"]) > 0, name
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1", name
    for name in SERVICES:
        service = services[name]
        assert service["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name
        assert "/readyz" in service["healthcheck"]["test"][-1], name
        assert service["stop_grace_period"] == "1m0s", name
    assert services["kafka"]["image"].endswith(f":{KAFKA_VERSION}")
    changed = resolved(PLANT_KAFKA_PORT="19999", PLANT_INGRESS_PASSWORD="other")["services"]
    assert "OUTSIDE://127.0.0.1:19999" in changed["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert "plant_ingress:other@" in changed["ingress"]["environment"]["PLANT_DATABASE_INGRESS_URL"]


def test_every_service_of_plant_is_in_the_compose_file() -> None:
    """A command of the group of services that it lacks would run nowhere."""
    services = yaml.safe_load((ROOT / COMPOSE_FILE).read_text(encoding="utf-8"))["services"]
    commands = {service["command"][0] for name, service in services.items() if name in SERVICES}
    assert commands == {name for name, entry in COMMANDS.items() if entry.section == SECTION}


def test_grace_periods_are_longer_than_what_services_take_to_end() -> None:
    """Requests, batches and attempts under way end first: whoever kills before that gains a repeat, or a 503."""
    text = (ROOT / COMPOSE_FILE).read_text(encoding="utf-8")
    (grace_seconds,) = {int(seconds) for seconds in re.findall(r"stop_grace_period: (\d+)s", text)}
    serving = SHUTDOWN_TIMEOUT_SECONDS + PEER_END_TIMEOUT_SECONDS + CLOSE_TIMEOUT_SECONDS
    dispatching = PUBLISH_TIMEOUT_SECONDS + ROOM_TIMEOUT_SECONDS + CLOSE_TIMEOUT_SECONDS
    delivering = TIMEOUT_MAX_SECONDS + PUBLISH_TIMEOUT_SECONDS + CLOSE_TIMEOUT_SECONDS
    assert grace_seconds > max(serving, dispatching, END_TIMEOUT_SECONDS, delivering)


def test_files_in_memory_leave_room_for_the_service() -> None:
    """A file system in memory counts as memory of the container: filled, it must leave the service what it needs."""
    services = yaml.safe_load((ROOT / COMPOSE_FILE).read_text(encoding="utf-8"))["services"]
    for name in SERVICES:
        (mount,) = services[name]["tmpfs"]
        files_mib = int(mount.removeprefix("/tmp:size=").removesuffix("m"))
        assert _mebibytes(services[name]["mem_limit"]) - files_mib >= NEEDED_MIB, name
    settings = Settings()
    bulk_loads_bytes = 2 * settings.ingress_streams_max * settings.ingress_stream_max_bytes
    assert services["ingress"]["tmpfs"] == [f"/tmp:size={bulk_loads_bytes >> 20}m"]


def _mebibytes(limit: str) -> int:
    return int(limit[:-1]) * {"m": 1, "g": 1024}[limit[-1]]


def test_passwords_of_the_compose_file_can_all_be_set() -> None:
    """No password is written in clear without a variable that replaces it."""
    services = yaml.safe_load((ROOT / COMPOSE_FILE).read_text(encoding="utf-8"))["services"]
    secrets = {
        f"{name}.{variable}": value
        for name, service in services.items()
        for variable, value in service.get("environment", {}).items()
        if any(part in variable for part in ("PASSWORD", "MASTER_KEY", "DATABASE"))
    }

    assert len(secrets) >= 9
    assert [name for name, value in secrets.items() if "${PLANT_" not in value] == []


def test_files_that_the_compose_file_mounts_exist() -> None:
    """Bind mounts and the Dockerfile are where the compose file says."""
    services = yaml.safe_load((ROOT / COMPOSE_FILE).read_text(encoding="utf-8"))["services"]
    volumes = [volume for service in services.values() for volume in service.get("volumes", [])]
    mounts = [volume.split(":")[0] for volume in volumes if isinstance(volume, str)]
    files = [mount for mount in mounts if mount.startswith("./")] + [services["ingress"]["build"]["dockerfile"]]

    assert len(files) == 3
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_test_addresses_agree_with_the_compose_file() -> None:
    """What the tests expect of containers are the defaults that the compose file writes."""
    text = (ROOT / COMPOSE_FILE).read_text(encoding="utf-8")
    for role in ("superuser", "owner", "writer", "ingress", "operator", "api", "auditor", "deliverer", "endpoints"):
        assert f"${{PLANT_{role.upper()}_PASSWORD:-plant-{role}-development}}" in text
    assert ":-9092}" in text
    kafka, superuser_url = compose_addresses({})
    assert kafka == "127.0.0.1:9092"
    assert superuser_url == "postgresql://postgres:plant-superuser-development@127.0.0.1:5432/postgres"
    kafka, superuser_url = compose_addresses({"PLANT_KAFKA_PORT": "9", "PLANT_POSTGRES_PORT": "5"})
    assert kafka.endswith(":9")
    assert ":5/" in superuser_url


def test_postgres_has_the_room_for_locks_of_the_local_stack() -> None:
    """A query of the whole log locks five objects a range: with the default, a few at once refuse every session."""
    (local,) = re.findall(r"max_locks_per_transaction = (\d+)", SERVER_SETTINGS)
    (composed,) = re.findall(r"max_locks_per_transaction=(\d+)", (ROOT / COMPOSE_FILE).read_text("utf-8"))
    assert int(local) == int(composed) >= 256


def test_every_variable_of_the_compose_file_is_known() -> None:
    """`plant doctor` names none of them as a setting that there is not."""
    named = set(re.findall(r"PLANT_[A-Z_]+", (ROOT / COMPOSE_FILE).read_text("utf-8")))
    assert len(named) > 20
    assert unknown_variables(dict.fromkeys(named, "x")) == []
