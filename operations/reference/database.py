"""docs/reference/database.md: what `tables.py` finds, with the words of `database.md` round it.

Columns are explained by their docstrings in `entities/`, or by comments in the `tables.sql` of a read model; where they
have none, by `database.toml`.
"""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from entities import versions
from entities.entity import Entity
from entities.mapping import Row
from entities.store import KINDS, LINKS
from entities.validators import RULES
from operations.reference import tables as catalog
from operations.reference.tables import ColumnFacts, TableFacts
from projections.read_model import READ_MODELS

_WORDS: Final = Path(__file__).with_name("database.md")
_COMMENTED_TABLE: Final = re.compile(
    r"(?P<about>(?:^--[^\n]*\n)*)^CREATE TABLE (?:IF NOT EXISTS )?__schema__\.(?P<table>\w+) \(\n(?P<columns>.*?)^\)",
    re.MULTILINE | re.DOTALL,
)
_COMMENTED_COLUMN: Final = re.compile(r"^ +(?P<name>[a-z]\w*) [^\n]*? -- (?P<meaning>[^\n]+)$", re.MULTILINE)
_MEANINGS: Final = Path(__file__).with_name("database.toml")
_MARKER: Final = re.compile(r"^<!-- (\w+) -->$", re.MULTILINE)
ROLES: Final = ("plant_writer", "plant_ingress", "plant_operator", "plant_api", "plant_auditor", "plant_embedder",
                "plant_deliverer", "plant_endpoints")  # fmt: skip
_RIGHTS: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")


def database_page() -> str:
    """Return the whole page."""
    parts: dict[str, Callable[[], Iterator[str]]] = {
        "kinds": _kinds,
        "sections": _sections,
        "tables": _tables,
        "formula": _formula,
        "rules": _rules,
        "roles": _roles,
        "policies": _policies,
        "triggers": _triggers,
    }
    return _MARKER.sub(lambda marker: "\n".join(parts[marker[1]]()), _WORDS.read_text("utf-8"))


def unexplained() -> list[str]:
    """Return columns without a meaning, and meanings of unknown columns or of those with a docstring."""
    facts = catalog.tables()
    missing = [f"{table.name}.{column.name}" for table in facts.values() for column in table.columns
               if not meaning(table.name, column.name)]  # fmt: skip
    written = {(table, column) for table, words in _meanings().items() for column in words if table != "*"}
    columns = {(table.name, column.name) for table in facts.values() for column in table.columns}
    about = {(table, "about") for table in facts if table not in _classes()}
    written_twice = {each for each in written if each[1] in _docstrings().get(each[0], {})}
    return missing + [f"{table}.{column}" for table, column in sorted(written - columns - about | written_twice)]


def meaning(table: str, column: str) -> str:
    """Return the meaning of a column; empty where none is written."""
    words = _meanings()
    docstring = _docstrings().get(table, {}).get(column, "")
    return docstring or words.get(table, {}).get(column, "") or words["*"].get(column, "")


@cache
def sections() -> dict[str, list[str]]:
    """Return the base entity's sections, by the comments in its class, and the columns of each."""
    by_section: dict[str, list[str]] = {}
    for line in inspect.getsource(Entity).splitlines():
        if heading := re.match(r"    # ([\w ]+)", line):
            by_section[heading[1]] = []
        elif (column := re.match(r"    (\w+): Mapped\[", line)) and by_section:
            list(by_section.values())[-1].append(column[1])
    return by_section


@cache
def _meanings() -> dict[str, dict[str, str]]:
    """Return, by table and column, what is written down: in `database.toml`, or in comments of a `tables.sql`."""
    written: dict[str, dict[str, str]] = tomllib.loads(_MEANINGS.read_text("utf-8"))
    for model in READ_MODELS:
        for table, meanings in commented_tables(model.tables_text).items():
            name = f"{model.schema}.{table}"
            written[name] = meanings | written.get(name, {})
    return written


def commented_tables(tables_text: str) -> dict[str, dict[str, str]]:
    """Return what the comments of a `tables.sql` say: those above a table, and at the end of a column's line.

    >>> commented_tables("-- One a\\n-- day.\\nCREATE TABLE __schema__.a (\\n  day date, -- Which.\\n  n int\\n);")
    {'a': {'about': 'One a day.', 'day': 'Which.'}}
    """
    found = {}
    for match in _COMMENTED_TABLE.finditer(tables_text):
        about = " ".join(line.removeprefix("--").strip() for line in match["about"].splitlines())
        columns = {line["name"]: line["meaning"] for line in _COMMENTED_COLUMN.finditer(match["columns"])}
        found[match["table"]] = {"about": about, **columns} if about else columns
    return found


@cache
def _classes() -> dict[str, type[Row]]:
    return {mapper.class_.__tablename__: mapper.class_ for mapper in Row.registry.mappers}


@cache
def _docstrings() -> dict[str, dict[str, str]]:
    """Return, by table and column, the text that stands below the column in its class."""
    return {table: dict(_below(row)) for table, row in _classes().items()}


def _below(row: type[Row]) -> Iterator[tuple[str, str]]:
    (class_,) = ast.parse(inspect.getsource(row)).body
    assert isinstance(class_, ast.ClassDef)
    for statement, following in zip(class_.body, class_.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            yield statement.target.id, _one_line(str(following.value.value))


def _kinds() -> Iterator[str]:
    yield from _head("entity", "`entity_type`", "table", "what it is", "list of ids, and the table behind it")
    yield _row(
        "`Entity`",
        "",
        "`entities`",
        _summary(Entity).partition(".")[0] + ".",
        "`child_ids`, asked for by `parent_id`",
    )
    for kind, class_ in KINDS.items():
        links = LINKS.get(kind)
        listed = f"`{links.field}`, in `{links.row.__tablename__}`" if links else ""
        yield _row(f"`{class_.__name__}`", f"`{kind}`", f"`{class_.__tablename__}`", _summary(class_), listed)


def _sections() -> Iterator[str]:
    yield from _head("section", "columns of `entities`")
    for section, columns in sections().items():
        yield _row(section, _names(columns))


def _tables() -> Iterator[str]:
    facts = catalog.tables()
    links = [link.row.__tablename__ for link in LINKS.values()]
    first = ["entities", *(class_.__tablename__ for class_ in KINDS.values()), *links]
    for name in [*first, *(name for name in facts if name not in first)]:
        yield from _table(facts[name])


def _table(table: TableFacts) -> Iterator[str]:
    class_ = _classes().get(table.name)
    about = _summary(class_) if class_ else _meanings().get(table.name, {}).get("about", "")
    yield f"### {table.name}\n\n{about}\n"
    groups = sections() if table.name == Entity.__tablename__ else {"": [column.name for column in table.columns]}
    for section, names in groups.items():
        if section:
            yield f"**{section}**\n"
        yield from _head("column", "type", "null", "default", "limits", "meaning")
        yield from (_column(table.name, column) for column in table.columns if column.name in names)
        yield ""
    yield from (f"- `{line}`" for line in (*table.constraints, *table.indexes))
    yield ""


def _column(table: str, column: ColumnFacts) -> str:
    return _row(
        f"`{column.name}`",
        f"`{column.type}`",
        "yes" if column.null else "no",
        _code(column.default),
        _code(column.limits),
        meaning(table, column.name),
    )


def _formula() -> Iterator[str]:
    _, _, formula = inspect.cleandoc(versions.__doc__ or "").partition("\n\n")
    yield formula.rstrip()


def _rules() -> Iterator[str]:
    yield from _head("rule", "level", "meaning")
    yield from (_row(rule.name, rule.level, rule.meaning) for rule in RULES)


def _roles() -> Iterator[str]:
    """Return a row for all tables on which the roles have the same rights."""
    facts = catalog.tables()
    rights: dict[str, dict[str, list[str]]] = {}
    for grant in sorted(catalog.grants(), key=lambda grant: _RIGHTS.index(grant.right)):
        assert grant.role in ROLES, grant
        columns = [column.name for column in facts[grant.table].columns] if grant.table in facts else []
        text = f"{grant.right}{_some(grant.columns, columns)}"
        rights.setdefault(grant.table, {}).setdefault(grant.role, []).append(text)
    alike: dict[tuple[str, ...], list[str]] = {}
    for table in [name for name in (*facts, *rights) if name in rights]:
        alike.setdefault(tuple(", ".join(rights[table].get(role, ())) for role in ROLES), []).append(table)
    yield from _head("table or view", *(f"`{role}`" for role in ROLES))
    for cells, tables in alike.items():
        yield _row(_names(tables), *cells)


def _some(granted: Sequence[str], columns: Sequence[str]) -> str:
    """Return the columns of a right: those, or all but those, whichever is shorter; nothing for all."""
    if not granted:
        return ""
    others = [column for column in columns if column not in granted]
    return f" of all but {_names(others)}" if len(others) < len(granted) else f" of {_names(granted)}"


def _policies() -> Iterator[str]:
    alike: dict[tuple[str, bool], list[str]] = {}
    for policy in catalog.policies():
        alike.setdefault((policy.text, policy.forced), []).append(policy.table)
    for (text, forced), tables in alike.items():
        how = "forced, so that it binds the owner too" if forced else "enabled; it does not bind the owner"
        policy_text = text.replace(" WITH CHECK", "\nWITH CHECK")
        yield f"{_names(tables)}, {how}:\n\n```sql\n{policy_text}\n```\n"


def _triggers() -> Iterator[str]:
    alike: dict[tuple[str, ...], list[str]] = {}
    for table, *trigger in catalog.triggers():
        alike.setdefault(tuple(trigger), []).append(table)
    yield from _head("trigger", "when", "function", "on")
    for (name, when, function), tables in alike.items():
        yield _row(f"`{name}`", when, f"`{function}`", _names(tables))


def _names(names: Iterable[str]) -> str:
    """Return each name once, as code."""
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names))


def _head(*names: str) -> Iterator[str]:
    yield _row(*names)
    yield "|" + "---|" * len(names)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _summary(class_: type[Row]) -> str:
    return _one_line(class_.__doc__ or "")


def _one_line(text: str) -> str:
    return " ".join(text.split())
