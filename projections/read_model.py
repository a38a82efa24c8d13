"""What a read model is: a name, a version, tables, and one statement that folds a batch into them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

from projections.sql_script import split_statements


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
        """Its name in the checkpoints."""
        return f"{self.name}/{self.version}"

    @cached_property
    def reads(self) -> frozenset[str]:
        """The staging tables that its statement reads."""
        return frozenset(re.findall(r"\bstaged_\w+", self.apply_sql))

    @cached_property
    def tables_sql(self) -> str:
        """DDL of the build's tables."""
        return self.tables_in(self.schema)

    @cached_property
    def apply_sql(self) -> str:
        """The fold, into the live build."""
        return self.apply_in(self.schema)

    def tables_in(self, schema: str) -> str:
        """DDL of the tables in another schema."""
        return self._read("tables.sql").replace("__schema__", schema)

    def apply_in(self, schema: str) -> str:
        """The fold, into another schema's tables."""
        (statement,) = split_statements(self._read("apply.sql"))
        return statement.replace("__schema__", schema)

    def _read(self, name: str) -> str:
        return (files(self.folder) / name).read_text(encoding="utf-8")
