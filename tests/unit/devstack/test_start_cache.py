"""The broker's ahead-of-time cache: made once, named by what it was made of, and left out where it doesn't fit."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from devstack.kafka import SHORT_LIVED, cached_start, java
from devstack.kafka_jars import cache_folder, locked_jars, start_cache_file
from devstack.progress import Silent
from devstack.start_cache import ensure_start_cache

USES = ["-cp", f"{cache_folder()}/*", "kafka.tools.StorageTool", "random-uuid"]


def run_java(cache: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run one of Kafka's tools with this cache."""
    given = [str(java()), *SHORT_LIVED, f"-XX:AOTCache={cache}", *options, *USES]
    return subprocess.run(given, capture_output=True, text=True, check=False)


def test_the_cache_is_made_once_and_java_uses_it() -> None:
    """A second call returns the same file, untouched; with `-XX:AOTMode=on` Java would end where it did not fit."""
    cache = ensure_start_cache(Silent())
    made = cache.stat()
    assert ensure_start_cache(Silent()) == cache
    assert (cache.stat().st_ino, cache.stat().st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    done = run_java(cache, "-XX:AOTMode=on")
    assert done.returncode == 0, done.stdout
    assert cached_start(cache.parent) == [f"-XX:AOTCache={cache}", "-XX:AOTMode=auto"]


def test_a_broken_cache_is_left_out(tmp_path: Path) -> None:
    """Java starts without a cache that is cut, that is none, or that can't be read."""
    whole = ensure_start_cache(Silent()).read_bytes()
    for name, content in (("cut", whole[:3_000_000]), ("none", b"no cache"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        assert run_java(tmp_path / name, "-XX:AOTMode=auto").returncode == 0
        assert run_java(tmp_path / name, "-XX:AOTMode=on").returncode != 0


def test_other_jars_have_another_cache(tmp_path: Path) -> None:
    """The name follows from Java's version and each jar's bytes and time, so a cache that went stale is not offered."""
    for jar in locked_jars():
        (tmp_path / jar.name).touch()
    before = start_cache_file(tmp_path)
    assert before.parent == tmp_path
    assert start_cache_file(tmp_path) == before
    assert cached_start(tmp_path) == []
    os.utime(tmp_path / locked_jars()[0].name, (1, 1))
    assert start_cache_file(tmp_path) != before
