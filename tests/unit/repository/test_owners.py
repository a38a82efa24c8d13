"""Owners: a table is named in its owners' SQL alone, and aiokafka's inside is touched in `streams/kafka` alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[3]
PACKAGES: Final = (
    "api", "audit", "database", "deliveries", "entities", "ingress", "operations", "projections", "relay", "runtime",
    "schemas", "server", "signing", "streams",
)  # fmt: skip

LOG_READERS: Final = frozenset({"projections", "audit/verifier"})
ENTITIES: Final = frozenset({"entities"})
OWNERS: Final[Mapping[str, Set[str]]] = {
    "checkpoints": LOG_READERS,
    "model_checkpoints": LOG_READERS,
    "partition_owners": LOG_READERS,
    "projection_checkpoints": LOG_READERS,
    "event_stream": LOG_READERS,
    "audit_log": LOG_READERS,
    "read_model_builds": frozenset({"projections"}),
    "rebuilds": frozenset({"projections"}),
    "outbox": frozenset({"relay"}),
    "webhook_signatures": frozenset({"ingress"}),
    "producers": frozenset({"ingress"}),
    "master_keys": frozenset({"signing"}),
    "endpoints": frozenset({"deliveries"}),
    "endpoint_secrets": frozenset({"deliveries"}),
    "endpoint_backfills": frozenset({"deliveries"}),
    "endpoint_streaks": frozenset({"deliveries"}),
    "endpoint_throttles": frozenset({"deliveries"}),
    "endpoint_events": frozenset({"deliveries"}),
    "delivery_owners": frozenset({"deliveries"}),
    "delivery_checkpoints": frozenset({"deliveries"}),
    "delivery_marks": frozenset({"deliveries"}),
    "delivery_waits": frozenset({"deliveries"}),
    "missing_searches": frozenset({"deliveries"}),
    "redrives": frozenset({"deliveries"}),
    "redrive_slots": frozenset({"deliveries"}),
    "redrive_partitions": frozenset({"deliveries"}),
    "webhook_deliveries": frozenset({"deliveries/state", "deliveries/redrive"}),
    "webhook_attempts": frozenset({"deliveries/state"}),
    "tenant_deliveries": frozenset({"deliveries/state", "deliveries/redrive"}),
    "tenant_attempts": frozenset({"deliveries/state"}),
    "api_tokens": frozenset({"api"}),
    **dict.fromkeys(
        ("entities", "entity_versions", "agents", "agent_skills", "industries", "job_roles", "job_role_skills",
         "skills", "team_members", "teams"),
        ENTITIES,
    ),
}  # fmt: skip
"""Each table to the folders whose SQL may name it. Migrations make tables, so they name all of them."""

ATTACKER: Final = "operations/demo/tampering.py"
"""It plays somebody who changes the log as a superuser, on a copy, and is caught: no owner has a function for that."""

MIGRATIONS: Final = "database/migrations"

_STATEMENT: Final = re.compile(
    r"\b(?:from|join|into|update|copy|table(?: only)?|using)\s+(?:only\s+)?(?:public\.)?\"?([a-z_]+)\"?(?![\w.(])",
    re.IGNORECASE,
)
_SQL: Final = re.compile(r"\b(?:SELECT|INSERT INTO|UPDATE|DELETE FROM|COPY|TRUNCATE|LOCK TABLE|ALTER TABLE)\b")
"""What tells SQL from prose: its verbs are in capitals here."""


def test_a_table_is_named_by_its_owners_alone() -> None:
    """SQL of another package calls a function of the owner instead."""
    found = {
        f"{path}: {table}"
        for path, text in sql_of_the_repository()
        for table in tables_in(text)
        if table in OWNERS and not is_within(path, OWNERS[table])
    }
    assert found == set()


@pytest.mark.parametrize(
    ("text", "tables"),
    [
        ("SELECT max(next_offset) FROM checkpoints WHERE topic = $1", {"checkpoints"}),
        ('INSERT INTO "outbox" (id) VALUES (1)', {"outbox"}),
        ("UPDATE public.producers SET name = $1", {"producers"}),
        ("SELECT 1 FROM a JOIN event_stream AS e ON true", {"a", "event_stream"}),
        ("DELETE FROM outbox AS o USING page WHERE true", {"outbox", "page"}),
        ("Read this from checkpoints, update producers.", set()),
        ("SELECT * FROM read_models.agents", set()),
        ("SELECT * FROM unnest($1)", set()),
    ],
)
def test_tables_are_found_in_sql_and_not_in_prose(text: str, tables: set[str]) -> None:
    """Tables of another schema and functions are no tables of ours."""
    assert tables_in(text) == tables


def test_docstrings_are_no_sql(tmp_path: Path) -> None:
    """What a docstring says of a table is no statement; an f-string's text is one."""
    module = tmp_path / "module.py"
    module.write_text('"""SELECT FROM outbox"""\nA = "SELECT 1 FROM producers"\nB = f"SELECT {A} FROM checkpoints"\n')
    assert set().union(*map(tables_in, strings_of(module))) == {"producers", "checkpoints"}


def test_the_inside_of_aiokafka_is_touched_in_one_package() -> None:
    """Nothing else of the Kafka side reads or sets a private attribute of another object, or makes a client."""
    found = {
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for package in ("streams", "relay", "ingress", "operations", "devstack")
        for path in sorted((ROOT / package).rglob("*.py"))
        if not is_within(str(path.relative_to(ROOT)), {"streams/kafka"}) and handles_clients(path)
        for line, what in touches_of(path)
    }
    assert found == set()


def test_touches_are_found(tmp_path: Path) -> None:
    """Private attributes of other objects, private imports from aiokafka, and clients made by hand."""
    module = tmp_path / "module.py"
    module.write_text(
        "from aiokafka.record.default_records import _DefaultRecordBatchPy\n"
        "self._own\nself.consumer._client\nconsumer._fetcher.x\nself.__dict__\naiokafka.AIOKafkaConsumer()\n"
        "self._connection._closed = True\n"
    )
    assert [line for line, _ in touches_of(module)] == [1, 3, 4, 6, 7]


def sql_of_the_repository() -> Iterator[tuple[str, str]]:
    """Yield the path and text of each SQL file and of each string in a module, without migrations and the attacker."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*")):
            name = str(path.relative_to(ROOT))
            if is_within(name, {MIGRATIONS}) or name == ATTACKER:
                continue
            if path.suffix == ".sql":
                yield name, path.read_text()
            elif path.suffix == ".py":
                yield from ((name, text) for text in strings_of(path))


def strings_of(path: Path) -> Iterator[str]:
    """Yield a module's strings, the text of f-strings as one with `x` for what is put in; docstrings left out."""
    tree = ast.parse(path.read_text())
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in parts | statements:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "x" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def tables_in(text: str) -> set[str]:
    """Return the tables that a piece of SQL names without a schema; none for prose."""
    return set(map(str.lower, _STATEMENT.findall(text))) if _SQL.search(text) else set()


def is_within(path: str, folders: Set[str]) -> bool:
    return any(path.startswith(f"{folder}/") for folder in folders)


def handles_clients(path: Path) -> bool:
    """Return whether a module gets hold of Kafka clients: those of streams and relay, and who imports from there."""
    return is_within(str(path.relative_to(ROOT)), {"streams", "relay"}) or bool(
        re.search(r"^(?:from|import) (?:aiokafka|streams|relay)\b", path.read_text(), re.MULTILINE)
    )


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in {"_asdict", "_fields", "_replace"}


def touches_of(path: Path) -> list[tuple[int, str]]:
    """Return line and text of each private attribute of an object that is not the module's own, and of each client."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue
            case ast.Attribute(attr=name) if is_private(name):
                found.append((node.lineno, ast.unparse(node)))
            case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] == "aiokafka" and any(
                each.name.startswith("_") for each in names
            ):
                found.append((node.lineno, ast.unparse(node)))
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name.startswith("AIOKafka"):
                found.append((node.lineno, ast.unparse(node)))
    return sorted(set(found))
