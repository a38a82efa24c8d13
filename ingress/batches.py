"""Many CloudEvents in one request, each with a result of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from ingress.payloads import BODY_NOT_JSON, read_cloud_event, valid_traceparent
from ingress.producers import ProducerPolicy
from ingress.publishing import HttpAnswer, IngressPublisher, Submission, accepted
from server.problems import Problem

EVENTS_MAX: Final = 1_000

STEP_SECONDS: Final = 0.01
"""How long events are read and submitted before others are served."""
COUNTED_COMMAS_MAX: Final = 20_000

_NOTHING: Final = msgspec.Raw()
_ITEMS: Final = msgspec.json.Decoder(
    msgspec.defstruct(
        "Items", [(f"item_{index}", msgspec.Raw, _NOTHING) for index in range(EVENTS_MAX + 1)], array_like=True
    )
)
"""Reads no more items than tell that there are too many, and skips the others: a body of 2 MiB may hold a million."""
_ALL_ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw])

SubmittedEvent = Submission | Problem
"""A submitted event, or why it was not."""


class BatchItem(NamedTuple):
    """The result of one event: its JSON, the problem if there was one, and whether it was a repeat."""

    document: bytes
    problem: Problem | None
    repeated: bool = False


def read_items(body: bytes) -> list[msgspec.Raw]:
    """Return the events of a batch, undecoded.

    Raises Problem: malformed-body (400), event (422), body-too-large (413).
    """
    try:
        items = [item for item in msgspec.structs.astuple(_ITEMS.decode(body)) if item]
    except msgspec.ValidationError:
        raise Problem("event", "A batch is an array of CloudEvents.") from None
    except (ValueError, RecursionError) as error:
        raise Problem("malformed-body", BODY_NOT_JSON, reason=type(error).__name__) from None
    if not items:
        raise Problem("event", "A batch holds at least one CloudEvent.")
    if len(items) > EVENTS_MAX:
        raise Problem("body-too-large", f"A batch holds at most {EVENTS_MAX} CloudEvents, and this one {_count(body)}.")
    return items


def _count(body: bytes) -> str:
    """Return how many items an array has, where counting them takes no long."""
    return str(len(_ALL_ITEMS.decode(body))) if body.count(b",") <= COUNTED_COMMAS_MAX else "more"


async def submit_each(
    publisher: IngressPublisher,
    items: Iterable[bytes | msgspec.Raw],
    policy: ProducerPolicy,
    traceparent: str | None,
    *,
    item_max_bytes: int,
) -> list[SubmittedEvent]:
    """Begin to publish every event, in order; a bad one does not stop those after it. Others are served meanwhile.

    An event for which there is no room stops them: else a later event of the same entity, if it is smaller, would
    come before it.
    """
    parent = valid_traceparent(traceparent)
    submitted: list[SubmittedEvent] = []
    full: SubmittedEvent | None = None
    until = time.perf_counter() + STEP_SECONDS
    for item in items:
        if time.perf_counter() > until:
            await asyncio.sleep(0)
            until = time.perf_counter() + STEP_SECONDS
        each = full or _submit(publisher, bytes(item), policy, parent, item_max_bytes)
        if is_overloaded(each):
            full = each
        submitted.append(each)
    return submitted


def _submit(
    publisher: IngressPublisher, item: bytes, policy: ProducerPolicy, traceparent: str | None, max_bytes: int
) -> SubmittedEvent:
    try:
        if len(item) > max_bytes:
            raise Problem("body-too-large", f"An event has at most {max_bytes} bytes.")
        incoming = read_cloud_event(item, policy.name)
        return publisher.submit(incoming, policy, traceparent)
    except Problem as problem:
        return problem


def is_overloaded(submitted: SubmittedEvent) -> bool:
    """Return whether there was no room for the event, or for one before it."""
    return isinstance(submitted, Problem) and submitted.kind == "overloaded"


async def await_results(publisher: IngressPublisher, submitted: Sequence[SubmittedEvent]) -> list[BatchItem]:
    """Return every event's result, in order, once all are known."""
    outcomes = iter(await publisher.await_each([each.publish for each in submitted if not isinstance(each, Problem)]))
    results = []
    for each in submitted:
        if isinstance(each, Problem):
            results.append(_refused(each))
        elif isinstance(outcome := next(outcomes), Problem):
            results.append(_refused(outcome, each.repeated))
        else:
            results.append(BatchItem(accepted(each.event_id, outcome), None, each.repeated))
    return results


def unpaid(results: Iterable[BatchItem]) -> int:
    """Return how many events consume no rate: repeats, and those that are to be sent again."""
    return sum(item.repeated or (item.problem is not None and item.problem.status >= 500) for item in results)


def answer_of(results: Sequence[BatchItem]) -> HttpAnswer:
    """Return the answer to a batch. 200: all are stored; 207: some never can be; 503: all should be sent again."""
    problems = [result.problem for result in results if result.problem is not None]
    retryable = [problem for problem in problems if problem.status >= 500]
    status = 503 if retryable else 207 if problems else 200
    body = b'{"results":[%b]}' % b",".join(result.document for result in results)
    return HttpAnswer(status, body, retryable[0].headers if retryable else ())


def _refused(problem: Problem, repeated: bool = False) -> BatchItem:
    return BatchItem(msgspec.json.encode({"problem": problem.document()}), problem, repeated)
