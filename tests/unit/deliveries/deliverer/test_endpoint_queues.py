"""What a partition's attempts take of the process is given back, however they end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY

from deliveries.attempts import Attempt
from deliveries.circuit_breaker import BreakerPolicy
from deliveries.deliverer.attempt_records import Cancelled, EndedDelivery, Postponed
from deliveries.deliverer.attempt_slots import SLOW_SECONDS, SWEEP_MAX_SECONDS, AttemptSlots
from deliveries.deliverer.delivery import Delivery
from deliveries.deliverer.delivery_process import DelivererLimits, DeliveryProcess
from deliveries.deliverer.endpoint_queue import EndpointQueue
from deliveries.deliverer.endpoint_queues import EndpointQueues
from deliveries.endpoints import EndpointConfiguration, EndpointState
from deliveries.outcomes import AttemptOutcome
from runtime.clock import Clock, FixedClock, SystemClock
from tests.support.made_deliveries import made_delivery
from tests.support.partition_parts import NOW, sweep_until


def made_queues(
    slots: AttemptSlots,
    on_end: Callable[[EndedDelivery], Any],
    limits: DelivererLimits | None = None,
    *,
    clock: Clock | None = None,
    put_back: Callable[[Delivery], Any] = pytest.fail,
    ordered: bool = False,
    state: EndpointState = "active",
    rate_per_second: float | None = None,
) -> EndpointQueues:
    """Return queues of endpoints that are known; an attempt fails before it sends anything."""
    configuration = EndpointConfiguration(url="https://example.com/", event_types=("*",))
    endpoint = SimpleNamespace(state=state, configuration=configuration, rate_per_second=rate_per_second)
    known = SimpleNamespace(endpoint=endpoint, secrets=object())
    process = SimpleNamespace(
        endpoints=SimpleNamespace(get=lambda _: known, is_ordered=lambda _: ordered),
        slots=slots,
        clock=clock or SystemClock(),
        limits=limits or DelivererLimits(),
        breaker=BreakerPolicy(),
    )
    return EndpointQueues(cast(DeliveryProcess, process), on_end, put_back)


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
        now_seconds = SystemClock().monotonic_seconds()
        sweep_until(slots, now_seconds + 2 * SLOW_SECONDS, now_seconds)

    queues = made_queues(slots, sweep_late)
    queues.enqueue(made_delivery(1))
    await queues.finish()
    assert len(ended) == 1
    assert slots.under_way == 0
    assert queues.set_aside() == set()
    queues.enqueue(made_delivery(1, offset=1))
    assert slots.under_way == 1, "the endpoint gets its next attempt"
    await queues.finish()


async def test_an_attempt_that_hangs_keeps_no_other_from_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts among those that are not written down while it is quick, and again once it has ended."""
    slots, ended, answered, clock = AttemptSlots(4, 100), list[EndedDelivery](), asyncio.Event(), FixedClock(NOW)
    queues = made_queues(slots, ended.append, DelivererLimits(unrecorded_max=1), clock=clock)

    async def hang(*_: object) -> Any:
        await answered.wait()
        raise RuntimeError

    monkeypatch.setattr(queues, "_send", hang)
    queues.enqueue(made_delivery(1))
    queues.enqueue(made_delivery(2))
    assert slots.under_way == 1
    await asyncio.sleep(0)
    while not slots.slow:
        clock.set(clock.now() + timedelta(seconds=SWEEP_MAX_SECONDS))
        slots.sweep(clock.monotonic_seconds())
    assert clock.monotonic_seconds() == SLOW_SECONDS
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


async def test_an_endpoint_that_was_slow_gets_attempts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as the attempt that took long has ended."""
    clock, slots, answered = FixedClock(NOW), AttemptSlots(4, 100), asyncio.Event()
    queues = made_queues(slots, lambda _: None, clock=clock)

    async def hang(*_: object) -> Any:
        await answered.wait()
        raise RuntimeError

    monkeypatch.setattr(queues, "_send", hang)
    queues.enqueue(made_delivery(offset=0, topic="genesis.deliveries"))
    clock.set(NOW + timedelta(seconds=SLOW_SECONDS))
    sweep_until(slots, clock.monotonic_seconds())
    queues.enqueue(made_delivery(offset=1, topic="genesis.deliveries"))
    endpoint_id = made_delivery().endpoint_id
    assert (slots.under_way, queues.is_busy(endpoint_id), queues.set_aside()) == (1, True, {endpoint_id})
    answered.set()
    await queues.finish()
    queues.enqueue(made_delivery(offset=2, topic="genesis.deliveries"))
    assert (slots.under_way, queues.is_busy(endpoint_id), queues.set_aside()) == (1, False, set())
    await queues.finish()


async def test_what_an_endpoint_asked_a_former_owner_for_is_kept_to() -> None:
    """Its deliveries wait until then, and none is read from Postgres before; other endpoints get theirs."""
    clock, slots, ended = FixedClock(NOW), AttemptSlots(4, 100), list[EndedDelivery]()
    queues = made_queues(slots, ended.append, clock=clock)
    until = NOW + timedelta(seconds=90)
    endpoint_id = made_delivery().endpoint_id
    queues.note_throttled({endpoint_id: until})
    assert queues.set_aside() == {endpoint_id}
    queues.enqueue(made_delivery(1, topic="genesis.deliveries"))
    assert [each.end for each in ended] == [Postponed(until, "The endpoint gets no attempts for a time.")]
    assert (slots.under_way, queues.is_busy(endpoint_id)) == (0, True)
    queues.enqueue(made_delivery(2))
    assert slots.under_way == 1
    clock.set(until)
    assert queues.set_aside() == set()
    queues.enqueue(made_delivery(1, offset=1))
    assert slots.under_way == 2
    await queues.finish()


async def test_a_clock_that_was_ahead_keeps_no_endpoint_from_its_deliveries_for_long() -> None:
    """None may ask for more than an hour."""
    clock, slots = FixedClock(NOW), AttemptSlots(4, 100)
    queues = made_queues(slots, lambda _: None, clock=clock)
    queues.note_throttled({made_delivery().endpoint_id: NOW + timedelta(days=400)})
    clock.set(NOW + timedelta(hours=1))
    queues.enqueue(made_delivery())
    assert slots.under_way == 1
    await queues.finish()


@pytest.mark.parametrize("ordered", [False, True])
async def test_what_has_come_from_postgres_goes_back_as_it_is(monkeypatch: pytest.MonkeyPatch, ordered: bool) -> None:
    """An endpoint that is slow puts off what came from a topic; rows stay as they are, but where order counts."""
    clock, slots = FixedClock(NOW), AttemptSlots(4, 100)
    ended, back = list[EndedDelivery](), list[Delivery]()
    queues = made_queues(slots, ended.append, clock=clock, put_back=back.append, ordered=ordered)

    async def hang(*_: object) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(queues, "_send", hang)
    queues.enqueue(made_delivery(offset=0, topic="genesis.deliveries"))
    clock.set(NOW + timedelta(seconds=SLOW_SECONDS))
    sweep_until(slots, clock.monotonic_seconds())
    queues.enqueue(made_delivery(offset=1, topic="genesis.deliveries"))
    queues.enqueue(made_delivery(offset=2))
    put_off = [each for each in ended if isinstance(each.end, Postponed)]
    assert [each.delivery.source_offset for each in put_off] == ([1, 2] if ordered else [1])
    assert [each.source_offset for each in back] == ([] if ordered else [2])
    await queues.cancel()


async def test_an_endpoint_rests_as_long_as_its_deliveries_were_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then nothing of it is read from Postgres, where it would be found due at once."""
    clock, slots = FixedClock(NOW), AttemptSlots(4, 100)
    queues = made_queues(slots, lambda _: None, DelivererLimits(postponed_seconds=3.0), clock=clock)
    monkeypatch.setattr(AttemptSlots, "crowded", True)
    queues.enqueue(made_delivery(topic="genesis.deliveries"))
    endpoint_id = made_delivery().endpoint_id
    clock.set(NOW + timedelta(seconds=2.9))
    assert queues.is_busy(endpoint_id)
    assert list(queues.rows_wanted([endpoint_id])) == []
    assert queues.set_aside() == {endpoint_id}
    clock.set(NOW + timedelta(seconds=3))
    assert not queues.is_busy(endpoint_id)
    assert queues.set_aside() == set()


@pytest.mark.parametrize(("state", "rows"), [("active", [1, 250]), ("paused", [500, 500])])
async def test_a_suspect_endpoint_has_one_row_at_a_time(
    monkeypatch: pytest.MonkeyPatch, state: EndpointState, rows: list[int]
) -> None:
    """It is set aside, and an endpoint of which nothing is known is not; of one that is paused all end at once."""
    slots, answered = AttemptSlots(4, 100), asyncio.Event()
    clock = FixedClock(NOW)
    queues = made_queues(slots, lambda _: None, clock=clock)
    suspect, other = made_delivery(1).endpoint_id, made_delivery(2).endpoint_id

    async def time_out(*_: object) -> Attempt:
        await answered.wait()
        return Attempt(outcome=AttemptOutcome(error_class="timeout"), duration_seconds=15.0)

    monkeypatch.setattr(queues, "_send", time_out)
    monkeypatch.setattr(queues._retries, "schedule_retry", lambda *_: None)
    queues.enqueue(made_delivery(1, topic="genesis.deliveries"))
    await asyncio.sleep(0)
    clock.set(NOW + timedelta(seconds=SLOW_SECONDS))
    sweep_until(slots, clock.monotonic_seconds())
    queues.enqueue(made_delivery(1, offset=1, topic="genesis.deliveries"))
    answered.set()
    await queues.finish()
    assert (queues.set_aside(), queues.is_busy(suspect)) == ({suspect}, False)
    cast(Any, queues._process.endpoints.get(suspect)).endpoint.state = state
    assert [count for _, count in queues.rows_wanted([suspect, other])] == rows
    monkeypatch.setattr(AttemptSlots, "crowded", True)
    assert list(queues.rows_wanted([suspect, other])) == [], "neither of them has answered"
    queues.note_without_rows([suspect])
    assert queues.set_aside() == set()


def late() -> tuple[float, float]:
    """How many retries were timed, and how many seconds they came late in all."""
    count, seconds = (
        REGISTRY.get_sample_value(f"plant_deliverer_lateness_seconds_{each}") or 0.0 for each in ("count", "sum")
    )
    return count, seconds


async def test_how_late_a_retry_is_attempted_is_measured() -> None:
    """From its time on, and never less than nothing; a first attempt has no time."""
    queues = made_queues(AttemptSlots(4, 100), lambda _: None, clock=FixedClock(NOW))
    (count, seconds), measured = late(), list[tuple[float, float]]()
    for offset, due_at in enumerate([None, NOW - timedelta(seconds=3), NOW + timedelta(seconds=1)]):
        queues.enqueue(made_delivery(offset, offset=offset, due_at=due_at))
        await queues.finish()
        measured.append((late()[0] - count, round(late()[1] - seconds, 6)))
    assert measured == [(0, 0), (1, 3), (2, 3)]


@pytest.mark.parametrize("state", ["paused", "disabled", "removed"])
async def test_an_endpoint_that_is_not_active_gets_nothing(state: EndpointState) -> None:
    """Its deliveries are cancelled, with the reason."""
    slots, ended = AttemptSlots(4, 100), list[EndedDelivery]()
    queues = made_queues(slots, ended.append, state=state)
    queues.enqueue(made_delivery(1))
    assert [each.end for each in ended] == [Cancelled(f"The endpoint is {state}.")]
    assert (slots.under_way, queues.due) == (0, 0)


async def test_a_queue_may_be_as_long_as_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond it is put off, the last ones first; a half of it keeps more from being read from Postgres.

    An endpoint that is alone may have all that may be unfinished.
    """
    slots, ended = AttemptSlots(100, 100), list[EndedDelivery]()
    limits = DelivererLimits(queue_max=4, unfinished_max=8)
    queues = made_queues(slots, ended.append, limits, clock=FixedClock(NOW))

    async def hang(*_: object) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(queues, "_send", hang)
    for offset in range(10):  # one is under way, eight wait
        queues.enqueue(made_delivery(1, offset=offset, topic="read"))
    assert [each.delivery.source_offset for each in ended] == [9]
    queues.enqueue(made_delivery(2, topic="read"))
    queues.enqueue(made_delivery(1, offset=10, topic="read"))
    assert sorted(each.delivery.source_offset for each in ended) == [5, 6, 7, 8, 9, 10]
    assert queues.set_aside() == {made_delivery(1).endpoint_id}
    await queues.cancel()


async def answer_slowly(
    queues: EndpointQueues, endpoints: int, ended: list[EndedDelivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Have some endpoints take deliveries, each in 0.9 s, and answer nothing from then on."""
    hanging = asyncio.Event()

    async def take_long(*_: object) -> Attempt:
        if hanging.is_set():
            await asyncio.Event().wait()
        return Attempt(outcome=AttemptOutcome(status_code=204), duration_seconds=0.9)

    monkeypatch.setattr(queues, "_send", take_long)
    for endpoint in range(1, endpoints + 1):
        for _ in range(50):
            queues.enqueue(made_delivery(endpoint, topic="read"))
            await queues.finish()
            queues.note_written(1)
    ended.clear()
    hanging.set()


async def test_an_endpoint_that_is_slow_to_refuse_a_delivery_once_more_is_probed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was slow, whatever it refused; one that takes no deliveries at all is asked for all that it has."""
    clock, slots, answered = FixedClock(NOW), AttemptSlots(4, 100), asyncio.Event()
    queues = made_queues(slots, lambda _: None, clock=clock)
    endpoint_id = made_delivery().endpoint_id

    async def refuse(*_: object) -> Attempt:
        await answered.wait()
        return Attempt(outcome=AttemptOutcome(status_code=500), duration_seconds=1.0)

    monkeypatch.setattr(queues, "_send", refuse)
    queues.enqueue(made_delivery(attempt=2))
    assert queues.probed({endpoint_id: 1}) == set()
    clock.set(NOW + timedelta(seconds=SLOW_SECONDS))
    sweep_until(slots, clock.monotonic_seconds())
    answered.set()
    await queues.finish()
    assert queues.probed({endpoint_id: 1}) == {endpoint_id}
    assert queues.probed({endpoint_id: 8}) == set()


@pytest.mark.parametrize(
    ("has_taken", "answer", "attempt", "counts"),
    [
        (True, AttemptOutcome(status_code=500), 1, True),
        (True, AttemptOutcome(status_code=500), 2, False),
        (True, AttemptOutcome(status_code=404), 6, False),
        (False, AttemptOutcome(status_code=404), 6, True),
        (True, AttemptOutcome(status_code=503), 2, True),
        (True, AttemptOutcome(error_class="connection"), 2, True),
        (True, AttemptOutcome(status_code=200, error_class="timeout"), 2, True),
    ],
)
async def test_what_is_refused_once_more_opens_no_breaker(
    monkeypatch: pytest.MonkeyPatch, has_taken: bool, answer: AttemptOutcome, attempt: int, counts: bool
) -> None:
    """It tells of the delivery, where the endpoint has taken others.

    What is not answered, or asks for time, tells of the endpoint, and so does a probe.
    """
    slots, clock = AttemptSlots(100, 100), FixedClock(NOW)
    queues = made_queues(slots, lambda _: None, clock=clock)

    answers = iter([AttemptOutcome(status_code=204)] if has_taken else [])

    async def refuse(*_: object) -> Attempt:
        return Attempt(outcome=next(answers, answer), duration_seconds=0.01)

    async def send(attempt: int) -> str:
        clock.set(clock.now() + timedelta(seconds=6))
        queues.enqueue(made_delivery(attempt=attempt, topic="read"))
        await queues.finish()
        queues.note_written(1)
        return next(iter(queues.breaker_states()), "closed")

    monkeypatch.setattr(queues, "_send", refuse)
    if has_taken:
        assert await send(1) == "closed"
    states = [await send(attempt) for _ in range(BreakerPolicy().attempts_min)]
    assert states[-1] == ("open" if counts else "closed")
    if not counts:
        assert [await send(1) for _ in range(5)][-1] == "open"
    assert await send(attempt) == "open", "its probe was refused"


async def test_where_room_is_short_endpoints_keep_what_they_take_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they would take later waits in Postgres: the others' deliveries come in, and begin at once."""
    slots, ended = AttemptSlots(100, 100), list[EndedDelivery]()
    limits = DelivererLimits(queue_max=16, unfinished_max=40, attempts_per_endpoint=1)
    queues = made_queues(slots, ended.append, limits, clock=FixedClock(NOW))
    await answer_slowly(queues, 2, ended, monkeypatch)
    for endpoint in (1, 2):
        for offset in range(16):
            queues.enqueue(made_delivery(endpoint, offset=offset, topic="read"))
            assert bool(ended) == (queues.due + len(ended) > limits.unfinished_max / 2), "there is room"
    soon = int(4.0 / 0.9)
    assert {each.delivery.endpoint_id for each in ended} == {made_delivery(2).endpoint_id}
    assert {each.end for each in ended} == {
        Postponed(NOW + timedelta(seconds=1), "The endpoint has its share of attempts.")
    }
    assert soon <= queues.due - 15 < limits.unfinished_max / 2 - 15 + 1
    queues.enqueue(made_delivery(3, topic="read"))
    assert slots.under_way == 3
    await queues.cancel()


@pytest.mark.parametrize(("slots_max", "unrecorded_max"), [(256, 20), (20, 256)])
async def test_where_slots_are_taken_endpoints_that_answer_slowly_keep_what_they_take_soon(
    monkeypatch: pytest.MonkeyPatch, slots_max: int, unrecorded_max: int
) -> None:
    """Others that wait for a slot, or for a round, keep all that was read: the machine is too slow for them."""
    slots, ended = AttemptSlots(slots_max, 1_000), list[EndedDelivery]()
    limits = DelivererLimits(unfinished_max=400, attempts_per_endpoint=4, unrecorded_max=unrecorded_max)
    queues = made_queues(slots, ended.append, limits, clock=FixedClock(NOW))
    await answer_slowly(queues, 12, ended, monkeypatch)
    for offset in range(60):
        for endpoint in range(1, 13):
            queues.enqueue(made_delivery(endpoint, offset=offset, topic="read"))
    assert (slots.under_way, queues.due) == (20, 12 * int(4 * 4.0 / 0.9))
    for endpoint in range(1, 13):
        queues._queues[made_delivery(endpoint).endpoint_id]._attempt_seconds = 0.2
    ended.clear()
    for offset in range(60, 90):
        for endpoint in range(1, 13):
            queues.enqueue(made_delivery(endpoint, offset=offset, topic="read"))
    assert ended == []
    await queues.cancel()


async def test_an_endpoint_that_is_alone_keeps_what_is_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes: nobody else is held up, and the rest stays in Kafka."""
    slots, ended = AttemptSlots(100, 100), list[EndedDelivery]()
    limits = DelivererLimits(queue_max=16, unfinished_max=40, attempts_per_endpoint=1)
    queues = made_queues(slots, ended.append, limits, clock=FixedClock(NOW))
    await answer_slowly(queues, 1, ended, monkeypatch)
    for offset in range(40):
        queues.enqueue(made_delivery(offset=offset, topic="read"))
    assert (queues.due, ended) == (39, [])
    await queues.cancel()


async def test_what_is_put_off_waits_for_a_while_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    """A breaker that opens for a moment does not send deliveries to Postgres and back."""
    slots, ended, clock = AttemptSlots(4, 100), list[EndedDelivery](), FixedClock(NOW)
    queues = made_queues(slots, ended.append, DelivererLimits(postponed_seconds=7.0), clock=clock)
    queues.enqueue(made_delivery(1, topic="read"))
    await queues.finish()
    ended.clear()
    monkeypatch.setattr(EndpointQueue, "blocked_seconds", lambda *_: 0.5)
    queues.enqueue(made_delivery(1, offset=1, topic="read"))
    assert [each.end for each in ended] == [
        Postponed(NOW + timedelta(seconds=7), "The endpoint gets no attempts for a time.")
    ]


async def test_a_rate_wakes_its_queue_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many deliveries come meanwhile: one timer waits for the next slot."""
    slots, timers = AttemptSlots(4, 100), list[float]()
    queues = made_queues(slots, lambda _: None, clock=FixedClock(NOW), rate_per_second=1)
    loop = asyncio.get_running_loop()
    queues.enqueue(made_delivery(1, topic="read"))
    await queues.finish()
    monkeypatch.setattr(loop, "call_later", lambda seconds, *_: timers.append(seconds))
    for offset in range(1, 4):
        queues.enqueue(made_delivery(1, offset=offset, topic="read"))
    monkeypatch.undo()
    assert timers == [1.0]


async def test_a_rate_keeps_in_memory_what_goes_soon() -> None:
    """The others wait in Postgres, and are not read from there while half of that is left."""
    slots, ended = AttemptSlots(4, 100), list[EndedDelivery]()
    limits = DelivererLimits(unrecorded_max=100)
    queues = made_queues(slots, ended.append, limits, clock=FixedClock(NOW), rate_per_second=1)
    queues.enqueue(made_delivery(1, topic="read"))
    await queues.finish()
    ended.clear()
    for offset in range(1, 41):
        queues.enqueue(made_delivery(1, offset=offset, topic="read"))
    assert queues.due == 4
    assert [each.end for each in ended] == 36 * [
        Postponed(NOW + timedelta(seconds=1), "The endpoint has its share of attempts.")
    ]
    assert queues.set_aside() == {made_delivery(1).endpoint_id}


async def test_what_a_rate_lets_go_later_waits_in_postgres() -> None:
    """Until then, and no longer: nothing of the endpoint is read before."""
    slots, ended, clock = AttemptSlots(4, 100), list[EndedDelivery](), FixedClock(NOW)
    queues = made_queues(slots, ended.append, clock=clock, rate_per_second=1 / 60)
    endpoint_id = made_delivery(1).endpoint_id
    queues.enqueue(made_delivery(1, topic="read"))
    await queues.finish()
    ended.clear()
    for offset in (1, 2):
        queues.enqueue(made_delivery(1, offset=offset, topic="read"))
    assert [each.end for each in ended] == 2 * [
        Postponed(NOW + timedelta(seconds=60), "The endpoint's rate lets none go for a time.")
    ]
    assert (queues.due, list(queues.rows_wanted([endpoint_id]))) == (0, [])
    clock.set(NOW + timedelta(seconds=60))
    assert list(queues.rows_wanted([endpoint_id])) == [(endpoint_id, 1)]


def watch_hanging(queues: EndpointQueues, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let every attempt hang; return the numbers of the endpoints that are looked at from now on."""
    looked_at: list[int] = []
    pump = queues._pump

    def seen(endpoint_id: bytes, queue: EndpointQueue) -> None:
        looked_at.append(int.from_bytes(endpoint_id, "big"))
        pump(endpoint_id, queue)

    async def hang(*_: object) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(queues, "_send", hang)
    monkeypatch.setattr(queues, "_pump", seen)
    return looked_at


async def test_what_is_held_back_goes_on_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that have waited longest, as many as there is room for: thousands are not looked at for each one."""
    slots = AttemptSlots(100, 100)
    queues = made_queues(slots, lambda _: None, DelivererLimits(unrecorded_max=2), clock=FixedClock(NOW))
    looked_at = watch_hanging(queues, monkeypatch)
    for endpoint in range(9):
        queues.enqueue(made_delivery(endpoint))
    assert slots.under_way == 2
    looked_at.clear()
    queues.note_written(3)
    assert looked_at == [2, 3, 4]
    assert slots.under_way == 5
    looked_at.clear()
    queues.enqueue(made_delivery(2, offset=1))
    queues.note_written(2)
    assert looked_at[1:] == [5, 6]
    assert queues.due == 3
    await queues.cancel()


async def test_no_more_ask_for_a_slot_than_may_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose turn comes and that begins nothing lets the next one go: nobody waits for what never comes."""
    slots = AttemptSlots(2, 100)
    queues = made_queues(slots, lambda _: None, DelivererLimits(unrecorded_max=2), clock=FixedClock(NOW))
    looked_at = watch_hanging(queues, monkeypatch)
    for endpoint in range(9):
        queues.enqueue(made_delivery(endpoint))
    first, second = queues._attempts.values()
    looked_at.clear()
    queues.note_written(2)
    queues.note_written(0)
    assert looked_at == [2, 3], "there is no slot"
    slots.give_back(first)
    assert (looked_at.pop(), slots.under_way) == (2, 2)
    queues._queues[made_delivery(3).endpoint_id].due.pop()
    looked_at.clear()
    slots.give_back(second)
    assert looked_at == [3, 4]
    assert slots.under_way == 2
    await queues.cancel()


async def test_breakers_are_counted_until_they_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of endpoints that have failed are looked at, and no others."""
    slots, clock = AttemptSlots(100, 100), FixedClock(NOW)
    queues = made_queues(slots, lambda _: None, clock=clock)
    outcomes = iter([500] * 5 + [204] * 2)

    async def answer(*_: object) -> Attempt:
        return Attempt(outcome=AttemptOutcome(status_code=next(outcomes)), duration_seconds=0.0)

    def end(*_: object) -> None:
        """Whatever follows from it."""

    monkeypatch.setattr(queues, "_send", answer)
    monkeypatch.setattr(queues._retries, "schedule_retry", end)
    for offset in range(5):
        queues.enqueue(made_delivery(1, offset=offset))
        await queues.finish()
        assert queues.breaker_states()["open"] == (offset == 4)
    clock.set(NOW + timedelta(seconds=BreakerPolicy().open_seconds))
    assert queues.breaker_states() == {"half_open": 1}
    for endpoint in (1, 2):
        queues.enqueue(made_delivery(endpoint, offset=9))
        await queues.finish()
    assert queues.breaker_states() == {}
    assert queues.due == 0
