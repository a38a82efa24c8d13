"""Everything a process can be told, in one frozen object.

Values come, strongest first, from the environment (`PLANT_` prefix), from `.plant/stack.env` (written by
`plant up` for the local stack), and from the defaults below. `docs/reference/settings.md` is generated from this file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from runtime.errors import ConfigurationError

PREFIX = "PLANT_"

DatabaseRole = Literal["owner", "writer", "api", "auditor"]

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
PositiveFloat = Annotated[float, Meta(gt=0)]


def _said(description: str, default: Any = msgspec.NODEFAULT) -> Any:
    """Pair a default with its explanation; the explanation is read back for the settings page."""
    _EXPLANATIONS.append(description)
    return msgspec.field(default=default)


_EXPLANATIONS: list[str] = []


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One process's settings. Build it with :func:`load_settings`."""

    home: str = _said("Folder of the local stack: data, logs, addresses.", ".plant")

    kafka_bootstrap_servers: str = _said("Kafka brokers, `host:port,host:port`. Set by `plant up` locally.", "")
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = _said(
        "How to talk to the brokers.", "PLAINTEXT"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = _said(
        "SASL mechanism, with a SASL protocol.", "SCRAM-SHA-512"
    )
    kafka_sasl_username: str = _said("SASL user name.", "")
    kafka_sasl_password: str = _said("SASL password.", "")
    kafka_ssl_cafile: str = _said("CA file for TLS to the brokers; empty: the system's.", "")

    database_url: str = _said("Postgres address for every role that has no address of its own below.", "")
    database_owner_url: str = _said("Address for `plant_owner`, which migrates.", "")
    database_writer_url: str = _said("Address for `plant_writer`, which runs workers.", "")
    database_api_url: str = _said("Address for `plant_api`, which serves ingress and reads.", "")
    database_auditor_url: str = _said("Address for `plant_auditor`, which reads the log.", "")

    database_api_replica_url: str = _said("Address of a read replica for `plant_api`; empty: there is none.", "")
    database_pool_size: Positive = _said("Most connections that a process holds to the database, for each role.", 10)
    database_pool_wait_seconds: Positive = _said("How long a transaction waits for a free connection.", 10)
    database_pool_recycle_seconds: Positive = _said("Age at which a connection is replaced.", 1800)
    database_statement_timeout_seconds: Positive = _said("A statement that takes longer is stopped.", 30)
    database_lock_timeout_seconds: Positive = _said("A statement that waits longer for a lock gives up.", 10)
    database_idle_in_transaction_timeout_seconds: Positive = _said(
        "A transaction in which nothing happens for so long is ended.", 60
    )
    database_slow_query_milliseconds: int = _said("A statement that takes longer is logged; 0: none is.", 500)

    master_key: str = _said("32 bytes in base64; encrypts webhook secrets at rest (AES-GCM).", "")

    topic_partitions: Positive = _said(
        "Partitions of a topic when it is made; it never grows afterwards (8 locally, 48 or more in production).", 8
    )
    topic_replication_factor: NotNegative = _said(
        "Replicas of each topic when it is made; 0: three, or as many as there are brokers.", 0
    )

    schema_registry_url: str = _said(
        "Confluent-compatible schema registry whose ids records carry; empty: the ids that come with Plant.", ""
    )
    schema_ids_file: str = _said(
        "File that says for ever what the external registry's ids stand for, made by `plant schemas register`.", ""
    )

    consumer_group: str = _said("Kafka consumer group of the workers.", "plant-worker")
    worker_batch_max_records: Positive = _said("Most records of one fetch that become batches.", 16_000)
    worker_session_timeout_seconds: Positive = _said("A worker that is silent for this long loses its partitions.", 10)

    worker_metrics_address: str = _said("Where a worker serves its metrics, `host:port`; empty: nowhere.", "")

    relay_metrics_address: str = _said("Where a relay serves its metrics, `host:port`; empty: nowhere.", "")
    relay_keep_sent_days: Positive = _said("How long a row stays in the outbox after it was sent.", 7)

    ingress_host: str = _said("Address that ingress listens on.", "127.0.0.1")
    ingress_port: int = _said("Port that ingress listens on; 0: any free one.", 8080)
    ingress_processes: Positive = _said("Ingress processes that share the port.", 1)
    ingress_metrics_address: str = _said(
        "Where ingress serves its metrics besides `/metrics`, `host:port`; further processes take the ports after it.",
        "",
    )
    ingress_body_max_bytes: Positive = _said("Largest request body that ingress reads.", 256 * 1024)
    ingress_batch_max_bytes: Positive = _said("Largest request body of a batch of CloudEvents.", 2 * 1024 * 1024)
    ingress_stream_max_bytes: Positive = _said("Largest NDJSON request body; kept in a file.", 64 * 1024 * 1024)
    ingress_streams_max: Positive = _said("Most NDJSON requests at a time.", 4)
    ingress_requests_max: Positive = _said("Most requests under way at a time.", 2_000)
    ingress_producer_rate_per_second: PositiveFloat = _said(
        "Events a second that a producer may send to each process, unless `plant producers set` says otherwise.",
        10_000.0,
    )
    ingress_producer_burst: Positive = _said("Events that a producer may send at once, before its rate counts.", 20_000)
    ingress_source: str = _said("`ce_source` of events that come in by webhook: a URI reference.", "plant/ingress")

    log_level: Literal["debug", "info", "warning", "error"] = _said("Least severe log line that is written.", "info")
    log_format: Literal["auto", "json", "console"] = _said("`auto`: JSON unless stderr is a terminal.", "auto")

    def database_address(self, role: DatabaseRole) -> str:
        """The Postgres URL for a role; raises ConfigurationError where none is known."""
        address: str = getattr(self, f"database_{role}_url") or self.database_url
        if not address:
            raise ConfigurationError(
                f"No database address for plant_{role}.",
                why=f"PLANT_DATABASE_{role.upper()}_URL and PLANT_DATABASE_URL are not set, and no local stack is up.",
                next_step="plant up",
            )
        return address

    def kafka_address(self) -> str:
        """The brokers' addresses; raises ConfigurationError where none is known."""
        if not self.kafka_bootstrap_servers:
            raise ConfigurationError(
                "No Kafka address.",
                why="PLANT_KAFKA_BOOTSTRAP_SERVERS is not set and no local stack is up.",
                next_step="plant up",
            )
        return self.kafka_bootstrap_servers


def explanations() -> dict[str, str]:
    """Field name to the sentence that explains it, in declaration order."""
    return dict(zip(Settings.__struct_fields__, _EXPLANATIONS, strict=True))


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read settings from the environment and the local stack's address file.

    Raises ConfigurationError naming the variable whose value does not fit. Unknown `PLANT_` variables are ignored.
    """
    environ = os.environ if environ is None else environ
    home = environ.get(f"{PREFIX}HOME", ".plant")
    merged = {**_read_stack_file(Path(home) / "stack.env"), **environ}
    fields: dict[str, str] = {}
    for name in Settings.__struct_fields__:
        value = merged.get(PREFIX + name.upper())
        if value is not None and value != "":
            fields[name] = value
    try:
        return msgspec.convert(fields, Settings, strict=False)
    except msgspec.ValidationError as error:
        name = str(error).partition("$.")[2].strip("`")
        raise ConfigurationError(
            f"The setting {PREFIX}{name.upper()} can't be used.",
            why=str(error).partition(" - at")[0] + ".",
            next_step="plant settings",
        ) from error


def _read_stack_file(path: Path) -> dict[str, str]:
    """`NAME=value` lines; absent file: nothing."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    pairs = (line.partition("=") for line in lines if line.strip() and not line.startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs}
