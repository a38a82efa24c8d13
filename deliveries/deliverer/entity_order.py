"""The order of an entity's deliveries to an endpoint that asks for one: while one is not done, later ones wait for it.

Behind one that is under way they wait in memory. Once that one has to wait, they wait in Postgres, and so does what
comes after them; from there they come one after the other. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from deliveries.deliverer.delivery import Delivery

BEHIND_MAX: Final = 100
"""Deliveries of one entity that wait in memory."""


class EntityOfEndpoint(NamedTuple):
    """An endpoint and an entity, by the 16 bytes of their ids."""

    endpoint_id: bytes
    entity_id: bytes


class EntityOrder:
    """The entities of one partition's endpoints that have a delivery under way, or some that wait."""

    def __init__(self, stored: Iterable[EntityOfEndpoint]) -> None:
        """Begin with the entities of which deliveries wait in Postgres."""
        self._in_rows = set(stored)
        self._going: dict[EntityOfEndpoint, deque[Delivery]] = {}

    def is_going(self, held: EntityOfEndpoint) -> bool:
        """Return whether a delivery of an entity is under way."""
        return held in self._going

    def enter(self, delivery: Delivery) -> Literal["go", "behind", "row"]:
        """Return what a new delivery does: it goes, or waits in memory, or in a row."""
        held = held_by(delivery)
        if held in self._in_rows:
            return "row"
        behind = self._going.get(held)
        if behind is None:
            self._going[held] = deque()
            return "go"
        if len(behind) >= BEHIND_MAX:
            self._in_rows.add(held)
            return "row"
        behind.append(delivery)
        return "behind"

    def resume(self, delivery: Delivery) -> bool:
        """Return whether a delivery that has waited goes on; behind one that is under way it waits in memory.

        That one may be an earlier event's, which was redriven meanwhile.
        """
        behind = self._going.get(held_by(delivery))
        if behind is None:
            self._going[held_by(delivery)] = deque()
            return True
        behind.append(delivery)
        return False

    def wait(self, delivery: Delivery) -> list[Delivery]:
        """Note that the delivery under way has to wait; return those behind it, which go into rows."""
        held = held_by(delivery)
        self._in_rows.add(held)
        return list(self._going.pop(held, ()))

    def end(self, delivery: Delivery) -> Delivery | None:
        """Note that the delivery under way is done; return the next one, which goes, if it is in memory."""
        held = held_by(delivery)
        behind = self._going.get(held)
        if behind:
            return behind.popleft()
        self._going.pop(held, None)
        return None

    def has_rows(self, held: EntityOfEndpoint) -> bool:
        """Return whether deliveries of an entity may wait in rows."""
        return held in self._in_rows

    def note_empty(self, empty: Iterable[EntityOfEndpoint]) -> None:
        """Note that no delivery of these entities waits in a row."""
        self._in_rows.difference_update(empty)


def held_by(delivery: Delivery) -> EntityOfEndpoint:
    """Return what a delivery's later ones wait for."""
    return EntityOfEndpoint(delivery.endpoint_id, delivery.entity_id)
