"""Read models: a name, a version, tables and a statement that folds a batch into them; and those that workers keep."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Final

from projections.statements import split_statements


@dataclass(frozen=True)
class ReadModel:
    """A read model in its own folder.

    The folder holds `tables.sql` (idempotent DDL) and `apply.sql` (one statement over the staged rows of a batch,
    total over what the checks let through, writing rows sorted by primary key). `__schema__` in both stands for the
    Postgres schema of the build. Changing what the fold computes means a new version, filled from the log.
    """

    name: str
    version: int
    tables: tuple[str, ...]
    folder: str

    @property
    def schema(self) -> str:
        """Postgres schema of this build."""
        return f"{self.name}_v{self.version}"

    @property
    def key(self) -> str:
        """Name in the checkpoints."""
        return f"{self.name}/{self.version}"

    @cached_property
    def reads(self) -> frozenset[str]:
        """Names of the staging tables that its statement reads."""
        return frozenset(word for word in self.words if word.startswith("staged_"))

    @cached_property
    def words(self) -> frozenset[str]:
        """Words of its statement, names of columns among them."""
        return frozenset(re.findall(r"\w+", self.apply_sql))

    @cached_property
    def tables_sql(self) -> str:
        """DDL of the build's tables."""
        return self.tables_in(self.schema)

    @cached_property
    def apply_sql(self) -> str:
        """Fold into the live build."""
        return self.apply_in(self.schema)

    def tables_in(self, schema: str) -> str:
        """Return the DDL of the tables in another schema."""
        return self._read("tables.sql").replace("__schema__", schema)

    def apply_in(self, schema: str) -> str:
        """Return the fold into another schema's tables."""
        (statement,) = split_statements(self._read("apply.sql"))
        return statement.replace("__schema__", schema)

    def _read(self, name: str) -> str:
        return (files(self.folder) / name).read_text(encoding="utf-8")


AGENTS: Final = ReadModel(name="agents", version=1, tables=("agents",), folder="projections.agents")
"""Identity, industry, job role, skills, status and availability of each agent."""

READ_MODELS: tuple[ReadModel, ...] = (AGENTS,)
"""The read models that workers keep."""
