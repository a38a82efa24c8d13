"""Read models of tests: that of agents, and those that tests write down rather than keep in a folder."""

from __future__ import annotations

from typing import Final

from projections.read_model import READ_MODELS, ReadModel

AGENTS: Final = next(model for model in READ_MODELS if model.name == "agents")


def made_model(name: str, columns: str, apply_sql: str, *, version: int = 1) -> ReadModel:
    """A model with one table of its own name."""
    return ReadModel(name, version, f"CREATE TABLE IF NOT EXISTS __schema__.{name} ({columns})", apply_sql)


def available_agents(name: str = "availabilities") -> ReadModel:
    """A model next to `agents`: a row for each event of availability."""
    return made_model(
        name,
        """"offset" bigint PRIMARY KEY, agent_id uuid, available boolean, odd text NOT NULL DEFAULT ''""",
        f'INSERT INTO __schema__.{name} ("offset", agent_id, available)'
        ' SELECT "offset", agent_id, available FROM staged_agent_available ORDER BY "offset"',
    )


BOTH = (*READ_MODELS, available_agents())
