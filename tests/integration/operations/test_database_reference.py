"""docs/reference/database.md against a migrated database: what it says of every table is what is there."""

from __future__ import annotations

import re

import pytest

from devstack import sql
from operations.reference import tables as reference_tables
from operations.reference.database import ROLES
from tests.conftest import Database
from tests.support import ROOT
from tests.support.tenants import SHOW_ALL

PAGE = (ROOT / "docs" / "reference" / "database.md").read_text("utf-8")
OURS = "nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')"
OTHER_NAMES = {
    "timestamp with time zone": "timestamptz",
    "character varying": "varchar",
}


def lines(database: Database, query: str) -> list[str]:
    """The rows of a query that gives one text each, sorted."""
    found = sql.value(database.superuser_url, f"SELECT array_agg(line) FROM ({query}) AS rows (line)")
    return sorted(found or [])


def named(schema: str, table: str) -> str:
    return f"CASE {schema} WHEN 'public' THEN '' ELSE {schema} || '.' END || {table}"


def test_every_table_and_column_is_on_the_page(database: Database) -> None:
    """Each table has a heading, and below it a line for each of its columns, in whatever order; a part has none."""
    found = lines(
        database,
        f"""SELECT {named("nspname", "relname")} || ' ' || string_agg(attname, ' ' ORDER BY attname COLLATE "C")
            FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace JOIN pg_attribute a ON attrelid = c.oid
            WHERE relkind IN ('r', 'p') AND NOT relispartition AND attnum > 0 AND NOT attisdropped AND {OURS}
              AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
            GROUP BY nspname, relname""",
    )
    sections = re.findall(r"^### (\S+)\n(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL)
    said = {name: re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) for name, text in sections if "| column |" in text}
    assert len(found) >= 18
    assert found == sorted(" ".join([name, *sorted(columns)]) for name, columns in said.items())


def test_columns_are_what_the_page_says(database: Database) -> None:
    """Type, collation, null, and whether there is a default or an identity, of every column."""
    found = lines(
        database,
        f"""SELECT concat_ws(' ', {named("nspname", "relname")} || '.' || attname,
                   format_type(atttypid, atttypmod), CASE WHEN collname = 'C' THEN 'COLLATE "C"' END,
                   CASE WHEN attnotnull THEN 'not null' END,
                   CASE WHEN atthasdef OR attidentity <> '' THEN 'default' END)
            FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace JOIN pg_attribute a ON attrelid = c.oid
            LEFT JOIN pg_collation l ON l.oid = attcollation
            WHERE relkind IN ('r', 'p') AND NOT relispartition AND attnum > 0 AND NOT attisdropped AND {OURS}
              AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')""",
    )
    for theirs, ours in OTHER_NAMES.items():
        found = [line.replace(f" {theirs}", f" {ours}") for line in found]
    said = [
        " ".join(
            word
            for word in (
                f"{table.name}.{column.name}",
                column.type,
                "" if column.null else "not null",
                "default" if column.default else "",
            )
            if word
        )
        for table in reference_tables.tables().values()
        for column in table.columns
    ]
    assert found == sorted(said)


def test_defaults_are_what_the_page_says(database: Database) -> None:
    """Each default gives the value that the column's own default gives."""
    for table in reference_tables.tables().values():
        for column in table.columns:
            if not column.default or column.default.startswith("generated"):
                continue
            plain = column.type.removesuffix(' COLLATE "C"')
            own = sql.value(
                database.superuser_url,
                f"""SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef JOIN pg_attribute a
                    ON attrelid = adrelid AND attnum = adnum
                    WHERE adrelid = '{table.name}'::regclass AND attname = '{column.name}'""",
            )
            if "()" in column.default:
                assert own == column.default, (table.name, column.name)
            else:
                same = f"SELECT ({own})::{plain} IS NOT DISTINCT FROM ({column.default})::{plain}"
                assert sql.value(database.superuser_url, same), (table.name, column.name)


def test_constraints_and_indexes_are_on_the_page(database: Database) -> None:
    """As many CHECKs, keys and unique constraints a table as there are, and each index by name."""
    kinds = {"c": "CHECK", "p": "PRIMARY KEY", "u": "UNIQUE", "f": "FOREIGN KEY"}
    found = lines(
        database,
        f"""SELECT {named("nspname", "relname")} || ' ' || contype::text || ' ' || count(*)
            FROM pg_constraint JOIN pg_class c ON c.oid = conrelid JOIN pg_namespace n ON n.oid = relnamespace
            WHERE NOT relispartition AND {OURS} AND contype IN ('c', 'p', 'u', 'f')
            GROUP BY nspname, relname, contype""",
    )
    said = []
    for table in reference_tables.tables().values():
        checks = sum(bool(column.limits) for column in table.columns)
        for letter, kind in kinds.items():
            count = sum(text.startswith(kind) for text in table.constraints) + (checks if letter == "c" else 0)
            said += [f"{table.name} {letter} {count}"] if count else []
    assert found == sorted(said)
    indexes = lines(
        database,
        f"""SELECT c.relname FROM pg_index JOIN pg_class c ON c.oid = indexrelid
            JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE NOT relispartition AND {OURS}
              AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)""",
    )
    named_here = [re.sub(r" CONCURRENTLY| UNIQUE", "", text).split()[2]
                  for table in reference_tables.tables().values() for text in table.indexes]  # fmt: skip
    assert indexes == sorted(named_here)


@pytest.mark.parametrize("role", ROLES)
def test_rights_are_what_the_page_says(database: Database, role: str) -> None:
    """Every right of a role, on a table, a view or a column, is on the page; and no other is."""
    sql.execute(database.owner_url, [SHOW_ALL])
    facts = reference_tables.tables()
    said: set[str] = set()
    for grant in reference_tables.grants():
        if grant.role == role:
            of_all = facts[grant.table].columns if grant.table in facts else ()
            columns = grant.columns or tuple(column.name for column in of_all)
            said |= {f"{grant.table} {grant.right}"} if not grant.columns else set()
            said |= {f"{grant.table}.{column} {grant.right}" for column in columns if grant.right != "DELETE"}
    rights = "unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS r (name)"
    tables = f"""SELECT {named("nspname", "relname")} || ' ' || r.name
                 FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace, {rights}
                 WHERE relkind IN ('r', 'p', 'v') AND {OURS} AND has_table_privilege('{role}', c.oid, r.name)
                   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')"""
    columns = f"""SELECT {named("nspname", "relname")} || '.' || attname || ' ' || r.name
                  FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace JOIN pg_attribute a ON attrelid = c.oid,
                       unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) AS r (name)
                  WHERE attnum > 0 AND NOT attisdropped AND {OURS}
                    AND (relkind IN ('r', 'p') OR relkind = 'v' AND attacl::text LIKE '%{role}=r/%')
                    AND has_column_privilege('{role}', c.oid, attnum, r.name)"""
    assert set(lines(database, tables) + lines(database, columns)) == said


def test_policies_are_what_the_page_says(database: Database) -> None:
    """Every table of the page's list has that policy, forced where the page says so; and no other table has one."""
    query = f"""SELECT concat_ws(' ', {named("nspname", "relname")},
                       CASE WHEN relrowsecurity AND relforcerowsecurity THEN 'forced' END,
                       pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))
                FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace LEFT JOIN pg_policy ON polrelid = c.oid
                WHERE {OURS} AND (relrowsecurity OR polrelid IS NOT NULL)"""
    found = lines(database, query)
    said = []
    for policy in reference_tables.policies():
        # The server's own words for the same policy.
        text = policy.text.replace(f"{policy.table}.", "twin.")
        twin = [f"CREATE TABLE twin (LIKE {policy.table})", f"CREATE POLICY p ON twin {text}"]
        switches = ["ENABLE", "FORCE"] if policy.forced else ["ENABLE"]
        twin += [f"ALTER TABLE twin {switch} ROW LEVEL SECURITY" for switch in switches]
        sql.execute(database.superuser_url, twin)
        said += [
            f"{policy.table}{line.removeprefix('twin')}".replace("= twin.", f"= {policy.table}.")
            for line in lines(database, query)
            if line.startswith("twin ")
        ]
        sql.execute(database.superuser_url, ["DROP TABLE twin"])
    assert found == sorted(said)


def test_triggers_are_what_the_page_says(database: Database) -> None:
    """Table, name and function of each trigger."""
    found = lines(
        database,
        f"""SELECT {named("nspname", "relname")} || ' ' || tgname || ' ' || proname
            FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid JOIN pg_namespace n ON n.oid = relnamespace
            JOIN pg_proc p ON p.oid = tgfoid WHERE NOT tgisinternal AND {OURS}""",
    )
    said = [f"{table} {name} {function}" for table, name, _, function in reference_tables.triggers()]
    assert found == sorted(said)


@pytest.mark.parametrize(("role", "may"), [("plant_writer", True), ("plant_api", True), ("plant_auditor", False)])
def test_who_may_ask_for_a_state(database: Database, role: str, may: bool) -> None:
    """The page names the roles that may call entity_state."""
    asked = f"SELECT has_function_privilege('{role}', 'entity_state(uuid)', 'EXECUTE')"
    assert sql.value(database.superuser_url, asked) is may
    assert "may be called by `plant_writer` and `plant_api`" in PAGE
