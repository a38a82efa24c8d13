"""The broker's jars: pinned, checked and fetched."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from devstack import kafka_jars
from devstack.errors import DownloadFailed
from devstack.kafka_jars import Jar, ensure_jars, locked_jars, missing_jars
from devstack.progress import Silent


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Maven repository on this machine, with two small files locked in a lock file of its own; Maven is absent."""
    folder = tmp_path / "repository"
    lines = ["# a comment"]
    for name, content in (("one", b"1" * 1000), ("two", b"2" * 2000)):
        file = folder / "org" / name / "1" / f"{name}-1.jar"
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        lines.append(f"{hashlib.sha256(content).hexdigest()} {len(content)} {file.relative_to(folder).as_posix()}")
    lock = tmp_path / "jars.lock"
    lock.write_text("\n".join(lines))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setattr(kafka_jars, "MAVEN_CENTRAL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(kafka_jars, "locked_jars", lambda _=None: locked_jars(lock))
        monkeypatch.setattr(kafka_jars.shutil, "which", lambda _: None)
        yield folder
        server.shutdown()


def test_lock_names_the_pinned_broker() -> None:
    """The committed lock file holds the broker, its client and a logger, each with a SHA-256."""
    jars = locked_jars()

    assert {f"kafka_2.13-{kafka_jars.KAFKA_VERSION}.jar", "slf4j-simple-1.7.36.jar"} <= {jar.name for jar in jars}
    assert len({jar.name for jar in jars}) == len(jars)
    assert all(len(bytes.fromhex(jar.sha256)) == 32 for jar in jars)


def test_missing_jars_are_fetched_and_kept(repository: Path, tmp_path: Path) -> None:
    """What is not there is downloaded; a second call downloads nothing."""
    cache = tmp_path / "cache"

    assert ensure_jars(Silent(), cache) == cache
    assert sorted(file.name for file in cache.iterdir()) == ["one-1.jar", "two-1.jar"]
    for file in repository.rglob("*.jar"):
        file.unlink()
    assert ensure_jars(Silent(), cache) == cache


def test_damaged_jar_is_fetched_again(repository: Path, tmp_path: Path) -> None:
    """A cached file whose bytes changed, size or not, counts as missing."""
    cache = ensure_jars(Silent(), tmp_path / "cache")
    (cache / "one-1.jar").write_bytes(b"x" * 1000)
    damaged = missing_jars(cache, kafka_jars.locked_jars())

    ensure_jars(Silent(), cache)

    assert [jar.name for jar in damaged] == ["one-1.jar"]
    assert (cache / "one-1.jar").read_bytes() == b"1" * 1000


def test_other_bytes_are_refused(repository: Path, tmp_path: Path) -> None:
    """A repository that serves something else than what was pinned is not believed."""
    next(repository.rglob("two-1.jar")).write_bytes(b"3" * 2000)

    with pytest.raises(DownloadFailed, match=r"two-1\.jar is not the file that was pinned"):
        ensure_jars(Silent(), tmp_path / "cache")

    assert not (tmp_path / "cache" / "two-1.jar").exists()


def test_absent_file_names_itself(repository: Path, tmp_path: Path) -> None:
    """A file that the repository lacks is named, with the server's answer."""
    next(repository.rglob("one-1.jar")).unlink()

    with pytest.raises(DownloadFailed, match=r"one-1\.jar could not be fetched.*404"):
        ensure_jars(Silent(), tmp_path / "cache")


def test_pom_asks_for_exactly_the_locked_files() -> None:
    """The project for Maven pulls in nothing but the listed files."""
    pom = kafka_jars._pom([Jar("00", 1, "org/apache/kafka/kafka_2.13/4.1.1/kafka_2.13-4.1.1.jar")])

    assert "<groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>4.1.1</version>" in pom
    assert "<exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion>" in pom
