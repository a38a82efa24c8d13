"""The reference page of events."""

from __future__ import annotations

from operations.reference.events import REFERENCE_FILE, events_page
from schemas.control import CONTROL_TYPES
from schemas.events import EVENT_TYPES


def test_the_reference_page_is_that_of_the_structs() -> None:
    """docs/reference/events.md is what `plant schemas docs` writes."""
    assert REFERENCE_FILE.read_text("utf-8") == events_page()


def test_the_page_names_every_event_and_its_limits() -> None:
    """Types, keys, limits and a body are on the page, and so are control records."""
    page = events_page()
    assert all(f"## {name}\n" in page for name in EVENT_TYPES)
    assert all(f"### {name}\n" in page for name in CONTROL_TYPES)
    assert "| `rating` | integer | 1 to 5 |" in page
    assert "| `seniority` | text, may be left out | `junior`, `mid`, `senior` |" in page
    assert "| `agent` | [AgentState](#agentstate), may be left out |" in page
