"""The tests' own engine: nothing stays of a run, however it ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from tests.containers.engine import ContainerEngine, FolderInUseError
from tests.containers.stand_ins import PYTHON_TAG
from tests.support import ROOT
from tests.support.waiting import DEADLINE_SECONDS, wait_until

SHARED_FOLDERS = (
    "/etc/containers", "/etc/cni", "/run/containers/storage", "/run/runc", "/var/lib/containers", "/var/lib/cni",
    "~/.config/containers", "~/.local/share/containers",
)  # fmt: skip
"""What all of a machine's container engines use by default. These are the tests' own, and stay out of them."""
RUN = """
import json, signal, sys
from tests.containers.engine import new_engine
with new_engine() as engine, engine.service():
    if sys.argv[1:]:
        name = engine.run_folder.name
        engine.podman("network", "create", name)
        engine.podman("run", "--detach", "--name", name, "--network", name, "--volume", name + ":/tmp",
                      "--publish", "127.0.0.1::80", "--rootfs", sys.argv[1] + ":O", "sleep", "3600")
        (network,) = json.loads(engine.podman("network", "inspect", name).stdout)
        (container,) = json.loads(engine.podman("inspect", name).stdout)
        namespace = container["NetworkSettings"]["SandboxKey"]
        interface = "/sys/class/net/" + network["network_interface"]
        names = "/run/containers/networks/aardvark-dns/" + name
        print(json.dumps([name, container["Id"]]), flush=True)
        print(json.dumps([interface, namespace, names, str(engine.run_folder)]), flush=True)
        signal.pause()
"""
"""A run that starts a container from a root file system, and waits; without one it ends at once."""


COMMAND = """
import os, sys
from tests.containers.with_engine import run_command
run_command([sys.executable, "-c", "import os, signal; print(os.getpid(), flush=True); signal.pause()"], os.environ)
"""
"""A run with a command that waits, without an engine."""


@pytest.fixture
def rootfs(engine: ContainerEngine) -> Iterator[str]:
    """A root file system, of an image of the session's engine."""
    yield engine.podman("image", "mount", PYTHON_TAG).stdout.strip()
    engine.podman("image", "unmount", PYTHON_TAG)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The runs' folder for temporary files; where a test fails, a last run removes what the others have left in it."""
    yield tmp_path
    if [*tmp_path.glob("plant-containers-*/*")]:
        with run(tmp_path) as last:
            last.wait(DEADLINE_SECONDS)


def run(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environ = {**os.environ, "TMPDIR": str(folder)}
    environ.pop("PLANT_TEST_IMAGES_FOLDER", None)
    command = [sys.executable, "-c", RUN, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True)


@contextlib.contextmanager
def running(folder: Path, rootfs: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Yield a run that has started its container, and paths of what it made outside its folder."""
    with run(folder, rootfs) as process:
        try:
            assert process.stdout is not None
            names = json.loads(process.stdout.readline())
            paths = json.loads(process.stdout.readline())
            assert in_shared_folders(names) == []
            assert [path for path in paths if not Path(path).exists()] == []
            yield process, paths
        finally:
            process.kill()


def traces(folder: Path, paths: list[str]) -> list[str]:
    """Return what there is of a run: processes and mounts that name the folder, its files, and these paths."""
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    named = [each.info["name"] for each in psutil.process_iter(["name", "cmdline"]) if _names(each, folder)]
    files = [str(path) for path in folder.glob("plant-containers-*/*")]
    return [
        *named,
        *(line.split()[1] for line in mounts if str(folder) in line),
        *files,
        *filter(os.path.exists, paths),
    ]


def in_shared_folders(names: Sequence[str]) -> list[str]:
    """Return what names a run's container or network in the folders of all engines."""
    paths = (str(path) for folder in SHARED_FOLDERS for path in Path(folder).expanduser().rglob("*"))
    return [path for path in paths if any(name in path for name in names)]


def _names(process: psutil.Process, folder: Path) -> bool:
    return str(folder) in " ".join(process.info["cmdline"] or ())


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(folder: Path, rootfs: str, end: signal.Signals) -> None:
    """Ctrl-C and SIGTERM: containers, networks, volumes, processes, mounts and files are gone when it has ended."""
    with running(folder, rootfs) as (process, paths):
        process.send_signal(end)
        process.wait(DEADLINE_SECONDS)
    assert traces(folder, paths) == []


def test_the_next_run_removes_what_a_killed_one_left(folder: Path, rootfs: str) -> None:
    """SIGKILL leaves all of it running; the next run ends it before it starts."""
    with running(folder, rootfs) as (process, paths):
        process.kill()
        process.wait(DEADLINE_SECONDS)
    assert {"conmon", "podman", *paths} <= set(traces(folder, paths))
    with run(folder) as following:
        assert following.wait(DEADLINE_SECONDS) == 0
    assert traces(folder, paths) == []


def test_a_run_leaves_others_that_are_under_way_alone(folder: Path, rootfs: str) -> None:
    """Each locks its folder as long as its process lives."""
    with running(folder, rootfs) as (process, paths):
        (own,) = folder.glob("plant-containers-*/*")
        with pytest.raises(FolderInUseError):
            ContainerEngine(own)
        with run(folder) as other:
            assert other.wait(DEADLINE_SECONDS) == 0
        assert {"conmon", "podman", *paths} <= set(traces(folder, paths))
        process.send_signal(signal.SIGINT)
        process.wait(DEADLINE_SECONDS)


def test_a_command_is_interrupted_when_its_run_is_killed() -> None:
    """It would else go on for hours beside containers that the next run removes."""
    with subprocess.Popen([sys.executable, "-c", COMMAND], cwd=ROOT, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        command = psutil.Process(int(killed.stdout.readline()))
        killed.kill()
    wait_until(lambda: _has_ended(command), "the command has ended")


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
