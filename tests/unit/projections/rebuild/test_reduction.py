"""What a rebuild leaves out of a chunk: records before they are decoded, and rows before they are staged."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import pytest

from projections.read_model import ReadModel
from projections.rebuild.reduction import last_records, last_rows
from schemas import codec
from schemas.events import Event
from schemas.polars_import import polars as pl
from tests.support.made_models import ACTIVITY, AGENTS, MARKETPLACE, RATINGS, SKILLS
from tests.support.mixed_events import MixedEvents

EVENTS = MixedEvents(2, entities=6).take(200)


def records(events: Sequence[Event], *, known: bool = True) -> pl.DataFrame:
    """Return the records of events, at the offsets that are their indexes."""
    schema = {"offset": pl.Int64, "value": pl.Binary, "entity": pl.Binary}
    rows = [
        (offset, codec.encode(event), event.entity_id.bytes if known else None) for offset, event in enumerate(events)
    ]
    return pl.DataFrame(rows, schema, orient="row")


def kept(models: Sequence[ReadModel], *, known: bool = True) -> list[Event]:
    """Return the events that are decoded."""
    return [EVENTS[offset] for offset in last_records(records(EVENTS, known=known), models)["offset"]]


@pytest.mark.parametrize(
    ("models", "by_entity"),
    [
        ([AGENTS], {"genesis.agent.onboarded", "genesis.agent.available"}),
        ([SKILLS], {"genesis.skill.registered"}),
        ([AGENTS, RATINGS], {"genesis.agent.onboarded", "genesis.agent.available"}),
        ([RATINGS], set()),
        ([AGENTS, ACTIVITY], set()),
    ],
    ids=["agents", "skills", "agents and ratings", "ratings", "agents and activity"],
)
def test_the_last_record_of_an_entity_is_kept_where_no_other_matters_to_any_model(
    models: Sequence[ReadModel], by_entity: set[str]
) -> None:
    """All records of other types are, those too of which another column is in the key."""
    last: dict[tuple[str, UUID], int] = {}
    for offset, event in enumerate(EVENTS):
        last[event.event_type, event.entity_id] = offset
    expected = [
        event
        for offset, event in enumerate(EVENTS)
        if event.event_type not in by_entity or last[event.event_type, event.entity_id] == offset
    ]
    assert kept(models) == expected
    assert (len(expected) < len(EVENTS)) == bool(by_entity)


def test_a_record_of_whose_entity_nothing_is_known_is_kept() -> None:
    """Its value says more once it is decoded."""
    assert kept([AGENTS], known=False) == EVENTS


def test_a_record_that_names_no_schema_is_kept() -> None:
    """Decoding says what is wrong with it."""
    newer = b"\x00\x7f\xff\xff\xff"
    made = pl.DataFrame({"offset": [1, 2, 3], "value": [b"", newer, newer], "entity": [b"a"] * 3})
    assert last_records(made, [AGENTS]).equals(made)


def test_rows_that_do_not_matter_are_not_staged() -> None:
    """Of each key the last row is kept, whatever their order; a table without a key is staged whole, and so is one of
    which another model of the pass reads every row.
    """
    rows = pl.DataFrame({"offset": [5, 1, 3, 2], "agent_id": [b"a", b"a", b"b", b"b"]})
    frames = {"staged_agent_onboarded": rows, "staged_agent_rated": rows}
    reduced = last_rows(frames, [AGENTS])
    assert reduced["staged_agent_onboarded"].rows() == [(3, b"b"), (5, b"a")]
    assert reduced["staged_agent_rated"].equals(rows)
    assert last_rows(frames, [AGENTS, MARKETPLACE])["staged_agent_onboarded"].height == 2
    assert last_rows(frames, [AGENTS, ACTIVITY])["staged_agent_onboarded"].equals(rows)
