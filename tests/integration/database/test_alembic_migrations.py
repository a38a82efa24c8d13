"""Migrations: each up and down, idempotent, one at a time, on both versions of Postgres, with every failure named."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

import entities.store
import entities.versions  # noqa: F401 (all classes are mapped now)
from database import migrate
from database.errors import (
    DatabaseUnreachable,
    ExtensionMissing,
    MigrationLocked,
    RolesMissing,
    SchemaBehind,
    UnknownRevision,
)
from database.schema_revision import needed_revisions, require_current_schema
from devstack import sql
from entities.mapping import Row
from operations.cli import main as command_line
from tests.conftest import Database
from tests.support import log_rows
from tests.support.other_postgres import fresh_postgres_16
from tests.support.schema_shape import shape, tables_shape
from tests.support.services import Services
from tests.support.waiting import wait_until_async


@pytest.fixture
def bare_database(stack: Services) -> Iterator[Database]:
    """A database that was never migrated; its administrator has added the vector extension."""
    with log_rows.unmigrated(stack) as made:
        yield made


REVISIONS = ("001", "002", "003", "004", "005")


def up_down_up(url: str) -> None:
    """Migrate up, down and up; the schema afterwards is the one before, and in between nothing of ours is left."""
    assert migrate.upgrade(url) == migrate.heads()
    once = shape(url)
    assert migrate.downgrade(url, "base") == ()
    assert [line for line in shape(url) if "alembic_version" not in line] == []
    assert migrate.upgrade(url) == migrate.heads()
    assert shape(url) == once


def test_the_chain_of_migrations_is_one() -> None:
    """Entities and event log are branches with one base each; 007 joins them, and there is one head."""
    script = ScriptDirectory.from_config(migrate._config(None))
    down = {found.revision: found.down_revision for found in script.walk_revisions()}
    assert down == {
        "001": None, "002": "001", "003": "002", "004": "003", "005": "004", "006": None, "007": ("005", "006"),
        "008": "007", "009": "008", "010": "009", "011": "010", "012": "011", "013": "012", "014": "013", "015": "014",
        "016": "015", "017": "016", "018": "017", "019": "018", "020": "019",
        "021": "020", "022": "021", "023": "022", "024": "023", "025": "024", "026": "025", "027": "026", "028": "027",
        "029": "028",
        "030": "029",
        "031": "030",
        "032": "031",
        "033": "032",
        "034": "033",
        "035": "034",
        "037": "035",
        "038": "037",
        "039": "038",
        "040": "039",
        "041": "040",
        "042": "041",
        "043": "042",
        "045": "043",
        "046": "045",
        "047": "046",
        "048": "047",
        "049": "048",
        "050": "049",
    }  # fmt: skip
    assert migrate.heads() == ("050",)
    assert {found.revision: set(found.branch_labels) for found in script.get_revisions(["001", "006"])}["001"] >= {
        "entities"
    }


def test_each_migration_goes_down_to_where_it_came_from(bare_database: Database) -> None:
    """One step up, one down, one up: what a step leaves when it is undone is what was there before it."""
    url = bare_database.owner_url
    for revision in REVISIONS:
        before = shape(url)
        assert migrate.upgrade(url, revision) == (revision,)
        after = shape(url)
        assert after != before
        migrate.downgrade(url, "entities@-1" if revision != "001" else "entities@base")
        assert [line for line in shape(url) if "alembic" not in line] == [
            line for line in before if "alembic" not in line
        ]
        assert migrate.upgrade(url, revision) == (revision,)
        assert shape(url) == after


def test_down_and_up_again_gives_the_same_schema(bare_database: Database) -> None:
    """All migrations down, and up again."""
    up_down_up(bare_database.owner_url)


def test_models_and_migrations_make_the_same_tables(bare_database: Database, stack: Services) -> None:
    """Columns, types, defaults, constraints by name and text, and indexes: what the classes say is what is migrated."""
    metadata = Row.metadata
    migrate.upgrade(bare_database.owner_url)
    with log_rows.unmigrated(stack) as made:

        async def create() -> None:
            engine = create_async_engine(make_url(made.owner_url).set(drivername="postgresql+asyncpg"))
            async with engine.begin() as connection:
                await connection.run_sync(metadata.create_all)
            await engine.dispose()

        migrate._run(create)
        tables = set(metadata.tables)
        assert len(tables) == 10
        assert tables_shape(made.owner_url, tables) == tables_shape(bare_database.owner_url, tables)


def test_a_database_of_the_event_log_alone_is_brought_on(bare_database: Database) -> None:
    """A database that was at 006, with rows, comes to the head and keeps them."""
    url = bare_database.owner_url
    assert migrate.upgrade(url, "006") == ("006",)
    sql.execute(url, ["INSERT INTO checkpoints VALUES ('log', 0, 't', 0, 7)"])
    assert migrate.upgrade(url) == migrate.heads()
    assert sql.value(url, "SELECT next_offset FROM checkpoints") == 7


def test_an_index_build_that_was_cut_off_is_done_again(
    bare_database: Database, template_database: str, stack: Services
) -> None:
    """What a failed build leaves, an invalid index, does not stand in the way of the next upgrade."""
    url = bare_database.owner_url
    migrate.upgrade(url, "003")
    sql.execute(
        url,
        [
            "ALTER TABLE skills ADD COLUMN embedding vector(384)",
            "CREATE INDEX skills_embedding ON skills USING hnsw (embedding vector_cosine_ops)",
        ],
    )
    sql.execute(
        bare_database.superuser_url,
        ["UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'skills_embedding'::regclass"],
    )
    assert migrate.upgrade(url) == migrate.heads()
    assert shape(url) == shape(log_rows.addresses(stack, template_database).owner_url)


def test_building_indexes_keeps_nobody_from_writing(bare_database: Database) -> None:
    """While an old snapshot makes the build wait, other sessions write to the table; then the build is done."""
    url = bare_database.owner_url
    migrate.upgrade(url, "003")
    building = "SELECT count(*) FROM pg_stat_progress_create_index WHERE datname = current_database()"
    entity_id = uuid4()
    writes = [
        "SET lock_timeout = '2s'",
        f"INSERT INTO entities (id, entity_type) VALUES ('{entity_id}', 'skill')",
        f"INSERT INTO skills (id, name, category) VALUES ('{entity_id}', 'a skill', 'technical')",
    ]

    async def while_writing(connection: Any) -> None:
        async with connection.transaction(isolation="repeatable_read"):
            await connection.fetchval("SELECT 1")  # takes the snapshot, and no lock
            upgrade = asyncio.get_running_loop().run_in_executor(None, migrate.upgrade, url)
            await wait_until_async(lambda: upgrade.done() or bool(sql.value(url, building)), "an index being built")
            assert not upgrade.done()
            await asyncio.to_thread(sql.execute, url, writes)
        assert await upgrade == migrate.heads()

    log_rows.on_connection(url, while_writing)
    assert sql.value(bare_database.superuser_url, "SELECT count(*) FROM skills") == 1


def test_a_missing_extension_is_named(stack: Services) -> None:
    """Where nobody has added pgvector, the upgrade stops before it, says what to run, and goes on afterwards."""
    with log_rows.unmigrated(stack, extension=False) as made:
        with pytest.raises(ExtensionMissing, match="vector") as error:
            migrate.upgrade(made.owner_url, "005")
        assert error.value.exit_code == 2
        assert "CREATE EXTENSION vector" in error.value.next_step
        assert migrate.current(made.owner_url) == ("003",)
        sql.execute(made.superuser_url, ["CREATE EXTENSION vector"])
        assert migrate.upgrade(made.owner_url) == migrate.heads()


def test_the_sql_alone_makes_the_same_schema(bare_database: Database, stack: Services) -> None:
    """What `plant db sql` prints can be run by hand, statement by statement; so can the part since a revision."""
    migrate.upgrade(bare_database.owner_url)
    with log_rows.unmigrated(stack) as made:
        sql.execute(made.owner_url, statements(migrate.sql("007")))
        assert migrate.current(made.owner_url) == ("007",)
        sql.execute(made.owner_url, statements(migrate.sql(since="007")))
        sql.execute(made.owner_url, [migrate._LET_SERVICES_CHECK])
        assert shape(made.owner_url) == shape(bare_database.owner_url)
    with pytest.raises(UnknownRevision):
        migrate.sql("no_such_revision")


def statements(script: str) -> list[str]:
    """The script cut where a transaction or a statement without one ends, as psql would send it."""
    parts, part = [], ""
    for line in script.splitlines():
        part += f"{line}\n"
        if line.startswith(
            ("COMMIT;", "DROP INDEX", "CREATE INDEX CONCURRENTLY", "SET lock_timeout", "RESET lock_timeout")
        ):
            parts.append(part)
            part = ""
    return parts


NEWER_THAN_15 = (
    "any_value", "uuidv7", "uuidv4(", "json_table", "json_value", "json_query", "json_exists", "not enforced",
    "without overlaps", " virtual", "merge into", "random_normal", "xmltext", "to_bin(", "to_oct(", "gamma(", "crc32",
    "array_sort", "array_shuffle", "nulls not distinct on", "pg_input_is_valid", "maintain",
)  # fmt: skip


def test_migrations_use_nothing_newer_than_postgres_15() -> None:
    """None of the words that Postgres 16, 17 and 18 brought stands in the SQL."""
    script = migrate.sql().lower()
    assert "create table entities" in script
    assert [word for word in NEWER_THAN_15 if word in script] == []


def test_upgrade_goes_to_the_newest_and_stays_there(bare_database: Database) -> None:
    """From nothing to the heads; a second upgrade changes nothing; any role may check, without Alembic too."""
    assert needed_revisions() == migrate.heads()
    url = bare_database.owner_url
    assert migrate.current(url) == ()
    with pytest.raises(SchemaBehind, match="no revision"):
        require_current_schema(url)
    assert migrate.upgrade(url) == migrate.upgrade(url) == migrate.current(url) == migrate.heads()
    for role in ("owner", "writer", "ingress", "operator", "api", "auditor", "embedder"):
        require_current_schema(getattr(bare_database, f"{role}_url"))


async def test_upgrade_works_inside_an_event_loop(bare_database: Database) -> None:
    """Synchronous code, callable where a loop is running."""
    assert migrate.upgrade(bare_database.owner_url) == migrate.heads()


def test_concurrent_upgrades_wait_for_each_other(bare_database: Database) -> None:
    """Four upgrades at once: all succeed, one of them did the work."""
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(migrate.upgrade, [bare_database.owner_url] * 4))
    assert done == [migrate.heads()] * 4


def test_an_upgrade_gives_up_waiting_for_another(bare_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that never ends is named, after a deadline."""
    monkeypatch.setattr(migrate, "OTHER_UPGRADE_TIMEOUT_SECONDS", 0)

    async def while_locked(connection: Any) -> None:
        await connection.execute(f"SELECT pg_advisory_lock({migrate._ADVISORY_LOCK})")
        with pytest.raises(MigrationLocked, match="Another migration"):
            migrate.upgrade(bare_database.owner_url)

    log_rows.on_connection(bare_database.superuser_url, while_locked)


def test_a_locked_table_makes_the_migration_give_up(bare_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that someone holds stops the migration soon, and nothing was changed."""
    migrate.upgrade(bare_database.owner_url)
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT_SECONDS", 1)

    async def while_held(connection: Any) -> None:
        async with connection.transaction():
            await connection.execute("LOCK TABLE checkpoints IN ACCESS SHARE MODE")
            with pytest.raises(MigrationLocked, match="changed nothing"):
                migrate.downgrade(bare_database.owner_url, "base")

    log_rows.on_connection(bare_database.superuser_url, while_held)
    assert sql.value(bare_database.owner_url, "SELECT to_regclass('checkpoints')") is not None
    assert migrate.upgrade(bare_database.owner_url) == migrate.heads()


def test_a_failed_migration_leaves_nothing_of_itself(bare_database: Database) -> None:
    """DDL and version go together: after a failure in the middle, that migration might never have begun."""
    url = bare_database.owner_url
    sql.execute(url, ["CREATE TABLE team_members (a int)"])
    with pytest.raises(asyncpg.DuplicateTableError, match="team_members"):
        migrate.upgrade(url, "005")
    assert migrate.current(url) == ("002",)
    assert sql.value(url, "SELECT to_regclass('industries')") is None
    sql.execute(url, ["DROP TABLE team_members"])
    assert migrate.upgrade(url) == migrate.heads()


@pytest.mark.parametrize("asks", [migrate.current, require_current_schema])
def test_an_unreachable_database_is_named(asks: Callable[[str], object]) -> None:
    """No server is exit 4, with its address and without the driver's text."""
    with pytest.raises(DatabaseUnreachable, match=r"127\.0\.0\.1:1/plant as plant_owner: nothing listens") as error:
        asks("postgresql://plant_owner:secret-word@127.0.0.1:1/plant")
    assert error.value.exit_code == 4
    assert "secret-word" not in str(error.value)


def test_the_command_line_migrates(
    bare_database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`plant db check` says no before and yes after `plant db upgrade`; `current` names the revision on stdout."""
    monkeypatch.setenv("PLANT_HOME", str(tmp_path))
    monkeypatch.setenv("PLANT_DATABASE_OWNER_URL", bare_database.owner_url)
    newest = ", ".join(migrate.heads()) + "\n"

    def said(verb: str) -> tuple[int, str]:
        return command_line.run(["db", verb]), capsys.readouterr().out

    assert said("check") == (3, "")
    assert command_line.run(["db", "sql", "--revision", "001"]) == 0
    assert "CREATE TABLE entities" in capsys.readouterr().out
    assert said("current") == (0, "empty\n")
    assert [said(verb) for verb in ("upgrade", "upgrade", "current", "check")] == [(0, newest)] * 4


@pytest.fixture
def postgres_16(tmp_path: Path) -> Iterator[str]:
    """The superuser's address of a fresh Postgres 16 of this test's own, without Plant's roles."""
    with fresh_postgres_16(tmp_path) as url:
        yield url


def test_the_migration_runs_on_postgres_16(postgres_16: str) -> None:
    """Without roles, the upgrade says which is missing; with them, up, down and up again work as on 18."""
    assert str(sql.value(postgres_16, "SHOW server_version")).startswith("16.")
    with pytest.raises(RolesMissing, match="plant_writer"):
        migrate.upgrade(postgres_16)
    roles = (Path(migrate.__file__).parent / "roles.sql").read_text(encoding="utf-8")
    sql.execute(postgres_16, [roles, roles, "CREATE EXTENSION vector"])
    up_down_up(postgres_16)


def test_what_is_pending_is_listed_and_what_was_applied(
    bare_database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order in which migrations run, on both branches; a database of a newer Plant is exit 2."""

    def listed(command: str) -> list[tuple[str, str]]:
        assert command_line.run(["db", command, "--output", "json"]) == 0
        return [(row["revision"], row["state"]) for row in json.loads(capsys.readouterr().out)]

    monkeypatch.setenv("PLANT_DATABASE_OWNER_URL", bare_database.owner_url)
    every = [revision for revision, _ in listed("history")]
    assert listed("pending") == [(revision, "pending") for revision in every]
    migrate.upgrade(bare_database.owner_url, "006")
    assert dict(listed("history")) == {name: "applied" if name == "006" else "pending" for name in every}
    migrate.upgrade(bare_database.owner_url)
    assert listed("history") == [(revision, "applied") for revision in every]
    assert listed("pending") == []
    sql.execute(bare_database.owner_url, ["UPDATE alembic_version SET version_num = '999'"])
    for command in ("pending", "history"):
        assert command_line.run(["db", command]) == 2
        assert "999, which this version of Plant does not know" in capsys.readouterr().err


def test_migrations_run_in_the_order_that_is_listed() -> None:
    """Each comes after those that it needs."""
    scripts = {script.revision: script for script in migrate._scripts().walk_revisions()}
    listed = [migration.revision for migration in migrate._history(migrate._scripts(), ("006",))]
    assert sorted(listed) == sorted(scripts)
    for position, revision in enumerate(listed):
        assert set(scripts[revision]._all_down_revisions) <= set(listed[:position])
