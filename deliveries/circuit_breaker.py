"""The circuit breaker of an endpoint: it keeps attempts from an endpoint that fails. Pure; the time is given.

    closed      attempts pass. Opens when, over the window, enough of them ended and too large a share of them failed.
    open        no attempt passes, for a time that doubles with each opening up to a bound.
    half-open   a bounded number of probes pass. A success closes the breaker, a failure opens it again.

Each attempt asks `admit` before it, and its end goes to `record_end` with the permit that it got, whatever came of it.
The window moves by buckets of time, so memory is bounded whatever the rate. Times are monotonic seconds.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, assert_never

import msgspec

BreakerState = Literal["closed", "open", "half_open"]
Permit = Literal["ordinary", "probe"]
AttemptEnd = Literal["success", "failure", "abandoned"]
"""`abandoned`: it was given up by us, so it tells nothing of the endpoint."""

OPENINGS_MAX: Final = 64
"""Openings without a success are counted up to here: the time has reached its bound long before."""


class BreakerPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When a breaker opens, for how long, and how many probes it lets pass."""

    bucket_seconds: float = 5.0
    buckets: int = 12
    attempts_min: int = 5
    """Attempts that must have ended in the window before a share of them counts."""
    failure_share: float = 0.5
    open_seconds: float = 5.0
    open_max_seconds: float = 300.0
    probes_max: int = 1


class WindowBucket(msgspec.Struct, frozen=True):
    """The attempts that ended in one piece of the window; `number` counts the pieces of all time."""

    number: int
    attempts: int
    failures: int


class CircuitBreaker(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one endpoint's breaker. A new one is closed."""

    state: BreakerState = "closed"
    window: tuple[WindowBucket, ...] = ()
    """While closed: the oldest bucket first, only those in which an attempt ended."""
    open_until_seconds: float = 0.0
    openings: int = 0
    """Openings since the last success of a probe."""
    probes: int = 0
    """Probes under way, of former half-open times too."""


class Admitted(msgspec.Struct, frozen=True):
    """The attempt may be made."""

    permit: Permit


class NotAdmitted(msgspec.Struct, frozen=True):
    """The attempt has to wait, which is no attempt."""

    wait_seconds: float


Admission: TypeAlias = Admitted | NotAdmitted


def admit(breaker: CircuitBreaker, policy: BreakerPolicy, now_seconds: float) -> tuple[CircuitBreaker, Admission]:
    """Return whether an attempt may be made, and the breaker after it.

    >>> policy = BreakerPolicy(attempts_min=1)
    >>> opened = record_end(CircuitBreaker(), policy, "ordinary", "failure", now_seconds=0.0)
    >>> admit(opened, policy, now_seconds=1.0)[1]
    NotAdmitted(wait_seconds=4.0)
    >>> half_open, admission = admit(opened, policy, now_seconds=5.0)
    >>> half_open.state, admission, admit(half_open, policy, now_seconds=5.0)[1]
    ('half_open', Admitted(permit='probe'), NotAdmitted(wait_seconds=5.0))
    """
    match breaker.state:
        case "closed":
            return breaker, Admitted("ordinary")
        case "open":
            wait_seconds = breaker.open_until_seconds - now_seconds
            if wait_seconds > 0:
                return breaker, NotAdmitted(wait_seconds)
        case "half_open":
            pass
        case _:
            assert_never(breaker.state)
    if breaker.probes >= policy.probes_max:
        return breaker, NotAdmitted(policy.open_seconds)
    return msgspec.structs.replace(breaker, state="half_open", probes=breaker.probes + 1), Admitted("probe")


def record_end(
    breaker: CircuitBreaker, policy: BreakerPolicy, permit: Permit, end: AttemptEnd, now_seconds: float
) -> CircuitBreaker:
    """Return the breaker after an attempt ended that had this permit.

    While it is half-open, probes alone decide; while it is open, nothing does: an attempt that began before it opened
    tells of the time before.
    """
    if permit == "probe":
        breaker = msgspec.structs.replace(breaker, probes=max(0, breaker.probes - 1))
    if end == "abandoned":
        return breaker
    match breaker.state:
        case "closed":
            return _count(breaker, policy, end == "failure", now_seconds)
        case "open":
            return breaker
        case "half_open":
            if permit == "ordinary":
                return breaker
            return CircuitBreaker(probes=breaker.probes) if end == "success" else _open(breaker, policy, now_seconds)
        case _:
            assert_never(breaker.state)


def breaker_state(breaker: CircuitBreaker, now_seconds: float) -> BreakerState:
    """Return a breaker's state as people are shown it: open until its time is over, half-open after it."""
    if breaker.state == "open" and now_seconds >= breaker.open_until_seconds:
        return "half_open"
    return breaker.state


def _count(breaker: CircuitBreaker, policy: BreakerPolicy, failed: bool, now_seconds: float) -> CircuitBreaker:
    """Return a closed breaker with one more ended attempt in its window, opened if that is one failure too many."""
    number = int(now_seconds // policy.bucket_seconds)
    window = [bucket for bucket in breaker.window if bucket.number > number - policy.buckets]
    attempts, failures = 1, int(failed)
    if window and window[-1].number >= number:  # a clock that went back adds to the newest
        newest = window.pop()
        number, attempts, failures = newest.number, newest.attempts + attempts, newest.failures + failures
    window.append(WindowBucket(number, attempts, failures))
    ended = sum(bucket.attempts for bucket in window)
    if (
        failed
        and ended >= policy.attempts_min
        and sum(bucket.failures for bucket in window) >= policy.failure_share * ended
    ):
        return _open(breaker, policy, now_seconds)
    return msgspec.structs.replace(breaker, window=tuple(window))


def _open(breaker: CircuitBreaker, policy: BreakerPolicy, now_seconds: float) -> CircuitBreaker:
    """Return a breaker that is open for open_seconds * 2^(openings before), at most open_max_seconds."""
    open_seconds = min(policy.open_seconds * 2**breaker.openings, policy.open_max_seconds)
    return CircuitBreaker(
        state="open",
        open_until_seconds=now_seconds + open_seconds,
        openings=min(breaker.openings + 1, OPENINGS_MAX),
        probes=breaker.probes,
    )
