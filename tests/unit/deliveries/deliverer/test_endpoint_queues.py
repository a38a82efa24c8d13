"""What a partition's attempts take of the process is given back, however they end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deliveries.circuit_breaker import BreakerPolicy
from deliveries.deliverer.attempt_records import EndedDelivery
from deliveries.deliverer.attempt_slots import SLOW_SECONDS, AttemptSlots
from deliveries.deliverer.delivery_process import DelivererLimits, DeliveryProcess
from deliveries.deliverer.endpoint_queues import EndpointQueues
from deliveries.endpoints import EndpointConfiguration
from runtime.clock import SystemClock
from tests.support.made_deliveries import made_delivery


def made_queues(
    slots: AttemptSlots, on_end: Callable[[EndedDelivery], Any], limits: DelivererLimits | None = None
) -> EndpointQueues:
    """Return queues of endpoints that are known and active; an attempt fails before it sends anything."""
    configuration = EndpointConfiguration(url="https://example.com/", event_types=("*",))
    endpoint = SimpleNamespace(state="active", configuration=configuration, rate_per_second=None)
    known = SimpleNamespace(endpoint=endpoint, secrets=object())
    process = SimpleNamespace(
        endpoints=SimpleNamespace(get=lambda _: known, is_ordered=lambda _: False),
        slots=slots,
        clock=SystemClock(),
        limits=limits or DelivererLimits(),
        breaker=BreakerPolicy(),
    )
    return EndpointQueues(cast(DeliveryProcess, process), on_end)


async def test_an_attempt_that_is_given_up_before_its_first_step_leaves_no_slot_taken() -> None:
    """A partition can be lost in the same turn of the loop in which attempts are begun."""
    slots = AttemptSlots(4, 100)
    queues = made_queues(slots, lambda _: None)
    for endpoint in range(3):
        queues.enqueue(made_delivery(endpoint))
    assert slots.under_way == 3
    await queues.cancel()
    assert slots.under_way == 0


async def test_an_attempt_that_has_ended_is_not_found_slow() -> None:
    """A sweep may come between an attempt's end and that of its task; a queue that is slow for good sends nothing."""
    slots, ended = AttemptSlots(4, 100), list[EndedDelivery]()

    def sweep_late(end: EndedDelivery) -> None:
        ended.append(end)
        slots.sweep(SystemClock().monotonic_seconds() + 2 * SLOW_SECONDS)

    queues = made_queues(slots, sweep_late)
    queues.enqueue(made_delivery(1))
    await queues.finish()
    assert len(ended) == 1
    assert slots.under_way == 0
    assert queues.busy_endpoints() == set()
    queues.enqueue(made_delivery(1, offset=1))
    assert slots.under_way == 1, "the endpoint gets its next attempt"
    await queues.finish()


async def test_an_attempt_that_hangs_keeps_no_other_from_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts among those that are not written down while it is quick, and again once it has ended."""
    slots, ended, answered = AttemptSlots(4, 100), list[EndedDelivery](), asyncio.Event()
    queues = made_queues(slots, ended.append, DelivererLimits(unrecorded_max=1))

    async def hang(*_: object) -> Any:
        await answered.wait()
        raise RuntimeError

    monkeypatch.setattr(queues, "_send", hang)
    queues.enqueue(made_delivery(1))
    queues.enqueue(made_delivery(2))
    assert slots.under_way == 1
    began_seconds = SystemClock().monotonic_seconds()
    await asyncio.sleep(0)
    slots.sweep(began_seconds + SLOW_SECONDS)
    assert (slots.under_way, slots.slow) == (2, 1)
    answered.set()
    await queues.finish()
    assert len(ended) == 2
    queues.enqueue(made_delivery(3))
    queues.note_written(1)
    assert slots.under_way == 0, "one has ended, and is not written down"
    queues.note_written(1)
    assert slots.under_way == 1
    await queues.finish()
