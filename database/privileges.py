"""Privileges that no service may have."""

from __future__ import annotations

from typing import Final

# Privileges of this session, and those that it may gain through roles it is a member of (`pg_has_role` says yes to all
# of them for a superuser). The owner of a schema or database may drop what others own in it; who may create something
# in a schema can put it where ours is looked for; and whose session begins in a tenant need not name one.
TOO_MUCH: Final = """
WITH mine AS (
    SELECT * FROM pg_roles WHERE pg_has_role(session_user, oid, 'MEMBER')
), schemas AS (
    SELECT * FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp_'
)
SELECT why FROM (
    SELECT 1, format('The role %s is a superuser.', rolname) FROM mine WHERE rolsuper
    UNION ALL
    SELECT 2, format('The role %s bypasses row-level security (BYPASSRLS).', rolname) FROM mine WHERE rolbypassrls
    UNION ALL
    SELECT 3, format('The role %s may make roles, replicate, use the server''s files, or use every table.', rolname)
        FROM mine WHERE rolcreaterole OR rolreplication OR rolname IN ('pg_execute_server_program',
        'pg_write_server_files', 'pg_read_server_files', 'pg_write_all_data', 'pg_read_all_data')
    UNION ALL
    SELECT 4, format('The role %s owns the database %s.', rolname, datname)
        FROM pg_database JOIN mine ON mine.oid = datdba WHERE datname = current_database()
    UNION ALL
    SELECT 5, format('The role %s owns the schema %s.', rolname, nspname) FROM schemas JOIN mine ON mine.oid = nspowner
    UNION ALL
    SELECT 6, format('The role %s owns the %s.', rolname, pg_describe_object('pg_class'::regclass, c.oid, 0))
        FROM pg_class AS c JOIN mine ON mine.oid = relowner
        WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND relpersistence <> 't'
    UNION ALL
    SELECT 7, format('The role %s owns the %s.', rolname, pg_describe_object('pg_proc'::regclass, p.oid, 0))
        FROM pg_proc AS p JOIN mine ON mine.oid = proowner JOIN schemas ON schemas.oid = pronamespace
    UNION ALL
    SELECT 8, format('The role %s may create objects in the schema %s.', session_user, nspname) FROM schemas
        WHERE has_schema_privilege(session_user, oid, 'CREATE')
    UNION ALL
    SELECT 9, format('The role %s may create schemas in the database %s.', session_user, current_database())
        WHERE has_database_privilege(session_user, current_database(), 'CREATE')
    UNION ALL
    SELECT 10, format('Sessions of %s begin with %s.', session_user, setting)
        FROM pg_db_role_setting, unnest(setconfig) AS setting
        WHERE setrole IN (0, session_user::regrole) AND setting ILIKE 'plant.%'
        AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
) AS rights (rank, why) ORDER BY rank, why LIMIT 1
"""
"""One row with one reason, or no row."""
