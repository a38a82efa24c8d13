"""Refused requests and events: a log line for each, within budgets, and a count by producer.

Strangers, producers and our own errors have a budget each, so that nobody who may send bad requests can keep an error
of ours out of the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from runtime import metrics
from runtime.clock import Clock
from runtime.log_budget import LogBudget
from runtime.logging import get_logger
from server.problems import Problem

log = get_logger(__name__)

COUNTED: Final = frozenset({401, 403, 409, 422, 429})
NUMBERS_SHOWN: Final = 10


class Origin(NamedTuple):
    """The origin of a request: its route, its message id, and its producer, as it was verified or as it says."""

    route: str
    message_id: str = ""
    producer: str = ""
    verified: bool = False


class Refusals:
    """The log and the counts of refusals. One a process."""

    def __init__(self, clock: Clock, is_known: Callable[[str], bool]) -> None:
        """`is_known` returns whether a producer has a key: the names of others are neither logged nor counted."""
        self._clock = clock
        self._is_known = is_known
        self._strangers, self._producers, self._errors = LogBudget(), LogBudget(), LogBudget()

    def request(self, problem: Problem, origin: Origin, duration_ms: float) -> None:
        """Log and count a request that was answered with a problem."""
        producer = self._producer(origin)
        _count(producer, problem.status, 1)
        level = _level(problem, origin)
        left_out = self._budget(problem, origin).consume(self._now()) if level > logging.DEBUG else 0
        if left_out is not None:
            log.log(
                level,
                "webhook.refused",
                route=origin.route,
                status=problem.status,
                problem=problem.kind,
                reason=problem.reason,
                producer=producer,
                verified=origin.verified,
                message_id=origin.message_id,
                left_out=left_out,
                duration_ms=duration_ms,
            )

    def events(self, refused: Sequence[tuple[int, Problem]], origin: Origin) -> None:
        """Log and count events of a batch, or lines of a bulk load, by their numbers; one line for all of them."""
        if not refused:
            return
        for _, problem in refused:
            _count(origin.producer, problem.status, 1)
        _, first = refused[0]
        left_out = self._budget(first, origin).consume(self._now())
        if left_out is not None:
            log.log(
                _level(first, origin),
                "events.refused",
                route=origin.route,
                producer=origin.producer,
                message_id=origin.message_id,
                refused=len(refused),
                numbers=[number for number, _ in refused[:NUMBERS_SHOWN]],
                status=first.status,
                problem=first.kind,
                reason=first.reason,
                left_out=left_out,
            )

    def unexpected(self, error: Exception, origin: Origin) -> None:
        """Log an error of ours with its traceback, within the budget of those."""
        left_out = self._errors.consume(self._now())
        if left_out is not None:
            kind = type(error).__name__
            log.error("webhook.failed", route=origin.route, error=kind, left_out=left_out, exc_info=error)

    def _producer(self, origin: Origin) -> str:
        return origin.producer if origin.verified or self._is_known(origin.producer) else ""

    def _budget(self, problem: Problem, origin: Origin) -> LogBudget:
        if problem.status == 500 or (problem.status > 500 and origin.verified):
            return self._errors
        return self._producers if origin.verified else self._strangers

    def _now(self) -> float:
        return self._clock.monotonic_seconds()


def _count(producer: str, status: int, events: int) -> None:
    if status in COUNTED:
        metrics.INGRESS_REFUSALS.labels(producer=producer, status=status).inc(events)


def _level(problem: Problem, origin: Origin) -> int:
    """Return warning for what an operator should see, info for what a producer does, debug for what anybody can."""
    if problem.status >= 500 or problem.status == 401:
        return logging.WARNING
    return logging.INFO if origin.verified else logging.DEBUG
