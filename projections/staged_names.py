"""The names under which read models' statements read a batch."""

from __future__ import annotations

from typing import Final

from schemas.events import EVENT_TYPES

STAGED_EVENTS: Final = "staged_events"
"""The events of every type, with what all of them have: "offset", partition, event_type and occurred_at.

A statement over these rows does not name the types, so a new type changes nothing of it.
"""


def table_of(event_type: str) -> str:
    """Return the staging table of an event type.

    >>> table_of("genesis.agent.onboarded")
    'staged_agent_onboarded'
    """
    return "staged_" + event_type.partition(".")[2].replace(".", "_")


EVENT_TABLES: Final = frozenset(map(table_of, EVENT_TYPES))
"""The staging table of each event type."""
