"""The services refuse to start with rights that evade the policies, and roles.sql takes such rights away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from database.errors import TooMuchPrivilege
from devstack import sql
from ingress.keys import KeyStore
from runtime.settings import Settings
from signing.master_key import MasterKeys
from tests.conftest import Database as MigratedDatabase
from tests.support import ROOT, log_rows
from tests.support.at_home import PLANT, environ_of
from tests.support.connectors import connected
from tests.support.services import Services
from tests.support.waiting import DEADLINE_SECONDS

ROLES_SQL = ROOT / "database" / "roles.sql"


@pytest.fixture(scope="module")
def database(stack: Services, template_database: str) -> Iterator[MigratedDatabase]:
    """One migrated database for this module."""
    with log_rows.migrated_database(stack, template_database) as made:
        yield made


def test_roles_are_put_right(stack: Services, make_role: Callable[[str], str]) -> None:
    """A role that was there before, with powers, has none after roles.sql; what is right stays as it is."""
    name = urlsplit(make_role("SUPERUSER BYPASSRLS CREATEROLE CREATEDB REPLICATION INHERIT")).username
    right = urlsplit(make_role("NOINHERIT")).username
    script = ROLES_SQL.read_text(encoding="utf-8")
    script = script.replace("'plant_writer'", f"'{name}'").replace("'plant_api'", f"'{right}'")

    sql.execute(stack.superuser_url, [script, script])

    for role in (name, right):
        found = sql.value(
            stack.superuser_url,
            "SELECT concat_ws(' ', rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication, rolinherit,"
            f" rolcanlogin, rolconfig) FROM pg_roles WHERE rolname = '{role}'",
        )
        assert found == 'f f f f f f t {"search_path=public, pg_temp"}'


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("GRANT pg_read_all_data TO {role}", "or use every table"),
        ("ALTER ROLE {role} CREATEROLE", "may make roles"),
        ("ALTER ROLE {role} REPLICATION", "may make roles, replicate"),
        ("CREATE SCHEMA s AUTHORIZATION {role}", "owns the schema s"),
        ("CREATE VIEW v AS SELECT 1; ALTER VIEW v OWNER TO {role}", "owns the view v"),
        (
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'; ALTER FUNCTION f() OWNER TO {role}",
            "owns the function f()",
        ),
        ("GRANT CREATE ON SCHEMA read_models TO {role}", "may create objects in the schema read_models"),
        ("GRANT CREATE ON DATABASE {database} TO {role}", "may create schemas in the database"),
        ("ALTER ROLE {role} SET plant.governance_agent_id = 'x'", "begin with plant.governance_agent_id=x"),
        ("ALTER ROLE {role} IN DATABASE {database} SET Plant.Projecting = 'on'", "plant.projecting=on"),
    ],
)
async def test_rights_that_lead_round_the_policies_are_refused(
    database: MigratedDatabase, make_role: Callable[[str], str], given: str, said: str
) -> None:
    """The check at start finds what would let a service step over a tenant, or begin in one that it did not name."""
    url = make_role("")
    role = urlsplit(url).username
    async with connected(url) as connector:
        await connector.assert_least_privilege()
    sql.execute(database.superuser_url, [given.format(role=role, database=database.name)])

    async with connected(url) as connector:
        with pytest.raises(TooMuchPrivilege) as error:
            await connector.assert_least_privilege()
    assert said in error.value.why


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("GRANT UPDATE (revoked_at) ON webhook_signatures TO {role}", "may change keys."),
        ("GRANT plant_operator TO {role}", "may change keys."),
        ("GRANT UPDATE (disabled_at) ON producers TO {role}", "may change policies."),
        ("GRANT DELETE ON producers TO {role}", "may change policies."),
        ("GRANT INSERT (check_value) ON master_keys TO {role}", "may change master keys."),
    ],
)
async def test_ingress_may_only_read_keys_and_policies(
    database: MigratedDatabase, make_role: Callable[[str], str], given: str, said: str
) -> None:
    """Whether the role may do so itself, or becomes another one first."""
    url = make_role("NOINHERIT")
    async with connected(url) as connector:
        await KeyStore(connector, MasterKeys(Settings())).assert_read_only()
    sql.execute(database.superuser_url, [given.format(role=urlsplit(url).username)])

    async with connected(url) as connector:
        with pytest.raises(TooMuchPrivilege) as error:
            await KeyStore(connector, MasterKeys(Settings())).assert_read_only()
    assert said in error.value.why


async def test_a_tenant_set_for_the_whole_database_is_refused(
    database: MigratedDatabase, make_role: Callable[[str], str]
) -> None:
    """The check at start also finds settings that a database gives to the sessions of every role."""
    setting = f"ALTER DATABASE {database.name} {{}} plant.governance_agent_id"
    sql.execute(database.superuser_url, [setting.format("SET") + " = 'x'"])
    try:
        async with connected(make_role("")) as connector:
            with pytest.raises(TooMuchPrivilege, match=r"begin with plant\.governance_agent_id=x"):
                await connector.assert_least_privilege()
    finally:
        sql.execute(database.superuser_url, [setting.format("RESET")])


@pytest.mark.parametrize(
    ("command", "service", "role", "why"),
    [
        ("worker", "WRITER", "superuser", "is a superuser"),
        ("relay --once", "WRITER", "owner", "plant_owner owns"),
        ("seed", "WRITER", "owner", "plant_owner owns"),
        ("ingress --port 0", "INGRESS", "BYPASSRLS", "bypasses row-level security"),
        ("ingress --port 0", "INGRESS", "operator", "The role plant_operator may change keys."),
    ],
)
async def test_a_service_refuses_to_start_with_too_much(
    settings_for: Callable[[MigratedDatabase], Settings], stack: Services, database: MigratedDatabase,
    make_role: Callable[[str], str], tmp_path: Path, command: str, service: str, role: str, why: str,
) -> None:  # fmt: skip
    """`plant worker`, `relay`, `seed` and `ingress` exit with 2, say why and what to set, and show no password."""
    url = make_role(role) if role.isupper() else str(getattr(database, f"{role}_url"))
    given = {name: value for name, value in stack.environ.items() if name.startswith("PLANT_KAFKA_")}
    master_key = settings_for(database).master_key
    environ = environ_of(tmp_path, **given, PLANT_MASTER_KEY=master_key, **{f"PLANT_DATABASE_{service}_URL": url})

    process = await asyncio.create_subprocess_exec(
        PLANT, *command.split(), env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            out, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert process.returncode == 2, said.decode()
    assert why in said.decode()
    assert f"PLANT_DATABASE_{service}_URL" in said.decode()
    assert str(urlsplit(url).password) not in said.decode() + out.decode()
