"""How an application's errors are answered: all of them with problems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.types import ExceptionHandlersMap

from runtime.logging import get_logger
from server.problems import PROBLEM_TYPE, Problem

log = get_logger(__name__)


def error_handlers(elsewhere: Mapping[str, str]) -> ExceptionHandlersMap:
    """Return what answers the errors of an application, all of them with problems.

    `elsewhere`: the first segments of the other listener's paths, with the detail of the 404 that they get here.
    """

    def answer_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
        if error.status_code == 404:
            detail = elsewhere.get(request.scope["path"].lstrip("/").partition("/")[0], "")
            return _answer_problem(request, Problem("not-found", detail))
        return _answer_http(request, error)

    return {Problem: _answer_problem, HTTPException: answer_http, Exception: _answer_unexpected}


def _answer_problem(_request: Request[Any, Any, Any], problem: Problem) -> Response[bytes]:
    headers = {name.decode("ascii"): value.decode("ascii") for name, value in problem.headers}
    return Response(
        problem.body(), status_code=problem.status, headers=headers, media_type=PROBLEM_TYPE.decode("ascii")
    )


def _answer_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Return Litestar's own errors as problems."""
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "GET")
        return _answer_problem(request, Problem("method", headers=((b"allow", allowed.encode("ascii")),)))
    if error.status_code < 500:
        return _answer_problem(request, Problem("malformed-request", error.detail))
    return _answer_unexpected(request, error)


def _answer_unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    log.error("request.failed", path=request.scope["path"], error=type(error).__name__, exc_info=error)
    return _answer_problem(request, Problem("unexpected"))
