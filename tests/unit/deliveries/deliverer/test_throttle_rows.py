"""Until when an endpoint that asked for time gets no attempts, by the ends of its attempts."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from deliveries.attempts import Attempt
from deliveries.deliverer.attempt_records import EndedDelivery
from deliveries.deliverer.throttle_rows import throttle_statements, throttled_until
from deliveries.outcomes import THROTTLE_MIN_SECONDS, AttemptOutcome
from deliveries.schedule import RetryAt
from tests.support.made_deliveries import made_delivery
from tests.support.partition_parts import NOW


def answered(status_code: int, retry_after_seconds: float | None, *, endpoint: int = 1) -> EndedDelivery:
    """Return the end of an attempt that took two seconds."""
    outcome = AttemptOutcome(status_code=status_code, retry_after_seconds=retry_after_seconds)
    return EndedDelivery(
        delivery=made_delivery(endpoint), end=RetryAt(NOW, None, 2), began_at=NOW,
        attempt=Attempt(outcome=outcome, duration_seconds=2.0),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("status_code", "retry_after_seconds", "until"),
    [
        (429, 600.0, NOW + timedelta(seconds=602)),
        (503, THROTTLE_MIN_SECONDS + 1, NOW + timedelta(seconds=3 + THROTTLE_MIN_SECONDS)),
        (503, THROTTLE_MIN_SECONDS, None),
        (503, None, None),
        (500, 600.0, None),
        (204, 600.0, None),
    ],
)
def test_the_time_is_counted_from_the_answer(
    status_code: int, retry_after_seconds: float | None, until: datetime | None
) -> None:
    """Of an answer that throttles; a pause is over before anybody else can own the partition."""
    assert throttled_until(answered(status_code, retry_after_seconds)) == until


def test_what_was_not_attempted_asks_for_nothing() -> None:
    """Nor does what was read from its record."""
    assert throttled_until(EndedDelivery(delivery=made_delivery(), end=RetryAt(NOW, None, 2), began_at=NOW)) is None


def test_an_endpoint_has_one_row_a_round() -> None:
    """With the latest of its times: a statement may not change a row twice."""
    ended = [answered(429, seconds) for seconds in (60.0, 600.0, 6.0)] + [answered(503, 30.0, endpoint=2)]
    (statement,) = throttle_statements(3, ended)
    assert statement.count("::timestamptz)") == 2
    assert (NOW + timedelta(seconds=602)).isoformat() in statement
    assert (NOW + timedelta(seconds=32)).isoformat() in statement
    assert throttle_statements(3, [answered(503, None), answered(204, None)]) == []
