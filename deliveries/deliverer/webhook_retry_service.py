"""What follows once an attempt has ended: nothing more, a retry, a dead letter, or that the endpoint is disabled.

How long a retry waits, and where, is the schedule's matter, which is pure (`deliveries/schedule.py`). What follows is
published and written down by the next round (`deliveries/deliverer/partition_rounds.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from deliveries.attempts import Attempt
from deliveries.deliverer.attempt_records import DeliveryEnd, EndedDelivery, Postponed
from deliveries.deliverer.delivery import Delivery
from deliveries.deliverer.delivery_process import DeliveryProcess
from deliveries.endpoints import EndpointConfiguration
from deliveries.schedule import DeadLettered, Decision, EndpointGone, decide

UNUSABLE_SECONDS: Final = 60.0
"""How long a delivery waits that could not even be attempted."""


class _OpenAttempt(NamedTuple):
    delivery: Delivery
    configuration: EndpointConfiguration
    began_at: datetime


class WebhookRetryService:
    """The attempts of a partition that are under way, and what follows from each of them.

    `on_end` gets the end of each once. Before it, `on_gone` gets an endpoint that answered that it is gone, so that
    what `on_end` lets go no longer finds it active.
    """

    def __init__(
        self, process: DeliveryProcess, on_end: Callable[[EndedDelivery], None], on_gone: Callable[[bytes], None]
    ) -> None:
        self._process = process
        self._on_end = on_end
        self._on_gone = on_gone
        self._under_way: dict[bytes, _OpenAttempt] = {}

    def begin(self, delivery: Delivery, configuration: EndpointConfiguration, now: datetime) -> None:
        """Note that an attempt begins, with its endpoint as it is now."""
        self._under_way[delivery.delivery_id] = _OpenAttempt(delivery, configuration, now)

    def schedule_retry(self, delivery_id: bytes, attempt: Attempt) -> Decision:
        """Decide what follows from the attempt of a delivery, have it done, and return it.

        After a failure, the five first times: a retry after 1, 2, 4, 8 and 16 s, in the topics
        `genesis.deliveries.retry.1s` to `.16s`, then a dead letter in `genesis.deliveries.dead`; unless the endpoint
        asked for more time, or has the schedule `long`. Raises KeyError where no attempt of the delivery is under way.
        """
        delivery, configuration, began_at = self._under_way.pop(delivery_id)
        decision = decide(configuration.retry_schedule, delivery.attempt, attempt.outcome, self._process.clock.now())
        if isinstance(decision, EndpointGone):
            self._on_gone(delivery.endpoint_id)
        self._end(delivery, configuration, began_at, decision, attempt)
        return decision

    def put_off(self, delivery_id: bytes, why: str) -> None:
        """Let a delivery wait whose attempt a defect has stopped. Raises KeyError where none of it is under way."""
        delivery, configuration, began_at = self._under_way.pop(delivery_id)
        until = began_at + timedelta(seconds=UNUSABLE_SECONDS)
        self._end(delivery, configuration, began_at, Postponed(until, why), None)

    def _end(
        self, delivery: Delivery, configuration: EndpointConfiguration, began_at: datetime, end: DeliveryEnd,
        attempt: Attempt | None,
    ) -> None:  # fmt: skip
        ordered = self._process.endpoints.is_ordered(delivery.endpoint_id)
        self._on_end(
            EndedDelivery(
                delivery=delivery,
                end=end,
                began_at=began_at,
                attempt=attempt,
                attempted=True,
                ordered=ordered,
                blocks=ordered and isinstance(end, DeadLettered) and configuration.after_dead_letter == "block",
            )
        )
