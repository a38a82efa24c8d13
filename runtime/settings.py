"""A process's settings, in one frozen object.

Values come, strongest first, from the environment (`PLANT_` prefix), from `.plant/stack.env` (written by
`plant up` for the local stack), and from the defaults below. `docs/reference/settings.md` is generated from this file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from runtime import redaction
from runtime.errors import ConfigurationError
from runtime.kafka_settings import PREFIX as PREFIX
from runtime.kafka_settings import KafkaSettings
from runtime.masking import masked, secrets_in
from runtime.servers import PORT_MAX
from runtime.stack_file import DEFAULT_HOME, find_home, read_stack_file

DatabaseRole = Literal["owner", "writer", "ingress", "operator", "api", "auditor", "embedder", "deliverer", "endpoints"]

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
PositiveFloat = Annotated[float, Meta(gt=0)]


class Settings(KafkaSettings, frozen=True, kw_only=True):
    """One process's settings. Build it with :func:`load_settings`. Its `repr` masks what is secret."""

    home: Annotated[
        str,
        Meta(
            description="Folder of the local stack: data, logs, addresses. The default is looked for in the current "
            "folder and, up to a repository's root, above it."
        ),
    ] = DEFAULT_HOME

    database_url: Annotated[
        str, Meta(description="Postgres address for every role that has no address of its own below.")
    ] = ""
    database_owner_url: Annotated[str, Meta(description="Address for `plant_owner`, which migrates.")] = ""
    database_writer_url: Annotated[str, Meta(description="Address for `plant_writer`, which runs workers.")] = ""
    database_ingress_url: Annotated[
        str, Meta(description="Address for `plant_ingress`, which reads keys and producers' policies.")
    ] = ""
    database_operator_url: Annotated[
        str, Meta(description="Address for `plant_operator`, which changes keys and producers' policies.")
    ] = ""
    database_api_url: Annotated[str, Meta(description="Address for `plant_api`, which reads for readers.")] = ""
    database_auditor_url: Annotated[str, Meta(description="Address for `plant_auditor`, which reads the log.")] = ""
    database_embedder_url: Annotated[
        str, Meta(description="Address for `plant_embedder`, which computes embeddings of skills.")
    ] = ""
    database_deliverer_url: Annotated[
        str, Meta(description="Address for `plant_deliverer`, which sends deliveries to endpoints.")
    ] = ""
    database_endpoints_url: Annotated[
        str,
        Meta(
            description="Address for `plant_endpoints`, as which `plant api` changes endpoints; empty: it serves none."
        ),
    ] = ""

    database_api_replica_url: Annotated[
        str, Meta(description="Address of a read replica for `plant_api`; empty: there is none.")
    ] = ""
    database_pool_size: Annotated[
        Positive, Meta(description="Most connections that a process holds to the database, for each role.")
    ] = 10
    database_pool_wait_seconds: Annotated[
        Positive, Meta(description="How long a transaction waits for a free connection.")
    ] = 10
    database_pool_recycle_seconds: Annotated[Positive, Meta(description="Age at which a connection is replaced.")] = (
        1800
    )
    database_statement_timeout_seconds: Annotated[
        Positive, Meta(description="A statement that takes longer is stopped.")
    ] = 30
    database_lock_timeout_seconds: Annotated[
        Positive, Meta(description="A statement that waits longer for a lock gives up.")
    ] = 10
    database_idle_in_transaction_timeout_seconds: Annotated[
        Positive, Meta(description="A transaction in which nothing happens for so long is ended.")
    ] = 60
    database_slow_query_milliseconds: Annotated[
        int, Meta(description="A statement that takes longer is logged; 0: none is.")
    ] = 500

    master_key: Annotated[str, Meta(description="32 bytes in base64; encrypts webhook secrets at rest (AES-GCM).")] = ""
    master_key_previous: Annotated[
        str,
        Meta(description="The master key before it; needed until `plant keys rekey` has changed secrets over."),
    ] = ""

    topic_partitions: Annotated[
        int,
        Meta(
            ge=1,
            le=1024,
            description="Partitions of a topic when it is made; it never grows afterwards (8 locally, 48 or more in "
            "production). A consumer owns 1,024 at most, all generations of its topics together.",
        ),
    ] = 8
    topic_replication_factor: Annotated[
        NotNegative,
        Meta(description="Replicas of each topic when it is made; 0: three, or as many as there are brokers."),
    ] = 0

    schema_registry_url: Annotated[
        str,
        Meta(
            description="Confluent-compatible schema registry whose ids records carry; empty: the ids that come with "
            "Plant."
        ),
    ] = ""
    schema_ids_file: Annotated[
        str,
        Meta(
            description="File that keeps what the external registry's ids stand for, made by `plant schemas register`."
        ),
    ] = ""

    consumer_group: Annotated[str, Meta(description="Kafka consumer group of the workers.")] = "plant-worker"
    worker_batch_max_records: Annotated[
        Positive, Meta(description="Most records of one fetch that become batches.")
    ] = 16_000
    worker_waiting_bytes: Annotated[
        Positive,
        Meta(
            description="Memory for records that wait in a worker, all partitions together: keys, values, headers, "
            "and Python's objects around them."
        ),
    ] = 256 * 1024 * 1024
    worker_known_ids_bytes: Annotated[
        Positive,
        Meta(
            description="Memory for what a worker knows of event ids, all partitions together. A closed range of the "
            "log takes 2 MiB; one that finds no room has its index asked for every event, which is slow. An open range "
            "is counted with 7.25 MiB, and always kept."
        ),
    ] = 352 * 1024 * 1024
    worker_parked_entities_max: Annotated[
        Positive,
        Meta(
            description="Most entities of a partition whose events may wait behind a poison record; one more stops the "
            "partition."
        ),
    ] = 10_000
    worker_parked_records_max: Annotated[
        Positive,
        Meta(
            description="Most records of a partition that may wait behind poison records, these among them; one more "
            "stops the partition. Each takes some 200 bytes, and one control record may release them all."
        ),
    ] = 200_000
    worker_session_timeout_seconds: Annotated[
        Positive, Meta(description="A worker that sends no heartbeat for this long loses its partitions.")
    ] = 10

    worker_metrics_address: Annotated[
        str, Meta(description="Where a worker serves its metrics, `/livez` and `/readyz`, `host:port`; empty: nowhere.")
    ] = ""

    dispatcher_backfill_per_second: Annotated[
        Positive,
        Meta(
            description="Most deliveries a second that a dispatcher makes of events from before it knew of their "
            "endpoint, all endpoints together. Live events go first."
        ),
    ] = 1_000
    dispatcher_metrics_address: Annotated[
        str,
        Meta(description="Where a dispatcher serves its metrics, `/livez` and `/readyz`, `host:port`; empty: nowhere."),
    ] = ""

    embedder_metrics_address: Annotated[
        str,
        Meta(description="Where an embedder serves its metrics, `/livez` and `/readyz`, `host:port`; empty: nowhere."),
    ] = ""

    relay_metrics_address: Annotated[
        str, Meta(description="Where a relay serves its metrics, `/livez` and `/readyz`, `host:port`; empty: nowhere.")
    ] = ""
    relay_keep_sent_days: Annotated[
        Positive, Meta(description="How long a row stays in the outbox after it was sent.")
    ] = 7

    ingress_host: Annotated[str, Meta(description="Address that ingress listens on.")] = "127.0.0.1"
    ingress_port: Annotated[
        int, Meta(ge=0, le=PORT_MAX, description="Port that ingress listens on; 0: any free one.")
    ] = 8080
    ingress_processes: Annotated[Positive, Meta(description="Ingress processes that share the port.")] = 1
    ingress_admin_address: Annotated[
        str,
        Meta(
            description="Where ingress serves `/metrics` and the schema registry, `host:port`; empty: on 127.0.0.1, "
            "ten ports above ingress's port, or any free one where that is 0. Further processes take the next ports."
        ),
    ] = ""
    ingress_body_max_bytes: Annotated[Positive, Meta(description="Largest request body that ingress reads.")] = (
        256 * 1024
    )
    ingress_batch_max_bytes: Annotated[
        Positive, Meta(description="Largest request body of a batch of CloudEvents.")
    ] = 2 * 1024 * 1024
    ingress_stream_max_bytes: Annotated[Positive, Meta(description="Largest NDJSON request body; kept in a file.")] = (
        64 * 1024 * 1024
    )
    ingress_streams_max: Annotated[
        Positive,
        Meta(
            description="Most NDJSON requests published at a time, at most half of them one producer's; the bodies "
            "that arrive meanwhile take the disk space of so many of the largest, and compressed ones as much again."
        ),
    ] = 4
    ingress_stream_timeout_seconds: Annotated[
        Positive,
        Meta(description="Longest time of an NDJSON request, once it was read; then it stops at a line that it names."),
    ] = 900
    ingress_requests_max: Annotated[Positive, Meta(description="Most requests under way at a time.")] = 2_000
    ingress_keep_alive_timeout_seconds: Annotated[
        Positive,
        Meta(description="How long an idle connection stays open; more than load balancers keep theirs, mostly 60 s."),
    ] = 75
    ingress_trusted_proxies: Annotated[
        str,
        Meta(
            description="Proxies whose `X-Forwarded-For` is believed: addresses and networks, separated by commas. "
            "Requests that another proxy forwards have no share by address."
        ),
    ] = ""
    ingress_producer_rate_per_second: Annotated[
        PositiveFloat,
        Meta(
            description="Events a second that a producer may send to each process, unless `plant producers "
            "set` says otherwise."
        ),
    ] = 10_000.0
    ingress_producer_burst: Annotated[
        Positive, Meta(description="Events that a producer may send at once, before its rate counts.")
    ] = 20_000
    ingress_source: Annotated[
        str, Meta(description="`ce_source` of events that come in by webhook: a URI reference.")
    ] = "plant/ingress"
    ingress_log_every: Annotated[
        NotNegative,
        Meta(description="One in so many accepted webhooks is logged, with the number of those left out; 0: none is."),
    ] = 1_000

    api_host: Annotated[str, Meta(description="Address that the API for readers listens on.")] = "127.0.0.1"
    api_port: Annotated[
        int, Meta(ge=0, le=PORT_MAX, description="Port that the API for readers listens on; 0: any free one.")
    ] = 8082
    api_admin_address: Annotated[
        str,
        Meta(
            description="Where the API for readers serves `/metrics`, `host:port`; empty: on 127.0.0.1, ten ports "
            "above its port, or any free one where that is 0."
        ),
    ] = ""
    api_page_max: Annotated[Positive, Meta(description="Most rows of a page.")] = 500
    api_query_timeout_seconds: Annotated[
        Positive,
        Meta(description="A reader's query that takes longer is stopped, and so is one that waits for a lock."),
    ] = 5
    api_wait_max_seconds: Annotated[
        int,
        Meta(ge=1, le=50, description="Longest time that a request waits until a read model has reached a position."),
    ] = 30
    api_requests_max: Annotated[Positive, Meta(description="Most requests of readers under way at a time.")] = 256
    api_requests_per_token: Annotated[Positive, Meta(description="Most requests of one token under way.")] = 64
    api_waiters_max: Annotated[
        Positive, Meta(description="Most requests that wait at a time until a read model has reached a position.")
    ] = 2_000
    api_waiters_per_token: Annotated[Positive, Meta(description="Most requests of one token that wait so.")] = 200
    api_changes_max: Annotated[
        Positive, Meta(description="Most requests under way at a time that change endpoints, or ask their receivers.")
    ] = 16
    api_changes_per_token: Annotated[Positive, Meta(description="Most such requests of one token.")] = 4
    api_endpoints_max: Annotated[
        Positive, Meta(description="Most endpoints of a tenant that can be added over HTTP; removed ones don't count.")
    ] = 10_000
    api_keep_alive_timeout_seconds: Annotated[
        Positive, Meta(description="How long an idle connection of a reader stays open.")
    ] = 75

    deliveries_schemes: Annotated[
        Literal["https", "http,https"], Meta(description="What endpoints' URLs may begin with; http is for tests.")
    ] = "https"
    deliveries_ports: Annotated[
        str, Meta(description="Ports that endpoints may have: numbers and ranges, separated by commas.")
    ] = "443,8443"
    deliveries_allowed_names: Annotated[
        str,
        Meta(
            description="Host names that endpoints may have, each with its subdomains, separated by commas; empty: all "
            "but names of one label and those of private networks, such as `.internal`. With such a list an address in "
            "place of a name has to be in one of `PLANT_DELIVERIES_ALLOWED_NETWORKS`."
        ),
    ] = ""
    deliveries_refused_names: Annotated[
        str, Meta(description="Host names that endpoints may not have, each with its subdomains, separated by commas.")
    ] = ""
    deliveries_allowed_networks: Annotated[
        str,
        Meta(
            description="Networks that deliveries may connect to although their addresses are not public, separated by "
            "commas: `10.1.0.0/16,fd00::/8`."
        ),
    ] = ""
    deliveries_origin: Annotated[
        str,
        Meta(
            description="This Plant's name, as DNS has it, by which receivers are asked whether they agree to "
            "deliveries; empty: none can be asked."
        ),
    ] = ""
    deliveries_dns_servers: Annotated[
        str,
        Meta(description="DNS servers that deliveries ask, by address, `host:port`; empty: those of the system."),
    ] = ""
    deliveries_proxy_url: Annotated[
        str,
        Meta(
            description="HTTP proxy that all deliveries go through, `http://host:port`; empty: none. Its own address "
            "may be private; those of endpoints are checked all the same."
        ),
    ] = ""
    deliveries_ca_file: Annotated[
        str, Meta(description="PEM file of authorities that endpoints' certificates may be from, next to the system's.")
    ] = ""
    deliveries_connections_max: Annotated[
        Positive, Meta(description="Most connections to endpoints at a time, those that are kept open among them.")
    ] = 1_000
    deliveries_connections_per_host: Annotated[
        int,
        Meta(
            ge=0,
            description="Most connections to one host and port at a time; attempts that wait for one may time out. 0: "
            "each endpoint has its own, whatever host it is at.",
        ),
    ] = 0
    deliveries_keep_days: Annotated[
        int,
        Meta(
            ge=7,
            le=3650,
            description="How long a delivery and its attempts can be looked up: days after its event, and after its "
            "state has changed.",
        ),
    ] = 30

    deliveries_disable_after_hours: Annotated[
        int,
        Meta(
            ge=0,
            le=8760,
            description="How long an endpoint's attempts may fail, without one success, before it is disabled; with "
            "warnings at 50, 70, 90 and 100 % of the way. 0: it is never disabled for that.",
        ),
    ] = 120
    deliveries_disable_after_attempts: Annotated[
        Positive, Meta(description="How many of its attempts must have failed by then, too.")
    ] = 50

    deliverer_attempts_max: Annotated[
        Positive,
        Meta(description="Most attempts of a deliverer under way at a time that have taken less than a second."),
    ] = 256
    deliverer_attempts_per_endpoint: Annotated[
        Positive, Meta(description="Most attempts of one endpoint under way at a time.")
    ] = 10
    deliverer_metrics_address: Annotated[
        str,
        Meta(description="Where a deliverer serves its metrics, `/livez` and `/readyz`, `host:port`; empty: nowhere."),
    ] = ""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severe log line that is written.")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "json", "console"], Meta(description="`auto`: JSON unless stderr is a terminal.")
    ] = "auto"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Return names and masked values: a traceback that shows local variables asks for these."""
        return [(name, masked(name, getattr(self, name))) for name in self.__struct_fields__]

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def database_address(self, role: DatabaseRole) -> str:
        """Return the Postgres URL for a role; raises ConfigurationError where none is known."""
        address: str = getattr(self, f"database_{role}_url") or self.database_url
        if not address:
            raise ConfigurationError(
                f"No database address for plant_{role}.",
                why=f"PLANT_DATABASE_{role.upper()}_URL and PLANT_DATABASE_URL are not set, and no local stack is up.",
                next_step="plant up",
            )
        return address


def descriptions() -> dict[str, str]:
    """Return each field's description by its name, in declaration order."""
    hints = get_type_hints(Settings, include_extras=True)
    return {name: _description(hints[name]) for name in Settings.__struct_fields__}


def _description(hint: Any) -> str:
    metas = [each for each in get_args(hint)[1:] if isinstance(each, Meta)] if get_origin(hint) is Annotated else []
    return next((meta.description for meta in metas if meta.description), "")


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read settings from the environment and the local stack's address file; redaction knows their secrets from then.

    White space around a value is dropped: a value that comes from a file often ends in a newline. Raises
    ConfigurationError naming the variable whose value does not fit. Unknown `PLANT_` variables are ignored.
    """
    environ = os.environ if environ is None else environ
    fields = raw_settings(environ)
    redaction.KNOWN.remember(secrets_in(fields))
    try:
        return msgspec.convert(fields, Settings, strict=False)
    except msgspec.ValidationError as error:
        name = str(error).partition("$.")[2].strip("`")
        raise ConfigurationError(
            f"The setting {PREFIX}{name.upper()} can't be used.",
            why=str(error).partition(" - at")[0] + ".",
            next_step="plant settings    # shows where it comes from",
        ) from error


def raw_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the texts of the settings that have a value, by field; the home, too."""
    home = find_home(environ)
    merged = {**read_stack_file(Path(home)), **{name: value for name, value in environ.items() if value.strip()}}
    merged[f"{PREFIX}HOME"] = home
    values = {name: merged.get(PREFIX + name.upper(), "").strip() for name in Settings.__struct_fields__}
    return {name: value for name, value in values.items() if value}


def used_value(name: str, given: Mapping[str, str]) -> Any:
    """Return a field's value, its default where none is given, and its text where that can't be used."""
    if name not in given:
        return getattr(Settings(), name)
    try:
        return getattr(msgspec.convert({name: given[name]}, Settings, strict=False), name)
    except msgspec.ValidationError:
        return given[name]


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Return the `PLANT_` variables that no setting has, nor a program of Plant's; those of its tests have a prefix."""
    known = {PREFIX + name.upper() for name in Settings.__struct_fields__} | OTHER_VARIABLES
    return sorted(
        name for name in environ if name.startswith(PREFIX) and name not in known and not name.startswith(TEST_PREFIXES)
    )


OTHER_VARIABLES: Final = frozenset(
    {
        "PLANT_DEBUG",
        "PLANT_STACK_JAVA_OPTIONS",
        "PLANT_DATABASE_SUPERUSER_URL",
        "PLANT_WEBHOOK_SECRET",
        "PLANT_READ_TOKEN",
        *(
            f"PLANT_{name}_PORT"
            for name in ("KAFKA", "POSTGRES", "REGISTRY", "TEMPORAL", "TEMPORAL_UI", "INGRESS_ADMIN", "API_ADMIN")
        ),
        *(
            f"PLANT_{name}_PASSWORD"
            for name in (
                "OWNER",
                "WRITER",
                "INGRESS",
                "OPERATOR",
                "API",
                "AUDITOR",
                "EMBEDDER",
                "DELIVERER",
                "ENDPOINTS",
                "SUPERUSER",
            )
        ),
    }
)
"""Variables of the command line, the local stack, the examples and the compose file."""

TEST_PREFIXES: Final = ("PLANT_TEST_", "PLANT_FAULT_", "PLANT_BENCH_")
