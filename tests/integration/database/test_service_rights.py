"""What the services' roles may do: rights and decisions read from the catalogue, and ways to get more."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from devstack import sql
from tests.conftest import Database as MigratedDatabase
from tests.support import log_rows
from tests.support.direct_changes import fetch
from tests.support.services import Services
from tests.support.tenants import DIVIDED, MINE, SHOW_ALL, THEIRS, VIEWS, Attempt, fill, ids

SERVICES = ("writer", "ingress", "operator", "api", "auditor", "embedder", "deliverer", "endpoints")

UNDIVIDED = {
    "public.api_tokens": {"operator", "api"},
    "public.alembic_version": set(SERVICES),
    "public.checkpoints": {"writer", "operator", "api", "auditor"},
    "public.delivery_checkpoints": {"operator", "writer", "deliverer"},
    "public.delivery_marks": {"deliverer"},
    "public.delivery_owners": {"operator", "deliverer"},
    "public.delivery_waits": {"operator", "deliverer"},
    "public.endpoint_backfills": {"operator", "writer"},
    "public.endpoint_events": {"operator", "writer"},
    "public.endpoint_secrets": {"operator", "deliverer", "endpoints"},
    "public.endpoint_streaks": {"operator", "deliverer"},
    "public.endpoint_throttles": {"operator", "deliverer"},
    "public.endpoints": {"operator", "writer", "deliverer", "endpoints"},
    "public.log_ranges": {"writer", "api", "auditor"},
    "public.log_records": {"writer", "auditor"},
    "public.missing_searches": {"writer", "endpoints"},
    "public.model_checkpoints": {"writer", "operator", "api", "auditor"},
    "public.outbox": {"writer"},
    "public.partition_owners": {"writer", "operator", "api", "auditor"},
    "public.master_keys": {"ingress", "operator", "endpoints"},
    "public.producers": {"ingress", "operator"},
    "public.read_model_builds": {"writer", "operator", "api", "auditor"},
    "public.rebuilds": {"operator", "auditor"},
    "public.redrive_partitions": {"operator", "writer", "endpoints"},
    "public.redrive_slots": {"operator", "writer", "endpoints"},
    "public.redrives": {"operator", "writer", "endpoints"},
    "public.webhook_attempts": {"operator", "deliverer"},
    "public.webhook_attempts_other": set(),
    "public.webhook_deliveries": {"operator", "deliverer"},
    "public.webhook_deliveries_other": set(),
    "public.webhook_signatures": {"ingress", "operator"},
}
"""Tables without tenants, and who may read whole rows. A table that stands nowhere has no decision.

Those of endpoints have policies of their own: test_endpoint_tenants.py.
"""

UNDIVIDED_VIEWS = ("public.projection_checkpoints",)
"""Views of tables without tenants."""

VIEWS_OF_COLUMNS = {
    "public.event_stream": {"writer", "auditor"},
    "public.audit_log": {"writer", "auditor"},
    "public.tenant_deliveries": {"endpoints"},
    "public.tenant_attempts": {"endpoints"},
}
"""Views of a table without tenants that ask with their owner's rights, and who may read all of their columns.

Others may read some; with their own rights they would need every column that the view is made of.
"""

DEFINER, INVOKER = "as its owner", "as its caller"
FUNCTIONS = {
    "add_partition_owners(text,text,integer,uuid)": (DEFINER, {"writer"}),
    "add_partition_owners(text,text,integer,uuid,integer)": (DEFINER, {"writer"}),
    "add_log_range(text,integer,bigint)": (DEFINER, set()),
    "add_to_outbox()": (DEFINER, set()),
    "advance_checkpoint(text,text,integer,bigint,boolean)": (INVOKER, {"writer"}),
    "close_log_range(text,integer,bigint)": (DEFINER, {"writer"}),
    "entity_state(uuid)": (INVOKER, {"writer", "api"}),
    "entity_version_hash(bytea,uuid,bigint,text,text,timestamp with time zone,text,text,text)": (
        INVOKER,
        set(SERVICES),
    ),
    "extend_entity_chain()": (INVOKER, set(SERVICES)),
    "disable_endpoint(uuid,text)": (DEFINER, {"deliverer"}),
    "lock_deliveries(text,integer,bigint)": (INVOKER, {"deliverer"}),
    "notify_endpoints()": (INVOKER, set()),
    "note_enabling()": (INVOKER, set()),
    "note_endpoint_failing(uuid,timestamp with time zone,timestamp with time zone,integer,text)": (
        DEFINER,
        {"deliverer"},
    ),
    "note_endpoint_recovered(uuid,timestamp with time zone,timestamp with time zone)": (DEFINER, {"deliverer"}),
    "note_endpoint_state()": (DEFINER, set()),
    "add_delivery_days(integer)": (DEFINER, {"deliverer"}),
    "drop_delivery_day(integer)": (DEFINER, {"deliverer"}),
    "delete_other_deliveries(integer,integer)": (DEFINER, {"deliverer"}),
    "build_is_behind(text,integer)": (INVOKER, set()),
    "guard_log_table(text)": (INVOKER, set()),
    "forget_redrives()": (DEFINER, {"operator", "writer", "endpoints"}),
    "redrive_pending(uuid,bigint)": (DEFINER, {"operator", "writer", "endpoints"}),
    "hold_master_key()": (DEFINER, {"operator", "endpoints"}),
    "hash_before(text,integer,bigint)": (DEFINER, {"writer", "api", "auditor"}),
    "index_log_range(text,integer,bigint)": (DEFINER, {"writer"}),
    "is_logged_topic(text)": (INVOKER, set()),
    "log_reaches(text,integer,bigint)": (INVOKER, set()),
    "summarize_log_range(text,integer,bigint,bigint)": (DEFINER, {"writer"}),
    "log_range_offsets()": (INVOKER, set(SERVICES)),
    "log_table_name(text,integer)": (INVOKER, set(SERVICES)),
    "make_log_range(text,integer,bigint)": (DEFINER, {"writer"}),
    "hold_partition(text,integer,bigint,bigint)": (INVOKER, set(SERVICES)),
    "enforce_external_id()": (INVOKER, set()),
    "fold_entity(text,bigint,text,uuid,text,timestamp with time zone,jsonb,uuid[])": (INVOKER, {"writer"}),
    "fold_into_entity(text,bigint,text,uuid,text,timestamp with time zone,jsonb,uuid[])": (INVOKER, {"writer"}),
    "is_projecting()": (INVOKER, {"writer"}),
    "keep_endpoint_secrets()": (INVOKER, set()),
    "keep_endpoints()": (INVOKER, set()),
    "keep_entity_identity()": (INVOKER, set(SERVICES)),
    "keep_keys_ended()": (INVOKER, set(SERVICES)),
    "keep_tokens_ended()": (INVOKER, set()),
    "lock_partition(text,text,integer,bigint,bigint)": (INVOKER, {"writer"}),
    "lock_partition(text,text,integer,bigint,bigint,integer)": (INVOKER, {"writer"}),
    "move_readers(text,integer,boolean)": (INVOKER, set()),
    "publish_build(text,integer,boolean)": (DEFINER, {"writer"}),
    "record_entity_version()": (DEFINER, set()),
    "refresh_statistics(regclass[])": (DEFINER, {"writer"}),
    "refuse_change()": (INVOKER, set(SERVICES)),
    "refuse_endpoint_removal()": (INVOKER, set()),
    "refuse_key_removal()": (INVOKER, set(SERVICES)),
    "refuse_token_removal()": (INVOKER, set()),
    "refuse_changed_build()": (INVOKER, set(SERVICES)),
    "record_age_seconds(text,integer,bigint)": (DEFINER, {"operator"}),
    "refuse_older_worker()": (INVOKER, set(SERVICES)),
    "refuse_older_worker(integer)": (INVOKER, {"writer"}),
    "refuse_truncate()": (INVOKER, set(SERVICES)),
    "refuse_version_change()": (INVOKER, set(SERVICES)),
    "require_entity()": (INVOKER, set(SERVICES)),
    "show_build(text,integer)": (INVOKER, set()),
    "touch_entities()": (DEFINER, set()),
}
"""Every function of ours: whose rights it runs with, and which services may call it."""

OURS = "nspname !~ '^pg_' AND nspname <> 'information_schema'"
NO_EXTENSION = "NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = {oid} AND d.deptype = 'e')"


@pytest_asyncio.fixture(scope="module")
async def database(stack: Services, template_database: str) -> AsyncIterator[MigratedDatabase]:
    """A migrated database with both tenants filled."""
    with log_rows.migrated_database(stack, template_database) as made:
        for tenant in (MINE, THEIRS):
            await fill(made.writer_url, made.embedder_url, tenant)
        sql.execute(made.owner_url, [SHOW_ALL])
        yield made


def address(database: MigratedDatabase, role: str) -> str:
    return str(getattr(database, f"{role}_url"))


async def column(database: MigratedDatabase, query: str) -> list[str]:
    return [row[0] for row in await fetch(database.superuser_url, query)]


async def test_every_table_is_divided_or_said_not_to_be(database: MigratedDatabase) -> None:
    """Each table of ours has its policy, forced, for everybody and everything, or stands in the list here."""
    tables = await fetch(
        database.superuser_url,
        "SELECT nspname || '.' || relname AS name, relrowsecurity AND relforcerowsecurity AS forced,"
        " (SELECT array_agg(concat_ws(' ', polpermissive, polcmd, polroles, pg_get_expr(polqual, c.oid) LIKE"
        " '%plant.governance_agent_id%', pg_get_expr(polwithcheck, c.oid) = pg_get_expr(polqual, c.oid)))"
        "  FROM pg_policy WHERE polrelid = c.oid) AS policies"
        " FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace"
        f" WHERE relkind IN ('r', 'p', 'm', 'f') AND {OURS} AND {NO_EXTENSION.format(oid='c.oid')}",
    )
    divided = {name for name, forced, _ in tables if forced}

    assert divided == {table if "." in table else f"public.{table}" for table in DIVIDED}
    assert {name for name, _, _ in tables} - divided <= set(UNDIVIDED)
    assert {tuple(policies) for _, forced, policies in tables if forced} == {("t * {0} t t",)}


async def test_rows_without_tenants_are_read_by_who_needs_them(database: MigratedDatabase) -> None:
    """Whole rows of the log, the outbox and the keys can be read by the roles in the list here and by no other."""
    readers = UNDIVIDED | VIEWS_OF_COLUMNS
    tables = [name for name in readers if await column(database, f"SELECT 1 WHERE to_regclass('{name}') IS NOT NULL")]
    for table in tables:
        may = {
            role
            for role in SERVICES
            if await column(database, f"SELECT 1 WHERE has_table_privilege('plant_{role}', '{table}', 'SELECT')")
        }
        assert may == readers[table], table


async def test_every_view_asks_with_its_callers_rights(database: MigratedDatabase) -> None:
    """Each view of ours is a security_invoker, among those that the attacks read through, or stands in a list here."""
    views = await fetch(
        database.superuser_url,
        "SELECT nspname || '.' || relname AS name, 'security_invoker=true' = ANY (reloptions) FROM pg_class AS c"
        f" JOIN pg_namespace AS n ON n.oid = relnamespace WHERE relkind = 'v' AND {OURS}",
    )
    with_callers_rights = dict.fromkeys((*VIEWS, *UNDIVIDED_VIEWS), True)
    found = {name: bool(invoker) for name, invoker in views}
    assert found == with_callers_rights | dict.fromkeys(VIEWS_OF_COLUMNS, False)


async def test_every_function_has_a_decision(database: MigratedDatabase) -> None:
    """Whose rights each function of ours runs with, who may call it, and that its names can't be bent by the caller."""
    functions = await fetch(
        database.superuser_url,
        "SELECT p.oid::regprocedure::text AS name, prosecdef, proconfig, prorettype = 'trigger'::regtype,"
        f" ARRAY(SELECT substr(rolname, 7) FROM pg_roles WHERE substr(rolname, 7) = ANY (ARRAY{list(SERVICES)})"
        f"  AND has_function_privilege(rolname, p.oid, 'EXECUTE')) FROM pg_proc AS p"
        f" JOIN pg_namespace AS n ON n.oid = pronamespace WHERE {OURS} AND {NO_EXTENSION.format(oid='p.oid')}",
    )

    found = {name: (DEFINER if definer else INVOKER, set(may)) for name, definer, _, _, may in functions}
    assert found == FUNCTIONS
    for name, definer, settings, _, _ in functions:
        assert not definer or "search_path=public, pg_temp" in (settings or ()), name


@pytest.mark.parametrize("role", SERVICES)
async def test_functions_show_nothing_of_another_tenant(database: MigratedDatabase, role: str) -> None:
    """Called with the other tenant's ids, a function gives nothing or is refused."""
    other = ids(THEIRS)
    async with Attempt(address(database, role), MINE) as attempt:
        for function in FUNCTIONS:
            name, given = function.removesuffix(")").split("(")
            for entity in (*other.by_kind.values(), other.stub):
                literals = {
                    "uuid": f"'{entity}'",
                    "bytea": r"'\x00'",
                    "bigint": "1",
                    "integer": "0",
                    "text": "'x'",
                    "boolean": "true",
                }
                literals |= {"jsonb": "'{}'::jsonb", "uuid[]": "'{}'::uuid[]"}
                literals["regclass[]"] = "'{agents}'::regclass[]"
                values = [literals.get(kind, "now()") for kind in given.split(",") if kind]
                await attempt.run(f"SELECT max(f::text) FROM (SELECT {name}({', '.join(values)})::text) AS call (f)")
    shown = [text for text in attempt.output if THEIRS in text]
    assert shown == []
    # 23514: no entity is of the kind that the folds are called with.
    assert {error.sqlstate for error in attempt.refusals} <= {"42501", "0A000", "23514", "PL001", "PL002"}


@pytest.mark.parametrize("role", SERVICES)
async def test_a_function_of_the_owner_is_no_trigger_of_ones_own(database: MigratedDatabase, role: str) -> None:
    """Nobody can put the owner's functions on a table of rows that say whatever one likes."""
    definers = [
        name for name, (rights, may) in FUNCTIONS.items() if rights == DEFINER and name.endswith("()") and not may
    ]
    async with Attempt(address(database, role), MINE) as attempt:
        await attempt.run("CREATE TEMP TABLE bait (id uuid, entity_type text, governance_agent_id text)")
        attempt.refusals.clear()
        for name in definers:
            await attempt.run(f"CREATE TRIGGER t AFTER INSERT ON bait FOR EACH ROW EXECUTE FUNCTION {name}")
    assert [error.sqlstate for error in attempt.refusals] == ["42501"] * len(definers)


async def test_what_stands_in_front_of_our_names_is_not_used(database: MigratedDatabase) -> None:
    """Temporary tables and functions under the names that the owner's functions use get none of their rows or calls."""
    entity = "00000000-0000-4000-8000-0000005ad0a1"
    async with Attempt(database.writer_url, MINE) as attempt:
        await attempt.run(
            "CREATE TEMP TABLE entities (LIKE public.entities INCLUDING ALL)",
            "CREATE TEMP TABLE entity_versions (LIKE public.entity_versions)",
            "CREATE TEMP TABLE outbox (LIKE public.entity_versions)",
            "CREATE FUNCTION pg_temp.entity_state(uuid) RETURNS text LANGUAGE sql AS $$ SELECT '{}' $$",
            "CREATE FUNCTION pg_temp.sha256(bytea) RETURNS bytea LANGUAGE sql AS $$ SELECT '\\x00'::bytea $$",
            "SET LOCAL search_path = pg_temp, public, pg_catalog",
            f"INSERT INTO public.entities (id, entity_type, governance_agent_id)"
            f" VALUES ('{entity}', 'skill', '{MINE}')",
            f"INSERT INTO public.skills (id, name, category, governance_agent_id)"
            f" VALUES ('{entity}', 'mine', 'technical', '{MINE}')",
            "SET CONSTRAINTS ALL IMMEDIATE",
            "SELECT 'shadow' FROM pg_temp.entities UNION ALL SELECT 'shadow' FROM pg_temp.entity_versions"
            " UNION ALL SELECT 'shadow' FROM pg_temp.outbox",
        )
    assert attempt.refusals == []
    assert "('shadow',)" not in attempt.output
    for table in ("entity_versions", "outbox"):
        (state,) = await column(
            database, f"SELECT state::jsonb ->> 'name' FROM {table} WHERE entity_id = '{entity}' AND version = 1"
        )
        assert state == "mine"


@pytest.mark.parametrize("role", SERVICES)
async def test_nothing_can_be_put_beside_ours(database: MigratedDatabase, role: str) -> None:
    """No service may create, alter or grant anything outside its own temporary schema."""
    statements = [
        "CREATE TABLE public.entities2 (a int)",
        "CREATE FUNCTION public.sha256(text) RETURNS bytea LANGUAGE sql AS $$ SELECT '\\x00'::bytea $$",
        "CREATE VIEW read_models.mine AS SELECT 1",
        "CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = uuid, FUNCTION = texteq)",
        "CREATE SCHEMA mine",
        "DROP EXTENSION vector CASCADE",
        "CREATE POLICY mine ON skills USING (true)",
        "ALTER TABLE skills DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE agents_v1.agents NO FORCE ROW LEVEL SECURITY",
        "ALTER TABLE skills DISABLE TRIGGER ALL",
        "ALTER VIEW read_models.agents SET (security_invoker = false)",
        "ALTER FUNCTION record_entity_version() RESET search_path",
        "CREATE TRIGGER mine BEFORE INSERT ON skills FOR EACH ROW EXECUTE FUNCTION refuse_truncate()",
        "CREATE RULE mine AS ON INSERT TO skills DO INSTEAD NOTHING",
        "CREATE TEMP TABLE child () INHERITS (skills)",
        "ALTER DEFAULT PRIVILEGES FOR ROLE plant_owner GRANT ALL ON TABLES TO PUBLIC",
        "DROP TABLE skills",
    ]
    async with Attempt(address(database, role), MINE) as attempt:
        await attempt.run(*statements)
    refused = {error.sqlstate for error in attempt.refusals}
    assert len(attempt.refusals) == len(statements), attempt.output
    assert refused <= {"42501", "42883"}


@pytest.mark.parametrize("role", SERVICES)
async def test_no_role_becomes_another(database: MigratedDatabase, role: str) -> None:
    """SET ROLE, SET SESSION AUTHORIZATION, grants, the server's files and its settings are refused."""
    other = [f"plant_{name}" for name in ("owner", *SERVICES) if name != role]
    statements = [
        *(f"SET ROLE {name}" for name in (*other, "postgres", "pg_read_all_data")),
        *(f"SET SESSION AUTHORIZATION {name}" for name in (*other, "postgres")),
        *(f"GRANT {name} TO plant_{role}" for name in (*other, "pg_write_all_data")),
        f"ALTER ROLE plant_{role} BYPASSRLS",
        f"ALTER ROLE plant_{role} SUPERUSER",
        "CREATE ROLE mine",
        "SET session_replication_role = replica",
        "ALTER SYSTEM SET row_security = off",
        f"ALTER DATABASE {database.name} SET plant.governance_agent_id = '{THEIRS}'",
        "SELECT pg_read_file('PG_VERSION')",
        "SELECT lo_import('/etc/hostname')",
        "SELECT * FROM pg_authid",
        "CREATE TEMP TABLE taken (line text)",
        "COPY taken FROM PROGRAM 'true'",
        "COPY (SELECT 1) TO '/tmp/plant-rls'",
        "LOAD 'vector'",
        "SELECT nextval('outbox_id_seq')",
        "SELECT setval('outbox_id_seq', 1)",
        "SELECT last_value FROM outbox_id_seq",
    ]
    async with Attempt(address(database, role), MINE) as attempt:
        await attempt.run(*statements)
    allowed = {"LOAD 'vector'", "CREATE TEMP TABLE taken (line text)"}
    assert len(attempt.refusals) >= len(statements) - len(allowed), attempt.output
    assert {error.sqlstate for error in attempt.refusals} <= {"42501", "25001"}


async def test_large_objects_are_their_makers(database: MigratedDatabase) -> None:
    """What one role stores as a large object no other service can read, list or change."""
    async with Attempt(database.writer_url, MINE) as attempt:
        ((number,),) = await attempt.connection.fetch("SELECT lo_from_bytea(0, $1)", b"alpha's own")
    for role in SERVICES[1:]:
        async with Attempt(address(database, role), MINE) as attempt:
            await attempt.run(
                f"SELECT lo_get({number})",
                f"SELECT lo_unlink({number})",
                f"SELECT lo_put({number}, 0, 'x')",
                "SELECT data FROM pg_largeobject",
            )
        assert [error.sqlstate for error in attempt.refusals] == ["42501"] * 4


async def test_the_queue_and_the_log_are_not_read_from_inside_a_tenant(database: MigratedDatabase) -> None:
    """The outbox, which has rows of both, shows none to who works in a tenant; the API reads no event's content."""
    query = "SELECT state FROM outbox"
    async with Attempt(database.writer_url, MINE) as attempt:
        await attempt.run(query, "UPDATE outbox SET problem = 'mine' RETURNING id", "DELETE FROM outbox RETURNING id")
    assert attempt.output == []
    async with Attempt(database.writer_url, None) as attempt:
        await attempt.run(query)
    assert any(MINE in text for text in attempt.output)
    assert any(THEIRS in text for text in attempt.output)

    async with Attempt(database.api_url, MINE) as attempt:
        contents = [("event_stream", name) for name in ("key", "value", "headers", "reason")]
        contents += [("audit_log", name) for name in ("entity_id", "entity_type")]
        await attempt.run(*(f"SELECT {name} FROM {table}" for table, name in contents))
    assert [error.sqlstate for error in attempt.refusals] == ["42501"] * len(contents)


@pytest.mark.parametrize("role", SERVICES)
async def test_no_service_role_has_power(database: MigratedDatabase, role: str) -> None:
    """Not superuser, not bypassing, making neither roles nor databases, owning nothing, a member of nothing."""
    name = f"plant_{role}"
    (power,) = await column(
        database,
        "SELECT concat_ws(' ', rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication, rolinherit)"
        f" FROM pg_roles WHERE rolname = '{name}'",
    )
    assert power == "f f f f f f"
    assert (
        await column(database, f"SELECT roleid::regrole::text FROM pg_auth_members WHERE member = '{name}'::regrole")
        == []
    )
    here = "SELECT oid FROM pg_database WHERE datname = current_database()"
    # Other databases of the server have temporary tables of this role, while others use it.
    owned = (
        f"SELECT classid::regclass::text FROM pg_shdepend WHERE refobjid = '{name}'::regrole AND deptype = 'o'"
        f" AND dbid IN (0, ({here}))"
    )
    lent = f"SELECT 1 FROM pg_class, aclexplode(relacl) AS a WHERE grantee = '{name}'::regrole AND is_grantable"
    assert [what for what in await column(database, owned) if what != "pg_largeobject"] == []
    assert await column(database, lent) == []
