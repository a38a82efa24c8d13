"""Every metric Plant exposes, in one file. `docs/reference/metrics.md` is generated from this file.

Values are set where the work happens; nothing here queries anything when it is scraped.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_LATENCY_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_RECORDS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)

# The HTTP server of ingress and of the API for readers.
SERVER_PEERS_CUT_OFF: Final = Counter(
    "plant_server_peers_cut_off",
    "Connections closed because the peer was too slow, too large or too many.",
    ["reason"],
)

# Ingress.
INGRESS_REQUESTS: Final = Counter("plant_ingress_requests", "Requests answered.", ["route", "status"])
INGRESS_REQUEST_SECONDS: Final = Histogram(
    "plant_ingress_request_duration_seconds",
    "From a webhook's intake to its answer.",
    buckets=_LATENCY_SECONDS,
)
INGRESS_SIGNATURES_REJECTED: Final = Counter(
    "plant_ingress_signatures_rejected", "Webhooks whose signature was not accepted.", ["reason"]
)
INGRESS_REPEATS: Final = Counter(
    "plant_ingress_repeats",
    "Webhooks seen before: answered again, joined to a running publish, or refused.",
    ["outcome"],
)
INGRESS_BODY_BYTES_HELD: Final = Gauge("plant_ingress_held_body_bytes", "Bytes of bodies of requests under way.")
INGRESS_REQUESTS_IN_FLIGHT: Final = Gauge("plant_ingress_requests_in_flight", "Requests that are not answered yet.")
INGRESS_BODIES_EVICTED: Final = Counter(
    "plant_ingress_evicted_bodies", "Unsigned bodies refused while they arrived, since others needed their memory."
)
INGRESS_EVENTS: Final = Counter("plant_ingress_events", "Events that came in, in requests of any kind.", ["outcome"])
INGRESS_LIMITED: Final = Counter("plant_ingress_limited", "Requests refused for their producer's rate.", ["producer"])
INGRESS_REFUSALS: Final = Counter(
    "plant_ingress_refusals",
    "Requests and events refused with 401, 403, 409, 422 or 429; the producer of a 401 is the one that it names, where "
    "that one has keys.",
    ["producer", "status"],
)
INGRESS_STREAMS: Final = Gauge("plant_ingress_streams", "NDJSON requests under way.")
INGRESS_KEYS_LOADED: Final = Gauge("plant_ingress_keys_loaded", "Signing keys that can be used now.")
INGRESS_KEYS_LOADED_AT: Final = Gauge(
    "plant_ingress_keys_loaded_timestamp_seconds", "When the signing keys were last read from the database."
)

# The API for readers.
API_REQUESTS: Final = Counter("plant_api_requests", "Requests of readers that were answered.", ["resource", "status"])
API_REQUEST_SECONDS: Final = Histogram(
    "plant_api_request_duration_seconds",
    "From a reader's request to its answer, without the time that it waits for a position.",
    buckets=_LATENCY_SECONDS,
)
API_REQUESTS_IN_FLIGHT: Final = Gauge("plant_api_requests_in_flight", "Requests of readers that read now.")
API_WAITERS: Final = Gauge("plant_api_waiters", "Requests that wait until a read model has reached a position.")
API_WAIT_TIMEOUTS: Final = Counter(
    "plant_api_wait_timeouts", "Requests whose read model did not reach the position in time.", ["model"]
)
API_UNAUTHORIZED: Final = Counter("plant_api_unauthorized", "Requests refused with 401, by reason.", ["reason"])
API_TOKENS_LOADED: Final = Gauge("plant_api_tokens_loaded", "Tokens of readers that can be used now.")

# The producer.
PRODUCER_RECORDS_IN_FLIGHT: Final = Gauge(
    "plant_producer_in_flight_records", "Records that Kafka has not answered for."
)
PRODUCER_BYTES_IN_FLIGHT: Final = Gauge("plant_producer_in_flight_bytes", "Their bytes.")
PRODUCER_BATCH_RECORDS: Final = Histogram(
    "plant_producer_batch_records", "Records of one Kafka batch.", buckets=_RECORDS
)
PRODUCER_BATCH_SECONDS: Final = Histogram(
    "plant_producer_batch_duration_seconds",
    "From sealing a batch to Kafka's acknowledgement.",
    buckets=_LATENCY_SECONDS,
)
PRODUCER_FAILED_BATCHES: Final = Counter("plant_producer_failed_batches", "Batches that Kafka refused.", ["error"])
PRODUCER_CONNECTS: Final = Counter("plant_producer_connects", "Times a producer connected.")

# The worker.
WORKER_RECORDS: Final = Counter("plant_worker_records", "Records written to the log.", ["topic", "disposition"])
WORKER_BATCH_RECORDS: Final = Histogram("plant_worker_batch_records", "Records of one transaction.", buckets=_RECORDS)
WORKER_BATCH_SECONDS: Final = Histogram(
    "plant_worker_batch_duration_seconds", "From decoding a batch to its commit.", buckets=_LATENCY_SECONDS
)
WORKER_NEXT_OFFSET: Final = Gauge(
    "plant_worker_next_offset", "The checkpoint of an owned partition.", ["topic", "partition"]
)
WORKER_LOG_END: Final = Gauge(
    "plant_worker_high_watermark",
    "The high watermark of an owned partition, as of the last fetch.",
    ["topic", "partition"],
)
WORKER_PARTITIONS: Final = Gauge(
    "plant_worker_partitions",
    "Partitions of this worker: owned, stopped and in need of an operator, and `schema_newer`: those of the stopped"
    " ones that wait for a worker of a later release.",
    ["state"],
)
WORKER_WAITING_BYTES: Final = Gauge(
    "plant_worker_waiting_bytes", "Memory of records that wait in this worker, or are being projected."
)
WORKER_KNOWN_IDS_BYTES: Final = Gauge(
    "plant_worker_known_ids_bytes",
    "Memory for what this worker knows of event ids, of all of its partitions; open ranges of the log count as full.",
)
WORKER_PARKED_ENTITIES: Final = Gauge(
    "plant_worker_parked_entities",
    "Entities of an owned partition whose events wait behind a poison record.",
    ["topic", "partition"],
)
WORKER_CONTROL_RECORDS: Final = Counter(
    "plant_worker_control_records",
    "Control records about poison: `redriven`, `skipped`, `repeated` (the log has the redriven event already, so the"
    " poison record is skipped), or `none`: it names no poison record that waits, or brings no event of its entity.",
    ["effect"],
)
WORKER_STOPPED_READ_MODELS: Final = Gauge(
    "plant_worker_stopped_read_models",
    "1: the read model was refused and does not follow this partition. It is tried again, at last every five minutes.",
    ["topic", "partition", "model"],
)
WORKER_READ_MODEL_LAG: Final = Gauge(
    "plant_worker_read_model_lag",
    "Records between a read model that does not follow this partition and the log's end, when it was last fed.",
    ["topic", "partition", "model", "version"],
)

# The dispatcher.
DISPATCHER_EVENTS: Final = Counter(
    "plant_dispatcher_events", "Events that took effect and whose deliveries Kafka has acknowledged.", ["topic"]
)
DISPATCHER_DELIVERIES: Final = Counter(
    "plant_dispatcher_deliveries",
    "Deliveries that Kafka has acknowledged: `live`, `backfill` from before the partition's owner knew of the endpoint,"
    " `redrive` by an operator's order, or of events of `endpoints`.",
    ["stream"],
)
DISPATCHER_ENDPOINT_EVENTS: Final = Counter(
    "plant_dispatcher_endpoint_events", "Events of endpoints that Kafka has acknowledged, with their deliveries."
)
DISPATCHER_SEARCHES: Final = Counter(
    "plant_dispatcher_searches",
    "Searches for what an endpoint was not sent that this dispatcher made for tenants: ended, or refused.",
    ["outcome"],
)
DISPATCHER_ENDPOINTS: Final = Gauge(
    "plant_dispatcher_endpoints",
    "Endpoints that this dispatcher knows of: active, inactive (paused or disabled), and unusable: those get nothing,"
    " since their choice of events can't be read.",
    ["state"],
)
DISPATCHER_LAG: Final = Gauge(
    "plant_dispatcher_lag",
    "Records of an owned partition between what was dispatched and its high watermark, as of the last fetch.",
    ["topic", "partition"],
)
DISPATCHER_PARTITIONS: Final = Gauge(
    "plant_dispatcher_partitions",
    "Partitions of this dispatcher: owned, and stopped and in need of an operator.",
    ["state"],
)

# The relay.
RELAY_EVENTS: Final = Counter(
    "plant_relay_events", "Rows of the outbox that Kafka has acknowledged and that are marked so.", ["event_type"]
)
RELAY_DEAD_LETTERS: Final = Counter(
    "plant_relay_dead_letters", "Poison records that Kafka has acknowledged on the dead-letter topic."
)
RELAY_PROBLEMS: Final = Counter("plant_relay_unmappable_rows", "Rows that map to no event.")
RELAY_SECONDS: Final = Histogram(
    "plant_relay_delay_seconds",
    "From a change's commit to the mark that Kafka has acknowledged its event.",
    buckets=(*_LATENCY_SECONDS, 60.0, 600.0, 3600.0),
)
RELAY_ACTIVE: Final = Gauge("plant_relay_active", "1: this relay publishes; 0: it is a standby.")
RELAY_UNSENT_ROWS: Final = Gauge("plant_relay_unsent_rows", "Unsent rows in the last cycle: at most 500.")
RELAY_OLDEST_SECONDS: Final = Gauge(
    "plant_relay_oldest_change_age_seconds", "Age of the oldest change of the last cycle that can be published."
)
RELAY_BLOCKED_ENTITIES: Final = Gauge(
    "plant_relay_blocked_keys", "Entities whose changes wait for an operator, as of the last cycle."
)

# The recorder of attempts to deliver.
RECORDER_ATTEMPTS: Final = Counter("plant_recorder_attempts", "Records of attempts that are in Postgres.", ["outcome"])
RECORDER_SKIPPED: Final = Counter("plant_recorder_skipped", "Records on the topic of attempts that are none.")
RECORDER_DELAY_SECONDS: Final = Histogram(
    "plant_recorder_delay_seconds",
    "From the time of a batch's last record in Kafka until the batch is in Postgres.",
    buckets=(*_LATENCY_SECONDS, 60.0, 600.0, 3600.0),
)

# The database's connections, by role.
DATABASE_CONNECTIONS_OPEN: Final = Gauge("plant_database_connections_open", "Connections to Postgres.", ["role"])
DATABASE_CONNECTIONS_IN_USE: Final = Gauge(
    "plant_database_connections_in_use", "Those that are in a transaction now.", ["role"]
)
DATABASE_POOL_WAITING: Final = Gauge(
    "plant_database_pool_waiting", "Transactions that wait for a free connection now.", ["role"]
)
DATABASE_POOL_WAIT_SECONDS: Final = Histogram(
    "plant_database_pool_wait_seconds",
    "How long transactions waited for a free connection.",
    ["role"],
    buckets=_LATENCY_SECONDS,
)
DATABASE_POOL_TIMEOUTS: Final = Counter(
    "plant_database_pool_timeouts", "Transactions that got no connection in time.", ["role"]
)
DATABASE_RETRIES: Final = Counter(
    "plant_database_retries",
    "Transactions that were rolled back after a conflict: `serialization` or `deadlock`.",
    ["role", "reason"],
)
DATABASE_SLOW_QUERIES: Final = Counter(
    "plant_database_slow_queries", "Statements that took longer than the setting allows.", ["role"]
)

# Deliveries.
DELIVERER_ATTEMPTS: Final = Counter(
    "plant_deliverer_attempts", "Deliveries that were due, by what came of them.", ["outcome", "state"]
)
DELIVERER_ATTEMPT_SECONDS: Final = Histogram(
    "plant_deliverer_attempt_duration_seconds", "From an attempt's begin to its end.", buckets=_LATENCY_SECONDS
)
DELIVERER_LATE_SECONDS: Final = Histogram(
    "plant_deliverer_lateness_seconds", "From when a retry was due to its attempt's begin.", buckets=_LATENCY_SECONDS
)
DELIVERER_UNDER_WAY: Final = Gauge(
    "plant_deliverer_attempts_under_way", "Attempts under way: `quick`, or `slow` from a second on.", ["pace"]
)
DELIVERER_WAITING: Final = Gauge(
    "plant_deliverer_waiting_deliveries",
    "Deliveries in memory: `due`, or in a retry topic before their time.",
    ["stage"],
)
DELIVERER_ROWS: Final = Gauge(
    "plant_deliverer_rows",
    "Deliveries of owned partitions that wait in Postgres: `due`, or `waiting` for their time or behind an earlier"
    " one. Counted every ten seconds, up to 100,000.",
    ["stage"],
)
DELIVERER_LAG: Final = Gauge(
    "plant_deliverer_lag",
    "Records of owned partitions that were not read yet, as of the last fetch; of attempts: that are not in Postgres.",
    ["topic"],
)
DELIVERER_BREAKERS: Final = Gauge(
    "plant_deliverer_breakers", "Endpoints whose circuit breaker is not closed, by its state.", ["state"]
)
DELIVERER_COPIES: Final = Counter(
    "plant_deliverer_copies", "Records of deliveries that were known already, and dropped."
)
DELIVERER_PARTITIONS: Final = Gauge("plant_deliverer_partitions", "Partitions of topics that are owned.")
