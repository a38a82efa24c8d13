"""The one line of the log that a delivery gets each time it was due, and its counts."""

from __future__ import annotations

from typing import Any

from deliveries.deliverer.attempt_records import EndedDelivery, outcome_of
from runtime import metrics
from runtime.logging import writes_debug


def write_line(log: Any, ended: EndedDelivery) -> None:
    """Count what came of a delivery and write it to a logger: at debug where it was delivered."""
    outcome, state, next_at = outcome_of(ended)
    metrics.DELIVERER_ATTEMPTS.labels(outcome).inc()
    if ended.attempt is not None:
        metrics.DELIVERER_ATTEMPT_SECONDS.observe(ended.attempt.duration_seconds)
    if state == "delivered" and not writes_debug():
        return
    (log.debug if state == "delivered" else log.info)(
        "delivery.attempted",
        delivery=ended.delivery.id_text,
        endpoint=str(ended.delivery.endpoint),
        type=ended.delivery.type,
        attempt=ended.delivery.attempt,
        outcome=outcome,
        state=state,
        status_code=None if ended.attempt is None else ended.attempt.outcome.status_code,
        error_class=None if ended.attempt is None else ended.attempt.outcome.error_class,
        duration_ms=None if ended.attempt is None else round(ended.attempt.duration_seconds * 1000, 3),
        next_attempt_at=None if next_at is None else next_at.isoformat(),
    )
