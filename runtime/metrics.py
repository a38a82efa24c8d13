"""Every metric Plant exposes, in one place. `docs/reference/metrics.md` is generated from this file.

Values are set where the work happens; nothing here queries anything when it is scraped.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_LATENCY_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_RECORDS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)

# The way in.
INGRESS_REQUESTS: Final = Counter("plant_ingress_requests", "Requests answered.", ["route", "status"])
INGRESS_REQUEST_SECONDS: Final = Histogram(
    "plant_ingress_request_seconds", "From the first look at a webhook to its answer.", buckets=_LATENCY_SECONDS
)
INGRESS_SIGNATURES_REJECTED: Final = Counter(
    "plant_ingress_signatures_rejected", "Webhooks whose signature was not accepted.", ["reason"]
)
INGRESS_REPEATS: Final = Counter(
    "plant_ingress_repeats",
    "Webhooks seen before: answered again, joined to a running publish, or refused.",
    ["outcome"],
)
INGRESS_PEERS_CUT_OFF: Final = Counter(
    "plant_ingress_peers_cut_off",
    "Connections closed because the peer was too slow, too large or too many.",
    ["reason"],
)
INGRESS_BODY_BYTES_HELD: Final = Gauge("plant_ingress_body_bytes_held", "Bytes of unfinished large bodies in memory.")
INGRESS_KEYS_LOADED: Final = Gauge("plant_ingress_keys_loaded", "Signing keys that can be used now.")
INGRESS_KEYS_LOADED_AT: Final = Gauge(
    "plant_ingress_keys_loaded_timestamp_seconds", "When the signing keys were last read from the database."
)

# The producer.
PRODUCER_RECORDS_IN_FLIGHT: Final = Gauge(
    "plant_producer_records_in_flight", "Records that Kafka has not answered for."
)
PRODUCER_BYTES_IN_FLIGHT: Final = Gauge("plant_producer_bytes_in_flight", "Their bytes.")
PRODUCER_BATCH_RECORDS: Final = Histogram(
    "plant_producer_batch_records", "Records that rode one Kafka batch.", buckets=_RECORDS
)
PRODUCER_BATCH_SECONDS: Final = Histogram(
    "plant_producer_batch_seconds", "From sealing a batch to Kafka's acknowledgement.", buckets=_LATENCY_SECONDS
)
PRODUCER_FAILED_BATCHES: Final = Counter("plant_producer_failed_batches", "Batches that Kafka refused.", ["error"])
PRODUCER_CONNECTS: Final = Counter("plant_producer_connects", "Times a producer was connected anew.")

# The worker.
WORKER_RECORDS: Final = Counter("plant_worker_records", "Records written to the log.", ["topic", "disposition"])
WORKER_BATCH_RECORDS: Final = Histogram("plant_worker_batch_records", "Records of one transaction.", buckets=_RECORDS)
WORKER_BATCH_SECONDS: Final = Histogram(
    "plant_worker_batch_seconds", "From decoding a batch to its commit.", buckets=_LATENCY_SECONDS
)
WORKER_NEXT_OFFSET: Final = Gauge(
    "plant_worker_next_offset", "The checkpoint of an owned partition.", ["topic", "partition"]
)
WORKER_LOG_END: Final = Gauge(
    "plant_worker_log_end_offset", "The end of an owned partition's log, as of the last fetch.", ["topic", "partition"]
)
WORKER_PARTITIONS: Final = Gauge(
    "plant_worker_partitions", "Partitions of this worker: owned, or stopped and in need of an operator.", ["state"]
)
