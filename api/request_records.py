"""The frame around each request to the API: its answer or its problem, which is counted and logged."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from litestar.types import Receive, Scope, Send
from prometheus_client import Counter

from api.answers import Answer, send_answer
from runtime import metrics
from runtime.clock import Clock
from runtime.log_budget import LogBudget
from runtime.logging import get_logger
from server.bodies import PeerGone, answer_problem
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

    async def answer(
        self, asked: Awaitable[Answer], resource: str, problem_of: Callable[[Exception], Problem], scope: Scope,
        receive: Receive, send: Send,
    ) -> None:  # fmt: skip
        """Send what comes of a request, or the problem that its error is. Who has gone gets nothing."""
        started = time.perf_counter()
        try:
            answer = await asked
        except PeerGone:
            return
        except Exception as error:
            problem = problem_of(error)
            self._note(problem, resource, error)
            self._count(resource, problem.status, started)
            await answer_problem(problem, receive, send)
            return
        self._count(resource, answer.status, started)
        await send_answer(answer, scope, send)

    def _count(self, resource: str, status: int, started: float) -> None:
        """Count an answer to a request that began at a time of `perf_counter`."""
        counter = self._counters.get((resource, status))
        if counter is None:
            labels = {"resource": resource, "status": status}
            counter = self._counters[resource, status] = metrics.API_REQUESTS.labels(**labels)
        counter.inc()
        metrics.API_REQUEST_SECONDS.observe(time.perf_counter() - started)

    def _note(self, problem: Problem, resource: str, error: Exception) -> None:
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
