"""The failure streaks of a partition's endpoints, and what a round has to write of them. Pure.

An endpoint without a failure since its last success is not in here, and nothing is written for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

from deliveries.deliverer.attempt_records import EndedDelivery
from deliveries.failure_streak import (
    FailureStreak,
    FailureWarning,
    StreakChange,
    StreakPolicy,
    extend_streak,
)
from deliveries.schedule import DeadLettered, Delivered, RetryAt
from schemas.endpoint_events import ENDPOINT_EVENT_PREFIX

DISABLING_PERCENT: Final = 100


class EndpointStreak(NamedTuple):
    """A streak, and when its endpoint had last been enabled as it began: enabling ends it."""

    streak: FailureStreak
    enabled_at: datetime | None


class EndpointChange(NamedTuple):
    """Something that operators and subscribers are told of an endpoint."""

    endpoint_id: bytes
    enabled_at: datetime | None
    failing_since: datetime
    change: StreakChange

    @property
    def disables(self) -> bool:
        """Whether the endpoint is to be disabled."""
        return isinstance(self.change, FailureWarning) and self.change.percent >= DISABLING_PERCENT

    @property
    def why(self) -> str:
        """Why it is disabled."""
        return f"No attempt has succeeded since {self.failing_since.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}."


class StreakChanges(msgspec.Struct, frozen=True, kw_only=True):
    """What a round writes of streaks."""

    kept: Mapping[bytes, EndpointStreak] = {}
    ended: Sequence[bytes] = ()
    notes: Sequence[EndpointChange] = ()

    def __bool__(self) -> bool:
        return bool(self.kept or self.ended or self.notes)

    @property
    def disabled(self) -> list[bytes]:
        """The endpoints that are to be disabled."""
        return [each.endpoint_id for each in self.notes if each.disables]


NO_CHANGES: Final = StreakChanges()


class EndpointStreaks:
    """The streaks of one partition. Begins with those that are stored."""

    def __init__(self, policy: StreakPolicy | None, stored: Mapping[bytes, EndpointStreak]) -> None:
        """Without a policy no endpoint is warned or disabled."""
        self._policy = policy
        self._stored = dict(stored)
        self._now = dict(stored)
        self._touched: set[bytes] = set()
        self._notes: list[EndpointChange] = []

    def note(self, ended: EndedDelivery, enabled_at: datetime | None) -> None:
        """Take in how a delivery's attempt ended, if that counts; `enabled_at` is the endpoint's, as it is known."""
        succeeded = succeeded_of(ended)
        endpoint_id = ended.delivery.endpoint_id
        kept = self._now.get(endpoint_id)
        if succeeded is None or self._policy is None or (succeeded and kept is None):
            return
        streak = kept.streak if kept is not None and kept.enabled_at == enabled_at else FailureStreak()
        extended, changes = extend_streak(streak, self._policy, succeeded=succeeded, now=ended.began_at)
        since = streak.began_at or extended.began_at
        if since is not None:
            self._notes += [EndpointChange(endpoint_id, enabled_at, since, each) for each in changes]
        if extended.began_at is None:
            self._now.pop(endpoint_id, None)
        else:
            self._now[endpoint_id] = EndpointStreak(extended, enabled_at)
        self._touched.add(endpoint_id)

    def take_changes(self) -> StreakChanges:
        """Return what is to be written, once: it counts as stored from then on."""
        if not self._touched:
            return NO_CHANGES
        touched, self._touched = sorted(self._touched), set()
        notes, self._notes = self._notes, []
        kept: dict[bytes, EndpointStreak] = {}
        ended = []
        for endpoint_id in touched:
            now, stored = self._now.get(endpoint_id), self._stored.get(endpoint_id)
            if now is None:
                if self._stored.pop(endpoint_id, None) is not None:
                    ended.append(endpoint_id)
            elif now != stored:
                kept[endpoint_id] = self._stored[endpoint_id] = now
        return StreakChanges(kept=kept, ended=ended, notes=notes)


def succeeded_of(ended: EndedDelivery) -> bool | None:
    """Return whether an endpoint took a delivery; None where that says nothing of it.

    Waits, what could not be attempted, and deliveries that tell of endpoints count for nothing: two endpoints that get
    each other's events would disable one another. A 410 disables by itself.
    """
    if ended.delivery.type.startswith(ENDPOINT_EVENT_PREFIX):
        return None
    match ended.end:
        case Delivered():
            return True
        case RetryAt() | DeadLettered():
            return False
        case _:
            return None
