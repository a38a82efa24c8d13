"""The queries of read models: what they compute from the rows, for a moment that the caller names."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from database.connector import Database as Connector
from projections.activity.queries import activity
from projections.engine import PartitionProjector
from projections.ratings.queries import PRIOR_RATINGS, ratings
from projections.skills.queries import agent_validations, skills
from schemas.entity_states import SkillState
from schemas.events import NIL_ID, AgentRated, EntityRetired, Event, SkillRegistered, SkillValidated
from tests.support.batches import WATERMARKS, batch_of
from tests.support.projectors import MakeProjector

NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
AGENT, OTHER, SKILL, SECOND, VALIDATOR = (UUID(int=number) for number in range(1, 6))


def project(projector: PartitionProjector, events: Sequence[Event]) -> None:
    """Apply the events in one batch, each under an id of its own."""
    projector.project(batch_of(events, token=projector.acquire(WATERMARKS).token))


def rated(number: int, rating: int, days_ago: int, skill_id: UUID | None = None, agent_id: UUID = AGENT) -> AgentRated:
    return AgentRated(
        event_id=UUID(int=number), agent_id=agent_id, occurred_at=NOW - timedelta(days=days_ago),
        rater_id=VALIDATOR, rating=rating, skill_id=skill_id,
    )  # fmt: skip


async def test_means_are_computed_when_they_are_read(projector: PartitionProjector, api: Connector) -> None:
    """All ratings of an agent, then those of it as a whole, then those of a skill; 90 days back and no day more."""
    project(
        projector,
        [
            rated(1, 5, 0), rated(2, 1, 90), rated(3, 2, 89, SKILL), rated(4, 4, -1, SKILL), rated(5, 3, 0, None, OTHER)
        ],
    )  # fmt: skip

    overall, whole, skill = await ratings(api, AGENT, NOW)

    assert (overall.overall, whole.overall, skill.overall) == (True, False, False)
    assert (overall.skill_id, whole.skill_id, skill.skill_id) == (None, None, SKILL)
    assert (overall.ratings, overall.rating_sum, overall.histogram) == (4, 12, [1, 1, 0, 1, 1])
    assert (overall.mean, whole.mean, skill.mean) == (3.0, 3.0, 3.0)
    assert (overall.recent_ratings, overall.recent_mean) == (2, 3.5)
    assert (whole.recent_ratings, skill.recent_mean) == (1, 2.0)
    assert overall.bayesian_average == (PRIOR_RATINGS * 3.0 + 12) / (PRIOR_RATINGS + 4)
    assert await ratings(api, UUID(int=99), NOW) == []


async def test_a_rating_of_the_nil_skill_is_one_of_the_agent_as_a_whole(
    projector: PartitionProjector, api: Connector
) -> None:
    """The nil id names nothing: such a record is judged, and counted, as one without a skill."""
    project(projector, [rated(1, 5, 0), rated(2, 3, 0, NIL_ID)])

    overall, whole = await ratings(api, AGENT, NOW)

    assert (overall.overall, overall.ratings) == (True, 2)
    assert (whole.overall, whole.skill_id, whole.ratings, whole.rating_sum) == (False, None, 2, 8)


async def test_a_bayesian_average_begins_at_the_mean_of_all_partitions(
    make_projector: MakeProjector, api: Connector
) -> None:
    """The ratings of other agents on other partitions count for what one rating is worth."""
    project(make_projector(0), [rated(1, 5, 0)])
    project(make_projector(1), [rated(number, 1, 0, None, OTHER) for number in range(2, 5)])

    overall, _ = await ratings(api, AGENT, NOW)

    assert overall.bayesian_average == pytest.approx((PRIOR_RATINGS * 2.0 + 5) / (PRIOR_RATINGS + 1))
    assert overall.mean == 5.0


async def test_ratings_that_are_not_recent_have_no_recent_mean(projector: PartitionProjector, api: Connector) -> None:
    """No division by nothing."""
    project(projector, [rated(1, 5, 400)])

    overall, _ = await ratings(api, AGENT, NOW)

    assert (overall.recent_ratings, overall.recent_mean) == (0, None)


def validated(number: int, moment: datetime, skill_id: UUID = SKILL, agent_id: UUID | None = None) -> SkillValidated:
    return SkillValidated(
        event_id=UUID(int=number), skill_id=skill_id, occurred_at=moment, agent_id=agent_id, validator_id=VALIDATOR,
        score=number,
    )  # fmt: skip


async def test_a_validation_holds_as_long_as_the_reader_says(projector: PartitionProjector, api: Connector) -> None:
    """To the microsecond: it has expired when its days are over. A skill that nobody tested is not expired."""
    state = SkillState(name="a skill", description="", category="technical")
    since = NOW - timedelta(days=30)
    project(
        projector,
        [
            SkillRegistered(
                event_id=UUID(int=1), skill_id=SKILL, occurred_at=since, name="b", description="", category="technical"
            ),
            validated(2, since),
            EntityRetired(event_id=UUID(int=3), entity_id=SECOND, occurred_at=since, entity_type="skill", skill=state),
        ],
    )

    for days, expected in ((31, "validated"), (30, "expired")):
        second, first = await skills(api, [SKILL, SECOND, UUID(int=99)], NOW, days)
        assert (second.skill_id, second.name, second.status) == (SECOND, "a skill", "retired")
        assert (second.validation, second.expires_at) == ("unvalidated", None)
        assert (first.name, first.status, first.validation) == ("b", "registered", expected)
        assert (first.score, first.validator_id, first.expires_at) == (2, VALIDATOR, since + timedelta(days=days))


async def test_validations_of_agents_are_theirs_alone(projector: PartitionProjector, api: Connector) -> None:
    """Those of an agent's skills are found by agent and skill, say nothing of the skill, and may be of any year."""
    last_moment = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    project(
        projector,
        [validated(1, NOW, SKILL, AGENT), validated(2, last_moment, SECOND, AGENT), validated(3, NOW, SKILL, OTHER)],
    )

    first, second = await agent_validations(api, AGENT, [SKILL, SECOND, UUID(int=99)], NOW)

    assert (first.skill_id, first.score, first.validation) == (SKILL, 1, "validated")
    assert (second.skill_id, second.expires_at) == (SECOND, last_moment)
    assert [(row.name, row.status, row.validation) for row in await skills(api, [SKILL], NOW)] == [
        (None, None, "unvalidated")
    ]


async def test_activity_adds_the_partitions_up(make_projector: MakeProjector, api: Connector) -> None:
    """Whole hours between two moments, in order, by the events' own time."""
    moment = NOW + timedelta(minutes=59)
    project(make_projector(0), [rated(1, 1, 0), validated(2, moment), validated(3, moment + timedelta(minutes=1))])
    project(make_projector(1), [rated(4, 1, 0, None, OTHER), rated(5, 1, 1)])

    rows = await activity(api, NOW, NOW + timedelta(hours=1))

    expected = [(NOW, "genesis.agent.rated", 2), (NOW, "genesis.skill.validated", 1)]
    assert [tuple(row) for row in rows] == expected
