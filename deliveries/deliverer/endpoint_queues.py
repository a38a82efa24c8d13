"""The endpoints of a partition that have deliveries due: which attempts are made now, and what is put off.

A delivery is put off into Postgres, which is no attempt, where its endpoint gets none: its breaker is open, it asked
for time, it is slow to answer, or its queue is longer than its share. One that has come from Postgres goes back as it
is, which writes nothing: a machine that is too slow for its deliveries must not be busy with putting them off.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from deliveries.attempts import Attempt, send_attempt
from deliveries.circuit_breaker import AttemptEnd, BreakerState, Permit
from deliveries.deliverer.attempt_records import Cancelled, DeliveryEnd, EndedDelivery, Postponed
from deliveries.deliverer.attempt_slots import AttemptSlot
from deliveries.deliverer.delivery import Delivery
from deliveries.deliverer.delivery_process import DeliveryProcess
from deliveries.deliverer.endpoint_cache import KnownEndpoint
from deliveries.deliverer.endpoint_queue import MEMORY_SECONDS, Blocked, EndpointQueue, Waiting
from deliveries.deliverer.webhook_retry_service import UNUSABLE_SECONDS, WebhookRetryService
from deliveries.outcomes import RETRY_AFTER_MAX_SECONDS, classify, throttle_seconds
from deliveries.signed_request import sign_attempt
from runtime import metrics
from runtime.logging import get_logger

log = get_logger(__name__)

SHORT_SHARE: Final = 0.5
"""Of what a partition reads ahead: where more is due in memory, endpoints keep what they take soon, so that there is
room for the others' deliveries."""


class EndpointQueues:
    """The queues of a partition's endpoints.

    `on_end` gets what came of each delivery, once, unless `put_back` gets it, whose row is as it was.
    """

    def __init__(
        self, process: DeliveryProcess, on_end: Callable[[EndedDelivery], None], put_back: Callable[[Delivery], None]
    ) -> None:
        self.gone: dict[bytes, str] = {}
        """Endpoints that are to be disabled, and why."""
        self._process = process
        self._on_end = on_end
        self._put_back = put_back
        self._retries = WebhookRetryService(process, on_end, self.note_gone)
        self._queues: dict[bytes, EndpointQueue] = {}
        self._attempts: dict[asyncio.Task[None], AttemptSlot] = {}
        self._unrecorded = 0
        self._held_back: dict[bytes, EndpointQueue] = {}
        self._turn_takers: set[bytes] = set()
        """Endpoints that were held back, and have not had their turn since."""
        self._troubled: set[bytes] = set()
        self._failing: set[bytes] = set()
        self._due = 0
        self._stopped = False

    def stop(self) -> None:
        """Begin no attempt from now on."""
        self._stopped = True

    def note_gone(self, endpoint_id: bytes) -> None:
        """Have an endpoint disabled: it answered that it is gone."""
        self.gone[endpoint_id] = "It answered 410 Gone."
        self._process.endpoints.disable(endpoint_id)

    def note_written(self, attempts: int) -> None:
        """Let others begin where attempts were written down: while that fails, few are made that a kill repeats."""
        self._unrecorded -= attempts
        self._go_on()

    def note_throttled(self, until: Mapping[bytes, datetime]) -> None:
        """Give endpoints no attempts for as long as they had asked a former owner, by whatever clock it had."""
        clock = self._process.clock
        now, now_seconds = clock.now(), clock.monotonic_seconds()
        for endpoint_id, at in until.items():
            seconds = min((at - now).total_seconds(), RETRY_AFTER_MAX_SECONDS)
            self._queue_of(endpoint_id).throttle(now_seconds + seconds)
            self._troubled.add(endpoint_id)

    def _go_on(self) -> None:
        """Let those queues begin attempts that were held back, the longest first, as far as there is room.

        Those of them that find no slot count until they have had their turn: where thousands of endpoints wait, no more
        are moved to the slots' turns than can begin there, and back.
        """
        room_max = self._process.limits.unrecorded_max
        while self._held_back and self._unrecorded + len(self._turn_takers) < room_max:
            endpoint_id = next(iter(self._held_back))
            queue = self._held_back.pop(endpoint_id)
            self._pump(endpoint_id, queue)
            if queue.awaits_turn:
                self._turn_takers.add(endpoint_id)

    async def finish(self) -> None:
        """Wait for the attempts under way."""
        if self._attempts:
            await asyncio.wait(self._attempts)

    async def cancel(self) -> None:
        """Give up the attempts under way; nothing comes of them."""
        self._stopped = True
        for task in self._attempts:
            task.cancel()
        await asyncio.gather(*self._attempts, return_exceptions=True)

    def enqueue(self, delivery: Delivery) -> None:
        """Let a delivery be attempted as soon as its endpoint gets one more."""
        queue = self._queue_of(delivery.endpoint_id)
        queue.due.append(delivery)
        self._due += 1
        self._pump(delivery.endpoint_id, queue)

    def _queue_of(self, endpoint_id: bytes) -> EndpointQueue:
        queue = self._queues.get(endpoint_id)
        if queue is None:
            limits = self._process.limits
            queue = self._queues[endpoint_id] = EndpointQueue(
                self._process.breaker, limits.attempts_per_endpoint, limits.queue_max
            )
        return queue

    def _pump(self, endpoint_id: bytes, queue: EndpointQueue) -> None:
        """Begin the attempts of an endpoint that may be made now; put off what can't be for long."""
        slots, clock = self._process.slots, self._process.clock
        while queue.due and not self._stopped:
            known = self._process.endpoints.get(endpoint_id)
            if known is None or known.endpoint.state != "active":
                self._end_all(queue, Cancelled(_why_not(known)))
                return
            if known.secrets is None:
                self._rest(endpoint_id, queue, UNUSABLE_SECONDS, "The endpoint's secrets can't be opened.")
                return
            if self._unrecorded >= self._process.limits.unrecorded_max:
                self._held_back[endpoint_id] = queue
                self._cut(endpoint_id, queue, self._process.limits.unfinished_max)
                return
            if not slots.has_room:
                self._await_turn(endpoint_id, queue)
                self._cut(endpoint_id, queue, self._process.limits.unfinished_max)
                return
            now_seconds = clock.monotonic_seconds()
            rate = known.endpoint.rate_per_second
            admission = queue.admit(now_seconds, rate, slots.crowded)
            match admission:
                case Blocked(wait_seconds=wait_seconds):
                    self._postpone(endpoint_id, queue, wait_seconds, "The endpoint gets no attempts for a time.")
                    return
                case Waiting(wait_seconds=wait_seconds):
                    self._wait(endpoint_id, queue, wait_seconds)
                    return
                case _:
                    slot = slots.take(now_seconds, partial(self._note_slow, queue))
                    delivery = queue.due.popleft()
                    self._due -= 1
                    self._unrecorded += 1
                    task = asyncio.create_task(self._attempt(endpoint_id, queue, delivery, known, admission, slot))
                    self._attempts[task] = slot
                    task.add_done_callback(self._end_task)

    def _note_slow(self, queue: EndpointQueue) -> None:
        """Let others begin in the place of an attempt that takes long; it has to be written down once it has ended."""
        queue.note_slow()
        self._unrecorded -= 1
        self._go_on()

    def _end_task(self, task: asyncio.Task[None]) -> None:
        """Give the slot back of an attempt that was cancelled before its first step, and so ran no line."""
        self._process.slots.give_back(self._attempts.pop(task))

    def _await_turn(self, endpoint_id: bytes, queue: EndpointQueue) -> None:
        if queue.awaits_turn:
            return
        queue.awaits_turn = True

        def turn() -> None:
            queue.awaits_turn = False
            self._turn_takers.discard(endpoint_id)
            self._pump(endpoint_id, queue)
            self._go_on()

        self._process.slots.await_turn(turn)

    def _wait(self, endpoint_id: bytes, queue: EndpointQueue, wait_seconds: float | None) -> None:
        """Leave a queue until one of its attempts ends, or its rate lets the next one go; too long a queue is cut."""
        limits = self._process.limits
        if queue.in_flight == 0 and wait_seconds is None:  # crowded out: nothing would wake it
            self._rest(endpoint_id, queue, limits.postponed_seconds, "Slow endpoints have all connections.")
            return
        if wait_seconds is not None and wait_seconds > MEMORY_SECONDS:
            self._rest(endpoint_id, queue, wait_seconds, "The endpoint's rate lets none go for a time.")
            return
        if queue.slow:
            self._postpone(endpoint_id, queue, limits.postponed_seconds, "The endpoint is slow to answer.")
        else:
            self._cut(endpoint_id, queue, limits.queue_max if len(self._queues) > 1 else limits.unfinished_max)
        if wait_seconds is not None and not queue.awaits_rate:
            queue.awaits_rate = True
            asyncio.get_running_loop().call_later(wait_seconds, self._pump_again, endpoint_id, queue)

    def _cut(self, endpoint_id: bytes, queue: EndpointQueue, due_max: int) -> None:
        """Put off what a queue has beyond its share of at most so many deliveries."""
        limits = self._process.limits
        is_short = len(self._queues) > 1 and self._due > limits.unfinished_max * SHORT_SHARE
        keep = queue.share(due_max, by_pace=is_short)
        if len(queue.due) > keep:
            why = "The endpoint has its share of attempts."
            self._postpone(endpoint_id, queue, limits.postponed_seconds, why, keep=keep)

    def _pump_again(self, endpoint_id: bytes, queue: EndpointQueue) -> None:
        queue.awaits_rate = False
        self._pump(endpoint_id, queue)

    def _rest(self, endpoint_id: bytes, queue: EndpointQueue, wait_seconds: float, why: str) -> None:
        """Let all of a queue's deliveries wait in Postgres, and read none of them for as long."""
        queue.rest(self._process.clock.monotonic_seconds() + wait_seconds)
        self._postpone(endpoint_id, queue, wait_seconds, why)

    def _postpone(self, endpoint_id: bytes, queue: EndpointQueue, wait_seconds: float, why: str, keep: int = 0) -> None:
        """Let a queue's deliveries wait in Postgres, but for the first ones."""
        self._troubled.add(endpoint_id)
        ordered = self._process.endpoints.is_ordered(endpoint_id)
        until = self._process.clock.now() + timedelta(seconds=max(wait_seconds, self._process.limits.postponed_seconds))
        while len(queue.due) > keep:
            delivery = queue.due.pop()
            self._due -= 1
            if delivery.from_row and not ordered:
                self._put_back(delivery)
            else:
                self._end_unsent(delivery, Postponed(until, why))

    def _end_all(self, queue: EndpointQueue, end: DeliveryEnd) -> None:
        while queue.due:
            self._due -= 1
            self._end_unsent(queue.due.popleft(), end)

    def _end_unsent(self, delivery: Delivery, end: DeliveryEnd) -> None:
        self._on_end(
            EndedDelivery(
                delivery=delivery,
                end=end,
                began_at=self._process.clock.now(),
                ordered=self._process.endpoints.is_ordered(delivery.endpoint_id),
            )
        )

    async def _attempt(
        self, endpoint_id: bytes, queue: EndpointQueue, delivery: Delivery, known: KnownEndpoint, permit: Permit,
        slot: AttemptSlot,
    ) -> None:  # fmt: skip
        """Make one attempt, and have done what follows from it."""
        process, attempt, why = self._process, None, ""
        began_at = process.clock.now()
        if delivery.due_at is not None:
            metrics.DELIVERER_LATE_SECONDS.observe(max(0.0, (began_at - delivery.due_at).total_seconds()))
        self._retries.begin(delivery, known.endpoint.configuration, began_at)
        try:
            attempt = await self._send(delivery, known, began_at)
        except Exception as error:  # a defect: the delivery is put off, and its endpoint's others go on
            log.exception("delivery.not_attempted", delivery=delivery.id_text)
            why = type(error).__name__
        finally:
            self._unrecorded += slot.is_slow
            self._note_attempt(delivery, queue, permit, attempt, slow=slot.is_slow)
            process.slots.give_back(slot)  # at once: a sweep before the task's end would find the attempt slow
        if attempt is None:
            self._retries.put_off(delivery.delivery_id, why)
        else:
            self._retries.schedule_retry(delivery.delivery_id, attempt)
        self._pump(endpoint_id, queue)

    async def _send(self, delivery: Delivery, known: KnownEndpoint, now: datetime) -> Attempt:
        configuration, secrets = known.endpoint.configuration, known.secrets
        assert secrets is not None
        request = sign_attempt(
            delivery.outgoing_event(), configuration.payload_form, secrets.keys, delivery_id=delivery.id_text, now=now,
            custom_headers=secrets.custom_headers,
        )  # fmt: skip
        timeout_seconds = float(configuration.timeout_seconds)
        return await send_attempt(
            self._process.client, configuration.url, request, timeout_seconds=timeout_seconds, now=now
        )

    def _note_attempt(
        self, delivery: Delivery, queue: EndpointQueue, permit: Permit, attempt: Attempt | None, *, slow: bool
    ) -> None:  # fmt: skip
        """Note what an attempt tells of its endpoint.

        A delivery that is refused once more, by one that has taken others, tells of itself.
        """
        now_seconds = self._process.clock.monotonic_seconds()
        if attempt is None:
            queue.end(permit, "abandoned", now_seconds, slow=slow)
            return
        kind = classify(attempt.outcome)
        end: AttemptEnd = "success" if kind == "delivered" else "failure"
        if end == "failure":
            self._failing.add(delivery.endpoint_id)
            is_refused_again = kind == "failed" and attempt.outcome.error_class is None and delivery.attempt > 1
            if is_refused_again and queue.proven and permit == "ordinary" and not slow:
                end = "abandoned"
        queue.end(
            permit, end, now_seconds, slow=slow, took_seconds=attempt.duration_seconds,
            throttled_seconds=throttle_seconds(attempt.outcome),
        )  # fmt: skip

    @property
    def due(self) -> int:
        """How many deliveries are due."""
        return self._due

    def breaker_states(self) -> Counter[BreakerState]:
        """Return how many endpoints have a breaker that is open, or half-open: of thousands most are neither."""
        now_seconds = self._process.clock.monotonic_seconds()
        states = {each: self._queues[each].state(now_seconds) for each in self._failing}
        self._failing = {each for each, state in states.items() if state != "closed"}
        return Counter(states[each] for each in self._failing)

    def set_aside(self) -> set[bytes]:
        """Return the endpoints whose rows are not to be read as they fall due: they are busy, or suspect.

        Only where a delivery was put off can there be one in Postgres.
        """
        now_seconds = self._process.clock.monotonic_seconds()
        return {
            each for each in self._troubled if (queue := self._queues[each]).is_suspect or queue.is_busy(now_seconds)
        }

    def note_without_rows(self, endpoint_ids: Iterable[bytes]) -> None:
        """Note that nothing of these endpoints waits in Postgres by now."""
        self._troubled.difference_update(endpoint_ids)

    def is_busy(self, endpoint_id: bytes) -> bool:
        """Return whether nothing of an endpoint is to be read from Postgres now."""
        return self._queue_of(endpoint_id).is_busy(self._process.clock.monotonic_seconds())

    def probed(self, wanted: Mapping[bytes, int]) -> set[bytes]:
        """Return those of these endpoints whose one delivery is to tell whether they are well."""
        return {each for each, rows in wanted.items() if rows == 1 and self._queue_of(each).is_suspect}

    def rows_wanted(self, endpoint_ids: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
        """Yield those of these endpoints that are not busy, and how many deliveries each may have from Postgres.

        Of one that is paused or disabled by now all end at once, so none of them has to tell anything first.
        """
        now_seconds, crowded = self._process.clock.monotonic_seconds(), self._process.slots.crowded
        for endpoint_id in endpoint_ids:
            queue = self._queue_of(endpoint_id)
            if not queue.is_busy(now_seconds) and (queue.proven or not crowded):
                known = self._process.endpoints.get(endpoint_id)
                is_active = known is None or known.endpoint.state == "active"
                yield endpoint_id, queue.rows_max if is_active else self._process.limits.queue_max


def _why_not(known: KnownEndpoint | None) -> str:
    return "The endpoint is not known." if known is None else f"The endpoint is {known.endpoint.state}."
