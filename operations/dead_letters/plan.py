"""What redriving or skipping would do: how many records of each reason and entity, and what is left out, and why."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from operations.dead_letters.controls import Control
from runtime.errors import PlantError
from runtime.process import shown_bytes

GROUPS_MAX: Final = 10_000
"""Pairs of a reason and an entity that are counted apart; the records of others are one group a reason."""
LEFT_OUT_SHOWN_MAX: Final = 20
TARGET_MAX_CHARACTERS: Final = 200


class Plan:
    """The counts of a plan; it keeps no record."""

    def __init__(self) -> None:
        self.count = 0
        self.left_out = 0
        self.left_out_shown: list[str] = []
        """The first ones, each with its reason."""
        self.topics: set[str] = set()
        self._only: str | None = None
        self._groups: Counter[tuple[str, str | None]] = Counter()

    def add(self, control: Control) -> None:
        """Count a record that gets a control record."""
        group = control.reason, shown_bytes(control.key)
        if group not in self._groups and len(self._groups) >= GROUPS_MAX:
            group = control.reason, "others"
        self._groups[group] += 1
        self.count += 1
        self.topics.add(control.position.topic)
        position = control.position
        self._only = f"{position.topic}/{position.partition}/{position.offset}" if self.count == 1 else None

    def leave_out(self, error: PlantError) -> None:
        """Count a record that can't get one."""
        self.left_out += 1
        if len(self.left_out_shown) < LEFT_OUT_SHOWN_MAX:
            self.left_out_shown.append(f"{error.what} {error.why}".rstrip())

    @property
    def target(self) -> str:
        """What the operator action is about: the record where it is one, else the topics."""
        target = self._only or ", ".join(sorted(self.topics))
        return target if len(target) <= TARGET_MAX_CHARACTERS else f"{target[: TARGET_MAX_CHARACTERS - 1]}…"

    def rows(self) -> list[dict[str, Any]]:
        """Return the counts by reason and key, the largest first."""
        return [
            {"reason": reason, "entity": entity, "records": records}
            for (reason, entity), records in sorted(self._groups.items(), key=lambda group: (-group[1], str(group[0])))
        ]
