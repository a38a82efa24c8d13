"""An ahead-of-time cache of the broker's classes, with which it starts in less than half the CPU time (JEP 483, 514).

It is made once for each user, next to the jars, by a broker that starts and ends in a folder of its own. Java itself
compares a cache with its own version and the jars, and starts without one that doesn't fit or can't be read. The file's
name depends on both too, so a cache for another version is another file.
"""

from __future__ import annotations

import fcntl
import signal
import tempfile
from pathlib import Path

from devstack import processes
from devstack.kafka import Broker, Ports, cluster_id
from devstack.kafka_jars import ensure_jars, start_cache_file
from devstack.processes import ProcessRecord
from devstack.progress import Progress

TRAINING_TIMEOUT_SECONDS = 300.0
"""Java writes the cache after the broker has ended: some 10 s of CPU time."""


def ensure_start_cache(progress: Progress) -> Path:
    """Make the cache if there is none, and return its file, which is absent where Java could not make it.

    Processes that ask at the same time make it once. The folder is written to only where the file is missing.
    """
    file = start_cache_file(ensure_jars(progress))
    if file.exists():
        return file
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            progress.say("Preparing a faster start of Kafka (once)")
            _make(file, progress)
    return file


def _make(file: Path, progress: Progress) -> None:
    """Start a broker that records its classes, end it, and give the file that Java then wrote its final name."""
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".part-") as scratch:
        broker, part = Broker(Path(scratch), 1, 1), Path(scratch) / file.name
        port = processes.choose_port(None, set())
        ports = [Ports(port, processes.choose_port(None, {port}))]
        records = list[ProcessRecord]()
        try:
            options = [f"-XX:AOTCacheOutput={part}"]
            broker.start(cluster_id([broker]), ports, progress, records.append, more_options=options)
            processes.send(records[0], signal.SIGTERM)
            if processes.wait_gone(records[0], timeout_seconds=TRAINING_TIMEOUT_SECONDS) and part.exists():
                part.replace(file)
        finally:
            for record in records:
                processes.kill(record)
