"""How an endpoint does, as `plant endpoints show` prints it: its failures, what waits, and what is blocked."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from deliveries.delivery_progress import EndpointProgress
    from deliveries.failure_streak import StreakPolicy
    from operations.cli.listing import Output
    from runtime.settings import Settings


async def read_progress(settings: Settings, endpoint_id: UUID, output: Output) -> dict[str, object]:
    """Return the fields about it; a table has texts alone. Its breaker is known to its deliverer alone."""
    from database.connector import connect
    from deliveries.delivery_progress import endpoint_progress
    from deliveries.failure_streak import make_streak_policy

    database = connect(settings, "operator")
    try:
        progress = await endpoint_progress(database, endpoint_id)
    finally:
        await database.close()
    return progress_fields(progress, make_streak_policy(settings), datetime.now(UTC), output)


def progress_fields(
    progress: EndpointProgress, policy: StreakPolicy | None, now: datetime, output: Output
) -> dict[str, object]:
    """Return an endpoint's progress as fields: how far it is on the way to disabling, and what waits for it."""
    import msgspec

    from deliveries.failure_streak import FailureStreak, percent_of

    streak = progress.streak or FailureStreak()
    percent = None if policy is None else min(100, int(percent_of(streak, policy, now)))
    fields: dict[str, object] = {
        "failing_since": streak.began_at,
        "failed_attempts": streak.attempts,
        "percent_to_disabling": percent,
        "warned_percent": streak.warned_percent or None,
        "throttled_until": progress.throttled_until,
        "waiting_deliveries": progress.waiting,
        "next_attempt_at": progress.next_at,
        "blocked_entities": [msgspec.structs.asdict(each) for each in progress.blocked],
    }
    if output == "table":
        fields["blocked_entities"] = ", ".join(
            f"{each.entity_id}: {each.behind} behind the dead letter {each.delivery_id}" for each in progress.blocked
        )
    return fields
