"""Searches of the marketplace: each condition, both orders, and pages that go on where the one before ended."""

from __future__ import annotations

import base64
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
import pytest_asyncio

from database.connector import Database as Connector
from database.connector import connect
from devstack import sql
from entities.errors import SearchRefused
from entities.vocabulary import TEXT_MAX_CHARACTERS
from projections.engine import PartitionProjector
from projections.marketplace.agent_search import PAGE_MAX, SKILLS_MAX, AgentSearch
from projections.marketplace.queries import CURSOR_MAX_CHARACTERS, NEUTRAL_RATING, HireableAgent, hireable_agents
from projections.ratings.queries import PRIOR_RATINGS
from projections.read_model import READ_MODELS
from schemas.entity_states import AgentState, SkillState
from schemas.events import (
    AgentAvailable,
    AgentOnboarded,
    AgentRated,
    EntityAmended,
    EntityRetired,
    Event,
    IndustryDefined,
    JobRoleDefined,
    SkillRegistered,
)
from tests.conftest import Database, SettingsFor
from tests.support import log_rows
from tests.support.batches import TOPIC, WATERMARKS, batch_of
from tests.support.projectors import MakeProjector
from tests.support.services import Services

NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
ADA, BOB, CAT, DAN = (UUID(int=number) for number in range(1, 5))
PYTHON, WELDING, RUST = (UUID(int=number) for number in range(11, 14))
DEVELOPER, WELDER = UUID(int=21), UUID(int=22)
SOFTWARE, METAL = UUID(int=31), UUID(int=32)
ALPHABETS = ("а", "я"), ("α", "ρ"), ("ա", "և")
LETTERS = [chr(code) for first, last in ALPHABETS for code in range(ord(first), ord(last) + 1)]
WORDS = TEXT_MAX_CHARACTERS // 3
"""Of two letters and a space."""
COMPARED = f"""
WITH made AS MATERIALIZED (
    SELECT array_agg(n::text COLLATE "C") AS words, array_agg('w' || n) AS others FROM generate_series(1, {WORDS}) AS n
)
SELECT count(*) FROM made, unnest(words) AS word WHERE word <> ALL (others)
"""


class Events:
    """Makes events, each with an id of its own, and applies them."""

    def __init__(self, projector: PartitionProjector) -> None:
        self._projector = projector
        self._made = 0
        self._token = projector.acquire(WATERMARKS).token
        self._offset = 0

    def project(self, events: Sequence[Event]) -> None:
        """Apply the events in one batch."""
        self._projector.project(batch_of(events, token=self._token, start=self._offset))
        self._offset += len(events)

    def _head(self) -> dict[str, Any]:
        self._made += 1
        return {"event_id": UUID(int=self._made), "occurred_at": NOW}

    def onboarded(self, agent_id: UUID, name: str, *skills: UUID, **profile: UUID) -> Event:
        return AgentOnboarded(**self._head(), agent_id=agent_id, name=name, skill_ids=skills, **profile)

    def available(self, agent_id: UUID, available: bool = True, since: datetime | None = None) -> Event:
        return AgentAvailable(**self._head(), agent_id=agent_id, available=available, available_from=since)

    def rated(self, agent_id: UUID, *ratings: int) -> list[Event]:
        return [AgentRated(**self._head(), agent_id=agent_id, rater_id=DAN, rating=rating) for rating in ratings]

    def retired(self, agent_id: UUID, name: str) -> Event:
        state = AgentState(name=name, skill_ids=(), status="onboarded", available=True)
        return EntityRetired(**self._head(), entity_id=agent_id, entity_type="agent", agent=state)

    def skill(self, skill_id: UUID, name: str, description: str = "") -> Event:
        return SkillRegistered(
            **self._head(), skill_id=skill_id, name=name, description=description, category="technical"
        )

    def amended_skill(self, skill_id: UUID, name: str, description: str = "") -> Event:
        state = SkillState(name=name, description=description, category="technical")
        return EntityAmended(**self._head(), entity_id=skill_id, entity_type="skill", skill=state)

    def job_role(self, job_role_id: UUID, name: str) -> Event:
        return JobRoleDefined(**self._head(), job_role_id=job_role_id, name=name, description="", required_skill_ids=())

    def industry(self, industry_id: UUID, name: str) -> Event:
        return IndustryDefined(**self._head(), industry_id=industry_id, name=name, description="")


@pytest.fixture
def made(projector: PartitionProjector, api: Connector) -> Events:
    return Events(projector)


@pytest_asyncio.fixture(scope="module")
async def three(stack: Services, template_database: str, settings_for: SettingsFor) -> AsyncIterator[Connector]:
    """A database that nobody changes: Ada writes software, Bob welds, Cat does both; Dan was rated, not onboarded."""
    with log_rows.migrated_database(stack, template_database) as database:
        projector = PartitionProjector(database.writer_url, TOPIC, 0, READ_MODELS)
        made = Events(projector)
        made.project(
            [
                made.skill(PYTHON, "Python (computer programming)", "A language, for scripts and services."),
                made.skill(WELDING, "Gas-metal arc welding"),
                made.job_role(DEVELOPER, "web developer"),
                made.job_role(WELDER, "welder"),
                made.industry(SOFTWARE, "Software services"),
                made.onboarded(ADA, "Ada", PYTHON, RUST, job_role_id=DEVELOPER, industry_id=SOFTWARE),
                made.onboarded(BOB, "Bob", WELDING, job_role_id=WELDER, industry_id=METAL),
                made.onboarded(CAT, "Cat", PYTHON, WELDING, job_role_id=DEVELOPER),
                made.available(ADA),
                made.available(BOB, False, NOW + timedelta(days=7)),
                *made.rated(ADA, 5, 5, 4),
                *made.rated(BOB, 1),
                *made.rated(DAN, 5),
            ]
        )
        projector.close()
        connector = connect(settings_for(database), "api")
        yield connector
        await connector.close()


async def names(api: Connector, **conditions: Any) -> list[str]:
    return [agent.name for agent in (await hireable_agents(api, AgentSearch(**conditions))).agents]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, ["Ada", "Bob", "Cat"]),
        ({"industry_id": SOFTWARE}, ["Ada"]),
        ({"job_role_id": DEVELOPER}, ["Ada", "Cat"]),
        ({"job_role_id": DEVELOPER, "industry_id": METAL}, []),
        ({"all_skills": [PYTHON]}, ["Ada", "Cat"]),
        ({"all_skills": [PYTHON, WELDING]}, ["Cat"]),
        ({"all_skills": [PYTHON, PYTHON]}, ["Ada", "Cat"]),
        ({"any_skills": [RUST, WELDING]}, ["Ada", "Bob", "Cat"]),
        ({"any_skills": [RUST], "all_skills": [PYTHON]}, ["Ada"]),
        ({"any_skills": [UUID(int=99)]}, []),
        ({"available_at": NOW}, ["Ada"]),
        ({"available_at": NOW + timedelta(days=7)}, ["Ada", "Bob"]),
        ({"available_at": NOW + timedelta(days=7), "job_role_id": WELDER}, ["Bob"]),
        ({"text": "python"}, ["Ada", "Cat"]),
        ({"text": "PYTHON, programming"}, ["Ada", "Cat"]),
        ({"text": "scripts"}, ["Ada", "Cat"]),
        ({"text": "arc welding"}, ["Bob", "Cat"]),
        ({"text": "python welding"}, []),
        ({"text": "services"}, ["Ada", "Cat"]),
        ({"text": "software"}, ["Ada"]),
        ({"text": "welder"}, ["Bob"]),
        ({"text": "'"}, []),
        ({"text": ""}, []),
        ({"text": "pyth"}, []),
        ({"text": "developer", "all_skills": [WELDING]}, ["Cat"]),
        ({"lowest_rating": 4.0}, ["Ada", "Cat"]),
        ({"lowest_rating": 4.1}, ["Ada"]),
        ({"lowest_rating": 1.0}, ["Ada", "Bob", "Cat"]),
        ({"sort": "rating"}, ["Ada", "Cat", "Bob"]),
        ({"sort": "rating", "all_skills": [WELDING]}, ["Cat", "Bob"]),
    ],
)
async def test_a_condition_leaves_the_agents_for_which_it_holds(
    three: Connector, conditions: dict[str, Any], expected: list[str]
) -> None:
    """By name, or by rating; conditions that are set have to hold together."""
    assert await names(three, **conditions) == expected


async def test_a_row_has_names_and_the_average_of_the_ratings_model(three: Connector) -> None:
    """Ids that the catalogue does not know have no name; an agent without ratings has the mean of all."""
    ada, bob, cat = (await hireable_agents(three, AgentSearch())).agents
    mean = (5 + 5 + 4 + 1 + 5) / 5

    assert (ada.job_role, ada.industry, ada.skills) == (
        "web developer",
        "Software services",
        ["Python (computer programming)"],
    )
    assert (set(ada.skill_ids), ada.status, ada.available) == ({PYTHON, RUST}, "onboarded", True)
    assert (bob.industry_id, bob.industry, bob.available_from) == (METAL, None, NOW + timedelta(days=7))
    assert (cat.industry_id, cat.ratings, cat.available) == (None, 0, None)
    assert ada.bayesian_average == pytest.approx((PRIOR_RATINGS * mean + 14) / (PRIOR_RATINGS + 3))
    assert cat.bayesian_average == pytest.approx(mean)


async def test_without_any_rating_all_are_in_the_middle(made: Events, api: Connector) -> None:
    """Nobody was rated, so nobody is better or worse; an empty marketplace is an empty page."""
    assert (await hireable_agents(api, AgentSearch(sort="rating"))) == ([], None)
    made.project([made.onboarded(ADA, "Ada")])

    (ada,) = (await hireable_agents(api, AgentSearch(lowest_rating=NEUTRAL_RATING))).agents

    assert ada.bayesian_average == NEUTRAL_RATING


async def test_who_is_retired_or_only_heard_of_never_comes(made: Events, api: Connector) -> None:
    """Dan was rated and is available, and nobody has onboarded him; Ada has gone."""
    made.project(
        [
            made.onboarded(ADA, "Ada", PYTHON),
            made.available(ADA),
            made.available(DAN),
            *made.rated(DAN, 5),
            made.onboarded(BOB, "Bob", PYTHON),
        ]
    )
    made.project([made.retired(ADA, "Ada")])

    assert await names(api) == ["Bob"]
    assert await names(api, sort="rating") == ["Bob"]


async def test_a_search_finds_what_an_entry_says_now(made: Events, api: Connector) -> None:
    """Words that a skill has lost find nothing; those that it has got do. So do skills that an agent lost or got."""
    made.project([made.skill(PYTHON, "Snake handling"), made.onboarded(ADA, "Ada", PYTHON, WELDING)])
    made.project([made.amended_skill(PYTHON, "Snake charming"), made.onboarded(ADA, "Ada", PYTHON, RUST)])

    assert [await names(api, text=text) for text in ("handling", "snake", "charming")] == [[], ["Ada"], ["Ada"]]
    assert [await names(api, all_skills=[each]) for each in (PYTHON, WELDING, RUST)] == [["Ada"], [], ["Ada"]]


async def test_a_long_description_costs_less_than_comparing_its_words_with_each_other(
    made: Events, api: Connector, database: Database
) -> None:
    """Whoever may publish could else make batches slow. It has as many words as there is room for, then all others."""
    words = ["".join(pair) for pair in itertools.product(LETTERS, repeat=2)]
    texts = words[:WORDS], words[WORDS : 2 * WORDS]
    made.project([made.skill(PYTHON, "Python", " ".join(texts[0])), made.onboarded(ADA, "Ada", PYTHON)])
    folds, comparisons = [], []
    for turn in range(1, 6):
        amended = made.amended_skill(PYTHON, "Python", " ".join(texts[turn % 2]))
        folds.append(seconds(made.project, [amended]))
        comparisons.append(seconds(sql.execute, database.superuser_url, [COMPARED]))
    assert min(folds) < min(comparisons)
    assert [await names(api, text=each[0]) for each in texts] == [[], ["Ada"]]


def seconds(step: Callable[..., None], *arguments: Any) -> float:
    """Return how long a step took."""
    began = time.perf_counter()
    step(*arguments)
    return time.perf_counter() - began


@pytest.mark.parametrize("sort", ["name", "rating"])
async def test_pages_have_every_agent_once(made: Events, api: Connector, sort: Any) -> None:
    """In the order of the whole, however large the pages are, and where many agents are equal."""
    chance, agents = random.Random(7), [UUID(int=1000 + number) for number in range(23)]
    made.project([made.onboarded(agent, f"agent {chance.randrange(5)}", PYTHON) for agent in agents])
    made.project([rated for agent in agents for rated in made.rated(agent, *chance.choices(range(1, 6), k=2))])
    whole = await hireable_agents(api, AgentSearch(sort=sort))

    for limit in (1, 2, 7, 22, 23, 24):
        assert await all_pages(api, AgentSearch(sort=sort, all_skills=[PYTHON]), limit) == whole.agents

    assert whole.next_cursor is None
    assert sorted(agent.agent_id for agent in whole.agents) == agents
    key = (lambda a: (a.name, a.agent_id)) if sort == "name" else (lambda a: (-a.bayesian_average, a.agent_id))
    assert list(whole.agents) == sorted(whole.agents, key=key)


async def all_pages(api: Connector, search: AgentSearch, limit: int) -> list[HireableAgent]:
    """The agents of all pages, one after another."""
    found, cursor = list[HireableAgent](), None
    while True:
        page = await hireable_agents(api, search, limit=limit, cursor=cursor)
        found += page.agents
        if (cursor := page.next_cursor) is None:
            return found


async def test_ratings_of_others_do_not_move_a_page(
    make_projector: MakeProjector, made: Events, api: Connector
) -> None:
    """Later pages go on with the mean of the first one: what strangers are rated meanwhile changes no order."""
    agents = [UUID(int=1000 + number) for number in range(6)]
    made.project([made.onboarded(agent, "agent") for agent in agents])
    made.project(
        [
            rated
            for agent, many in zip(agents, (0, 1, 2, 9, 20, 3), strict=True)
            for rated in made.rated(agent, *[4] * many)
        ]
    )
    made.project(made.rated(UUID(int=999), *[2] * 30))
    search = AgentSearch(sort="rating")
    whole = (await hireable_agents(api, search)).agents
    first = await hireable_agents(api, search, limit=3)

    made.project(made.rated(UUID(int=998), *[5] * 200))
    second = await hireable_agents(api, search, limit=3, cursor=first.next_cursor)

    assert [*first.agents, *second.agents] == whole
    assert [agent.agent_id for agent in (await hireable_agents(api, search)).agents] != [
        each.agent_id for each in whole
    ]


@pytest.mark.parametrize(
    ("search", "page", "why"),
    [
        (AgentSearch(), {"limit": 0}, "limit must be from 1"),
        (AgentSearch(), {"limit": PAGE_MAX + 1}, "limit must be from 1"),
        (AgentSearch(), {"cursor": "x"}, "cursor"),
        (AgentSearch(), {"cursor": "=" * 3}, "cursor"),
        (AgentSearch(), {"cursor": "A" * (CURSOR_MAX_CHARACTERS + 1)}, "cursor"),
        (AgentSearch(), {"cursor": "é"}, "cursor"),
        (AgentSearch(), {"cursor": ["rating", 3.0, 3.0, str(ADA)]}, "another order"),
        (AgentSearch(sort="rating"), {"cursor": ["rating", 3.0, "a name", str(ADA)]}, "another order"),
        (AgentSearch(), {"cursor": ["name", 99.0, "a name", str(ADA)]}, "another order"),
        (AgentSearch(), {"cursor": ["name", 3.0, "a \x00", str(ADA)]}, "cursor"),
        (AgentSearch(all_skills=[PYTHON] * (SKILLS_MAX + 1)), {}, "all_skills has at most"),
        (AgentSearch(any_skills=[PYTHON] * (SKILLS_MAX + 1)), {}, "any_skills has at most"),
        (AgentSearch(text="a" * 201), {}, "text has at most"),
        (AgentSearch(text="a\x00"), {}, "NUL"),
        (AgentSearch(lowest_rating=5.1), {}, "lowest_rating"),
        (AgentSearch(lowest_rating=float("nan")), {}, "lowest_rating"),
        (AgentSearch(available_at=datetime(2026, 1, 1)), {}, "time zone"),
    ],
)
async def test_a_search_that_can_not_be_run_is_refused(
    three: Connector, search: AgentSearch, page: dict[str, Any], why: str
) -> None:
    """By name, before the database is asked: bounds of pages and lists, and cursors that no search has made."""
    if isinstance(page.get("cursor"), list):
        page = {"cursor": base64.urlsafe_b64encode(msgspec.json.encode(page["cursor"])).decode().rstrip("=")}
    with pytest.raises(SearchRefused, match=why):
        await hireable_agents(three, search, **page)
