"""What is counted and logged of requests to the API."""

from __future__ import annotations

import logging
import time

from prometheus_client import Counter

from runtime import metrics
from runtime.clock import Clock
from runtime.log_budget import LogBudget
from runtime.logging import get_logger
from server.problems import Problem

log = get_logger(__name__)


class RequestRecords:
    """Counts and log lines of a kind of requests, such as `read`. One a process.

    Strangers, readers and our own errors have a budget each, so that nobody keeps an error of ours out of the log.
    """

    def __init__(self, kind: str, clock: Clock) -> None:
        self._kind = kind
        self._clock = clock
        self._counters: dict[tuple[str, int], Counter] = {}
        self._strangers, self._readers, self._errors = LogBudget(), LogBudget(), LogBudget()

    def count(self, resource: str, status: int, started: float) -> None:
        """Count an answer to a request that began at a time of `perf_counter`."""
        counter = self._counters.get((resource, status))
        if counter is None:
            labels = {"resource": resource, "status": status}
            counter = self._counters[resource, status] = metrics.API_REQUESTS.labels(**labels)
        counter.inc()
        metrics.API_REQUEST_SECONDS.observe(time.perf_counter() - started)

    def note(self, problem: Problem, resource: str, error: Exception) -> None:
        """Log a refusal, or a fault of ours with its traceback."""
        if problem.status == 401:
            metrics.API_UNAUTHORIZED.labels(problem.reason).inc()
        unexpected = problem.kind == "unexpected"
        if problem.status >= 500:
            budget, level = self._errors, logging.ERROR if unexpected else logging.WARNING
        elif problem.status == 401:
            budget, level = self._strangers, logging.INFO
        else:
            budget, level = self._readers, logging.INFO
        left_out = budget.consume(self._clock.monotonic_seconds())
        if left_out is not None:
            log.log(
                level,
                f"{self._kind}.failed" if unexpected else f"{self._kind}.refused",
                resource=resource,
                status=problem.status,
                problem=problem.kind,
                reason=problem.reason,
                left_out=left_out,
                exc_info=error if unexpected else None,
            )
