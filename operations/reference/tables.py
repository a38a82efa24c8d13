"""What the page on the database says of tables: read from the mapped classes, and, for tables without a class, from the
SQL of the migrations and read models. No database is asked; a test compares all of it with a real one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from typing import Final, NamedTuple

from sqlalchemy import CheckConstraint, Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateColumn, CreateIndex, CreateTable

import entities.store
import entities.versions  # noqa: F401 (all classes are mapped now)
from database import migrate
from entities.mapping import Row
from projections.install import VIEWS
from projections.read_model import READ_MODELS


class ColumnFacts(NamedTuple):
    """A column as the reference shows it. `limits` is the CHECK that is its own; empty where there is none."""

    name: str
    type: str
    null: bool
    default: str
    limits: str


class TableFacts(NamedTuple):
    """A table: its columns in order, constraints and indexes as SQL. `name` has its schema unless that is `public`."""

    name: str
    columns: tuple[ColumnFacts, ...]
    constraints: tuple[str, ...]
    indexes: tuple[str, ...]


class Grant(NamedTuple):
    """A right on a table. Without `columns` it is on all of them."""

    table: str
    role: str
    right: str
    columns: tuple[str, ...]


class Policy(NamedTuple):
    """A policy: its SQL after the table's name, and whether it binds the table's owner too."""

    table: str
    text: str
    forced: bool


_DIALECT: Final = postgresql.dialect()  # type: ignore[no-untyped-call]
_COLUMN: Final = re.compile(
    r'(?P<name>"\w+"|\w+) (?P<type>(?:double precision|\w+)(?:\(\d+\)|\[\])*(?: WITH TIME ZONE)?(?: COLLATE "C")?)'
    r"(?P<rest>.*)"
)
_NEXT_CLAUSE: Final = r"(?= NOT NULL| UNIQUE| CHECK| PRIMARY KEY| CONSTRAINT|$)"
_INSTALLED: Final = (
    "GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO plant_writer",
    "GRANT SELECT ON {table}, {view} TO plant_api, plant_auditor",
    "ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
    "CREATE POLICY governance_boundary ON {table} USING ({tenant}) WITH CHECK ({tenant})",
)
_TENANT: Final = "governance_agent_id = (SELECT nullif(current_setting('plant.governance_agent_id', true), ''))"
_NAMED: Final = re.compile(r"^CONSTRAINT \w+ ")
_TABLE_WIDE: Final = ("CONSTRAINT", "PRIMARY KEY", "UNIQUE", "FOREIGN KEY", "CHECK")


@cache
def tables() -> dict[str, TableFacts]:
    """Return every table of a migrated database by name: those of the mapped classes, then the others."""
    script = statements()
    # A table that takes the name of a former one is what is said of it from then on.
    made = (_created(text, script[index:]) for index, text in enumerate(script) if not _dropped(text, script[index:]))
    from_sql = {table.name: table for table in made if table is not None}
    mapped = {table.name: mapped_table(table) for table in Row.metadata.sorted_tables}
    return mapped | {name: facts for name, facts in from_sql.items() if name not in mapped}


@cache
def statements() -> tuple[str, ...]:
    """Return all statements that make the schema and the read models, on one line each, without comments."""
    return tuple(map(_one_line, (*_statements(migrate.sql()), migrate._LET_SERVICES_CHECK, *_read_models())))


def mapped_table(table: Table) -> TableFacts:
    """Return the facts of a mapped class's table."""
    own = {_column_of(each, table): _one_line(str(each.sqltext)) for each in _checks(table)}
    columns = []
    for column in table.columns:
        one = _column(_one_line(str(CreateColumn(column).compile(dialect=_DIALECT))))
        columns.append(one._replace(limits=own.get(column.name, "")))
    created = _one_line(str(CreateTable(table).compile(dialect=_DIALECT)))
    checked = {f"CHECK ({limits})" for name, limits in own.items() if name}
    body = [
        _NAMED.sub("", part).replace("KEY(", "KEY (")
        for part in _parts(_inside(created))
        if part.startswith("CONSTRAINT")
    ]
    indexes = [_one_line(str(CreateIndex(each).compile(dialect=_DIALECT))) for each in table.indexes]
    return TableFacts(
        table.name, tuple(columns), tuple(part for part in body if part not in checked), tuple(sorted(indexes))
    )


def grants() -> list[Grant]:
    """Return the rights of roles on tables after all grants and revocations, in the order of the grants."""
    held: list[Grant] = []
    pattern = re.compile(r"(GRANT|REVOKE) (.+) ON (?!FUNCTION|SCHEMA)(?:TABLE )?(.+) (?:TO|FROM) (.+)")
    for text in statements():
        if renamed := re.match(r"ALTER TABLE (\S+) RENAME TO", text):  # its rights go with it
            held = [grant for grant in held if grant.table != renamed[1]]
        if dropped := re.match(r"DROP TABLE (.+)", text):
            held = [grant for grant in held if grant.table not in dropped[1].split(", ")]
        if (match := pattern.fullmatch(text)) is None:
            continue
        if (match[1], match[2]) == ("REVOKE", "ALL"):  # rights on single columns go with those on the table
            ended = set(product(match[3].split(", "), match[4].split(", ")))
            held = [grant for grant in held if (grant.table, grant.role) not in ended]
            continue
        for right, columns in _rights(match[2]):
            pairs = product(match[3].split(", "), match[4].split(", "))
            named = [Grant(table, role, right, columns) for table, role in pairs]
            if match[1] == "GRANT":
                held += named
            else:
                held = [grant for grant in held if grant not in named]
    return held


def policies() -> list[Policy]:
    """Return every policy, in the order in which they are made."""
    forced = {match[1] for text in statements() if (match := re.match(r"ALTER TABLE (\S+) FORCE ROW LEVEL", text))}
    matches = [match for text in statements() if (match := re.match(r"CREATE POLICY \w+ ON (\S+) (.+)", text))]
    return [Policy(match[1], match[2], match[1] in forced) for match in matches]


def triggers() -> list[tuple[str, str, str, str]]:
    """Return each trigger: table, name, when it runs, and the function that it calls."""
    pattern = re.compile(r"CREATE (?:CONSTRAINT )?TRIGGER (\w+) (.+) ON (\S+) (.*)EXECUTE FUNCTION (\w+)\(")
    script = statements()
    kept = (text for index, text in enumerate(script) if not _dropped(text, script[index:]))
    matches = [match for text in kept if (match := pattern.match(text))]
    return [
        (match[3], match[1], match[2].lower() + (", at commit" if "DEFERRED" in match[4] else ""), match[5])
        for match in matches
    ]


def _read_models() -> Iterator[str]:
    """Yield the statements of projections/install.py for a build that does not exist yet."""
    for model in READ_MODELS:
        for text in _statements(model.tables_sql):
            yield text
            if granted := re.fullmatch(rf"(GRANT SELECT ON ){model.schema}(\.\w+ TO plant_embedder)", text):
                yield f"{granted[1]}{VIEWS}{granted[2]}"  # as show_build does
        for name in model.tables:
            table = f"{model.schema}.{name}"
            yield from (text.format(table=table, view=f"{VIEWS}.{name}", tenant=_TENANT) for text in _INSTALLED)


def _statements(script: str) -> Iterator[str]:
    """Cut at semicolons, but not inside the body of a function."""
    lines = (line.partition("--")[0] for line in script.splitlines())
    for text in re.findall(r"(?:\$\$.*?\$\$|'[^']*'|[^;'])+", "\n".join(lines), re.S):
        if text.strip():
            yield _one_line(text)


def _created(statement: str, script: Sequence[str]) -> TableFacts | None:
    """Return the table that a statement creates, as later statements leave it."""
    match = re.match(r"CREATE TABLE (?:IF NOT EXISTS )?([\w.]+) \(", statement)
    if match is None:
        return None
    name = re.escape(match[1])
    on = re.compile(rf"CREATE (UNIQUE )?INDEX (CONCURRENTLY |IF NOT EXISTS )?\w+ ON {name}(?![\w.])")
    made = (text for number, text in enumerate(script) if on.match(text) and not _index_dropped(text, script[number:]))
    indexes = (re.sub(" CONCURRENTLY| IF NOT EXISTS", "", text, count=1) for text in made)
    facts = TableFacts(match[1], (), (), tuple(indexes))
    for part in _parts(_inside(statement)):
        facts = _changed(facts, f"ADD {part}" if part.startswith(_TABLE_WIDE) else f"ADD COLUMN {part}")
    for text in script:
        if altered := re.match(rf"ALTER TABLE (?:ONLY )?{name} (.+)", text):
            for action in _parts(altered[1]):
                facts = _changed(facts, action)
    return facts


def _dropped(statement: str, script: Sequence[str]) -> bool:
    """Return whether later statements drop the table that a statement makes, or whose trigger it makes."""
    made = re.match(r"CREATE TABLE ([\w.]+) \(|CREATE TRIGGER .+? ON (\S+) ", statement)
    drops = (match[1].split(", ") for text in script if (match := re.match(r"DROP TABLE (.+)", text)))
    return made is not None and any((made[1] or made[2]) in names for names in drops)


def _index_dropped(statement: str, script: Sequence[str]) -> bool:
    """Return whether later statements drop the index that a statement makes."""
    name = re.sub(" UNIQUE| CONCURRENTLY| IF NOT EXISTS", "", statement.split(" ON ")[0]).split()[-1]
    return any(re.match(rf"DROP INDEX (CONCURRENTLY |IF EXISTS )*{name}$", text) for text in script)


def _changed(facts: TableFacts, action: str) -> TableFacts:
    """Return a table after one action of ALTER TABLE. A test finds actions that have no case here."""
    if added := re.match(r"ADD COLUMN (?:IF NOT EXISTS )?(.+)", action):
        column = _column(added[1])
        own = [f"{kind} ({added[1].split()[0]})" for kind in ("PRIMARY KEY", "UNIQUE") if f" {kind}" in added[1]]
        return facts._replace(columns=(*facts.columns, column), constraints=(*facts.constraints, *own))
    if added := re.match(r"ADD (.+)", action):
        constraint = _NAMED.sub("", added[1]).replace("( ", "(")
        keys = re.findall(r"\w+", _inside(constraint)) if constraint.startswith("PRIMARY KEY") else ()
        keyed = tuple(each._replace(null=each.null and each.name not in keys) for each in facts.columns)
        return facts._replace(columns=keyed, constraints=(*facts.constraints, constraint))
    if altered := re.match(r"ALTER COLUMN (\w+) (DROP|SET) NOT NULL", action):
        columns = (
            each._replace(null=altered[2] == "DROP") if each.name == altered[1] else each for each in facts.columns
        )
        return facts._replace(columns=tuple(columns))
    return facts


def _column(text: str) -> ColumnFacts:
    match = _COLUMN.match(text)
    assert match is not None, text
    rest, check, _ = match["rest"].partition(" CHECK (")
    default = re.search(rf" DEFAULT (.+?){_NEXT_CLAUSE}", rest)
    identity = re.search(r" GENERATED (ALWAYS|BY DEFAULT) AS IDENTITY", rest)
    generated = re.search(r" GENERATED ALWAYS AS (\(.+\)) STORED", rest)
    kind = match["type"].replace("TIMESTAMP WITH TIME ZONE", "timestamptz").split(" COLLATE")[0].lower()
    return ColumnFacts(
        match["name"].strip('"'),
        f'{kind} COLLATE "C"' if "COLLATE" in match["type"] else kind,
        " NOT NULL" not in rest and " PRIMARY KEY" not in rest and identity is None,
        _default(identity, generated, default),
        _inside(text[text.index(check) :]) if check else "",
    )


def _default(
    identity: re.Match[str] | None, generated: re.Match[str] | None, default: re.Match[str] | None
) -> str:  # fmt: skip
    if identity:
        return identity[0].strip().lower()
    return f"generated: {generated[1]}" if generated else default[1] if default else ""


def _checks(table: Table) -> list[CheckConstraint]:
    return [each for each in table.constraints if isinstance(each, CheckConstraint)]


def _column_of(check: CheckConstraint, table: Table) -> str:
    """Return the column that a CHECK is named after; empty where it is the table's."""
    name = str(check.name).removeprefix(f"{table.name}_").removesuffix("_check")
    return name if name in table.columns else ""


def _rights(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for part in _parts(text):
        right, _, columns = part.partition(" (")
        yield right, tuple(columns.removesuffix(")").strip().replace('"', "").split(", ")) if columns else ()


def _inside(statement: str) -> str:
    """Return the text in the first brackets of a statement."""
    start = statement.index("(")
    depth = 0
    for index in range(start, len(statement)):
        depth += {"(": 1, ")": -1}.get(statement[index], 0)
        if not depth:
            return statement[start + 1 : index].strip()
    raise AssertionError(statement)


def _parts(text: str) -> Iterator[str]:
    """Cut at the commas that are in no brackets."""
    depth = start = 0
    for index, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and not depth:
            yield text[start:index].strip()
            start = index + 1
    yield text[start:].strip()


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().removesuffix(";")
