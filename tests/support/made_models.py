"""Read models of tests: those of folders, and those that tests write down rather than keep in a folder."""

from __future__ import annotations

import re
from typing import Final

from projections.read_model import READ_MODELS, ReadModel

_BY_NAME: Final = {model.name: model for model in READ_MODELS}
ACTIVITY: Final = _BY_NAME["activity"]
AGENTS: Final = _BY_NAME["agents"]
MARKETPLACE: Final = _BY_NAME["marketplace"]
RATINGS: Final = _BY_NAME["ratings"]
REGISTRY: Final = _BY_NAME["registry"]
SKILLS: Final = _BY_NAME["skills"]


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


def reshaped_agents() -> ReadModel:
    """Version 2 of `agents`, with the same rows; its column `status` is called `stage`."""
    renamed = re.compile(
        r"(?<=agent\.)status|(?<=excluded\.)status|(?<=\n    )status(?= +=| +text)"
        r"|(?<=skill_ids, )status(?=, profile_offset)"
    )
    texts = (renamed.sub("stage", text) for text in (AGENTS.tables_text, AGENTS.apply_text))
    return ReadModel("agents", 2, *texts)


BOTH = (AGENTS, available_agents())
