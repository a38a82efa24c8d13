"""A container engine of the tests' own: podman with runc, its images and containers in a folder that is removed.

No Docker daemon is needed. crun can't be used where cgroups are of both versions, so runc is named.

Each engine locks its folder as long as its process lives. A run that was killed has left containers, processes and
mounts in a folder that nobody locks: the next engine removes them before it starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import psutil

from tests.support import ROOT
from tests.support.waiting import wait_until

TOOLS: Final = ("podman", "runc", "netavark", "aardvark-dns", "iptables", "debootstrap")
TOOLS_PATH: Final = f"{os.environ.get('PATH', '')}:/usr/lib/podman:/usr/sbin:/sbin"
PACKAGES: Final = (*TOOLS, "debian-archive-keyring")
"""Debian's packages are called as the tools are. The keyring is debootstrap's, which other distributions lack."""
PROGRAMS: Final = ("podman", "conmon", "aardvark-dns", "netavark", "runc", "debootstrap")
"""What an engine starts, and so may be ended where it names the engine's folder."""
CONFIGURATION: Final = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
tmp_dir = "{run_folder}/libpod"
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
[engine.runtimes]
runc = ["{folder}/runc"]
"""
RUNC: Final = """\
#!/bin/sh
# Keep what runs next to podman's own state, which goes with the engine: /run/runc is for everyone.
exec {runc} --root {run_folder}/runc "$@"
"""
CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
"""What packages' servers are trusted by, here and in a build."""
BUILD_TIMEOUT_SECONDS: Final = 1800
RUN_TIMEOUT_SECONDS: Final = 300
KILL_TIMEOUT_SECONDS: Final = 30
RUN_FOLDERS: Final = Path("/run")
READ_ONLY: Final = ("--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp")
"""As the compose file has it, and nothing else to write to: podman adds /run and /var/tmp if it is not told."""
UNABLE: Final = 75
"""The exit code that says: it is the machine that can't run containers."""
KEPT_FOLDER: Final = "PLANT_TEST_IMAGES_FOLDER"
"""The variable that names a folder whose images are kept between runs."""
INDEX_VARIABLES: Final = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX")
"""What says where packages come from, here and in a build: its arguments are called so too."""


def missing_tools() -> list[str]:
    """Return what has to be installed."""
    return [tool for tool in TOOLS if shutil.which(tool, path=TOOLS_PATH) is None]


class FolderInUseError(Exception):
    """Another run uses this folder. Wait until it ends, or name another one."""


class ContainerEngine:
    """podman, with its storage in a folder. Nothing of an earlier run is left in it but, where it is kept, images.

    Raises FolderInUseError when another engine has the folder.
    """

    def __init__(self, folder: Path, *, kept: bool = False) -> None:
        self.folder = folder
        self._kept = kept
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise FolderInUseError(f"{folder} is in use by another run.") from error
        configuration = folder / "containers.conf"
        # podman accepts 50 characters here, and a socket's path has 107 at most.
        self.run_folder = RUN_FOLDERS / f"plant-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"
        text = CONFIGURATION.format(folder=folder, run_folder=self.run_folder)
        configuration.write_text(text, encoding="utf-8")
        runc = shutil.which("runc", path=TOOLS_PATH) or "runc"
        (folder / "runc").write_text(RUNC.format(runc=runc, run_folder=self.run_folder), encoding="utf-8")
        (folder / "runc").chmod(0o755)
        self.environ = {**os.environ, "CONTAINERS_CONF": str(configuration)}
        self._scratch = folder / "scratch"
        """podman's own temporary files, which a killed build leaves."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir()
        self._podman = ("podman", "--root", str(folder / "storage"), "--runroot", str(self.run_folder))
        self._end_all()

    def podman(
        self, *arguments: str, check: bool = True, timeout_seconds: float = RUN_TIMEOUT_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run podman; its output is text. Raises AssertionError with what it said, unless it may fail."""
        done = subprocess.run(
            [*self._podman, *arguments], capture_output=True, text=True, check=False, timeout=timeout_seconds,
            cwd=self.folder,  # a container's monitor writes a file called oom into the folder that it was started in
            env={**self.environ, "TMPDIR": str(self._scratch)},
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"podman {' '.join(arguments)}: {done.stderr[-4000:]}"
        return done

    def has(self, tag: str) -> bool:
        """Tell whether there is an image of this name."""
        return self.podman("image", "exists", tag, check=False).returncode == 0

    @contextlib.contextmanager
    def service(self) -> Iterator[str]:
        """Answer Docker's API as long as the block lasts; yields its address, for DOCKER_HOST."""
        socket = self.run_folder / "docker.sock"
        address = f"unix://{socket}"
        self.run_folder.mkdir(parents=True, exist_ok=True)
        log = (self.folder / "service.log").open("wb")
        with log, subprocess.Popen(
            [*self._podman, "system", "service", "--time", "0", address], env=self.environ, stdout=log, stderr=log,
            cwd=self.folder, start_new_session=True,  # Ctrl-C ends those who use it, and they still need it to clean up
        ) as process:  # fmt: skip
            try:
                wait_until(lambda: socket.exists() or process.poll() is not None, "the engine answers")
                assert socket.exists(), (self.folder / "service.log").read_text(encoding="utf-8")
                yield address
            finally:
                process.terminate()
                socket.unlink(missing_ok=True)

    def build(self, tag: str, **variables: str) -> None:
        """Build the image of the Dockerfile; its install steps reach the package registry as this machine does."""
        variables |= {name: os.environ[name] for name in INDEX_VARIABLES if os.environ.get(name)}
        passed = [f"--build-arg={name}={value}" for name, value in variables.items()]
        self.podman(
            "build", "--network", "host", "--file", str(ROOT / "infra" / "Dockerfile"), "--ignorefile",
            str(ROOT / "infra" / "Dockerfile.dockerignore"), "--tag", tag, *self.certificates(), *passed, str(ROOT),
            timeout_seconds=BUILD_TIMEOUT_SECONDS,
        )  # fmt: skip
        self.podman("tag", tag, f"docker.io/library/{tag}")  # so is it called where a compose file names no registry

    def certificates(self) -> tuple[str, ...]:
        """Return the options by which a container trusts the servers that this machine trusts."""
        return ("--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro") if CERTIFICATES.exists() else ()

    def run(self, tag: str, *command: str, options: Sequence[str] = (), check: bool = True) -> str:
        """Run a command in a container of its own, without a network unless the options say so; returns its stdout."""
        return self.podman("run", "--rm", *READ_ONLY, *options, tag, *command, check=check).stdout

    def left(self) -> list[str]:
        """Return what there is besides images: containers, volumes, networks of our own, mounts and processes."""
        listed = [
            *self.podman("ps", "--all", "--format", "container {{.Names}}").stdout.splitlines(),
            *self.podman("volume", "ls", "--format", "volume {{.Name}}").stdout.splitlines(),
            *self.podman("network", "ls", "--format", "network {{.Name}}").stdout.splitlines(),
        ]
        mounts = [f"mount {each}" for each in self._mounts() if each != str(self.folder / "storage" / "overlay")]
        processes = [f"process {process.pid} {process.info['name']}" for process in self._processes()]
        return [line for line in listed if line != "network podman"] + mounts + processes

    def close(self) -> None:
        """Remove every container, volume and network; images and the folder too, unless a developer keeps them."""
        self._end_all()
        if not self._kept:
            self.podman("rmi", "--all", "--force", check=False)
            self._unmount()
            assert not self._mounts(), "what is mounted in the folder would be removed with it"
            shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.run_folder, ignore_errors=True)
        self._lock.close()

    def _end_all(self) -> None:
        """End what runs in the folder, also where a killed run left podman's own state in the middle of something."""
        if (self.folder / "storage").exists():
            self.podman("rm", "--all", "--force", "--volumes", "--time", "5", check=False)
            self.podman("volume", "prune", "--force", check=False)
            self.podman("network", "prune", "--force", check=False)
        processes = self._processes()
        processes += [child for each in processes for child in each.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(processes, KILL_TIMEOUT_SECONDS)
        for network in self.folder.glob("networks/*.json"):
            self.podman("network", "rm", "--force", network.stem, check=False)
        self._unmount()

    def _processes(self) -> list[psutil.Process]:
        """Return podman's service, containers' monitors, name servers and builds of this folder."""
        return [process for process in psutil.process_iter(["name", "cmdline"]) if self._is_of_folder(process)]

    def _is_of_folder(self, process: psutil.Process) -> bool:
        root = ""
        with contextlib.suppress(OSError):
            root = str(Path(f"/proc/{process.pid}/root").readlink())
        words = " ".join(process.info["cmdline"] or ())
        named = process.info["name"] in PROGRAMS and (f"{self.folder}/" in words or str(self.run_folder) in words)
        return named or root.startswith(f"{self.folder}/")

    def _mounts(self) -> list[str]:
        """Return the mount points within the engine's folders, the deepest first."""
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
        points = [line.split()[1] for line in lines]
        own = (f"{self.folder}/", f"{self.run_folder}/")
        return sorted((each for each in points if each.startswith(own)), key=len, reverse=True)

    def _unmount(self) -> None:
        for mount in self._mounts():
            subprocess.run(["umount", "--quiet", "--lazy", mount], check=False)


@contextlib.contextmanager
def new_engine() -> Iterator[ContainerEngine]:
    """An engine whose folder is removed in the end; before it starts, those of runs that were killed are removed.

    PLANT_TEST_IMAGES_FOLDER names a folder that is kept, so that the stand-ins are made once. SIGTERM is an interrupt
    as Ctrl-C is, as long as the block lasts.
    """
    kept = os.environ.get(KEPT_FOLDER)
    remove_abandoned()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    engine = ContainerEngine(Path(kept) if kept else engines_folder() / str(os.getpid()), kept=bool(kept))
    try:
        yield engine
    finally:
        engine.close()
        signal.signal(signal.SIGTERM, before)


def engines_folder() -> Path:
    """Return the folder of all runs' engines, each in one that is named by its process's id."""
    return Path(tempfile.gettempdir()).resolve() / f"plant-containers-{os.getuid()}"


def remove_abandoned() -> None:
    """Remove the engines whose processes are gone."""
    for folder in engines_folder().glob("*"):
        with contextlib.suppress(FolderInUseError):
            ContainerEngine(folder).close()


def install() -> int:
    """Install what is missing by apt, as root, and say so first; returns an exit code, UNABLE where apt can't."""
    missing = missing_tools()
    if not missing:
        return 0
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES]
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    print(f"==> {', '.join(missing)} not found. Installing, as root: {' '.join(command)}", flush=True)
    try:
        subprocess.run(["apt-get", "update", "--quiet"], check=True, env=environ)
        subprocess.run(command, check=True, env=environ)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"{error} Install them by other means: {' '.join(PACKAGES)}", file=sys.stderr)
        return UNABLE
    return 0


if __name__ == "__main__":
    sys.exit(install())
