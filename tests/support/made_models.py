"""Read models that tests write down, rather than keep in a folder."""

from __future__ import annotations

from dataclasses import dataclass, field

from projections.read_model import READ_MODELS, ReadModel


@dataclass(frozen=True)
class MadeModel(ReadModel):
    """A read model whose files are texts."""

    files: dict[str, str] = field(default_factory=dict, hash=False)

    def _read(self, name: str) -> str:
        return self.files[name]


def made_model(name: str, columns: str, apply_sql: str, *, version: int = 1) -> MadeModel:
    """A model with one table of its own name."""
    ddl = f"CREATE TABLE IF NOT EXISTS __schema__.{name} ({columns})"
    return MadeModel(name, version, (name,), "", {"tables.sql": ddl, "apply.sql": apply_sql})


def available_agents(name: str = "availabilities") -> MadeModel:
    """A model next to `agents`: a row for each event of availability."""
    return made_model(
        name,
        """"offset" bigint PRIMARY KEY, agent_id uuid, available boolean, odd text NOT NULL DEFAULT ''""",
        f'INSERT INTO __schema__.{name} ("offset", agent_id, available)'
        ' SELECT "offset", agent_id, available FROM staged_agent_available ORDER BY "offset"',
    )


BOTH = (*READ_MODELS, available_agents())
