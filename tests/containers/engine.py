"""A container engine of the tests' own: podman with runc, its images and containers in a folder that is removed.

No Docker daemon is needed. crun can't be used where cgroups are of both versions, so runc is named.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import psutil

from tests.support import ROOT
from tests.support.waiting import wait_until

TOOLS: Final = ("podman", "runc", "netavark", "iptables", "debootstrap")
PACKAGES: Final = ("podman", "buildah", "runc", "netavark", "aardvark-dns", "iptables", "debootstrap")
"""Debian's packages of these tools."""
CONFIGURATION: Final = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
tmp_dir = "{folder}/run/libpod"
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""
CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
"""What packages' servers are trusted by, here and in a build."""
BUILD_TIMEOUT_SECONDS: Final = 1800
RUN_TIMEOUT_SECONDS: Final = 300


def missing_tools() -> list[str]:
    """Return what has to be installed."""
    paths = f"{os.environ.get('PATH', '')}:/usr/lib/podman:/usr/sbin:/sbin"
    return [tool for tool in TOOLS if shutil.which(tool, path=paths) is None]


class ContainerEngine:
    """podman, with its storage in a folder."""

    def __init__(self, folder: Path, *, kept: bool = False) -> None:
        self.folder = folder
        self._kept = kept
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = folder / "containers.conf"
        configuration.write_text(CONFIGURATION.format(folder=folder), encoding="utf-8")
        self.environ = {**os.environ, "CONTAINERS_CONF": str(configuration)}
        self._podman = ("podman", "--root", str(folder / "storage"), "--runroot", str(folder / "run"))

    def podman(
        self, *arguments: str, check: bool = True, timeout_seconds: float = RUN_TIMEOUT_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run podman; its output is text. Raises AssertionError with what it said, unless it may fail."""
        done = subprocess.run(
            [*self._podman, *arguments], capture_output=True, text=True, check=False, env=self.environ,
            timeout=timeout_seconds,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"podman {' '.join(arguments)}: {done.stderr[-4000:]}"
        return done

    def has(self, tag: str) -> bool:
        """Tell whether there is an image of this name."""
        return self.podman("image", "exists", tag, check=False).returncode == 0

    @contextlib.contextmanager
    def service(self) -> Iterator[str]:
        """Answer Docker's API as long as the block lasts; yields its address, for DOCKER_HOST."""
        socket = self.folder / "docker.sock"
        address = f"unix://{socket}"
        log = (self.folder / "service.log").open("wb")
        with log, subprocess.Popen(
            [*self._podman, "system", "service", "--time", "0", address], env=self.environ, stdout=log, stderr=log
        ) as process:  # fmt: skip
            try:
                wait_until(socket.exists, "the engine answers")
                yield address
            finally:
                process.terminate()

    def build(self, tag: str) -> None:
        """Build the image of the Dockerfile; its install steps reach the package registry as this machine does."""
        mounted = ("--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro") if CERTIFICATES.exists() else ()
        self.podman(
            "build", "--network", "host", "--file", str(ROOT / "infra" / "Dockerfile"), "--ignorefile",
            str(ROOT / "infra" / "Dockerfile.dockerignore"), "--tag", tag, *mounted, str(ROOT),
            timeout_seconds=BUILD_TIMEOUT_SECONDS,
        )  # fmt: skip
        self.podman("tag", tag, f"docker.io/library/{tag}")  # so is it called where a compose file names no registry

    def run(self, tag: str, *command: str, options: Sequence[str] = (), check: bool = True) -> str:
        """Run a command in a container of its own, without a network unless the options say so; returns its stdout."""
        return self.podman("run", "--rm", "--read-only", *options, tag, *command, check=check).stdout

    def left(self) -> list[str]:
        """Return what there is besides images: containers, volumes, networks of our own, and processes."""
        listed = [
            *self.podman("ps", "--all", "--format", "container {{.Names}}").stdout.splitlines(),
            *self.podman("volume", "ls", "--format", "volume {{.Name}}").stdout.splitlines(),
            *self.podman("network", "ls", "--format", "network {{.Name}}").stdout.splitlines(),
        ]
        return [line for line in listed if line != "network podman"] + [
            f"process {process.pid} {process.info['name']}"
            for process in psutil.process_iter(["name", "cmdline"])
            if str(self.folder) in " ".join(process.info["cmdline"] or ()) and process.pid != os.getpid()
            and process.info["name"] != "pytest"
        ]  # fmt: skip

    def close(self) -> None:
        """Remove every container, volume and network; images and the folder too, unless a developer keeps them."""
        self.podman("rm", "--all", "--force", "--volumes", check=False)
        self.podman("volume", "prune", "--force", check=False)
        self.podman("network", "prune", "--force", check=False)
        if self._kept:
            return
        self.podman("rmi", "--all", "--force", check=False)
        subprocess.run(["umount", "--quiet", str(self.folder / "storage" / "overlay")], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def install() -> None:
    """Install what is missing by apt, as root, and say so first."""
    missing = missing_tools()
    if not missing:
        return
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES]
    print(f"==> {', '.join(missing)} not found. Installing, as root: {' '.join(command)}", flush=True)
    subprocess.run(["apt-get", "update", "--quiet"], check=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    install()
