"""Ways to write into another tenant, as statements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final
from uuid import UUID

from tests.support.tenants import KINDS, LINKS, MINE, READ_MODEL_KEYS, THEIRS, ids, read_model_row

FRESH: Final = "00000000-0000-4000-8000-00000000f4e5"
WRITABLE: Final = ("entities", *KINDS.values(), *LINKS, *READ_MODEL_KEYS)
"""Versions are left out: nobody at all may change one (tests of the audit trail)."""

Rows = Mapping[str, Mapping[str, str]]


def rows(tenant: str) -> Rows:
    """A row for each table that would fit into a tenant: as SQL literals, under ids that are not taken."""
    own = ids(tenant)
    made: dict[str, dict[str, str]] = {"entities": {"id": FRESH, "entity_type": "skill"}}
    made |= {table: {"id": str(own.stub), "name": "written"} for table in KINDS.values()}
    made["skills"]["category"] = "technical"
    for table, (owner, other) in LINKS.items():
        made[table] = {owner: str(own.of(table)[0]), other: FRESH}
    made |= {table: read_model_row(table, UUID(FRESH), "written") for table in READ_MODEL_KEYS}
    return {table: {**row, "governance_agent_id": tenant} for table, row in made.items()}


def key(table: str) -> str:
    """The columns of the primary key."""
    if table in LINKS:
        return ", ".join(LINKS[table])
    return ", ".join(READ_MODEL_KEYS.get(table, ("id",)))


def _insert(table: str, row: Mapping[str, str]) -> str:
    values = ", ".join(f"'{value}'" for value in row.values())
    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({values})"


def _theirs_as_mine(table: str) -> dict[str, str]:
    """A row of mine under the id of one of theirs."""
    kind = next((kind for kind, name in KINDS.items() if name == table), "agent")
    row = {**rows(THEIRS)[table], "governance_agent_id": MINE}
    if table in LINKS:
        return {
            **row,
            **{column: str(value) for column, value in zip(LINKS[table], ids(THEIRS).of(table), strict=True)},
        }
    if table in READ_MODEL_KEYS:
        taken = read_model_row(table, ids(THEIRS).by_kind["agent"], "written")
        changed = {_settable(table): _written(table).strip("'")}
        return {**row, **changed, **{column: taken[column] for column in READ_MODEL_KEYS[table]}}
    return {**row, key(table): str(ids(THEIRS).by_kind[kind])}


def _settable(table: str) -> str:
    """A column that is no part of the key, or, in a table without names, the tenant."""
    return _SETTABLE.get(table, "governance_agent_id" if table in LINKS else "name")


_SETTABLE: Final[Mapping[str, str]] = {
    "entities": "status",
    "skills_v1.skill_validations": "score",
    "ratings_v1.ratings": "rating_sum",
    "ratings_v1.rating_totals": "rating_sum",
    "activity_v1.activity": "events",
    "marketplace_v3.marketplace_agent_skills": "governance_agent_id",
    "marketplace_v3.marketplace_standings": "rating_sum",
    "marketplace_v3.marketplace_totals": "rating_sum",
    "marketplace_v3.marketplace_words": "governance_agent_id",
    "registry_v1.registry_clashes": "last_reason",
}


def _written(table: str) -> str:
    if _SETTABLE.get(table) == "governance_agent_id":
        return f"'{MINE}'"
    return "'7'" if READ_MODEL_KEYS.keys() & {table} and _settable(table) != "name" else "'written'"


def _update(table: str) -> Iterator[str]:
    column = _settable(table)
    value = "governance_agent_id" if table in LINKS else _written(table)
    yield f"UPDATE {table} SET {column} = {value} WHERE governance_agent_id = '{THEIRS}' RETURNING *"
    itself = f"o.ctid = t.ctid AND t::text LIKE '%{THEIRS}%'"
    yield f"UPDATE {table} AS t SET {column} = {_written(table)} FROM {table} AS o WHERE {itself}"


def _steal(table: str) -> Iterator[str]:
    """Theirs made mine, mine made theirs, mine under their id."""
    yield f"UPDATE {table} SET governance_agent_id = '{MINE}' WHERE governance_agent_id = '{THEIRS}'"
    yield f"UPDATE {table} SET governance_agent_id = '{THEIRS}' WHERE governance_agent_id = '{MINE}'"


def _merge(table: str) -> Iterator[str]:
    matched = f"MERGE INTO {table} AS t USING (SELECT '{THEIRS}' AS b) AS s ON t.governance_agent_id = s.b"
    column = _settable(table)
    yield f"{matched} WHEN MATCHED THEN UPDATE SET {column} = {_written(table)}"
    yield f"{matched} WHEN MATCHED THEN DELETE"
    row = rows(THEIRS)[table]
    values = ", ".join(f"'{value}'" for value in row.values())
    yield (
        f"MERGE INTO {table} AS t USING (SELECT 1) AS s ON false"
        f" WHEN NOT MATCHED THEN INSERT ({', '.join(row)}) VALUES ({values})"
    )


def _delete(table: str) -> Iterator[str]:
    yield f"DELETE FROM {table} WHERE governance_agent_id = '{THEIRS}' RETURNING *"
    itself = f"o.ctid = t.ctid AND t::text LIKE '%{THEIRS}%'"
    yield f"DELETE FROM {table} AS t USING {table} AS o WHERE {itself} RETURNING o.*"
    yield f"WITH gone AS (DELETE FROM {table} WHERE governance_agent_id <> '{MINE}' RETURNING *) SELECT * FROM gone"


def _upsert(table: str) -> Iterator[str]:
    """Over a row of theirs: it must be neither changed nor shown."""
    insert = _insert(table, _theirs_as_mine(table))
    column = _settable(table)
    yield f"{insert} ON CONFLICT ({key(table)}) DO UPDATE SET {column} = excluded.{column} RETURNING *"
    yield f"{insert} ON CONFLICT DO NOTHING RETURNING *"
    yield insert


def _copy(table: str) -> Iterator[str]:
    row = rows(THEIRS)[table]
    yield f"COPY {table} ({', '.join(row)}) FROM STDIN {','.join(row.values())}"


WRITES: Final[Mapping[str, Callable[[str], Iterator[str]]]] = {
    "INSERT": lambda table: iter((_insert(table, rows(THEIRS)[table]) + " RETURNING *",)),
    "INSERT ON CONFLICT": _upsert,
    "UPDATE": _update,
    "UPDATE of the tenant": _steal,
    "DELETE": _delete,
    "MERGE": _merge,
    "COPY FROM": _copy,
}
"""Ways to change a table; each is given the table's name."""
