"""Read models: a name, a version, tables and the statements that fold a batch into them; and those of this release.

A folder of this package that holds `tables.sql` and `apply.sql` is a read model, called after the folder. Its
`__init__.py` says its version, and with STARTS_PAUSED that it is off until an operator turns it on. No list names it:
READ_MODELS are those that are found.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Final

from database.statistics import refresh_statement
from projections.staged_names import EVENT_TABLES, STAGED_EVENTS
from projections.statements import plain_statements, split_statements
from runtime.errors import ConfigurationError

SQL_FILES: Final = ("tables.sql", "apply.sql")

_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
_TABLE: Final = re.compile(
    r"CREATE (?:UNLOGGED )?TABLE (?:IF NOT EXISTS )?__schema__\.(?P<name>[a-z][a-z0-9_]*)", re.IGNORECASE
)


class ReadModelUnusable(ConfigurationError):
    """A folder of a read model is not complete."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(
            f"The folder projections/{name} is no read model that can be used.",
            why=why,
            next_step="see docs/how-to/add-a-projection.md",
        )


@dataclass(frozen=True)
class FoldStatement:
    """A statement of `apply.sql`. It has something to do where a table that it reads has rows."""

    text: str

    @cached_property
    def reads(self) -> frozenset[str]:
        """Names of the staging tables that it reads: all of them where it reads `staged_events`."""
        named = frozenset(word for word in self.words if word.startswith("staged_"))
        return named - {STAGED_EVENTS} | EVENT_TABLES if STAGED_EVENTS in named else named

    @cached_property
    def words(self) -> frozenset[str]:
        """Its words in small letters, as Postgres reads names: those of tables and columns are among them."""
        return frozenset(re.findall(r"\w+", self.text.lower()))

    def in_schema(self, schema: str) -> str:
        """Return the statement on the tables in a schema."""
        return self.text.replace("__schema__", schema)


@dataclass(frozen=True)
class ReadModel:
    """A read model: the texts of its two files, as a folder or a build in the database keeps them.

    `tables.sql` is idempotent DDL, `apply.sql` statements over the staged rows of a batch, total over what the checks
    let through, writing rows sorted by primary key. They run in their order, each on what those before have left, and
    one that reads no table with rows is passed over. `__schema__` in both files stands for the Postgres schema of the
    build. Changing what they say means a new version, filled from the log.
    """

    name: str
    version: int
    tables_text: str = field(repr=False)
    apply_text: str = field(repr=False)
    starts_paused: bool = field(default=False, kw_only=True)
    """Whether workers leave a new build of it alone until an operator resumes it."""
    functions: Mapping[str, str] = field(default_factory=dict, kw_only=True, repr=False, compare=False)
    """Functions of the database that its statements call, with the hashes of their definitions
    (projections/fold_functions.py)."""
    last_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict, kw_only=True, repr=False, compare=False)
    """Staging tables of which only the last row of each key matters, with the columns of the key. A rebuild stages no
    others; what is made of the rows must be the same."""

    @property
    def schema(self) -> str:
        """Postgres schema of this build."""
        return f"{self.name}_v{self.version}"

    @property
    def name_of_model(self) -> str:
        """The read model that it is a build of: a rebuild of `agents` is called `agents_b3`."""
        return re.sub(r"_b\d+$", "", self.name)

    @property
    def key(self) -> str:
        """Name in the checkpoints."""
        return f"{self.name}/{self.version}"

    @property
    def altered(self) -> bool:
        """Whether the files are others than those that were stored; a folder's are what they are."""
        return False

    @cached_property
    def sha256(self) -> str:
        """The hash of both files, which is kept with the version."""
        return sql_hash(self.tables_text, self.apply_text)

    @cached_property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables, in the order of their DDL."""
        found = (_TABLE.match(statement) for statement in plain_statements(self.tables_text))
        return tuple(match["name"] for match in found if match is not None)

    @cached_property
    def statements(self) -> tuple[FoldStatement, ...]:
        """The statements of `apply.sql`."""
        return tuple(map(FoldStatement, split_statements(self.apply_text)))

    @cached_property
    def reads(self) -> frozenset[str]:
        """Names of the staging tables that its statements read."""
        return frozenset[str]().union(*(statement.reads for statement in self.statements))

    @cached_property
    def tables_sql(self) -> str:
        """DDL of the build's tables."""
        return self.tables_in(self.schema)

    @property
    def refresh_sql(self) -> str:
        """Statement that has Postgres look how large the build's tables are, and what is in them."""
        return refresh_statement(f"{self.schema}.{table}" for table in self.tables)

    def tables_in(self, schema: str) -> str:
        """Return the DDL of the tables in another schema."""
        return self.tables_text.replace("__schema__", schema)

    def folds(self, tables: Set[str] | None = None, schema: str | None = None) -> list[str]:
        """Return the statements that these staging tables have rows for, or all; on the build's tables by default."""
        return [
            statement.in_schema(schema or self.schema)
            for statement in self.statements
            if tables is None or statement.reads & tables
        ]


def sql_hash(tables_text: str, apply_text: str) -> str:
    """Return the hash that a version is locked with, in hex.

    It is SHA-256 of a JSON array in UTF-8, without spaces between its elements: the statements of `tables.sql`, then
    those of `apply.sql`, each an array of strings. Comments are left out of the statements, and white space outside of
    literals is one space: neither changes what a statement does.

    >>> sql_hash("-- one\\nCREATE TABLE __schema__.a (b int);", "INSERT INTO __schema__.a\\n  VALUES (1)")
    '666a249089b60b0c1e2e0fb82233f78387290fa5a2f2989c3c0bd269128cf5a7'
    >>> hashlib.sha256(b'[["CREATE TABLE __schema__.a (b int)"],["INSERT INTO __schema__.a VALUES (1)"]]').hexdigest()
    '666a249089b60b0c1e2e0fb82233f78387290fa5a2f2989c3c0bd269128cf5a7'
    """
    statements = [plain_statements(text) for text in (tables_text, apply_text)]
    encoded = json.dumps(statements, ensure_ascii=False, separators=(",", ":")).encode()
    return hashlib.sha256(encoded).hexdigest()


def read_folders(folder: Path, package: str) -> tuple[ReadModel, ...]:
    """Return the read models whose folders stand in a folder, which is an import package, by name."""
    parts = (each for each in sorted(folder.iterdir()) if any((each / name).exists() for name in SQL_FILES))
    return tuple(_read_folder(each, package) for each in parts)


def _read_folder(folder: Path, package: str) -> ReadModel:
    """Return the read model of a folder; raises ReadModelUnusable."""
    name = folder.name
    if not _NAME.fullmatch(name) or re.search(r"_[bv]\d+$", name):
        raise ReadModelUnusable(name, "Its name has other signs than a-z, 0-9 and _, or ends like a build's.")
    for file in (*SQL_FILES, "__init__.py"):
        if not (folder / file).exists():
            raise ReadModelUnusable(name, f"It has no {file}.")
    module = import_module(f"{package}.{name}")
    version = getattr(module, "VERSION", None)
    if type(version) is not int or version < 1:
        raise ReadModelUnusable(name, "Its __init__.py has no line such as VERSION = 1.")
    texts = ((folder / file).read_text("utf-8") for file in SQL_FILES)
    model = ReadModel(name, version, *texts, starts_paused=getattr(module, "STARTS_PAUSED", False) is True,
                      functions=getattr(module, "FUNCTIONS", {}), last_of=getattr(module, "LAST_OF", {}))  # fmt: skip
    if not model.tables:
        raise ReadModelUnusable(name, "Its tables.sql has no CREATE TABLE IF NOT EXISTS __schema__.… in small letters.")
    if not model.statements or not all(statement.reads for statement in model.statements):
        raise ReadModelUnusable(name, "Its apply.sql has to be statements that each read a table staged_….")
    return model


READ_MODELS: tuple[ReadModel, ...] = read_folders(Path(__file__).parent, __package__)
"""The read models of this release."""
