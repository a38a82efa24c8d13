"""The demo's input and its messages, without any service."""

from __future__ import annotations

import doctest
from datetime import UTC, datetime
from itertools import chain, islice

from ingress.payloads import read_cloud_event, read_webhook
from operations.demo import publishing
from operations.demo.catalogue import catalogue
from operations.demo.generation import Population
from operations.demo.messages import Message, catalogue_messages
from schemas import codec
from schemas.events import Event

NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)


def population(run: int = 1, seed: int = 7) -> Population:
    return Population(catalogue(), agents=30, seed=seed, run=run, now=NOW)


def messages_of(made: Population) -> list[Message]:
    return list(chain(made.onboarded(), made.available(), made.judged()))


def event_of(message: Message) -> Event:
    if message.content_type == "application/cloudevents+json":
        return read_cloud_event(message.body, "demo").event
    return read_webhook(message.body, message.event_type, "demo", message.id, "plant/ingress").event


def test_the_catalogue_is_escos_ict_branch() -> None:
    """877 skills and 91 job roles, each with an id of its own; most job roles have skills of the catalogue."""
    found = catalogue()
    assert (len(found.skills), len(found.job_roles)) == (877, 91)
    assert len(found.names()) == 877 + 91
    known = {skill.id for skill in found.skills}
    assert all(set(role.skill_ids) <= known for role in found.job_roles)
    assert sum(len(role.skill_ids) >= 4 for role in found.job_roles) > 70


def test_ingress_takes_every_message() -> None:
    """Every message is an event that can be encoded, of the type it says, with an id of its own."""
    messages = [*catalogue_messages(catalogue()), *messages_of(population())]
    events = [event_of(message) for message in messages]
    assert [event.event_type for event in events] == [message.event_type for message in messages]
    assert len({event.event_id for event in events}) == len(events)
    assert all(codec.encode(event) for event in events)


def test_the_catalogues_messages_are_the_same_bytes_each_time() -> None:
    """A second run's catalogue is a repeat, byte for byte."""
    assert list(catalogue_messages(catalogue())) == list(catalogue_messages(catalogue()))


def test_seed_and_run_number_make_the_agents() -> None:
    """The same two give the same messages; another run or another seed shares no id with them."""
    same, again = messages_of(population()), messages_of(population())
    others = messages_of(population(run=2)) + messages_of(population(seed=8))
    assert same == again
    assert not {message.id for message in same} & {message.id for message in others}


def test_later_ratings_never_end_and_are_new_events_each() -> None:
    """Ingress takes them, and none is a repeat of another or of an earlier rating."""
    made = population()
    earlier = {message.id for message in messages_of(made)}
    later = list(islice(made.more_ratings(NOW), 3 * len(made.agents)))
    assert {event_of(message).event_type for message in later} == {"genesis.agent.rated"}
    assert len({message.id for message in later} - earlier) == len(later)


def test_documentation_runs() -> None:
    """Doctests hold."""
    assert doctest.testmod(publishing).failed == 0
