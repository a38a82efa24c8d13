"""Two tenants with something in every table, and what one may try to get at the other's."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import asyncpg

MINE: Final = "alpha-4d1c"
THEIRS: Final = "beta-9e7a"
"""Everything that theirs holds in text has this in it."""

KINDS: Final[Mapping[str, str]] = {
    "skill": "skills",
    "industry": "industries",
    "job_role": "job_roles",
    "team": "teams",
    "agent": "agents",
}
LINKS: Final[Mapping[str, tuple[str, str]]] = {
    "job_role_skills": ("job_role_id", "skill_id"),
    "team_members": ("team_id", "agent_id"),
    "agent_skills": ("agent_id", "skill_id"),
}
ENTITY_TABLES: Final = ("entities", "entity_versions", *KINDS.values(), *LINKS)
READ_MODEL: Final = "agents_v1.agents"
READ_MODEL_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    READ_MODEL: ("agent_id",),
    "skills_v1.skills": ("skill_id",),
    "skills_v1.skill_validations": ("skill_id", "agent_id"),
    "ratings_v1.ratings": ("agent_id", "skill_id", "day"),
    "ratings_v1.rating_totals": ("partition",),
    "activity_v1.activity": ("hour", "event_type", "partition"),
    "marketplace_v3.marketplace_agents": ("agent_id",),
    "marketplace_v3.marketplace_agent_skills": ("skill_id", "agent_id"),
    "marketplace_v3.marketplace_standings": ("agent_id",),
    "marketplace_v3.marketplace_totals": ("partition",),
    "marketplace_v3.marketplace_catalogue": ("kind", "entity_id"),
    "marketplace_v3.marketplace_words": ("word", "kind", "entity_id"),
    "registry_v1.registry_clashes": ("entity_id",),
}
"""The tables of read models, and their primary keys."""
SHOW_ALL: Final = "SELECT show_build(projection, version) FROM read_model_builds WHERE NOT live"
"""Makes, as the owner, the views of builds that start paused, which a worker makes otherwise."""
VIEWS: Final = tuple(f"read_models.{table.partition('.')[2]}" for table in READ_MODEL_KEYS)
DIVIDED: Final = (*ENTITY_TABLES, *READ_MODEL_KEYS, "skill_embeddings")


@dataclass(frozen=True)
class Ids:
    """The ids of one tenant's entities by kind; `stub` has no row of any kind."""

    by_kind: Mapping[str, UUID]
    stub: UUID

    def of(self, link: str) -> tuple[UUID, UUID]:
        """The ids in a tenant's row of a table of links."""
        owner, other = LINKS[link]
        return self.by_kind[owner.removesuffix("_id")], self.by_kind[other.removesuffix("_id")]


def ids(tenant: str) -> Ids:
    """The same ids every time."""
    base = 1 if tenant == MINE else 2
    numbered = {kind: UUID(int=base << 64 | number) for number, kind in enumerate(KINDS, 1)}
    return Ids(numbered, UUID(int=base << 64 | 99))


async def fill(writer_url: str, embedder_url: str, tenant: str) -> None:
    """One entity of each kind with a link of each sort, a stub, and a row of each read model, as the writer; and an
    embedding.
    """
    own = ids(tenant)
    async with Attempt(writer_url, tenant) as attempt:
        connection = attempt.connection
        for kind, entity_id in {**own.by_kind, "agent ": own.stub}.items():
            await connection.execute(
                "INSERT INTO entities (id, entity_type, governance_agent_id, external_id, governance_notes)"
                " VALUES ($1, $2, $3, $4, $4)",
                entity_id, kind.strip(), tenant, f"{kind} of {tenant}",
            )  # fmt: skip
        for kind, table in KINDS.items():
            extra = ("category", "'technical'") if kind == "skill" else ("governance_agent_id", f"'{tenant}'")
            columns = {"id": f"'{own.by_kind[kind]}'", "name": f"'{kind} of {tenant}'", extra[0]: extra[1]}
            columns["governance_agent_id"] = f"'{tenant}'"
            names, values = ", ".join(columns), ", ".join(columns.values())
            await connection.execute(f"INSERT INTO {table} ({names}) VALUES ({values})")
        for table, columns_of in LINKS.items():
            await connection.execute(
                f"INSERT INTO {table} ({', '.join(columns_of)}, governance_agent_id) VALUES ($1, $2, $3)",
                *own.of(table), tenant,
            )  # fmt: skip
        for table in READ_MODEL_KEYS:
            row = read_model_row(table, own.by_kind["agent"], f"agent of {tenant}") | {"governance_agent_id": tenant}
            values = ", ".join(f"'{value}'" for value in row.values())
            await connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({values})")
    async with Attempt(embedder_url, tenant) as attempt:
        await attempt.connection.execute(
            "INSERT INTO skill_embeddings (skill_id, governance_agent_id, model, text_sha256, embedding)"
            " VALUES ($1, $2, 'a model', sha256(''), array_fill(1, '{384}')::real[]::vector)",
            own.by_kind["skill"], tenant,
        )  # fmt: skip


def read_model_row(table: str, entity_id: UUID, name: str) -> dict[str, str]:
    """A row of a read model's table, as the texts of its literals; its key is the entity's alone."""
    counts = {"ratings": "1", "rating_sum": "1"}
    rest = {
        READ_MODEL: {"name": name},
        "skills_v1.skills": {"name": name},
        "skills_v1.skill_validations": {
            "validator_id": str(entity_id), "score": "1", "validated_at": "2026-01-01Z", "validation_offset": "1"
        },
        "ratings_v1.ratings": counts | {f"rated_{rating}": "0" for rating in range(1, 6)},
        "ratings_v1.rating_totals": counts,
        "activity_v1.activity": {"events": "1"},
        "marketplace_v3.marketplace_agents": {
            "name": name, "status": "onboarded", "skill_ids": "{}", "profile_offset": "1"
        },
        "marketplace_v3.marketplace_agent_skills": {},
        "marketplace_v3.marketplace_standings": counts,
        "marketplace_v3.marketplace_totals": counts,
        "marketplace_v3.marketplace_catalogue": {
            "name": name, "description": "-", "words": "{}", "retired": "false", "catalogue_offset": "1"
        },
        "marketplace_v3.marketplace_words": {},
        "registry_v1.registry_clashes": {
            "events": "1", "last_offset": "1", "last_event_type": "an event", "last_reason": name
        },
    }  # fmt: skip
    others = {
        "day": "2026-01-01",
        "hour": "2026-01-01Z",
        "event_type": "an event",
        "kind": "skill",
        "word": "word",
        "partition": str(entity_id.int >> 64),
    }
    return {column: others.get(column, str(entity_id)) for column in READ_MODEL_KEYS[table]} | rest[table]


class Attempt:
    """A transaction in a tenant on a connection of its own, which keeps all that the server says.

    `output` has rows, notices and errors, details included, as text. A statement that fails does not end the
    transaction; a commit that fails is only noted.
    """

    def __init__(self, url: str, tenant: str | None, *, commit: bool = True) -> None:
        self._url = url
        self._tenant = tenant
        self._commit = commit
        self.output: list[str] = []
        self.refusals: list[asyncpg.PostgresError] = []

    async def __aenter__(self) -> Attempt:
        self.connection = await asyncpg.connect(self._url, statement_cache_size=0)
        self.connection.add_log_listener(lambda _, message: self.output.append(_everything(message)))
        self._transaction = self.connection.transaction()
        await self._transaction.start()
        if self._tenant is not None:
            await self.connection.execute("SELECT set_config('plant.governance_agent_id', $1, true)", self._tenant)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if self._commit and kind is None:
                await self._transaction.commit()
            else:
                await self._transaction.rollback()
        except asyncpg.PostgresError as error:
            if not self.output:
                raise
            self._note(error)
        finally:
            await self.connection.close()

    async def run(self, *statements: str) -> None:
        """Run statements one after the other, each in a savepoint."""
        for statement in statements:
            try:
                async with self.connection.transaction():
                    self.output += [str(tuple(row.values())) for row in await self._rows(statement)]
            except asyncpg.PostgresError as error:
                self._note(error)

    async def _rows(self, statement: str) -> Sequence[Any]:
        verb, _, rest = statement.partition(" ")
        if verb == "COPY" and rest.endswith(" TO STDOUT"):
            output = io.BytesIO()
            source = rest.removesuffix(" TO STDOUT")
            if source.startswith("("):
                await self.connection.copy_from_query(source[1:-1], output=output)
            else:
                schema, _, table = source.rpartition(".")
                await self.connection.copy_from_table(table, schema_name=schema or None, output=output)
            self.output.append(output.getvalue().decode())
            return ()
        if verb == "COPY" and " FROM STDIN " in rest:
            table, _, line = rest.partition(" FROM STDIN ")
            name, _, columns = table.partition(" ")
            schema, _, name = name.rpartition(".")
            await self.connection.copy_to_table(
                name, schema_name=schema or None, source=io.BytesIO(line.encode() + b"\n"), format="csv",
                columns=columns.strip("()").split(", "),
            )  # fmt: skip
            return ()
        rows: Sequence[Any] = await self.connection.fetch(statement)
        return rows

    def _note(self, error: asyncpg.PostgresError) -> None:
        self.refusals.append(error)
        self.output.append(_everything(error))


def _everything(message: Any) -> str:
    return " ".join(str(getattr(message, part, "") or "") for part in ("message", "detail", "hint", "context")) + str(
        message
    )


LEAK: Final = """
CREATE OR REPLACE FUNCTION pg_temp.leak(given text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS
$$ BEGIN RAISE NOTICE '%', given; RETURN true; END $$
"""
"""A function so cheap that the planner would like to call it before a policy's condition; it shows what it is given."""

READS: Final[Mapping[str, tuple[str, ...]]] = {
    "SELECT": ("SELECT * FROM {table}",),
    "SELECT by the tenant": ("SELECT * FROM {table} WHERE governance_agent_id = '{theirs}'",),
    "SELECT in a subquery": ("SELECT (SELECT string_agg(t::text, ' ') FROM {table} AS t)",),
    "SELECT FOR KEY SHARE": ("SELECT * FROM {table} FOR KEY SHARE",),
    "SELECT FOR UPDATE": ("SELECT * FROM {table} FOR UPDATE",),
    "TABLESAMPLE": ("SELECT * FROM {table} TABLESAMPLE SYSTEM (100)",),
    "COPY TO": ("COPY {table} TO STDOUT",),
    "COPY a query TO": ("COPY (SELECT * FROM {table}) TO STDOUT",),
    "row_security off": ("SET LOCAL row_security = off", "SELECT * FROM {table}"),
    "a leaking function": (LEAK, "SELECT * FROM {table} AS t WHERE pg_temp.leak(t::text)"),
    "EXPLAIN ANALYZE": (LEAK, "EXPLAIN (ANALYZE, VERBOSE) SELECT * FROM {table} AS t WHERE pg_temp.leak(t::text)"),
    "the error of a cast": ("SELECT t::text::integer FROM {table} AS t WHERE t::text LIKE '%{theirs}%'",),
    "CREATE TABLE AS": ("CREATE TEMP TABLE mine AS SELECT * FROM {table}", "SELECT * FROM mine", "DROP TABLE mine"),
    "a view": ("CREATE TEMP VIEW mine AS SELECT * FROM {table}", "SELECT * FROM mine", "DROP VIEW mine"),
    "a function that is SECURITY DEFINER": (
        "CREATE OR REPLACE FUNCTION pg_temp.mine() RETURNS SETOF text LANGUAGE sql SECURITY DEFINER"
        " AS 'SELECT t::text FROM {table} AS t'",
        "SELECT pg_temp.mine()",
    ),
    "PREPARE": (
        "SET LOCAL plan_cache_mode = force_generic_plan",
        "PREPARE mine AS SELECT * FROM {table}",
        "EXECUTE mine",
        "DEALLOCATE mine",
    ),
    "a cursor": ("DECLARE mine CURSOR FOR SELECT * FROM {table}", "FETCH ALL FROM mine", "CLOSE mine"),
    "DO": ("DO $$ DECLARE r record; BEGIN FOR r IN SELECT * FROM {table} LOOP RAISE NOTICE '%', r; END LOOP; END $$",),
    "statistics": (
        "SELECT s::text FROM pg_stats AS s WHERE schemaname || '.' || tablename IN ('{table}', 'public.{table}')",
        "SELECT s::text FROM pg_statistic AS s WHERE starelid = '{table}'::regclass",
    ),
}
"""Ways to read a table or view."""


def reads(name: str, relations: Iterable[str]) -> Iterator[str]:
    """The statements of one way to read, for each relation."""
    for relation in relations:
        for statement in READS[name]:
            yield statement.replace("{table}", relation).replace("{theirs}", THEIRS)
