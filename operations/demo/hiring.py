"""The demo's search of the marketplace: who can be hired now for a skill or a similar one."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from database.connector import Database
from entities.ngram_embedder import NgramEmbedder
from operations.demo.catalogue import catalogue
from operations.demo.errors import NotAsPromised
from operations.demo.generation import DemoAgent
from operations.demo.outcome import HireableRow, MarketplacePart
from projections.marketplace.agent_search import AgentSearch
from projections.marketplace.queries import HireableAgent, hireable_agents
from projections.marketplace.skill_embeddings import similar_skills

SHOWN: Final = 5
SIMILAR_SKILLS: Final = 3


def wanted_skill(agents: tuple[DemoAgent, ...]) -> UUID:
    """Return the skill that most of these agents have; of equals the one with the lowest id."""
    counts = Counter(skill_id for agent in agents for skill_id in agent.skill_ids)
    return min(counts, key=lambda skill_id: (-counts[skill_id], skill_id))


async def search_marketplace(database: Database, agents: tuple[DemoAgent, ...]) -> MarketplacePart:
    """Return the best agents that are available and have a skill or a similar one, as readers see them.

    The skill is one that most of a run's agents have. Raises NotAsPromised where nobody is found.
    """
    skill_id = wanted_skill(agents)
    skill = catalogue().names()[skill_id]
    similar = await similar_skills(database, NgramEmbedder(), skill_id, limit=SIMILAR_SKILLS)
    wanted = [skill_id, *(each.skill_id for each in similar)]
    search = AgentSearch(any_skills=wanted, available_at=datetime.now(UTC), sort="rating")
    page = await hireable_agents(database, search, limit=SHOWN)
    if not similar or not page.agents:
        raise NotAsPromised("Nobody can be hired.", why=f"The marketplace has nobody available with {skill}.")
    names = {skill, *(each.name for each in similar)}
    return MarketplacePart(
        skill=skill, similar_skills=[each.name for each in similar], rows=[_row(agent, names) for agent in page.agents]
    )


def _row(agent: HireableAgent, wanted: set[str]) -> HireableRow:
    return HireableRow(
        agent_id=agent.agent_id,
        agent=agent.name,
        job_role=agent.job_role or "",
        skills=sorted(wanted.intersection(agent.skills)),
        ratings=agent.ratings,
        bayesian_average=round(agent.bayesian_average, 2),
    )
