"""The demo's made-up part: agents with job roles and skills of ESCO, their availability, ratings and validations.

No public data says such things of agents, so they are generated, and everything that shows them says so. The same
seed and run number give the same agents.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import cycle
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec

from operations.demo.catalogue import DemoCatalogue
from operations.demo.messages import Message, webhook

SKILLS_MIN: Final = 4
SKILLS_MAX: Final = 12
AVAILABLE_SHARE: Final = 0.8
RATINGS_MAX: Final = 4
RATINGS: Final = (1, 2, 3, 4, 5)
RATING_WEIGHTS: Final = (1, 2, 4, 6, 4)
VALIDATIONS_MAX: Final = 3


class DemoAgent(msgspec.Struct, frozen=True):
    """An agent that does not exist; never a person."""

    id: UUID
    name: str
    job_role_id: UUID
    skill_ids: tuple[UUID, ...]


class Population:
    """The agents of one run, and what happens to them. Each kind of event must be sent before the next."""

    def __init__(self, catalogue: DemoCatalogue, *, agents: int, seed: int, run: int, now: datetime) -> None:
        self._random = random.Random(f"{seed}/{run}")  # noqa: S311 (made-up data, no secret)
        self._prefix = f"demo/{seed}/{run}"
        self._now = now
        roles = [role for role in catalogue.job_roles if len(role.skill_ids) >= SKILLS_MIN]
        self.agents = tuple(self._agent(number, roles, run) for number in range(1, agents + 1))

    def _agent(self, number: int, roles: list[Any], run: int) -> DemoAgent:
        role = self._random.choice(roles)
        count = self._random.randint(SKILLS_MIN, min(SKILLS_MAX, len(role.skill_ids)))
        skills = tuple(self._random.sample(role.skill_ids, count))
        return DemoAgent(self._id(f"agent/{number}"), f"agent {run}-{number:04}", role.id, skills)

    def onboarded(self) -> Iterator[Message]:
        """Yield an onboarding of each agent."""
        for agent in self.agents:
            data = {
                "agent_id": agent.id,
                "name": agent.name,
                "job_role_id": agent.job_role_id,
                "skill_ids": agent.skill_ids,
            }
            yield self._message("genesis.agent.onboarded", agent, 0, data)

    def available(self) -> Iterator[Message]:
        """Yield an availability of each agent: most are available now, the others later."""
        for agent in self.agents:
            data: dict[str, Any] = {"agent_id": agent.id, "available": self._random.random() < AVAILABLE_SHARE}
            if not data["available"]:
                data["available_from"] = self._now + timedelta(days=self._random.randint(1, 60))
            yield self._message("genesis.agent.available", agent, 0, data)

    def judged(self) -> Iterator[Message]:
        """Yield a few ratings of each agent, and validations of some of its skills."""
        for agent in self.agents:
            for number in range(self._random.randint(1, RATINGS_MAX)):
                data: dict[str, Any] = {
                    "agent_id": agent.id,
                    "rater_id": self._id(f"rater/{self._random.randrange(50)}"),
                    "rating": self._random.choices(RATINGS, RATING_WEIGHTS)[0],
                    "skill_id": self._random.choice(agent.skill_ids),
                }
                yield self._message("genesis.agent.rated", agent, number, data)
            for number, skill_id in enumerate(
                self._random.sample(agent.skill_ids, self._random.randint(1, VALIDATIONS_MAX))
            ):
                data = {
                    "skill_id": skill_id,
                    "agent_id": agent.id,
                    "validator_id": self._id(f"validator/{self._random.randrange(10)}"),
                    "score": self._random.randint(40, 100),
                }
                yield self._message("genesis.skill.validated", agent, number, data)

    def changed(self, agent: DemoAgent, available: bool, now: datetime) -> Message:
        """Return a later availability of an agent."""
        data = {"agent_id": agent.id, "available": available}
        return webhook(f"{self._prefix}/changed/{agent.id}", "genesis.agent.available", now, data)

    def more_ratings(self, now: datetime) -> Iterator[Message]:
        """Yield ratings without end, one agent after the other."""
        for number, agent in enumerate(cycle(self.agents)):
            data = {"agent_id": agent.id, "rater_id": self._id("rater/later"), "rating": self._random.choice(RATINGS)}
            yield webhook(f"{self._prefix}/later/{number}", "genesis.agent.rated", now, data)

    def _message(self, event_type: str, agent: DemoAgent, number: int, data: dict[str, Any]) -> Message:
        return webhook(f"{self._prefix}/{event_type}/{agent.id}/{number}", event_type, self._now, data)

    def _id(self, what: str) -> UUID:
        return uuid5(NAMESPACE_URL, f"urn:plant:{self._prefix}/{what}")
