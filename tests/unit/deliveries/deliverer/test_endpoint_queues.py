"""What a partition's attempts take of the process is given back, however they end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from deliveries.circuit_breaker import BreakerPolicy
from deliveries.deliverer.attempt_slots import AttemptSlots
from deliveries.deliverer.delivery_process import DelivererLimits, DeliveryProcess
from deliveries.deliverer.endpoint_queues import EndpointQueues
from deliveries.endpoints import EndpointConfiguration
from runtime.clock import SystemClock
from tests.support.made_deliveries import made_delivery


async def test_an_attempt_that_is_given_up_before_its_first_step_leaves_no_slot_taken() -> None:
    """A partition can be lost in the same turn of the loop in which attempts are begun."""
    configuration = EndpointConfiguration(url="https://example.com/", event_types=("*",))
    known = SimpleNamespace(endpoint=SimpleNamespace(state="active", configuration=configuration), secrets=object())
    slots = AttemptSlots(4, 100)
    process = SimpleNamespace(
        endpoints=SimpleNamespace(get=lambda _: known, is_ordered=lambda _: False),
        slots=slots,
        clock=SystemClock(),
        limits=DelivererLimits(),
        breaker=BreakerPolicy(),
    )
    queues = EndpointQueues(cast(DeliveryProcess, process), lambda _: None)
    for endpoint in range(3):
        queues.enqueue(made_delivery(endpoint))
    assert slots.under_way == 3
    await queues.cancel()
    assert slots.under_way == 0
