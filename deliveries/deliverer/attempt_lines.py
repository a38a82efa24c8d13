"""The one line of the log that a delivery gets each time it was due, and its counts.

Each attempt has its line: at debug where it was delivered, else at info. Of what waits, or is given up, without an
attempt there may be thousands a second where an endpoint gets none, so few have one, with the number of those left out.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from prometheus_client import Counter

from deliveries.deliverer.attempt_records import EndedDelivery, outcome_of, why_of
from deliveries.deliverer.delivery import id_text
from runtime import metrics
from runtime.clock import Clock
from runtime.log_budget import LogBudget
from runtime.logging import writes_level
from schemas.delivery_records import AttemptResult, DeliveryState


class AttemptLines:
    """The lines of one partition."""

    def __init__(self, log: Any, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._unsent_budget = LogBudget()

    def write(self, ended: EndedDelivery) -> None:
        """Count what came of a delivery, and write its line."""
        outcome, state, next_at = outcome_of(ended)
        _attempts_of(outcome, state).inc()
        if ended.attempt is not None:
            metrics.DELIVERER_ATTEMPT_SECONDS.observe(ended.attempt.duration_seconds)
        level = logging.DEBUG if state == "delivered" else logging.INFO
        if not writes_level(level):
            return
        left_out = 0 if ended.attempted else self._unsent_budget.consume(self._clock.monotonic_seconds())
        if left_out is None:
            return
        self._log.log(
            level,
            "delivery.attempted",
            delivery=ended.delivery.id_text,
            endpoint=ended.delivery.endpoint_text,
            event_id=id_text(ended.delivery.event_id),
            type=ended.delivery.type,
            stream=ended.delivery.stream,
            attempt=ended.delivery.attempt,
            outcome=outcome,
            state=state,
            status_code=None if ended.attempt is None else ended.attempt.outcome.status_code,
            error_class=None if ended.attempt is None else ended.attempt.outcome.error_class,
            why=why_of(ended),
            duration_ms=None if ended.attempt is None else round(ended.attempt.duration_seconds * 1000, 3),
            next_attempt_at=None if next_at is None else next_at.isoformat(),
            **({"left_out": left_out} if left_out else {}),
        )


@cache
def _attempts_of(outcome: AttemptResult, state: DeliveryState) -> Counter:
    return metrics.DELIVERER_ATTEMPTS.labels(outcome, state)
