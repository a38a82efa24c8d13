"""Catching up on a topic with one poison record in a thousand, next to one without, by turns.

Both topics hold the same events in the same order. By turns a poison record is one that can't be read (its last byte is
missing) and one over a limit (a rating of nine stars). Either parks its entity, so that the entity's later events wait.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterator

import msgspec

from benchmarks import catch_up
from benchmarks.stage import PARTITIONS, Stage
from devstack.stack import Stack
from runtime.settings import Settings, load_settings
from schemas import codec
from schemas.events import AgentRated, Event
from streams import topics
from tests.support.load import events_of_all_models, fill_values
from tests.support.made_events import unchecked_value

CLEAN, POISONED = "genesis.events", "genesis.events-2"
EVERY = 1_000
"""One record in so many is poison."""
STARS = 9
TURNS = 3
VARIANT = "five models"
COUNTS = """
SELECT count(*) FILTER (WHERE disposition = 'poison') AS poison,
    count(*) FILTER (WHERE disposition = 'parked') AS parked,
    count(DISTINCT entity_id) FILTER (WHERE disposition = 'poison') AS entities
FROM log_records
"""


def run(stack: Stack, count: int) -> list[dict[str, object]]:
    """Measure both topics, by turns, after a pass that does not count; the second row has its ratio to the first."""
    stack.down(delete_data=True)
    stack.up()
    _fill(stack, count)
    catch_up.plant(stack, VARIANT, count, CLEAN)
    turns: dict[str, list[dict[str, object]]] = {CLEAN: [], POISONED: []}
    for _ in range(TURNS):
        for topic, measured in turns.items():
            measured.append(_turn(stack, count, topic))
    rows = [_row(measured) for measured in turns.values()]
    clean, poisoned = (float(str(row["events_per_second"])) for row in rows)
    rows[1]["percent_of_the_rate_without"] = round(100 * poisoned / clean, 1)
    return rows


def _turn(stack: Stack, count: int, topic: str) -> dict[str, object]:
    """Catch up once. Raises RuntimeError where the log has another number of poison records than were written."""
    found: dict[str, object] = {}

    def check(stage: Stage) -> None:
        poison, parked, entities = stage.query(COUNTS)[0]
        if poison != (count // EVERY if topic == POISONED else 0):
            raise RuntimeError(f"{poison} records of {topic} are poison")
        found.update(poison=poison, parked=parked, parked_entities=entities)

    measured = catch_up.plant(stack, VARIANT, count, topic, check)
    return {**measured, **found}


def _row(turns: list[dict[str, object]]) -> dict[str, object]:
    """Return the median turn, and the rates of all."""
    rates = [round(float(str(turn["events_per_second"]))) for turn in turns]
    middle = turns[rates.index(statistics.median_low(rates))]
    name = f"catching up, {middle['poison']} poison records, {middle['parked']} events parked"
    return {**middle, "name": name, "events_per_second_of_turns": rates}


def _fill(stack: Stack, count: int) -> None:
    settings = load_settings({**stack.environ, "PLANT_TOPIC_PARTITIONS": str(PARTITIONS)})
    for topic in (CLEAN, POISONED):
        made = msgspec.structs.replace(topics.CATALOGUE[0], name=topic)
        asyncio.run(topics.apply(settings, catalogue=(made, *topics.CATALOGUE[1:])))
        _fill_topic(settings, topic, count)


def _fill_topic(settings: Settings, topic: str, count: int) -> None:
    load = events_of_all_models(count, agents=catch_up.AGENTS)
    good = ((event, codec.encode(event)) for event in load)
    fill_values(settings, topic, good if topic == CLEAN else _spoilt(load))


def _spoilt(load: Iterator[Event]) -> Iterator[tuple[Event, bytes]]:
    """Yield events with their values, of which one in a thousand is poison."""
    for number, event in enumerate(load):
        if number % EVERY != EVERY // 2:
            yield event, codec.encode(event)
        elif number // EVERY % 2:
            yield event, codec.encode(event)[:-1]
        else:
            yield event, _over_a_limit(event)


def _over_a_limit(event: Event) -> bytes:
    fields = {"event_id": event.event_id, "agent_id": event.entity_id, "occurred_at": event.occurred_at}
    fields |= {"rater_id": event.entity_id, "rating": STARS, "skill_id": None}
    return unchecked_value(AgentRated, fields)
