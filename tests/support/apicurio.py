"""A real Apicurio Registry with its data in memory, for tests: fetched once a user, pinned, checked."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from devstack import processes
from devstack.kafka import java
from devstack.kafka_jars import MAVEN_CENTRAL

VERSION = "2.6.13.Final"
NAME = f"apicurio-registry-app-{VERSION}-all.tar.gz"
PATH = f"io/apicurio/apicurio-registry-app/{VERSION}/{NAME}"
ARTIFACT = f"io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"
MAVEN_GOAL = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
SHA256 = "3cda1b34aa020fb4ac4dd6a66018d757e81e437f97e20a1f92d366b70091c6ba"
START_TIMEOUT_SECONDS = 600.0
CCOMPAT = "/apis/ccompat/v7"


def ensure_archive() -> Path:
    """Return the archive in the user's cache, through Maven where it is installed, else over HTTPS."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "plant" / f"apicurio-{VERSION}"
    file = folder / NAME
    if file.exists() and _sha256(file) == SHA256:
        return file
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as scratch:
        part = Path(scratch) / NAME
        if not (shutil.which("mvn") and _by_maven(part)):
            _by_https(part)
        actual = _sha256(part)
        assert actual == SHA256, f"{NAME} is not the file that was pinned: {actual}"
        part.replace(file)
    return file


@contextmanager
def apicurio(folder: Path) -> Iterator[str]:
    """Yield a registry with nothing in it; the address of its Confluent-compatible API."""
    home = folder / f"apicurio-{secrets.token_hex(4)}"
    with tarfile.open(ensure_archive()) as archive:
        archive.extractall(home, filter="data")
    port = processes.choose_port(None, set())
    settings = {
        "quarkus.http.host": "127.0.0.1",
        "quarkus.http.port": str(port),
        "quarkus.log.level": "WARN",
    }
    flags = [f"-D{name}={value}" for name, value in settings.items()]
    jar = home / f"apicurio-registry-app-{VERSION}-runner.jar"
    log = home / "apicurio.log"
    argv: list[str | Path] = [java(), "-XX:TieredStopAtLevel=1", "-Xmx512m", *flags, "-jar", jar]
    record = processes.spawn(argv, log=log, cwd=home)
    url = f"http://127.0.0.1:{port}{CCOMPAT}"
    try:
        ready = processes.wait_ready(lambda: _answers(url), record, timeout_seconds=START_TIMEOUT_SECONDS)
        assert ready, log.read_text()[-2000:]
        yield url
    finally:
        processes.kill(record)
        shutil.rmtree(home, ignore_errors=True)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/subjects", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _by_maven(part: Path) -> bool:
    flags = [f"-Dartifact={ARTIFACT}", f"-DoutputDirectory={part.parent}"]
    command = ["mvn", "-B", "-q", MAVEN_GOAL, *flags]
    done = subprocess.run(command, cwd=part.parent, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return done.returncode == 0 and part.exists()


def _by_https(part: Path) -> None:
    for attempt in (1, 2, 3):
        try:
            with httpx.stream("GET", f"{MAVEN_CENTRAL}/{PATH}", timeout=30, follow_redirects=True) as response:
                response.raise_for_status()
                with part.open("wb") as stream:
                    for chunk in response.iter_bytes():
                        stream.write(chunk)
            return
        except httpx.HTTPError:
            if attempt == 3:
                raise
            time.sleep(attempt)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
